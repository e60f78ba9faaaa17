"""Logit lens and affine lens: the next-token prediction of a language model at each depth."""

import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from mesascope.activations import Capture, LayerReduction, LayerView
from mesascope.analyses.base import analysis, validate_all_layers_captured
from mesascope.analyses.stream.probes import depth_names
from mesascope.axes import to_data_array
from mesascope.statistics import fit_ridge, split_halves

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
    readout (tuned lens, Belrose et al. 2023; here the map is fitted by ridge regression, with the penalty chosen by
    generalised cross-validation). Fitted on half of the sequences and evaluated on the other half (on halves of the
    tokens if there is one sequence). What it predicts better than the logit lens is available at that depth, but in
    other coordinates.""",
    reductions={"lens_sample": LENS_REDUCTION},
    supports_padding=True,
)
def affine_lens(acts: Capture) -> xr.Dataset:
    """Map the residual stream at every depth to the final one by ridge regression, then apply the model's readout.

    Args:
        acts: a capture of tokens.

    Returns:
        ``loss``, ``accuracy``, ``agrees_with_final`` and ``penalty`` (layer), on the sequences that were not fitted.

    Raises:
        ValueError: the inputs are vectors, or not all layers were captured.
    """
    streams, targets, is_scored = next_tokens(acts)
    if len(targets) == 1:
        half = targets.shape[1] // 2
        streams = [torch.stack([stream[0, :half], stream[0, half : 2 * half]]) for stream in streams]
        targets, is_scored = (torch.stack([x[0, :half], x[0, half : 2 * half]]) for x in (targets, is_scored))
    fitted, scored = split_halves(len(targets))
    loss, top, penalties = [], [], []
    for stream in streams:
        weight, constant, penalty = fit_ridge(stream[fitted].flatten(0, 1), streams[-1][fitted].flatten(0, 1))
        predicted_stream = (stream[scored].double() @ weight + constant).to(stream.dtype)
        lens_result = _apply_readout(acts, predicted_stream, targets[scored])
        loss.append(lens_result[0])
        top.append(lens_result[1])
        penalties.append(penalty)
    depth = {"layer": depth_names(acts.layers)}
    final = _apply_readout(acts, streams[-1][scored], targets[scored])[1]
    variables = _summarize_lens(torch.stack(loss), torch.stack(top), targets[scored], is_scored[scored], depth, final)
    about = "ridge penalty, in units of the mean variance of the stream"
    variables["penalty"] = to_data_array(torch.tensor(penalties), "layer", units="1", description=about, coords=depth)
    return xr.Dataset(variables)


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
    final_top: Int[Tensor, "batch query"] | None = None,
) -> dict[str, xr.DataArray]:
    agrees_with_final = top == (top[-1] if final_top is None else final_top)
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
