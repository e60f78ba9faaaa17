"""The kinds of damage of hostile folders, by name."""

import json
import struct
from pathlib import Path
from random import Random
from typing import Any

from faults.hostile_models import (
    CONFIG,
    DAMAGES,
    INDEX,
    SHARD,
    TOKENIZER,
    TOKENIZER_CONFIG,
    WEIGHTS,
    add_code,
    change_weights,
    edit_json,
    flatten_all,
    flip_bits,
    give,
    patch_bytes,
    remove_first,
    remove_key,
    rename_first,
    replace_file,
    set_number,
    set_values,
    store_integers,
    swap_files,
    truncate,
    write_index,
    write_pickle,
)

BILLION = 10**9
NESTED = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
AUTO_MAP = {"AutoConfig": "own_code.Own", "AutoModelForCausalLM": "own_code.Own", "AutoTokenizer": "own_code.Own"}

DAMAGES |= {
    f"config_{name}": made
    for name, made in {
        "width_in_quotes": set_values(CONFIG, n_embd="16"),
        "layers_in_list": set_values(CONFIG, n_layer=[2]),
        "layers_null": set_values(CONFIG, n_layer=None),
        "without_type": remove_key(CONFIG, "model_type"),
        "empty": replace_file(CONFIG, b""),
        "truncated": truncate(CONFIG),
        "list": replace_file(CONFIG, b"[1, 2]"),
        "null": replace_file(CONFIG, b"null"),
        "nested": replace_file(CONFIG, NESTED),
        "huge_width": set_values(CONFIG, n_embd=BILLION),
        "huge_positions": set_values(CONFIG, n_positions=BILLION),
        "huge_layers": set_values(CONFIG, n_layer=BILLION),
        "many_layers": set_values(CONFIG, n_layer=50_000),
        "fewer_layers": set_values(CONFIG, n_layer=1),
        "no_layers": set_values(CONFIG, n_layer=0),
        "huge_heads": set_values(CONFIG, n_head=BILLION),
        "huge_vocabulary": set_values(CONFIG, vocab_size=BILLION),
        "huge_labels": set_values(CONFIG, num_labels=BILLION),
        "huge_mlp_llama": set_values(CONFIG, intermediate_size=BILLION),
        "zero_heads": set_values(CONFIG, n_head=0),
        "zero_key_heads_llama": set_values(CONFIG, num_key_value_heads=0),
        "negative_layers": set_values(CONFIG, n_layer=-1),
        "negative_width": set_values(CONFIG, n_embd=-16),
        "heads_that_do_not_divide": set_values(CONFIG, n_head=3),
        "vocabulary_of_another_size": set_values(CONFIG, vocab_size=250),
        "llama_for_gpt2": set_values(CONFIG, model_type="llama", n_embd=64),
        "type_unknown": set_values(CONFIG, model_type="nothing"),
        "type_t5": set_values(CONFIG, model_type="t5", architectures=["T5ForConditionalGeneration"]),
        "type_number": set_values(CONFIG, model_type=7),
        "classifier_gpt2": set_values(CONFIG, architectures=["GPT2ForSequenceClassification"]),
        "activation_unknown": set_values(CONFIG, activation_function="nothing"),
        "epsilon_nan": set_values(CONFIG, layer_norm_epsilon=float("nan")),
        "epsilon_in_quotes": set_values(CONFIG, layer_norm_epsilon="1e-5"),
        "epsilon_negative": set_values(CONFIG, layer_norm_epsilon=-1e9),
        "rope_llama": set_values(CONFIG, rope_parameters={"rope_type": "nothing"}),
        "rope_zero_llama": set_values(CONFIG, rope_parameters={"rope_type": "default", "rope_theta": 0}),
        "rope_number_llama": set_values(CONFIG, rope_parameters=5),
        "dtype_unknown": set_values(CONFIG, dtype="float7", torch_dtype="float7"),
        "kernels": set_values(CONFIG, _attn_implementation="kernels-community/nothing", attn_implementation="nothing"),
        "gptq": set_values(CONFIG, quantization_config={"quant_method": "gptq", "bits": 4}),
        "bitsandbytes": set_values(CONFIG, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "quantization_unknown": set_values(CONFIG, quantization_config={"quant_method": "nothing"}),
        "quantization_number": set_values(CONFIG, quantization_config=4),
        "architectures_number": set_values(CONFIG, architectures=5),
        "weights_elsewhere": set_values(CONFIG, transformers_weights="../other.safetensors"),
        "code": add_code({"model_type": "own", "auto_map": AUTO_MAP}),
        "code_with_known_type": add_code({"auto_map": AUTO_MAP, "architectures": ["Own"]}),
        "code_for_tokenizer": add_code({"auto_map": AUTO_MAP, "tokenizer_class": "Own"}, TOKENIZER_CONFIG),
        "bits": flip_bits(CONFIG),
    }.items()
}
DAMAGES |= {
    f"weights_{name}": made
    for name, made in {
        "truncated": truncate(WEIGHTS),
        "empty": replace_file(WEIGHTS, b""),
        "bits_of_header": flip_bits(WEIGHTS, 400),
        "bits_of_numbers": flip_bits(WEIGHTS, count=40),
        "nan": set_number(float("nan")),
        "infinity": set_number(float("-inf")),
        "1e38": set_number(1e38),
        "header_length": replace_file(WEIGHTS, struct.pack("<Q", 2**60) + b"{}"),
        "header_nested": replace_file(WEIGHTS, struct.pack("<Q", len(NESTED)) + NESTED),
        "no_tensors": replace_file(WEIGHTS, struct.pack("<Q", 2) + b"{}"),
        "offsets": replace_file(
            WEIGHTS, struct.pack("<Q", 58) + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,999999]}}'
        ),
        "tensor_missing": change_weights(remove_first),
        "tensor_renamed": change_weights(rename_first),
        "flattened": change_weights(flatten_all),
        "integers": change_weights(store_integers),
        "swapped": swap_files(WEIGHTS, TOKENIZER),
        "pickle_as_safetensors": write_pickle(WEIGHTS),
        "pickle": write_pickle("pytorch_model.bin"),
    }.items()
}
DAMAGES |= {
    f"index_{name}": made
    for name, made in {
        "right": write_index(lambda right: {"metadata": {}, "weight_map": right}),
        "without_map": write_index({"metadata": {}}),
        "map_of_numbers": write_index(lambda right: {"weight_map": dict.fromkeys(right, 5)}),
        "file_missing": write_index(lambda right: {"weight_map": dict.fromkeys(right, "model-2.safetensors")}),
        "file_elsewhere": write_index(lambda right: {"weight_map": dict.fromkeys(right, f"../x/{SHARD}")}),
        "tensor_missing": write_index(lambda right: {"weight_map": {**right, "none.weight": SHARD}}),
        "no_json": write_index("{"),
        "list": write_index([]),
        "metadata_number": write_index(lambda right: {"metadata": 5, "weight_map": right}),
    }.items()
}


def edit_model(**values: Any) -> Any:
    """A damage that sets values of the model inside tokenizer.json."""
    return lambda folder, _: edit_json(folder / TOKENIZER, lambda found: found["model"].update(values))


def move_ids(by: int) -> Any:
    """A damage that adds a number to every token id."""

    def change(found: dict[str, Any]) -> None:
        found["model"]["vocab"] = {token: index + by for token, index in found["model"]["vocab"].items()}

    return lambda folder, _: edit_json(folder / TOKENIZER, change)


def set_normalizer(pattern: str) -> Any:
    """A damage that lets the tokenizer split at a regular expression."""
    splitter = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return lambda folder, _: edit_json(folder / TOKENIZER, lambda found: found.update(pre_tokenizer=splitter))


DAMAGES |= {
    f"tokenizer_{name}": made
    for name, made in {
        "truncated": truncate(TOKENIZER),
        "empty": replace_file(TOKENIZER, b""),
        "list": replace_file(TOKENIZER, b"[]"),
        "nested": replace_file(TOKENIZER, NESTED),
        "negative_ids": move_ids(-3),
        "large_ids": move_ids(1000),
        "huge_ids": move_ids(2**40),
        "model_unknown": edit_model(type="Nothing"),
        "model_null": lambda folder, _: edit_json(folder / TOKENIZER, lambda found: found.update(model=None)),
        "merges_unknown": edit_model(merges=[["x1", "y1"]]),
        "words_without_unknown": edit_model(type="WordLevel", unk_token="<none>"),
        "vocabulary_empty": edit_model(vocab={}),
        "catastrophic": set_normalizer(r"(?=(\w+\s?)+$)(\w\w?)+\1$"),
        "catastrophic_backtracking": set_normalizer(r"((\S+)+\s?)+\x{1}\1"),
        "pattern_broken": set_normalizer("(("),
        "bits": flip_bits(TOKENIZER),
        "is_config": swap_files(TOKENIZER, CONFIG),
        "config_broken": replace_file(TOKENIZER_CONFIG, b"{"),
        "config_nested": replace_file(TOKENIZER_CONFIG, NESTED),
        "config_class": set_values(TOKENIZER_CONFIG, tokenizer_class="os.system"),
        "config_class_number": set_values(TOKENIZER_CONFIG, tokenizer_class=5),
        "config_length": set_values(TOKENIZER_CONFIG, model_max_length="long"),
        "config_bos_number": set_values(TOKENIZER_CONFIG, bos_token=5),
        "config_bos_unknown": set_values(TOKENIZER_CONFIG, bos_token="<never seen>"),
        "config_added": set_values(TOKENIZER_CONFIG, added_tokens_decoder={"-5": {"content": "x"}, "b": 3}),
        "config_added_huge": set_values(TOKENIZER_CONFIG, added_tokens_decoder={str(2**40): {"content": "x"}}),
        "template": set_values(TOKENIZER_CONFIG, chat_template="{{ 1 / 0 }}" * 1000),
    }.items()
}
DAMAGES |= {
    f"gguf_{name}": made
    for name, made in {
        "truncated": truncate("model.gguf"),
        "empty": replace_file("model.gguf", b""),
        "magic": patch_bytes(0, b"NONE"),
        "version": patch_bytes(4, struct.pack("<I", 999)),
        "huge_tensor_count": patch_bytes(8, struct.pack("<Q", 2**60)),
        "huge_key_count": patch_bytes(16, struct.pack("<Q", 2**60)),
        "bits": flip_bits("model.gguf"),
        "bits_of_header": flip_bits("model.gguf", 300, 1),
        "unharmed": lambda folder, _: None,
    }.items()
}


def append_array(folder: Path, _: Random) -> None:
    """A GGUF file whose first field is an array that claims 2^60 items."""
    key = b"huge"
    array = struct.pack("<Q", len(key)) + key + struct.pack("<IIQ", 9, 4, 2**60)
    file = folder / "model.gguf"
    content = file.read_bytes()
    count = struct.unpack("<Q", content[16:24])[0]
    file.write_bytes(content[:16] + struct.pack("<Q", count + 1) + array + content[24:])


def set_embedding_length(folder: Path, _: Random) -> None:
    file, key = folder / "model.gguf", b"llama.embedding_length"
    content = bytearray(file.read_bytes())
    start = content.index(key) + len(key) + 4
    content[start : start + 4] = struct.pack("<I", 10**9)
    file.write_bytes(content)


def nest_checkpoints(folder: Path, random: Random) -> None:
    """A folder of the Trainer: checkpoints inside, nothing beside them."""
    (folder / "checkpoint-10").mkdir()
    for file in [one for one in folder.iterdir() if one.is_file()]:
        file.rename(folder / "checkpoint-10" / file.name)


def make_adapter(folder: Path, _: Random) -> None:
    (folder / CONFIG).unlink()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "gpt2", "peft_type": "LORA"}))


def make_empty(folder: Path, _: Random) -> None:
    for file in folder.iterdir():
        file.unlink()


def make_folder_of_config(folder: Path, _: Random) -> None:
    (folder / CONFIG).unlink()
    (folder / CONFIG).mkdir()


def link_to_itself(folder: Path, _: Random) -> None:
    (folder / CONFIG).unlink()
    (folder / CONFIG).symlink_to(folder / CONFIG)


DAMAGES |= {"gguf_huge_array": append_array, "gguf_huge_width": set_embedding_length}
DAMAGES |= {
    f"folder_{name}": made
    for name, made in {
        "of_trainer": nest_checkpoints,
        "of_adapter": make_adapter,
        "empty": make_empty,
        "config_is_folder": make_folder_of_config,
        "config_is_loop": link_to_itself,
        "given_by_file": give(CONFIG),
        "given_by_weights": give(WEIGHTS),
        "index_and_no_weights": replace_file(INDEX, b"{}"),
        "generation_config_broken": replace_file("generation_config.json", b"{"),
        "generation_config_types": replace_file("generation_config.json", b'{"eos_token_id": "x", "temperature": []}'),
        "unharmed": lambda folder, _: None,
    }.items()
}
