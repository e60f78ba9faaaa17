"""Logit lens and affine lens: the next-token prediction of a language model at each depth."""

from collections.abc import Callable

import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from mesascope.activations import Capture, LayerReduction, LayerView
from mesascope.analyses.base import analysis, validate_all_layers_captured
from mesascope.analyses.stream.probes import depth_names
from mesascope.axes import to_data_array
from mesascope.ridge import LOG10_PENALTIES, decompose_features
from mesascope.statistics import split_halves

READOUT_CHUNK = 128  # tokens per application of the readout; more logits do not fit into the processor cache
Stream = Float[Tensor, "token d_model"]


def _sample_stream(view: LayerView) -> dict[str, Tensor]:
    return {"lens_before": view["resid_pre"][:, view.queries], "lens_after": view["resid_post"][:, view.queries]}


LENS_REDUCTION = LayerReduction(
    sites=("resid_pre", "resid_post"),
    fn=_sample_stream,
    axes=dict.fromkeys(("lens_before", "lens_after"), ("batch", "query", "d_model")),
)


@analysis(
    title="Logit lens",
    description="""The model's own final norm and unembedding applied to the residual stream before each layer and after
    the last (nostalgebraist 2020): the loss on the true next token, the accuracy of the top token, and how often the
    top token is already the model's final prediction. Positions without a next token are left out, and so are positions
    that the task does not score.""",
    reductions={"lens_sample": LENS_REDUCTION},
    supports_padding=True,
)
def logit_lens(acts: Capture) -> xr.Dataset:
    """Apply the final norm and the unembedding to the residual stream at every depth.

    Args:
        acts: a capture of tokens.

    Returns:
        ``loss``, ``accuracy`` and ``agrees_with_final`` (layer), and ``loss_by_position`` (layer, batch, pos).

    Raises:
        ValueError: the inputs are vectors, or not all layers were captured.
    """
    streams, targets, is_scored = next_tokens(acts)
    loss, top = zip(*(_apply_readout(acts, stream, targets) for stream in streams), strict=True)
    losses, tops = torch.stack(loss), torch.stack(top)
    loss_by_position = _scatter_to_positions(acts, losses.masked_fill(~is_scored, torch.nan))
    depth = {"layer": depth_names(acts.layers)}
    variables = _summarize_lens(losses, tops, targets, is_scored, depth)
    variables["loss_by_position"] = to_data_array(
        loss_by_position, "layer", "batch", "pos", units="nat", description="loss on the true next token", coords=depth
    )
    return xr.Dataset(variables)


@analysis(
    title="Affine lens",
    description="""An affine map from the residual stream at each depth to the final one, followed by the model's own
    readout (tuned lens, Belrose et al. 2023). Ridge regression fits the difference between the final stream and the
    stream at this depth, so that the map is shrunk towards the identity: with an infinite penalty it is the logit lens,
    and after the last layer it is the model. The penalty of each depth is chosen by generalised cross-validation. Each
    half of the sequences (of the positions, if there is one sequence) is predicted with the map that is fitted on the
    other half. What the affine lens predicts better than the logit lens, at the same tokens, is available at that
    depth, but in other coordinates.""",
    reductions={"lens_sample": LENS_REDUCTION},
    supports_padding=True,
)
def affine_lens(acts: Capture) -> xr.Dataset:
    """Map the residual stream at every depth to the final one by ridge regression, then apply the model's readout.

    Args:
        acts: a capture of tokens.

    Returns:
        ``loss``, ``accuracy`` and ``agrees_with_final`` (layer), at the tokens of :func:`logit_lens`; ``log10_penalty``
        and ``penalty_at_edge`` (layer, stat), for the maps fitted on each half.

    Raises:
        ValueError: the inputs are vectors, not all layers were captured, or a half has fewer than two tokens.
    """
    streams, targets, is_scored = next_tokens(acts)
    in_first_half = _first_half(targets)
    is_token = _token_mask(acts, targets)
    loss, top, penalties = [], [], []
    for stream in streams:
        mapped, log10_penalty = _map_to_final(stream, streams[-1], in_first_half, is_token)
        lens_result = _apply_readout(acts, mapped, targets)
        loss.append(lens_result[0])
        top.append(lens_result[1])
        penalties.append(log10_penalty)
    depth = {"layer": depth_names(acts.layers)}
    variables = _summarize_lens(torch.stack(loss), torch.stack(top), targets, is_scored, depth)
    return xr.Dataset(variables | _label_penalties(torch.tensor(penalties), depth))


def fit_shrunk_map(
    x: Stream, final: Stream, log10_penalty: float | None = None
) -> tuple[Callable[[Float[Tensor, "*rest d_model"]], Float[Tensor, "*rest d_model"]], float]:
    """Fit an affine map that is shrunk towards the identity, from the stream at one depth to the final stream.

    Ridge regression of ``final - x`` on ``x`` and a constant feature. The constant is as large as the root mean square
    of ``x`` and is penalised like the other features, so that with an infinite penalty the map is the identity.

    Args:
        x: residual stream at one depth.
        final: residual stream after the last layer, at the same tokens.
        log10_penalty: decimal logarithm of the penalty, in units of the mean square of the features; chosen by
            generalised cross-validation by default.

    Returns:
        the map, from and to the data type of the stream, and the logarithm of its penalty.
    """
    scale = x.double().square().mean().sqrt()

    def add_constant(stream: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest feature"]:
        return torch.cat([stream.double(), scale.expand(*stream.shape[:-1], 1)], dim=-1)

    design, difference = decompose_features(add_constant(x), center=False, exact=False), final.double() - x.double()
    fit = design.fit(difference) if log10_penalty is None else design.solve(difference, log10_penalty)
    return lambda stream: (stream.double() + fit.predict(add_constant(stream))).to(stream.dtype), fit.log10_penalty


def _map_to_final(
    stream: Float[Tensor, "batch query d_model"],
    final: Float[Tensor, "batch query d_model"],
    in_first_half: Bool[Tensor, "batch query"],
    is_token: Bool[Tensor, "batch query"],
) -> tuple[Float[Tensor, "batch query d_model"], list[float]]:
    """Map the tokens of each half with the map that is fitted on the other half; return the penalties as well."""
    mapped, penalties = torch.empty_like(stream), []
    for fitted in (in_first_half, ~in_first_half):
        apply_map, log10_penalty = fit_shrunk_map(stream[fitted & is_token], final[fitted & is_token])
        mapped[~fitted] = apply_map(stream[~fitted])
        penalties.append(log10_penalty)
    return mapped, penalties


def _first_half(targets: Int[Tensor, "batch query"]) -> Bool[Tensor, "batch query"]:
    """Select the first half of the sequences, or of the positions if there is one sequence."""
    axis = 0 if len(targets) > 1 else 1
    fitted, _ = split_halves(targets.shape[axis])
    in_first_half = torch.zeros_like(targets, dtype=torch.bool)
    in_first_half.transpose(0, axis)[fitted] = True
    return in_first_half


def _token_mask(acts: Capture, targets: Int[Tensor, "batch query"]) -> Bool[Tensor, "batch query"]:
    """Select the queries that are no padding."""
    if acts.attention_mask is None:
        return torch.ones_like(targets, dtype=torch.bool)
    return acts.attention_mask[:, list(acts.queries)].bool().to(targets.device)


def _label_penalties(penalties: Float[Tensor, "layer stat"], depth: dict[str, list[str]]) -> dict[str, xr.DataArray]:
    coords = depth | {"stat": ["fitted on the first half", "fitted on the second half"]}
    lowest, highest = LOG10_PENALTIES[0], LOG10_PENALTIES[-1]
    about = (
        "log10 of the ridge penalty, in units of the mean square of the stream, chosen by generalised cross-validation"
    )
    edge = f"1 if the penalty is an end of the grid, 10^{lowest:g} or 10^{highest:g} (in effect the logit lens)"
    at_edge = ((penalties == lowest) | (penalties == highest)).double()
    return {
        "log10_penalty": to_data_array(penalties, "layer", "stat", units="1", description=about, coords=coords),
        "penalty_at_edge": to_data_array(at_edge, "layer", "stat", units="1", description=edge, coords=coords),
    }


def next_tokens(
    acts: Capture,
) -> tuple[list[Float[Tensor, "batch query d_model"]], Int[Tensor, "batch query"], Bool[Tensor, "batch query"]]:
    """Return the residual stream at all depths, the true next tokens, and a mask of the scored positions.

    The next tokens are the targets of the capture's batch if it has one, or else the inputs shifted by one position.

    Args:
        acts: a capture of the reduction of `logit_lens`.

    Returns:
        stream (batch, query, d_model) at the embedding and after each layer, the tokens and the mask (batch, query).

    Raises:
        ValueError: the inputs are vectors, or not all layers were captured.
    """
    tokens = acts.inputs
    if tokens.is_floating_point():
        raise ValueError("a lens on tokens needs tokens, but the inputs are vectors; use probe_and_logit_lens")
    validate_all_layers_captured(acts)
    positions = torch.tensor(acts.queries, device=tokens.device)
    streams = [acts["lens_before"][0], *acts["lens_after"]]
    if acts.batch is not None and not acts.batch.targets.is_floating_point():
        batch = acts.batch.to(tokens.device)
        return streams, batch.targets[:, positions], batch.weight[:, positions] > 0
    next_positions = (positions + 1).clamp(max=tokens.shape[1] - 1)
    is_scored = (positions + 1 < tokens.shape[1]).expand(len(tokens), -1)
    if acts.attention_mask is not None:
        is_scored = is_scored & acts.attention_mask[:, positions].bool() & acts.attention_mask[:, next_positions].bool()
    return streams, tokens[:, next_positions], is_scored


def _apply_readout(
    acts: Capture, stream: Float[Tensor, "batch query d_model"], targets: Int[Tensor, "batch query"]
) -> tuple[Float[Tensor, "batch query"], Int[Tensor, "batch query"]]:
    """Return the loss on the targets and the top token, a few tokens at a time."""
    loss, top = [], []
    for part, chunk_targets in zip(
        stream.flatten(0, 1).split(READOUT_CHUNK), targets.flatten().split(READOUT_CHUNK), strict=True
    ):
        logits = acts.readout.compute_output(part[None])[0].float()
        loss.append(functional.cross_entropy(logits, chunk_targets, reduction="none"))
        top.append(logits.argmax(-1))
    return torch.cat(loss).view(targets.shape), torch.cat(top).view(targets.shape)


def _summarize_lens(
    loss: Float[Tensor, "depth batch query"],
    top: Int[Tensor, "depth batch query"],
    targets: Int[Tensor, "batch query"],
    is_scored: Bool[Tensor, "batch query"],
    depth: dict[str, list[str]],
) -> dict[str, xr.DataArray]:
    agrees_with_final = top == top[-1]
    quantities = {
        "loss": (loss.double(), "nat", "mean loss on the true next token", {"headline": 1}),
        "accuracy": (
            (top == targets).double(),
            "1",
            "fraction of positions whose top token is the true next token",
            {},
        ),
        "agrees_with_final": (
            agrees_with_final.double(),
            "1",
            "fraction of positions whose top token is the final prediction",
            {},
        ),
    }
    return {
        name: to_data_array(
            values[:, is_scored].mean(1), "layer", units=units, description=about, coords=depth
        ).assign_attrs(attrs)
        for name, (values, units, about, attrs) in quantities.items()
    }


def _scatter_to_positions(
    acts: Capture, at_queries: Float[Tensor, "depth batch query"]
) -> Float[Tensor, "depth batch pos"]:
    """Copy values at the queries to all positions; NaN at positions that were not captured."""
    at_positions = at_queries.new_full((*at_queries.shape[:2], acts.inputs.shape[1]), torch.nan)
    at_positions[:, :, list(acts.queries)] = at_queries
    return at_positions
