"""Direct logit attribution: the logit of a token as a sum of contributions of the components of a language model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import xarray as xr
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from mesascope.activations import Capture
from mesascope.analyses.base import analysis, validate_all_layers_captured
from mesascope.argument_types import validate_arguments
from mesascope.axes import to_data_array

ATTRIBUTION_SITES = ("resid_pre", "resid_post", "attn_out", "z")
MAX_LOGIT_ROWS = 256  # maximum rows of logits in memory; fewer are slower per row, more are not faster


@dataclass(frozen=True, kw_only=True, eq=False)
class LogitContributions:
    """Contributions of the components to the logits of some tokens; they sum to the logits before any soft cap.

    Attributes:
        embedding: of the embedding.
        head: of every head.
        attention_bias: of the bias of every attention output.
        mlp: of every MLP.
        readout_bias: of the bias of the output map.
    """

    embedding: Float[Tensor, " target"]
    head: Float[Tensor, "layer head target"]
    attention_bias: Float[Tensor, "layer target"]
    mlp: Float[Tensor, "layer target"]
    readout_bias: Float[Tensor, " target"]

    @property
    def total_logit(self) -> Float[Tensor, " target"]:
        """The sum of all contributions: the logits."""
        layers = self.head.sum((0, 1)) + self.attention_bias.sum(0) + self.mlp.sum(0)
        return self.embedding + layers + self.readout_bias


@validate_arguments
def decompose_logits(
    acts: Capture,
    batch_index: Int[Tensor, " target"],
    pos_index: Int[Tensor, " target"],
    tokens: Int[Tensor, " target"],
    centred: bool = False,
) -> LogitContributions:
    """Compute the contributions of all components to the logit of one token per position, with the final norm frozen.

    No tensor of the size of the vocabulary is allocated: the unembedding row of each token is mapped back to the
    residual stream once, and its dot product with every update is taken there.

    Args:
        acts: a capture of all layers, with ``resid_pre``, ``resid_post``, ``attn_out`` and ``z``.
        batch_index: the sequence of each target.
        pos_index: the position of each target.
        tokens: the token whose logit is decomposed, for each target.
        centred: whether the mean logit over the vocabulary is subtracted, which changes no probability.

    Returns:
        the contributions, in float64.

    Raises:
        ValueError: not all layers were captured, or an index does not exist.
        UnsupportedModel: the output is not a sum of contributions.
    """
    validate_all_layers_captured(acts)
    if acts.inputs.is_floating_point():
        raise ValueError(f"decompose_logits needs tokens, but the capture is of vectors {tuple(acts.inputs.shape)}")
    acts = acts.unrolled()
    batch, length = acts.inputs.shape[:2]
    _validate_indices(
        {"batch_index": batch_index, "pos_index": pos_index, "tokens": tokens},
        (batch, length, len(acts.readout.readout_bias)),
    )
    readout, final = acts.readout, acts["resid_post"][-1][batch_index, pos_index]
    rows = readout.get_unembedding_rows(tokens)
    logit_directions = readout.logit_directions(rows - readout.unembedding_mean if centred else rows, final).double()
    heads, biases, mlps = [], [], []
    for layer in range(len(acts.layers)):
        before, after, attn_out, z = (acts[site][layer][batch_index, pos_index].double() for site in ATTRIBUTION_SITES)
        z_directions = einsum(
            logit_directions, readout.output_projection[layer].double(), "target m, head d m -> target head d"
        )
        heads.append(einsum(z_directions, z, "target head d, target head d -> head target"))
        biases.append(logit_directions @ readout.output_bias[layer].double())
        mlps.append((logit_directions * (after - before - attn_out)).sum(-1))
    bias = readout.readout_bias.double()
    return LogitContributions(
        embedding=(logit_directions * acts["resid_pre"][0][batch_index, pos_index].double()).sum(-1),
        head=torch.stack(heads),
        attention_bias=torch.stack(biases),
        mlp=torch.stack(mlps),
        readout_bias=bias[tokens] - bias.mean() if centred else bias[tokens],
    )


def _validate_indices(indices: Mapping[str, Tensor], sizes: Sequence[int]) -> None:
    """Check that there is one index of each kind per target, and that each exists."""
    counts = {name: len(index) for name, index in indices.items()}
    if min(counts.values()) == 0 or len(set(counts.values())) > 1:
        raise ValueError(
            f"there must be one of {', '.join(counts)} for each target, and one target or more, but got "
            f"{', '.join(map(str, counts.values()))}"
        )
    for (name, index), size in zip(indices.items(), sizes, strict=True):
        if not 0 <= int(index.min()) <= int(index.max()) < size:
            raise ValueError(f"{name} must be from 0 to {size - 1}, but got {int(index.min())} to {int(index.max())}")


@analysis(
    title="Direct logit attribution",
    description="""The logit of the true next token as the sum of the contributions of the embedding, each head, each
    MLP and the biases through the frozen final norm, averaged over positions. The mean logit over the vocabulary is
    subtracted, which changes no probability; logits are taken before any soft cap. The largest difference between the
    sum and the logit of the model is stored as gap.""",
    sites=ATTRIBUTION_SITES,
    steps="ends",
)
def token_attribution(acts: Capture, first: int = 1) -> xr.Dataset:
    """Decompose the logit of the true next token into contributions of all components, averaged over positions.

    Args:
        acts: a capture of all layers of a language model.
        first: positions before this one are left out, since the first token is often an attention sink.

    Returns:
        ``head_contribution`` (layer, head), ``mlp_contribution`` and ``attention_bias_contribution`` (layer), those of
        the embedding and the readout bias, ``logit``, and ``gap``, the largest difference between sum and logit.

    Raises:
        ValueError: the inputs are vectors.
    """
    tokens = acts.inputs
    if tokens.is_floating_point():
        raise ValueError("token_attribution needs tokens, but the inputs are vectors; use direct_attribution")
    batch_index, pos_index = (each.flatten() for each in _positions_with_next_token(tokens, first))
    contributions = decompose_logits(acts, batch_index, pos_index, tokens[batch_index, pos_index + 1], centred=True)
    about = "to the logit of the next token"

    def label_mean(values: Tensor, *dims: str, component: str, **attrs: str | int) -> xr.DataArray:
        meaning = f"mean contribution of {component} {about}"
        return to_data_array(values.mean(-1), *dims, units="logit", description=meaning).assign_attrs(center=0, **attrs)

    return xr.Dataset(
        {
            "head_contribution": label_mean(contributions.head, "layer", "head", component="each head", headline=1),
            "mlp_contribution": label_mean(contributions.mlp, "layer", component="each MLP"),
            "attention_bias_contribution": label_mean(
                contributions.attention_bias, "layer", component="the bias of the attention output"
            ),
            "embedding_contribution": label_mean(contributions.embedding, component="the embedding"),
            "readout_bias_contribution": label_mean(contributions.readout_bias, component="the bias of the output map"),
            "logit": to_data_array(
                contributions.total_logit.mean(),
                units="logit",
                description="mean logit of the next token, minus the mean over the vocabulary",
            ),
            "gap": to_data_array(
                _max_reconstruction_gap(acts, batch_index, pos_index, contributions),
                units="logit",
                description="largest difference between the sum and the logit",
            ),
        }
    )


@analysis(
    title="Tokens promoted most by each head",
    description="""The largest direct contributions of each head to a logit, over all positions and tokens of an
    excerpt, through the frozen final norm: size, token and position. The mean over the vocabulary is subtracted at each
    position, which changes no probability.""",
    sites=["resid_post", "z"],
    steps="ends",
)
def top_tokens(acts: Capture, k: int = 5) -> xr.Dataset:
    """Find the largest direct contributions of each head to a logit, over all positions and tokens of one sequence.

    Args:
        acts: a capture of all layers of a language model on one sequence.
        k: number of contributions per head.

    Returns:
        ``top_logit``, ``top_token_id`` and ``top_position`` (layer, head, rank).

    Raises:
        ValueError: the inputs are not one sequence of tokens.
    """
    validate_all_layers_captured(acts)
    if acts.inputs.is_floating_point() or len(acts.inputs) != 1:
        raise ValueError(f"top_tokens needs one sequence of tokens, but got {tuple(acts.inputs.shape)}")
    heads, heads_per_call = acts["z"].shape[3], max(1, MAX_LOGIT_ROWS // acts.inputs.shape[1])
    top_per_head = [
        _top_contributions(acts, layer, slice(head, head + heads_per_call), k)
        for layer in range(len(acts.layers))
        for head in range(0, heads, heads_per_call)
    ]
    logit, token, position = (torch.cat(each).unflatten(0, (-1, heads)) for each in zip(*top_per_head, strict=True))
    dims = ("layer", "head", "rank")
    return xr.Dataset(
        {
            "top_logit": to_data_array(
                logit, *dims, units="logit", description="largest contributions of a head"
            ).assign_attrs(headline=1),
            "top_token_id": to_data_array(
                token, *dims, units="token", description="tokens of the largest contributions"
            ),
            "top_position": to_data_array(
                position, *dims, units="position", description="positions of the largest contributions"
            ),
        }
    )


def _top_contributions(acts: Capture, layer: int, heads: slice, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return size, token and position of the largest contributions of some heads; only their logits are in memory."""
    z, projection = acts["z"][layer][:, :, heads], acts.readout.output_projection[layer, heads]
    head_out = torch.einsum("bqhd,hdm->hbqm", z, projection)
    logits = acts.readout.attribute_logits(head_out, acts["resid_post"][-1])[:, 0]
    k, mean = min(k, logits.shape[-1]), logits.mean(-1)
    # the k largest contributions lie at the k positions whose largest ones are largest; sorting all logits is slow
    positions = (logits.amax(-1) - mean).topk(min(k, logits.shape[1])).indices
    rows = torch.arange(len(logits), device=logits.device)[:, None]
    top_per_position = (logits[rows, positions] - mean[rows, positions][..., None]).topk(k)
    top = top_per_position.values.flatten(1).topk(k)
    token = top_per_position.indices.flatten(1).gather(1, top.indices)
    return top.values, token, positions.gather(1, top.indices // k)


def _positions_with_next_token(tokens: Int[Tensor, "batch pos"], first: int) -> list[Tensor]:
    """Return the sequence and the position of every token that has a next token."""
    rows, positions = torch.arange(len(tokens)), torch.arange(first, tokens.shape[1] - 1)
    return [each.to(tokens.device) for each in torch.meshgrid(rows, positions, indexing="ij")]


def _max_reconstruction_gap(
    acts: Capture,
    batch_index: Int[Tensor, " target"],
    pos_index: Int[Tensor, " target"],
    contributions: LogitContributions,
) -> Tensor:
    """Return the largest difference between the sums and the model's logits, computed one sequence at a time."""
    max_gap = torch.zeros((), dtype=torch.float64, device=batch_index.device)
    for row in batch_index.unique():
        in_row = batch_index == row
        logits = acts.readout.compute_uncapped_output(acts["resid_post"][-1][row, pos_index[in_row]]).double()
        target_logit = logits.gather(-1, acts.inputs[row, pos_index[in_row] + 1][:, None])[:, 0] - logits.mean(-1)
        max_gap = torch.maximum(max_gap, (target_logit - contributions.total_logit[in_row]).abs().max())
    return max_gap
