"""The models of the paper: a transformer, depth-wise recurrence with its ablations, and chunk-wise recurrence."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from mesascope.models.config import DecoderConfig
from mesascope.models.recurrent.config import RecurrentConfig

DECODER, UT, GUT, FIXED = "decoder", "ut", "gut", "fixed"
NO_GATE, NO_GLOBAL, NO_TRANSITION = "no_gate", "no_global", "no_transition"
TLB, GUTLB = "tlb", "gutlb"
TITLES: Mapping[str, str] = MappingProxyType(
    {
        DECODER: "transformer",
        UT: "UT",
        GUT: "GUT",
        FIXED: "fixed number of steps",
        NO_GATE: "GUT without gate",
        NO_GLOBAL: "GUT with halting per token",
        NO_TRANSITION: "GUT without transition",
        TLB: "TLB",
        GUTLB: "GUTLB",
    }
)
ABLATIONS = (NO_GATE, NO_GLOBAL, NO_TRANSITION)
CHUNK_WISE = (TLB, GUTLB)
FLIP_FLOP_MODELS = (DECODER, UT, GUT, *ABLATIONS, *CHUNK_WISE)
EXPRESSION_MODELS = (GUT, UT, *ABLATIONS, FIXED)
NUM_TLB_LAYERS = 2  # ours

_GUT_FIELDS: Mapping[str, Any] = MappingProxyType({"gate": True, "halt": "global", "transition": True})
_FIELDS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        UT: {},
        GUT: _GUT_FIELDS,
        FIXED: {"gate": True, "halt": "none"},
        NO_GATE: {**_GUT_FIELDS, "gate": False},
        NO_GLOBAL: {**_GUT_FIELDS, "halt": "token"},
        NO_TRANSITION: {**_GUT_FIELDS, "transition": False},
        TLB: {"halt": "none", "max_iterations": 1, "num_hidden_layers": NUM_TLB_LAYERS},
        GUTLB: _GUT_FIELDS,
    }
)


def make_model(
    kind: str,
    *,
    layers: int,
    max_iterations: int,
    halting_penalty: float,
    chunk_length: int,
    memory_slots: int,
    **shape: Any,
) -> DecoderConfig:
    """Return the configuration of a model of the paper, with layer norm before the sublayers and rotary positions.

    Args:
        kind: a key of `TITLES`.
        layers: of the transformer; recurrent models have one block, TLB has two.
        max_iterations: largest number of steps of recurrent models; TLB takes one.
        halting_penalty: of models with halting.
        chunk_length: positions of a chunk, with chunks.
        memory_slots: vectors that one chunk passes to the next, with chunks.
        **shape: further fields of the configuration.
    """
    if kind == DECODER:
        return DecoderConfig(num_hidden_layers=layers, norm="layer", positions="rotary", **shape)
    fields = {"max_iterations": max_iterations, **_FIELDS[kind], **shape}
    if fields.get("halt") != "none":
        fields["halting_penalty"] = halting_penalty
    if kind in CHUNK_WISE:
        fields |= {"chunk_length": chunk_length, "memory_slots": memory_slots}
    return RecurrentConfig(**fields)
