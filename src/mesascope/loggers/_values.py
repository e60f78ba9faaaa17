"""The values of trained models, from the training logs and the results in the directory of a run."""

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr

from mesascope.store import LogFn, Run, RunError
from mesascope.studies.cell_names import split_reference
from mesascope.studies.cells import CELLS_FOLDER

TRAINING_VALUES = {"loss": "train/loss", "learning rate": "train/learning_rate", "gradient norm": "train/gradient_norm"}
LABEL_AXES = frozenset({"stat", "predictor", "component", "sublayer", "map"})  # whose labels are names of quantities
PARAMETERS = ("task", "model", "training")  # of a condition in run.json
MAX_LABELS = 32  # of one variable


@dataclass(frozen=True, kw_only=True)
class ModelValues:
    """The values of one trained model.

    Attributes:
        name: study, scale, cell, condition and seed, separated by ``/``.
        config: study, scale, cell, condition and seed, and the task, the model and the training of the condition.
        values: numbers by name, by step in ascending order.
    """

    name: str
    config: Mapping[str, Any]
    values: Mapping[int, Mapping[str, float]]


def list_models(run_dir: Path, log: LogFn) -> Iterator[ModelValues]:
    """List the trained models of a run, in all of its cells.

    Args:
        run_dir: the run directory, also of a run that has not finished.
        log: receives one line for each damaged file, whose values are left out.

    Yields:
        The values of each model: loss, learning rate and gradient norm of every step, and of the results every variable
        that has one number, or one for each name of a quantity, per seed and step.
    """
    cells = sorted(path.parent for path in (run_dir / CELLS_FOLDER).glob("*/run.json"))
    for folder in (run_dir, *cells):
        run = Run.open(folder)
        evaluations = _read_evaluations(run, log)
        for condition, seed in _list_trainings(run):
            values: dict[int, dict[str, float]] = defaultdict(dict)
            for source in (_read_training(run, condition, seed, log), evaluations.get((condition, seed), {})):
                for step, numbers in source.items():
                    values[step] |= numbers
            yield _build_model(run, condition, seed, dict(sorted(values.items())))


def _list_trainings(run: Run) -> list[tuple[str, int]]:
    """Return the conditions and seeds that have been trained; the main condition first."""
    folders = [path.parent for depth in ("", "*/") for path in run.path.glob(f"models/{depth}seed=*/log.csv")]
    conditions = ("" if folder.parent.name == "models" else folder.parent.name for folder in folders)
    seeds = (int(folder.name.removeprefix("seed=")) for folder in folders)
    return sorted(zip(conditions, seeds, strict=True))


def _read_training(run: Run, condition: str, seed: int, log: LogFn) -> dict[int, dict[str, float]]:
    try:
        columns = run.for_condition(condition).read_log(seed)
    except RunError as damage:
        log(str(damage))
        return {}
    named = {name: columns[column].tolist() for column, name in TRAINING_VALUES.items()}
    return {
        int(step): {name: numbers[k] for name, numbers in named.items() if math.isfinite(numbers[k])}
        for k, step in enumerate(columns["step"].tolist())
    }


def _read_evaluations(run: Run, log: LogFn) -> dict[tuple[str, int], dict[int, dict[str, float]]]:
    """Return the values of results by condition and seed, then by step."""
    found: dict[tuple[str, int], dict[int, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for name in run.result_names():
        try:
            data = run.read_results(name)
        except RunError as damage:
            log(str(damage))
            continue
        analysis = str(data.attrs.get("analysis", ""))
        if not analysis or not name.endswith(analysis):
            continue  # of a simulation, which trains no model
        condition = name.removesuffix(analysis).removesuffix("_")
        for variable, values in data.data_vars.items():
            if _is_series(values):
                for seed, step, label, number in _list_numbers(values):
                    found[condition, seed][step][f"{analysis}/{variable}{label}"] = number
    return found


def _is_series(values: xr.DataArray) -> bool:
    """Return whether a variable has one number, or one for each name of a quantity, per seed and step."""
    others = {str(dim) for dim in values.dims} - {"seed", "step"}
    labels = math.prod(values.sizes[dim] for dim in others)
    is_series = {"seed", "step"} <= {*values.dims} and {"seed", "step"} <= {*values.coords}
    return is_series and values.dtype.kind in "fiub" and others <= LABEL_AXES and labels <= MAX_LABELS


def _list_numbers(values: xr.DataArray) -> Iterator[tuple[int, int, str, float]]:
    """Yield seed, step, label and number of every finite value."""
    others = [str(dim) for dim in values.dims if dim not in ("seed", "step")]
    stacked = values.transpose("seed", "step", *others)
    seeds, steps = (stacked[dim].values.tolist() for dim in ("seed", "step"))
    names = [stacked[dim].values.tolist() if dim in stacked.coords else range(stacked.sizes[dim]) for dim in others]
    labels = ["".join(f"/{name}" for name in combination) for combination in itertools.product(*names)]
    for s, seed in enumerate(seeds):
        for t, step in enumerate(steps):
            for label, number in zip(labels, stacked.values[s, t].ravel().tolist(), strict=True):
                if math.isfinite(number):
                    yield int(seed), int(step), label, float(number)


def _build_model(run: Run, condition: str, seed: int, values: Mapping[int, Mapping[str, float]]) -> ModelValues:
    record = run.record
    identity = {key: record.get(key) or "" for key in ("study", "scale", "cell")} | {"condition": condition}
    identity["study"] = split_reference(str(identity["study"]))[0]  # without the cell
    parts = [re.sub(r"/|^\.+$", "-", str(part)) for part in identity.values() if part]  # each can be a folder
    recorded = record.get("parameters")
    parameters = recorded if isinstance(recorded, Mapping) else {}
    if condition:  # the main condition stands at the top, beside the names of the others
        parameters = parameters.get(condition, {})
    config = {**identity, "seed": seed} | {key: parameters[key] for key in PARAMETERS if key in parameters}
    return ModelValues(name="/".join([*parts, f"seed={seed}"]), config=config, values=values)
