"""A tiny language model in a folder."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mesascope.inspection import load_sample_text


def save_tiny(place: Path, seed: int = 0, *, grouped: bool = False) -> Path:
    """A tiny GPT-2 with a word tokenizer, as somebody might have saved it; or a Llama with grouped heads."""
    words = sorted(set(load_sample_text()[:20_000].split()))
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<unk>", *words])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    torch.manual_seed(seed)
    if grouped:
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
        llama = LlamaConfig(vocab_size=len(words) + 1, hidden_size=16, intermediate_size=24, **heads)
        LlamaForCausalLM(llama).save_pretrained(place / "tiny")
    else:
        config = GPT2Config(vocab_size=len(words) + 1, n_embd=16, n_layer=2, n_head=2, n_positions=64)
        GPT2LMHeadModel(config).save_pretrained(place / "tiny")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(place / "tiny")
    return place / "tiny"
