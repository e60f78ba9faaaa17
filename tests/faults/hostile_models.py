"""Broken and hostile folders of models: small, seeded, each with one kind of damage; and a harness that inspects them.

``run_many(place)`` is the full trial: it yields exit code, output, seconds and peak memory of each.
"""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gguf_files import write_gguf

MARKER = "code-has-run"  # a file that the code of a hostile folder creates beside it
CONFIG, TOKENIZER, TOKENIZER_CONFIG = "config.json", "tokenizer.json", "tokenizer_config.json"
WEIGHTS, INDEX, SHARD = "model.safetensors", "model.safetensors.index.json", "model-00001-of-00001.safetensors"
Damage = Callable[[Path, Random], Path | None]
DAMAGES: dict[str, Damage] = {}


def save_victims(place: Path) -> None:
    """A GPT-2 and a Llama of a few kB with a byte-level tokenizer, and the Llama as GGUF."""
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=258, n_embd=16, n_layer=2, n_head=2, n_positions=32))
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=258,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=32,
        )
    )
    letters = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = letters[0]
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end)
    for name, model in (("gpt2", gpt2), ("llama", llama)):
        model.save_pretrained(place / name)
        wrapped.save_pretrained(place / name)
    write_gguf(place / "llama.gguf", llama, [*letters, letters[1] + letters[2]])


def make_hostile_folder(victims: Path, place: Path, kind: str, seed: int) -> Path:
    """Copy a model and damage it; the path that a user would pass to ``mesascope inspect``."""
    random = Random(f"{kind} {seed}")
    folder = place / f"{kind}-{seed}"
    shutil.copytree(victims / (_choose_family(kind, random)), folder)
    if kind.startswith("gguf"):
        for file in folder.iterdir():
            file.unlink()
        shutil.copy(victims / "llama.gguf", folder / "model.gguf")
        (folder / CONFIG).unlink(missing_ok=True)
    return DAMAGES[kind](folder, random) or (folder / "model.gguf" if kind.startswith("gguf") else folder)


def _choose_family(kind: str, random: Random) -> str:
    family = "llama" if random.random() < 0.3 else "gpt2"
    return next((name for name in ("gpt2", "llama") if kind.endswith(name)), family)


def edit_json(file: Path, change: Callable[[Any], Any]) -> None:
    value = json.loads(file.read_text(encoding="utf-8"))
    changed = change(value)
    file.write_text(json.dumps(value if changed is None else changed), encoding="utf-8")


def set_values(file: str, **values: Any) -> Damage:
    """A damage that sets values of a JSON file; names of GPT-2 are translated to those of Llama."""
    llama_names = {"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads"}
    llama_names |= {"n_positions": "max_position_embeddings", "layer_norm_epsilon": "rms_norm_eps"}
    llama_names |= {"activation_function": "hidden_act"}

    def apply(folder: Path, _: Random) -> None:
        def change(found: dict[str, Any]) -> None:
            is_llama = found.get("model_type") == "llama"
            found.update({llama_names.get(key, key) if is_llama else key: value for key, value in values.items()})

        edit_json(folder / file, change)

    return apply


def remove_key(file: str, key: str) -> Damage:
    return lambda folder, _: edit_json(folder / file, lambda found: {k: v for k, v in found.items() if k != key})


def replace_file(file: str, content: bytes) -> Damage:
    return lambda folder, _: void((folder / file).write_bytes(content))


def truncate(file: str) -> Damage:
    def apply(folder: Path, random: Random) -> None:
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(content[: random.randrange(1, len(content))])

    return apply


def flip_bits(file: str, first_bytes: int | None = None, count: int = 3) -> Damage:
    def apply(folder: Path, random: Random) -> None:
        content = bytearray((folder / file).read_bytes())
        for _ in range(count):
            content[random.randrange(first_bytes or len(content))] ^= 1 << random.randrange(8)
        (folder / file).write_bytes(content)

    return apply


def swap_files(first: str, second: str) -> Damage:
    def apply(folder: Path, _: Random) -> None:
        one, other = (folder / first).read_bytes(), (folder / second).read_bytes()
        (folder / first).write_bytes(other)
        (folder / second).write_bytes(one)

    return apply


def void(_: object) -> None:
    return None


def change_weights(change: Callable[[dict[str, torch.Tensor], Random], None]) -> Damage:
    def apply(folder: Path, random: Random) -> None:
        weights = load_file(folder / WEIGHTS)
        change(weights, random)
        save_file(weights, folder / WEIGHTS, {"format": "pt"})

    return apply


def set_number(number: float) -> Damage:
    def change(weights: dict[str, torch.Tensor], random: Random) -> None:
        weights[random.choice(sorted(weights))].view(-1)[0] = number

    return change_weights(change)


def rename_first(weights: dict[str, torch.Tensor], _: Random) -> None:
    name = sorted(weights)[0]
    weights[f"{name}.other"] = weights.pop(name)


def remove_first(weights: dict[str, torch.Tensor], _: Random) -> None:
    del weights[sorted(weights)[0]]


def flatten_all(weights: dict[str, torch.Tensor], _: Random) -> None:
    weights.update({name: value.flatten() for name, value in weights.items()})


def store_integers(weights: dict[str, torch.Tensor], _: Random) -> None:
    weights.update({name: (value * 100).to(torch.int32) for name, value in weights.items()})


def add_code(config: dict[str, Any], file: str = CONFIG) -> Damage:
    """A damage that adds Python code to a folder, which creates the marker when it is imported."""

    def apply(folder: Path, random: Random) -> None:
        marker = folder.parent / MARKER
        (folder / "own_code.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Own: pass\n")
        set_values(file, **config)(folder, random)

    return apply


class MarkerOnLoad:
    """A value whose unpickling creates the marker."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.marker, "w")


def write_pickle(file: str) -> Damage:
    def apply(folder: Path, _: Random) -> None:
        (folder / WEIGHTS).unlink()
        (folder / file).write_bytes(pickle.dumps(MarkerOnLoad(folder.parent / MARKER)))

    return apply


def write_index(index: Any) -> Damage:
    """A damage that moves the weights to a shard and writes an index of it; ``MAP`` is the right one."""

    def apply(folder: Path, _: Random) -> None:
        names = list(load_file(folder / WEIGHTS))
        (folder / WEIGHTS).rename(folder / SHARD)
        value = index(dict.fromkeys(names, SHARD)) if callable(index) else index
        (folder / INDEX).write_text(value if isinstance(value, str) else json.dumps(value))

    return apply


def patch_bytes(offset: int, content: bytes) -> Damage:
    def apply(folder: Path, _: Random) -> None:
        file = folder / "model.gguf"
        found = bytearray(file.read_bytes())
        found[offset : offset + len(content)] = content
        file.write_bytes(found)

    return apply


def give(path: str) -> Damage:
    return lambda folder, _: folder / path
