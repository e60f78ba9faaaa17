"""Small random models that several folders of tests look at."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def llama(**changes: object) -> LlamaForCausalLM:
    """A Llama of three layers by default, with two heads to a key-value head."""
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=20, hidden_size=16, intermediate_size=24, **(shape | changes))
    return LlamaForCausalLM(config).eval()
