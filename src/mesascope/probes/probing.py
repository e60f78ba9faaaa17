"""Probing of features and sites: accuracy on other sequences, with a majority class and control tasks as baselines."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Int
from torch import Tensor

from mesascope.activations import Capture, get_site
from mesascope.argument_types import describe_value, validate_arguments, validate_type
from mesascope.axes import to_data_array
from mesascope.probes._intervals import binomial_interval, effective_count
from mesascope.probes._rows import (
    Features,
    LabelledRows,
    Labels,
    collect_rows,
    read_integers,
    read_mask,
    split_sequences,
)
from mesascope.probes.control_tasks import draw_control_labels
from mesascope.probes.linear_probe import LOG10_PENALTIES, fit_rows

HEAD_AXES = ("head", "kv_head")
_PENALTY = f"of the L2 penalty, in units of the mean variance of the features, from {LOG10_PENALTIES[-1]:g} to " + (
    f"{LOG10_PENALTIES[0]:g}, with the lowest cross-entropy on left-out sequences"
)
_VARIABLES: Mapping[str, tuple[tuple[str, ...], str, str]] = {  # axes after those of the site, units, description
    "accuracy": ((), "1", "fraction of rows of test sequences whose label the probe predicts"),
    "accuracy_low": ((), "1", "lower end of the 95 % interval of the accuracy over test sequences (Clopper-Pearson)"),
    "accuracy_high": ((), "1", "upper end of the 95 % interval of the accuracy over test sequences (Clopper-Pearson)"),
    "macro_f1": ((), "1", "F1 score of the probe on test sequences, mean over classes"),
    "majority_accuracy": ((), "1", "accuracy of the most frequent training label on test sequences"),
    "majority_macro_f1": ((), "1", "macro F1 of the most frequent training label on test sequences"),
    "control_accuracy": (("draw",), "1", "accuracy of a probe of random labels, one for each token type"),
    "selectivity": ((), "1", "accuracy minus mean accuracy on the control tasks"),
    "log10_penalty": ((), "1", f"log10 {_PENALTY}"),
    "control_log10_penalty": (("draw",), "1", f"log10, for the control task, {_PENALTY}"),
    "num_train_sequences": ((), "sequences", "number of training sequences"),
    "num_test_sequences": ((), "sequences", "number of test sequences"),
    "num_classes": ((), "1", "number of classes of the training labels"),
}


@validate_arguments
def probe(
    features: Features,
    labels: Labels,
    types: Labels,
    *,
    mask: Labels | None = None,
    train: Labels | None = None,
    test: Labels | None = None,
    control_draws: int = 1,
    folds: int = 5,
    seed: int = 0,
) -> xr.Dataset:
    """Fit a linear probe on some sequences, and score it on others, next to a control task.

    The probe is that of `fit_probe`. A control task has random labels, one for each token type, drawn from the training
    labels (Hewitt & Liang 2019): a probe that learns it as well memorises types. The interval of the accuracy counts
    sequences, not rows (Clopper & Pearson 1934): it is exact with one row per sequence, and conservative with several.

    Args:
        features: (batch, feature), or (batch, pos, feature).
        labels: integers, one per row (batch, pos), or one per sequence (batch).
        types: token type of every row, in the shape of the labels; usually the tokens.
        mask: 1 where a row counts; all by default.
        train: indices of the training sequences; by default, a random half, or all that are not in ``test``.
        test: indices of the test sequences; by default, all others. Copies of a sequence belong to one side.
        control_draws: number of control tasks.
        folds: folds of the cross-validation over training sequences.
        seed: seed of the halves, the folds and the control tasks.

    Returns:
        ``accuracy``, ``accuracy_low``, ``accuracy_high``, ``macro_f1`` (mean over the classes that are labels or
        predictions), ``majority_accuracy``, ``majority_macro_f1``, ``control_accuracy`` (draw), ``selectivity``,
        ``log10_penalty``, ``control_log10_penalty`` (draw), ``num_train_sequences``, ``num_test_sequences`` and
        ``num_classes``.

    Raises:
        ValueError: a side has fewer than two sequences, the training labels have one class, a feature is not finite,
            shapes do not fit, or no control task can be drawn.

    >>> generator = torch.Generator().manual_seed(0)
    >>> tokens = torch.randint(0, 8, (40, 4), generator=generator)
    >>> noise = torch.randn(40, 4, 6, generator=generator)
    >>> results = probe(noise, torch.randint(0, 2, (40, 4), generator=generator), tokens)
    >>> bool(results["accuracy_low"] < 0.5 < results["accuracy_high"])
    True
    """
    numbers = _probe_rows(features, labels, types, mask, train, test, control_draws, folds, seed)
    return _label_numbers([numbers], {})


@validate_arguments
def probe_site(
    acts: Capture,
    site: str,
    labels: Labels,
    *,
    types: Labels | None = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    positions: int | Sequence[int] | None = None,
    mask: Labels | None = None,
    train: Labels | None = None,
    test: Labels | None = None,
    control_draws: int = 1,
    folds: int = 5,
    seed: int = 0,
) -> xr.Dataset:
    """Probe every layer of a site of a capture, and every head where the site has heads.

    Args:
        acts: a capture of the site. Padding does not count.
        site: a site within layers whose last axis is ``d_model`` or ``d_head``.
        labels: integers, one per position of the inputs (batch, pos), or one per sequence (batch).
        types: token type of every position (batch, pos); the tokens by default.
        layers: layers of the model; all that were recorded by default. In a model that repeats its layers, the calls of
            layers, as in the unrolled capture.
        heads: heads; all by default.
        positions: positions that count; all by default. With one position, a row is a sequence.
        mask: 1 where a position counts (batch, pos); all by default.
        train: as in `probe`.
        test: as in `probe`.
        control_draws: as in `probe`.
        folds: as in `probe`.
        seed: as in `probe`; the halves and the control tasks are the same for all layers and heads.

    Returns:
        The variables of `probe` by layer, and by head where the site has heads.

    Raises:
        NotRecorded: the site was not recorded.
        ValueError: there is no such site, layer, head or position, the model halts, or as in `probe`.

    >>> from mesascope.activations import capture
    >>> from mesascope.models.transformer import Decoder, DecoderConfig
    >>> model = Decoder(DecoderConfig(vocab_size=5, hidden_size=8, num_attention_heads=2))
    >>> tokens = torch.randint(0, 5, (20, 4), generator=torch.Generator().manual_seed(0))
    >>> acts = capture(model, tokens, ["resid_post"])
    >>> results = probe_site(acts, "resid_post", tokens[:, 0] > 2, layers=[0, 2], positions=3)
    >>> results["accuracy"].dims, results["layer"].values.tolist()
    (('layer',), [0, 2])
    """
    axes = get_site(site).axes
    if axes[0] != "layer" or axes[-1] not in ("d_model", "d_head"):
        raise ValueError(f"a probed site must be within layers and end in d_model or d_head, but {site} has {axes}")
    acts = acts.unrolled()
    values = acts[site].detach()
    shape = acts.inputs.shape[:2]
    types = acts.inputs if types is None and not acts.inputs.is_floating_point() else types
    if types is None:
        raise ValueError("types must be given where inputs are vectors, but are missing; pass one type per position")
    chosen = _read_choice("positions", [positions] if isinstance(positions, int) else positions, range(shape[1]))
    real = read_mask(mask, shape)
    real = real if acts.attention_mask is None else real & acts.attention_mask.bool().cpu()
    by_row = {"labels": read_integers("labels", labels, shape), "types": read_integers("types", types, shape)}
    coords: dict[str, list[int]] = {"layer": _read_choice("layers", layers, acts.layers)}
    head_axis = next((axis for axis in axes if axis in HEAD_AXES), None)
    if head_axis is not None:
        coords[head_axis] = _read_choice("heads", heads, range(values.shape[axes.index(head_axis)]))
        values = values.movedim(axes.index(head_axis), 1)
    elif heads is not None:
        raise ValueError(f"heads must be omitted at a site without heads, but {site} has {axes}")
    results = []
    for layer, *head in product(*coords.values()):
        of_layer = values[acts.layers.index(layer)]
        features = (of_layer[head[0]] if head else of_layer)[:, chosen]
        row_arguments = {name: one[:, chosen] for name, one in by_row.items()}
        results.append(
            _probe_rows(
                features,
                mask=real[:, chosen],
                train=train,
                test=test,
                control_draws=control_draws,
                folds=folds,
                seed=seed,
                **row_arguments,
            )
        )
    return _label_numbers(results, coords)


def _read_choice(name: str, chosen: Sequence[int] | None, present: Sequence[int]) -> list[int]:
    """Return the chosen indices, which must be present; negative ones count from the end of a range."""
    if chosen is None:
        return list(present)
    validate_type(name, chosen, Sequence[int])
    if not len(chosen) or any(isinstance(one, bool) or not isinstance(one, int | np.integer) for one in chosen):
        raise ValueError(f"{name} must be integers, but got {describe_value(chosen)}; omit it for all")
    wrapped = [int(one) + len(present) if one < 0 and isinstance(present, range) else int(one) for one in chosen]
    absent = [one for one, index in zip(chosen, wrapped, strict=True) if index not in present]
    if absent or len(set(wrapped)) < len(wrapped):
        raise ValueError(
            f"{name} must be different ones of {list(present)[:8]}{' ...' if len(present) > 8 else ''}, but got "
            f"{describe_value(chosen)}"
        )
    return wrapped


def _probe_rows(
    features: Features,
    labels: Labels,
    types: Labels,
    mask: Labels | None,
    train: Labels | None,
    test: Labels | None,
    control_draws: int,
    folds: int,
    seed: int,
) -> dict[str, Any]:
    """Return the numbers of one probe, by the name of the variable."""
    if control_draws < 1:
        raise ValueError(f"control_draws must be 1 or more, but got {control_draws}; selectivity needs a control task")
    rows = collect_rows(features, labels, mask)
    row_types = read_integers("types", types, features.shape[:-1])[read_mask(mask, features.shape[:-1])]
    generator = torch.Generator().manual_seed(seed)
    train_side, test_side = split_sequences(rows, train, test, generator)
    fitted, scored = rows.select_sequences(train_side), rows.select_sequences(test_side)
    predicted, log10_penalty = _predict(fitted, scored, folds, seed)
    majority = int(fitted.labels.mode().values)
    accuracy = _accuracy(predicted, scored.labels)
    low, high = binomial_interval(accuracy, effective_count(scored.sequences))
    controls = []
    is_train = torch.isin(rows.sequences, train_side)
    for _ in range(control_draws):
        # labels are drawn for the types of the training rows first, so that these have two labels
        control = rows.with_labels(_draw_for_all(row_types, fitted.labels, is_train, generator))
        test_rows = control.select_sequences(test_side)
        guess, penalty = _predict(control.select_sequences(train_side), test_rows, folds, seed)
        controls.append((_accuracy(guess, test_rows.labels), penalty))
    return {
        "accuracy": accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "macro_f1": _macro_f1(predicted, scored.labels),
        "majority_accuracy": float((scored.labels == majority).double().mean()),
        "majority_macro_f1": _macro_f1(torch.full_like(scored.labels, majority), scored.labels),
        "control_accuracy": [one for one, _ in controls],
        "selectivity": accuracy - float(np.mean([one for one, _ in controls])),
        "log10_penalty": log10_penalty,
        "control_log10_penalty": [penalty for _, penalty in controls],
        "num_train_sequences": len(train_side),
        "num_test_sequences": len(test_side),
        "num_classes": len(fitted.labels.unique()),
    }


def _draw_for_all(
    types: Int[Tensor, " row"], labels: Int[Tensor, " train"], is_train: Tensor, generator: torch.Generator
) -> Int[Tensor, " row"]:
    """Return control labels of all rows; types that are not among the training rows get random labels, too."""
    drawn = torch.empty_like(types)
    drawn[is_train] = draw_control_labels(types[is_train], labels, generator)
    present, number = types.unique(return_inverse=True)
    by_type = labels[torch.randint(len(labels), (len(present),), generator=generator)]
    by_type[number[is_train]] = drawn[is_train]
    return by_type[number]


def _predict(fitted: LabelledRows, scored: LabelledRows, folds: int, seed: int) -> tuple[Int[Tensor, " row"], float]:
    trained = fit_rows(fitted, folds, torch.Generator().manual_seed(seed))
    return trained.predict(scored.features), trained.log10_penalty


def _accuracy(predicted: Int[Tensor, " row"], labels: Int[Tensor, " row"]) -> float:
    return float((predicted == labels).double().mean())


def _macro_f1(predicted: Int[Tensor, " row"], labels: Int[Tensor, " row"]) -> float:
    """Return the mean of 2 hits / (predictions + labels) over the classes that are predicted or labels."""
    classes = torch.cat([predicted, labels]).unique()
    is_predicted, is_label = (one[:, None] == classes for one in (predicted, labels))
    hits = (is_predicted & is_label).sum(0).double()
    return float((2 * hits / (is_predicted.sum(0) + is_label.sum(0))).mean())


def _label_numbers(results: Sequence[Mapping[str, Any]], coords: Mapping[str, list[int]]) -> xr.Dataset:
    sizes = [len(one) for one in coords.values()]
    variables = {}
    for name, (axes, units, description) in _VARIABLES.items():
        values = np.array([one[name] for one in results])
        variables[name] = to_data_array(
            values.reshape([*sizes, *values.shape[1:]]),
            *coords,
            *axes,
            units=units,
            description=description,
            coords=coords,
        )
    return xr.Dataset(variables)
