"""The views of a model of vectors: functions from a sequence and options to values that can be written as JSON.

Every number comes from `capture`, its readout, the analyses or the edits of `mesascope.interventions`, and every view
has ``code``, Python code that computes the same numbers. Predictions and losses are in the units of the task.
"""

from collections.abc import Sequence
from typing import Any

import torch
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor

from mesascope.activations import capture
from mesascope.analyses import inner, run_analyses
from mesascope.analyses.inner_objectives import objectives
from mesascope.analyses.stream.attribution import decompose_output
from mesascope.argument_types import validate_arguments
from mesascope.explorer import vector_code as code
from mesascope.explorer.subject import ExploredModel
from mesascope.explorer.vector_sequences import VectorInput, VectorSequences
from mesascope.explorer.view_parts import (
    View,
    ablate_heads,
    check_patch,
    check_range,
    collect_notes,
    encode_numbers,
    name_depths,
    patch_activation,
)
from mesascope.formulas import render_plain

ATTRIBUTION_SITES = ("resid_pre", "resid_post", "attn_out", "z", "output")
OBJECTIVES = {each.name: each for each in objectives.OBJECTIVES if each.name not in ("outer", "readout")}
QUANTITIES = ("before", "after", "cosine", "cosine_null")  # of an inner objective


@validate_arguments
def view_terms(subject: ExploredModel, prompt: str | int) -> View:
    """Return a sequence of vectors, with the prediction, the truth and the loss at every position.

    Args:
        subject: the explored model.
        prompt: the number of a sequence of the task; as a text, with changed coordinates: ``3; 5=1.5``.

    Returns:
        ``number`` and ``changes`` (position, coordinate, value); ``inputs`` (pos, d_in), ``prediction`` (pos, d_out),
        ``truth``, ``loss`` and, by name, ``baselines``, None where the task does not score a position; ``truth`` and
        ``loss`` also from the first changed position on; ``norm`` (depth, pos) as in `view_tokens`, at ``depths``.

    Raises:
        ValueError: there is no such sequence.
    """
    inputs = _read_sequence(subject, prompt)
    task = _get_vector_source(subject).task
    acts = subject.capture_input(inputs)
    prediction = acts["output"].cpu()
    has_truth = inputs.batch.weight[0] > 0
    stream = torch.cat([acts["resid_pre"], acts["resid_post"][-1:]])[:, 0]
    return {
        "number": inputs.number,
        "changes": [[*where, value] for where, value in inputs.changes.items()],
        "inputs": encode_numbers(inputs.values[0]),
        "prediction": encode_numbers(prediction[0]),
        "truth": _keep_where(encode_numbers(inputs.batch.targets[0]), has_truth),
        "loss": _keep_where(encode_numbers(task.loss(prediction, inputs.batch)[0]), has_truth),
        "baselines": {
            name: _keep_where(encode_numbers(each[0]), inputs.is_scored)
            for name, each in task.baselines(inputs.batch).items()
        },
        "norm": encode_numbers(stream.norm(dim=-1)),
        "depths": name_depths(subject),
        "code": code.write_terms_code(subject, inputs),
    }


@validate_arguments
def view_term_lens(subject: ExploredModel, prompt: str | int, position: int) -> View:
    """Return the logit lens at a position: the final norm and the output map, applied at every depth.

    Args:
        subject: the explored model.
        prompt: as in `view_terms`.
        position: the position, counted from 0.

    Returns:
        ``rows``: for every depth its name, the ``prediction`` (d_out), its ``loss`` (None where the truth is not
        known), and ``mean_loss``, the weighted mean over all positions where it is.

    Raises:
        ValueError: there is no such sequence or position.
        UnsupportedModel: the output is not computed from the last layer by a chain of modules.
    """
    inputs = _read_sequence(subject, prompt, position)
    acts = subject.capture_input(inputs)
    prediction = acts.readout.compute_output(torch.cat([acts["resid_pre"], acts["resid_post"][-1:]])[:, 0]).cpu()
    has_truth = bool(inputs.batch.weight[0, position] > 0)
    rows = []
    for name, each in zip(name_depths(subject), prediction, strict=True):
        loss = _get_vector_source(subject).task.loss(each[None], inputs.batch)
        rows.append(
            {
                "depth": name,
                "prediction": encode_numbers(each[position]),
                "loss": encode_numbers(loss[0, position]) if has_truth else None,
                "mean_loss": _average_loss(loss, inputs),
            }
        )
    return {"rows": rows, "code": code.write_term_lens_code(subject, inputs)}


@validate_arguments
def view_objective(subject: ExploredModel, prompt: str | int, position: int, objective: str = "fast_weight") -> View:
    """Return an inner objective before and after every residual update at a position.

    Args:
        subject: the explored model.
        prompt: as in `view_terms`.
        position: the position, counted from 0.
        objective: ``linear``, ``quadratic``, ``hopfield`` or ``fast_weight``.

    Returns:
        ``rows``: for every layer and sublayer the objective ``before`` and ``after`` its update, the ``cosine`` of the
        update and the negative gradient, and ``cosine_null``, the same with the keys shuffled (mean over draws); None
        where a sublayer has no such number. ``title``, ``description`` and ``tautology`` of the objective, with
        formulas as plain text.

    Raises:
        ValueError: there is no such sequence, position or objective.
        UnsupportedModel: the model has not what the objective needs.
    """
    inputs = _read_sequence(subject, prompt, position)
    if objective not in OBJECTIVES:
        raise ValueError(f"an objective must be one of {', '.join(OBJECTIVES)}, but got {objective!r}")
    analysis = inner(OBJECTIVES[objective])
    results = run_analyses(subject.model, inputs.values, [analysis], queries=[position])[analysis.name]
    columns = {name: _select_token(results, name) for name in QUANTITIES}
    rows = [
        {"layer": layer, "sublayer": sublayer}
        | {
            name: encode_numbers(torch.tensor(float(each.sel(layer=layer, sublayer=sublayer))))
            for name, each in columns.items()
        }
        for layer in results["layer"].values.tolist()
        for sublayer in results["sublayer"].values.tolist()
        if bool(columns["before"].sel(layer=layer, sublayer=sublayer).notnull())
    ]
    return {
        "rows": rows,
        "title": render_plain(OBJECTIVES[objective].title),
        "description": render_plain(" ".join(OBJECTIVES[objective].description.split())),
        "tautology": render_plain(OBJECTIVES[objective].tautology),
        "code": code.write_objective_code(subject, inputs, position, objective),
    }


@validate_arguments
def view_term_attribution(subject: ExploredModel, prompt: str | int, position: int, coordinate: int = 0) -> View:
    """Return direct attribution: the contributions of all components to a coordinate of the prediction.

    The final norm is frozen.

    Args:
        subject: the explored model.
        prompt: as in `view_terms`.
        position: the position, counted from 0.
        coordinate: the coordinate of the output, counted from 0.

    Returns:
        ``head`` (layer, head), ``mlp`` (layer; 0 where there is none), ``embedding`` and ``biases``; ``total``, their
        sum, and ``prediction``, that of the model.

    Raises:
        ValueError: there is no such sequence, position or coordinate.
        UnsupportedModel: the output is not a sum of contributions.
    """
    inputs = _read_sequence(subject, prompt, position)
    acts = subject.capture_input(inputs)
    if "z" not in acts:
        acts = capture(subject.model, inputs.values, ATTRIBUTION_SITES)  # says which layers lack it
    check_range("coordinate", coordinate, acts["output"].shape[-1])
    contributions = {name: each[0, position, coordinate] for name, each in decompose_output(acts).items()}
    heads = [
        [encode_numbers(contributions[f"head {layer}.{head}"]) for head in range(subject.heads)]
        for layer in range(subject.layers)
    ]
    none = torch.zeros(())
    return {
        "head": heads,
        "mlp": [encode_numbers(contributions.get(f"mlp {layer}", none)) for layer in range(subject.layers)],
        "embedding": encode_numbers(contributions["embedding"]),
        "biases": encode_numbers(contributions["biases"]),
        "total": encode_numbers(torch.stack(list(contributions.values())).sum()),
        "prediction": encode_numbers(acts["output"][0, position, coordinate]),
        "code": code.write_term_attribution_code(subject, inputs, position, coordinate),
    }


@validate_arguments
def view_term_ablation(
    subject: ExploredModel, prompt: str | int, heads: Sequence[Sequence[int]], method: str = "zero"
) -> View:
    """Return the predictions before and after heads are switched off.

    Args:
        subject: the explored model.
        prompt: as in `view_terms`.
        heads: pairs of a layer and a head, one or more.
        method: ``zero``; or ``mean``, the mean of ``z`` at the same position over other sequences of the task.

    Returns:
        ``before`` and ``after`` (pos, d_out); ``loss_before`` and ``loss_after``, weighted means over the positions
        where the truth is known (None if there is none); ``change``, the root mean square difference of the
        predictions; ``notes``.

    Raises:
        ValueError: there is no such sequence, head or method.
    """
    inputs = _read_sequence(subject, prompt)
    ablation = ablate_heads(subject, heads, method, len(inputs))
    before = subject.capture_input(inputs)["output"].cpu()
    with collect_notes() as notes:
        after = capture(subject.model, inputs.values, ["output"], edits=ablation.edits)["output"].cpu()
    return _compare_predictions(subject, inputs, before, after) | {
        "notes": notes,
        "code": code.write_term_ablation_code(subject, inputs, ablation.heads_by_layer, ablation.reference_code),
    }


@validate_arguments
def view_term_patching(
    subject: ExploredModel,
    prompt: str | int,
    source_prompt: str | int,
    site: str,
    layer: int,
    position: int,
    head: int | None = None,
) -> View:
    """Return the predictions before and after an activation is replaced by that of a second sequence.

    Args:
        subject: the explored model.
        prompt: as in `view_terms`.
        source_prompt: the second sequence.
        site: ``resid_pre`` or ``z``.
        layer: the layer.
        position: the position that is patched.
        head: the head, at ``z``; all heads by default.

    Returns:
        As `view_term_ablation`, and ``source`` (pos, d_out), the predictions on the second sequence.

    Raises:
        ValueError: there is no such sequence, site, layer, head or position, or the sequences differ in length.
    """
    check_patch(subject, site, layer, head)
    inputs, source = _read_sequence(subject, prompt, position), _read_sequence(subject, source_prompt)
    if len(source) != len(inputs):
        raise ValueError(f"both sequences must have as many positions, but they have {len(inputs)} and {len(source)}")
    patch = patch_activation(subject, source, site, layer, position, head)
    before = subject.capture_input(inputs)["output"].cpu()
    with collect_notes() as notes:
        after = capture(subject.model, inputs.values, ["output"], edits=patch.edit)["output"].cpu()
    return _compare_predictions(subject, inputs, before, after) | {
        "source": encode_numbers(patch.source_acts["output"][0]),
        "notes": notes,
        "code": code.write_term_patching_code(subject, inputs, source, site, patch.where),
    }


def _get_vector_source(subject: ExploredModel) -> VectorSequences:
    """Return the source of inputs; raise a ValueError if it is one of tokens."""
    if not isinstance(subject.source, VectorSequences):
        raise ValueError(
            f"this view needs a model of vectors, but the inputs of {subject.name} are tokens; use the views of "
            "tokens, such as view_tokens"
        )
    return subject.source


def _read_sequence(subject: ExploredModel, prompt: str | int, position: int | None = None) -> VectorInput:
    inputs = _get_vector_source(subject).read_input(prompt)
    if position is not None:
        check_range("position", position, len(inputs))
    return inputs


def _keep_where(values: list[Any], mask: Bool[Tensor, " pos"]) -> list[Any]:
    return [value if is_kept else None for value, is_kept in zip(values, mask.tolist(), strict=True)]


def _average_loss(loss: Float[Tensor, "1 pos"], inputs: VectorInput) -> float | None:
    """Return the weighted mean of a loss over the positions where the truth is known."""
    weight = inputs.batch.weight
    return encode_numbers((loss * weight).sum() / weight.sum())


def _compare_predictions(
    subject: ExploredModel,
    inputs: VectorInput,
    before: Float[Tensor, "1 pos d_out"],
    after: Float[Tensor, "1 pos d_out"],
) -> View:
    task = _get_vector_source(subject).task
    return {
        "before": encode_numbers(before[0]),
        "after": encode_numbers(after[0]),
        "loss_before": _average_loss(task.loss(before, inputs.batch), inputs),
        "loss_after": _average_loss(task.loss(after, inputs.batch), inputs),
        "change": encode_numbers((after - before).square().mean().sqrt()),
    }


def _select_token(results: xr.Dataset, name: str) -> xr.DataArray:
    """Return a quantity of the only token, which is averaged apart if it is an attention sink."""
    values = results[name].mean("draw") if "draw" in results[name].dims else results[name]
    at_sink = f"{name}_at_sinks"
    return values.fillna(results[at_sink]) if at_sink in results else values
