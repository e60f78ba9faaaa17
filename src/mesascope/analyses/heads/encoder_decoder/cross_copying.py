"""Copying heads of cross-attention: heads that attend to the next token in the source, and write it."""

from functools import reduce

import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mesascope.activations import Capture
from mesascope.activations.sites import DECODER
from mesascope.analyses.base import analysis
from mesascope.analyses.nulls import Null, with_null
from mesascope.axes import to_data_array

MIN_ATTENTION = 0.5  # ours: attention of a copying head to the source positions of the next token


@analysis(
    title="Copying heads of cross-attention",
    description=f"""
        Of the target positions whose next token occurs in the source: the cross-attention of each head to the source
        positions that hold this token, and the contribution of the head to its logit, less the mean contribution to all
        logits. Nulls: the sources are those of another sequence; the tokens are those of other positions. Role: 1 for
        attention of {MIN_ATTENTION} or more that is above its null, with a contribution that is positive and above its
        null. A head that attends to the token but does not raise its logit has no role.
    """,
    sites=["cross_pattern", "cross_z", "resid_post"],
    supports_padding=True,
    stacks=(DECODER,),
)
def cross_copying(acts: Capture, source: Int[Tensor, "batch source"], draws: int = 10, seed: int = 0) -> xr.Dataset:
    """Compute the cross-attention of every head to the next token in the source, and its contribution to the logit.

    Args:
        acts: the capture of a decoder, with ``cross_pattern``, ``cross_z`` and ``resid_post`` of all layers.
        source: the tokens of the source, such as ``capture.encoder.inputs``; -1 at positions that hold no token.
        draws: number of exchanges of sequences that the null is averaged over.
        seed: seed of the exchanges.

    Returns:
        ``attention``, ``contribution`` and ``role`` by layer and head, with ``attention_null`` and
        ``contribution_null``.

    Raises:
        ValueError: there is one sequence, a layer is missing, or no next token occurs in its source.
        UnsupportedModel: the output is not a sum of contributions, as in blocks with a norm after the sum.
    """
    next_token, source = _find_tokens(acts, source)
    holds = _holds(source, next_token)
    scored = holds.any(-1)
    if not scored.any():
        raise ValueError("cross_copying needs next tokens that occur in the source, but none does; capture others")
    generator = torch.Generator().manual_seed(seed)
    shifts = [int(torch.randint(1, len(source), (1,), generator=generator)) for _ in range(draws)]
    attention = _attention(acts, holds, scored)
    others = [_attention(acts, _holds(source.roll(shift, 0), next_token), scored) for shift in shifts]
    attention_null = reduce(torch.add, others) / draws
    outputs, tokens = _normed_outputs(acts, scored), next_token[scored]
    contribution = _read(acts, outputs, tokens)
    other_tokens = (tokens[torch.randperm(len(tokens), generator=generator)] for _ in range(draws))
    contribution_null = reduce(torch.add, (_read(acts, outputs, each) for each in other_tokens)) / draws
    copies = (attention >= MIN_ATTENTION) & (attention > attention_null)
    writes = (contribution > 0) & (contribution > contribution_null)

    def label(values: Tensor, units: str, about: str) -> xr.DataArray:
        coords = {"layer": list(acts.layers)}
        return to_data_array(values, "layer", "head", units=units, description=about, coords=coords)

    variables = {"role": label((copies & writes).int(), "1", "1: copying head").assign_attrs(categorical=1)}
    for name, units, value, null, control_name, about in (
        ("attention", "1", attention, attention_null, "sources exchanged", "attention to the next token in the source"),
        ("contribution", "logit", contribution, contribution_null, "tokens permuted", "contribution to its logit"),
    ):
        control = Null(name=control_name, value=label(null, units, f"{about}, {control_name}"))
        variables |= with_null(name, label(value, units, about).assign_attrs(headline=1), control)
    return xr.Dataset(variables)


def _find_tokens(
    acts: Capture, source: Int[Tensor, "batch source"]
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch source"]]:
    """Return the next token at every position of the target, and the tokens of the source; -1 where there is none."""
    if acts.layers != tuple(range(acts.readout.num_layers)):
        raise ValueError(f"all {acts.readout.num_layers} layers must be recorded, but only {list(acts.layers)} were")
    pattern, target = acts["cross_pattern"], acts.inputs
    expected = (pattern.shape[1], pattern.shape[-1])
    if source.shape != expected or len(source) == 1:
        raise ValueError(
            f"source must have the tokens of two sequences or more, {expected}, but got {tuple(source.shape)}"
        )
    source = source.to(target.device)
    source = source if acts.source_mask is None else source.masked_fill(~acts.source_mask.bool(), -1)
    none = torch.full_like(target[:, :1], -1)
    if acts.attention_mask is not None:
        target = target.masked_fill(~acts.attention_mask.bool(), -1)
    next_token = torch.cat([target[:, 1:], none], dim=1)
    return next_token.masked_fill(target < 0, -1), source


def _holds(
    source: Int[Tensor, "batch source"], next_token: Int[Tensor, "batch pos"]
) -> Bool[Tensor, "batch pos source"]:
    """Return which positions of the source hold the next token of each position of the target."""
    return (source[:, None] == next_token[:, :, None]) & (next_token >= 0)[:, :, None]


def _attention(
    acts: Capture, holds: Bool[Tensor, "batch pos source"], scored: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "layer head"]:
    """Return the mean attention of scored positions to some positions of the source."""
    weights = torch.stack([(pattern * holds[:, None]).sum(-1).transpose(1, 2) for pattern in acts["cross_pattern"]])
    return weights[:, scored].double().mean(1)


def _normed_outputs(acts: Capture, scored: Bool[Tensor, "batch pos"]) -> Float[Tensor, "layer head token d_model"]:
    """Return the outputs of the heads at scored positions, after the final norm with its scale frozen."""
    final, outputs = acts["resid_post"][-1], acts.head_out("cross_z")
    normed = (acts.readout.apply_frozen_norm(each.transpose(0, 1), final) for each in outputs)
    return torch.stack([each[:, scored] for each in normed])


def _read(
    acts: Capture, outputs: Float[Tensor, "layer head token d_model"], tokens: Int[Tensor, " token"]
) -> Float[Tensor, "layer head"]:
    """Return the mean contribution of heads to the logits of tokens, less their mean contribution to all logits."""
    directions = acts.readout.get_unembedding_rows(tokens) - acts.readout.unembedding_mean
    return (outputs * directions).sum(-1).double().mean(-1)
