"""One tiny language model for all tests of the explorer."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mesascope.explorer import ExploredModel, explore_model
from small_tokenizers import make_sentencepiece


def make_tiny_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 40}
    config = LlamaConfig(vocab_size=400, hidden_size=16, intermediate_size=24, initializer_range=0.3, **shape)
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def subject() -> ExploredModel:
    return explore_model(make_tiny_model(), make_sentencepiece(), "tiny <b>model</b>")
