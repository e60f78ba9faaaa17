"""Refinement by subtraction: heads that oppose the estimate in the residual stream and add what it misses."""

from collections.abc import Mapping, Sequence

import torch
import xarray as xr
from einops import einsum
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations import Capture, capture
from mesascope.analyses.base import analysis
from mesascope.analyses.heads._joint_regression import Contribution, Estimate, Regressors, Score
from mesascope.analyses.heads.role_counts import with_role_counts
from mesascope.analyses.nulls import NUM_UNTRAINED_DRAWS, Null, null_band, with_null
from mesascope.axes import to_data_array
from mesascope.interventions.head_contributions import total_head_contributions
from mesascope.statistics import derangement
from mesascope.tasks.base import Batch, Task

MIN_SLOPE = 0.1  # ours: a head below it corrects less than a tenth of what the stream misses
MIN_SEQUENCES = 4  # three coefficients are fitted
NULL_NAME = "other sequence"
DESCRIPTIONS = {
    "stream_slope": "slope of the contribution on the estimate in the stream, with the target in the regression",
    "target_slope": "slope of the contribution on the target, with the estimate in the stream in the regression",
    "marginal_slope": "slope of the contribution on the estimate in the stream, without the target in the regression",
    "explained": "R² of the regression of the contribution on the stream's estimate and the target",
}
OPPOSING, AGREEING = ("stream_slope", "marginal_slope"), ("target_slope",)  # negative and positive in a refining head

ScoresByLayer = Sequence[tuple[Mapping[str, Score], Mapping[str, Float[Tensor, "draw part"]]]]


@analysis(
    title="Refinement by subtraction",
    description=f"""
        Regression of each head's contribution to the output on two quantities together: the estimate in the stream,
        which is the readout of the residual stream before the head's layer through the frozen final norm, and the
        target. Least squares with an intercept over sequences, for every position and output coordinate; slopes are
        averaged over them. All quantities have the units of the output, so a slope is a number: a head that adds half
        of what the stream misses has -0.5 on the stream and 0.5 on the target. direct: the contribution through the
        frozen final norm; total: the change of the output when the head's output is replaced by its mean over
        sequences, which includes paths through MLPs and later layers. Null: stream and target of another sequence; the
        band is 4 standard deviations over shuffles. Role: 1 if the slope on the stream is below its band, the slope on
        the target is above its band, and the marginal slope on the stream, without the target in the regression, is
        below its band, each of {MIN_SLOPE} or more in size; 0 otherwise. The marginal slope is needed because every
        useful head has the other two signs: with the target held fixed, a larger estimate leaves less to add. Slopes
        are additive: in the last layer of an attention-only model without norms and without error, those of all heads
        sum to -1 and 1, so that some head has each sign. Where stream and target are collinear, none is defined.
    """,
    input="model",
    steps="ends",
    untrained_draws=NUM_UNTRAINED_DRAWS,
)
def refinement_heads(
    model: PreTrainedModel,
    task: Task,
    batch: Batch,
    first: int = 2,
    total: bool = True,
    shuffles: int = 20,
    seed: int = 0,
    sequences: int = 1024,
) -> xr.Dataset:
    """Regress the contribution of every head on the estimate in the stream and on the target.

    Args:
        model: a model that capture supports and whose output is a sum of residual updates.
        task: the task; it is not used.
        batch: sequences of vectors with targets of the same shape, such as those of a recurrence.
        first: positions before this one are left out; so are positions that are not scored.
        total: whether total contributions are computed too, by one edited forward pass per head.
        shuffles: number of shuffles for the bands, two or more.
        seed: seed of the shuffles.
        sequences: maximum number of sequences of the batch that are used.

    Returns:
        by layer, head and kind of contribution (``direct``, ``total``), ``stream_slope``, ``target_slope``,
        ``marginal_slope`` and ``explained`` (R² of the joint regression), each with null and band, and ``role``;
        ``role_count`` by layer and role; by layer, ``stream_correlation``, the mean correlation of the stream's
        estimate and the target, ``defined``, the fraction of regressions that are defined, and ``undefined``, the
        reason why none is, or an empty text. Scores without a defined regression are NaN, and the role is 0.

    Raises:
        ValueError: the batch does not have vectors with targets of the same shape, has fewer than 4 sequences, or no
            position is scored from ``first`` on; or there are fewer than two shuffles.
        UnsupportedModel: the output is not a sum of residual updates.
    """
    batch = batch[:sequences]
    positions = _select_positions(batch, first)
    if shuffles < 2:
        raise ValueError(f"shuffles must be 2 or more, but got {shuffles}; a band needs a standard deviation")
    acts = capture(model, batch, ["resid_pre", "resid_post", "z"]).unrolled()
    kinds = {"direct": lambda layer: direct_head_contributions(acts, layer)}
    if total:
        totals = total_head_contributions(model, batch)
        kinds["total"] = lambda layer: totals[layer]
    target = batch.targets[:, positions].double()
    regressions, scores = [], []
    for layer in range(len(acts.layers)):
        parts = torch.cat([compute(layer)[:, :, positions].double() for compute in kinds.values()])
        regressions.append(Regressors.build(estimate_from_stream(acts, layer)[:, positions].double(), target))
        scores.append(_score_contributions(parts, regressions[-1], shuffles, seed))
    result = xr.Dataset(_label_scores(scores, list(kinds)) | _label_layers(regressions))
    return with_role_counts("refinement_heads", result)


def direct_head_contributions(acts: Capture, layer: int) -> Float[Tensor, "head batch pos d_out"]:
    """Return the contribution of each head of a layer to the output through the frozen final norm.

    Args:
        acts: a capture of ``z`` and ``resid_post`` in all layers.
        layer: index of the layer.
    """
    updates = einsum(acts["z"][layer], acts.readout.output_projection[layer], "b p h d, h d m -> h b p m")
    return acts.readout.attribute_logits(updates, acts["resid_post"][-1])


def estimate_from_stream(acts: Capture, layer: int) -> Estimate:
    """Return the output that the residual stream before a layer gives through the frozen final norm.

    Args:
        acts: a capture of ``resid_pre`` and ``resid_post`` in all layers.
        layer: index of the layer.
    """
    return acts.readout.attribute_logits(acts["resid_pre"][layer], acts["resid_post"][-1]) + acts.readout.readout_bias


def _select_positions(batch: Batch, first: int) -> list[int]:
    inputs, targets = batch.inputs, batch.targets
    if not inputs.is_floating_point() or inputs.shape != targets.shape:
        raise ValueError(
            "refinement_heads needs vectors with targets of the same shape, but got inputs of shape "
            f"{tuple(inputs.shape)} ({inputs.dtype}) and targets of shape {tuple(targets.shape)}; use a recurrence"
        )
    if len(inputs) < MIN_SEQUENCES:
        raise ValueError(f"refinement_heads needs {MIN_SEQUENCES} sequences or more, but got {len(inputs)}")
    positions = [n for n in range(first, inputs.shape[1]) if bool((batch.weight[:, n] > 0).any())]
    if not positions:
        raise ValueError(f"refinement_heads needs a scored position from first={first} on, but there is none")
    return positions


def _score_contributions(
    parts: Contribution, regressors: Regressors, shuffles: int, seed: int
) -> tuple[dict[str, Score], dict[str, Float[Tensor, "draw part"]]]:
    # scores, and their draws with stream and target of another sequence
    generator, centred = torch.Generator().manual_seed(seed), parts - parts.mean(1, keepdim=True)
    orders = [derangement(parts.shape[1], generator).to(parts.device) for _ in range(shuffles)]
    draws = [regressors.fit_slopes(centred, order) for order in orders]
    return regressors.fit_slopes(centred), {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}


def _label_scores(scores: ScoresByLayer, kinds: Sequence[str]) -> dict[str, xr.DataArray]:
    stacked = {name: torch.stack([values[name] for values, _ in scores]) for name in DESCRIPTIONS}
    draws = {name: torch.stack([drawn[name] for _, drawn in scores], 1) for name in DESCRIPTIONS}
    bands = {name: null_band(draws[name]) for name in DESCRIPTIONS}

    def label(values: Shaped[Tensor, "layer part"], about: str) -> xr.DataArray:
        by_kind = values.unflatten(1, (len(kinds), -1)).transpose(1, 2)
        return to_data_array(
            by_kind, "layer", "head", "stat", units="1", description=about, coords={"stat": list(kinds)}
        )

    def build_null(name: str) -> Null:
        about = "with stream and target of another sequence"
        return Null(
            name=NULL_NAME,
            value=label(draws[name].mean(0), f"mean of the same {about}").assign_attrs(center=0),
            low=label(bands[name][0], f"lower edge of the band {about}").assign_attrs(center=0),
            high=label(bands[name][1], f"upper edge of the band {about}").assign_attrs(center=0),
        )

    role = label(_find_roles(stacked, bands), "1: opposes the estimate in the stream and adds what it misses; 0: not")
    variables = {"role": role.assign_attrs(categorical=1)}
    for name, about in DESCRIPTIONS.items():
        attrs = {"headline": 1, "center": 0} if name == "target_slope" else {"center": 0}
        variables |= with_null(name, label(stacked[name], about).assign_attrs(**attrs), build_null(name))
    return variables


def _find_roles(
    values: Mapping[str, Float[Tensor, "layer part"]], bands: Mapping[str, tuple[Tensor, Tensor]]
) -> Int[Tensor, "layer part"]:
    # comparisons with NaN are false, so a head without a score has no role
    opposes = [(values[name] < bands[name][0]) & (values[name] <= -MIN_SLOPE) for name in OPPOSING]
    agrees = [(values[name] > bands[name][1]) & (values[name] >= MIN_SLOPE) for name in AGREEING]
    return torch.stack([*opposes, *agrees]).all(0).int()


def _label_layers(regressions: Sequence[Regressors]) -> dict[str, xr.DataArray]:
    correlation = torch.stack([one.correlate() for one in regressions])
    defined = torch.stack([one.defined.double().mean() for one in regressions])
    about = "why no regression is defined; empty where one is"
    return {
        "stream_correlation": to_data_array(
            correlation, "layer", units="1", description="mean correlation of the stream's estimate and the target"
        ).assign_attrs(center=0),
        "defined": to_data_array(
            defined, "layer", units="1", description="fraction of positions and coordinates with a defined regression"
        ),
        "undefined": to_data_array([one.reason for one in regressions], "layer", units="text", description=about),
    }
