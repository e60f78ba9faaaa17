"""GGUF files of tiny models."""

from pathlib import Path

import gguf
from transformers import LlamaForCausalLM


def write_gguf(file: Path, llama: LlamaForCausalLM, tokens: list[str] | None = None) -> None:
    """The weights of a tiny Llama as llama.cpp stores them; with tokens, also a byte-level tokenizer."""
    config = llama.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if tokens:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(tokens)
        writer.add_token_merges([f"{tokens[1]} {tokens[2]}"])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(0)
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, value in llama.state_dict().items():
        stored = table.get_name(name.removesuffix(".weight"))
        assert stored is not None, name
        writer.add_tensor(f"{stored}.weight", value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
