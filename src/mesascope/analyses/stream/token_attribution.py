"""Who raised the logit of a token: the sum of what each part of a language model contributes to it."""

from dataclasses import dataclass

import torch
import xarray as xr
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from mesascope.activations import Capture
from mesascope.analyses.base import measure, refuse_some_layers
from mesascope.axes import label

STREAM = ("resid_pre", "resid_post", "attn_write", "head_out")
ROWS = 256  # of logits in memory at once: fewer are slower by the row, more gain nothing


@dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """Contributions to logits, one for each place that was asked for; they sum to the logits before any cap."""

    embedding: Float[Tensor, " place"]
    head: Float[Tensor, "layer head place"]
    attention_bias: Float[Tensor, "layer place"]
    mlp: Float[Tensor, "layer place"]
    readout_bias: Float[Tensor, " place"]

    @property
    def total(self) -> Float[Tensor, " place"]:
        """Their sum: the logits."""
        layers = self.head.sum((0, 1)) + self.attention_bias.sum(0) + self.mlp.sum(0)
        return self.embedding + layers + self.readout_bias


def contributions_to(
    recorded: Capture,
    batch: Int[Tensor, " place"],
    pos: Int[Tensor, " place"],
    tokens: Int[Tensor, " place"],
    centred: bool = False,
) -> Parts:
    """What each part contributes to the logit of one token at each of some places, through the frozen final norm.

    Nothing of the size of the vocabulary is made: the row of each token is taken back to the stream once, and every
    write is multiplied by it there.

    Args:
        recorded: a capture of all layers, with ``resid_pre``, ``resid_post``, ``attn_write`` and ``head_out``.
        batch, pos: the places.
        tokens: whose logit at each of them.
        centred: the mean logit over all tokens is taken off, which changes no probability.

    Raises:
        ValueError: not all layers were recorded; UnsupportedModel: the prediction is no sum of parts.
    """
    refuse_some_layers(recorded)
    frame, final = recorded.frame, recorded["resid_post"][-1][batch, pos]
    rows = frame.unembedding(tokens)
    along = frame.toward(rows - frame.unembedding_mean if centred else rows, final).double()
    heads, biases, mlps = [], [], []
    for layer in range(len(recorded.layers)):
        before, after, write, out = (recorded[site][layer][batch, pos].double() for site in STREAM)
        back = einsum(along, frame.output_projection[layer].double(), "place m, head d m -> place head d")
        heads.append(einsum(back, out, "place head d, place head d -> head place"))
        biases.append(along @ frame.output_bias[layer].double())
        mlps.append((along * (after - before - write)).sum(-1))
    bias = frame.readout_bias.double()
    return Parts(
        embedding=(along * recorded["resid_pre"][0][batch, pos].double()).sum(-1),
        head=torch.stack(heads),
        attention_bias=torch.stack(biases),
        mlp=torch.stack(mlps),
        readout_bias=bias[tokens] - bias.mean() if centred else bias[tokens],
    )


@measure(title="Direct contributions to the next token", sites=STREAM, steps="ends", order=30)
def token_attribution(recorded: Capture, first: int = 1) -> xr.Dataset:
    """The logit of the true next token as the sum of what the embedding, each head, each MLP and the biases
    contribute through the frozen final norm, averaged over places. Logits are taken from their mean over the
    vocabulary, which changes no probability, and before any cap. The largest difference between the sum and the
    model's own logit is stored beside them.

    Args:
        recorded: a capture of all layers of a language model.
        first: positions before this one are left out, for a first token is often a sink.
    """
    tokens = recorded.inputs
    if tokens.is_floating_point():
        raise ValueError("token_attribution needs tokens, but the inputs are vectors; use attribution")
    batch, pos = (each.flatten() for each in _places(tokens, first))
    parts = contributions_to(recorded, batch, pos, tokens[batch, pos + 1], centred=True)
    about = "to the logit of the next token"

    def named(values: Tensor, *dims: str, of: str, **attrs: str | int) -> xr.DataArray:
        meaning = f"mean contribution of {of} {about}"
        return label(values.mean(-1), *dims, units="logit", about=meaning).assign_attrs(center=0, **attrs)

    return xr.Dataset(
        {
            "head_contribution": named(parts.head, "layer", "head", of="each head", headline=1),
            "mlp_contribution": named(parts.mlp, "layer", of="each MLP"),
            "attention_bias_contribution": named(parts.attention_bias, "layer", of="the bias behind the heads"),
            "embedding_contribution": named(parts.embedding, of="the embedding"),
            "readout_bias_contribution": named(parts.readout_bias, of="the bias of the read-out"),
            "logit": label(
                parts.total.mean(), units="logit", about="mean logit of the next token, from the mean logit"
            ),
            "gap": label(
                _gap(recorded, batch, pos, parts),
                units="logit",
                about="largest difference between the sum and the logit",
            ),
        }
    )


@measure(title="Tokens that heads raise most", sites=["resid_post", "head_out"], steps="ends", order=48)
def top_tokens(recorded: Capture, k: int = 5) -> xr.Dataset:
    """The largest direct contributions of each head to a logit, over all positions of an excerpt and all tokens,
    through the frozen final norm: how much, to which token, at which position. At each position a head's
    contributions are taken from their mean over the vocabulary, which changes no probability.

    Args:
        recorded: a capture of all layers of a language model on one sequence.
        k: how many for each head.
    """
    refuse_some_layers(recorded)
    if recorded.inputs.is_floating_point() or len(recorded.inputs) != 1:
        raise ValueError(f"top_tokens needs one sequence of tokens, but got {tuple(recorded.inputs.shape)}")
    heads, together = recorded["head_out"].shape[3], max(1, ROWS // recorded.inputs.shape[1])
    found = [
        _top(recorded, layer, slice(head, head + together), k)
        for layer in range(len(recorded.layers))
        for head in range(0, heads, together)
    ]
    logit, token, at = (torch.cat(each).unflatten(0, (-1, heads)) for each in zip(*found, strict=True))
    dims = ("layer", "head", "rank")
    return xr.Dataset(
        {
            "top_logit": label(logit, *dims, units="logit", about="largest contributions of a head").assign_attrs(
                headline=1
            ),
            "top_token_id": label(token, *dims, units="token", about="the tokens whose logit they raise"),
            "top_at": label(at, *dims, units="position", about="the positions where they do"),
        }
    )


def _top(recorded: Capture, layer: int, heads: slice, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Size, token and position of the largest contributions of some heads; logits are held for these alone."""
    out, projection = recorded["head_out"][layer][:, :, heads], recorded.frame.output_projection[layer, heads]
    write = torch.einsum("bqhd,hdm->hbqm", out, projection)
    logits = recorded.frame.attribute(write, recorded["resid_post"][-1])[:, 0]
    k = min(k, logits.shape[-1])
    each = logits.sub_(logits.mean(-1, keepdim=True)).topk(k)
    top = each.values.flatten(1).topk(k)
    return top.values, each.indices.flatten(1).gather(1, top.indices), top.indices // k


def _places(tokens: Int[Tensor, "batch pos"], first: int) -> list[Tensor]:
    """Every sequence and position that has a next token."""
    rows, positions = torch.arange(len(tokens)), torch.arange(first, tokens.shape[1] - 1)
    return [each.to(tokens.device) for each in torch.meshgrid(rows, positions, indexing="ij")]


def _gap(recorded: Capture, batch: Int[Tensor, " place"], pos: Int[Tensor, " place"], parts: Parts) -> Tensor:
    """How far the sums are from the logits that the model's own read-out gives, sequence by sequence."""
    worst = torch.zeros((), dtype=torch.float64, device=batch.device)
    for row in batch.unique():
        here = batch == row
        logits = recorded.frame.uncapped(recorded["resid_post"][-1][row, pos[here]]).double()
        wanted = logits.gather(-1, recorded.inputs[row, pos[here] + 1][:, None])[:, 0] - logits.mean(-1)
        worst = torch.maximum(worst, (wanted - parts.total[here]).abs().max())
    return worst
