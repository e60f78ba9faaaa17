"""Small recurrent transformers for tests, one of each kind."""

from typing import Any

import torch
from torch import Tensor

from mesascope.models.recurrent.config import RecurrentConfig
from mesascope.models.recurrent.model import RecurrentTransformer

SMALL: dict[str, Any] = {
    "vocab_size": 7,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_iterations": 5,
    "max_position_embeddings": 32,
}
CHUNKS: dict[str, Any] = {"chunk_length": 4, "memory_slots": 3}
GUT: dict[str, Any] = {"gate": True, "halt": "global", "transition": True}
KINDS: dict[str, dict[str, Any]] = {
    "UT": {},
    "UT without halting": {"halt": "none"},
    "GUT": GUT,
    "GUT without gate": GUT | {"gate": False},
    "GUT without global halting": GUT | {"halt": "token"},
    "GUT without transition": GUT | {"transition": False},
    "TLB": CHUNKS | {"halt": "none", "max_iterations": 1, "num_hidden_layers": 2},
    "GUTLB": GUT | CHUNKS,
}
HALTING_KINDS = [name for name, fields in KINDS.items() if fields.get("halt") != "none"]


def recurrent(kind: str = "UT", **fields: Any) -> RecurrentTransformer:
    """A model whose positions halt at different steps: threshold 0.9, and weights that matter."""
    torch.manual_seed(0)
    model = RecurrentTransformer(RecurrentConfig(**SMALL | {"halting_threshold": 0.9} | KINDS[kind] | fields)).eval()
    with torch.no_grad():
        model.embed.weight.normal_()
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
            if name.startswith("halting.logit"):
                parameter.mul_(4)
            if "initial_memory" in name:
                parameter.normal_()
    return model


def some_tokens(batch: int = 3, pos: int = 11) -> Tensor:
    """Tokens from 1 on; 0 is padding in these tests."""
    return torch.randint(1, SMALL["vocab_size"], (batch, pos), generator=torch.Generator().manual_seed(1))
