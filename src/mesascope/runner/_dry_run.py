"""A dry run of a study: its analyses on untrained models, and the quantities of its claims read from their results."""

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import torch
import xarray as xr

from mesascope.argument_types import summarize_error
from mesascope.axes import concat_seeds
from mesascope.models.load import find_decoder_class
from mesascope.models.transformer import Decoder
from mesascope.runner._checkpoints import SeedCheckpoints, open_checkpoints
from mesascope.runner._evaluation import draw_evaluation_batches
from mesascope.runner._jobs import analyse_checkpoints
from mesascope.runner._preflight import CHECK_SEED, StudyInvalid, is_quick, label_condition
from mesascope.runner._texts import check_result_texts
from mesascope.store import Run
from mesascope.studies.base import Condition, Quantity, Study
from mesascope.studies.verdicts import judge
from mesascope.tasks.base import Batch
from mesascope.train import derive_untrained_seed, limit_threads, train_model

NUM_SIMULATED_SEEDS = 2
NUM_SEQUENCES = 32
HISTORY_STEPS, HISTORY_BATCH_SIZE = 2, 8
MAX_UNTRAINED_DRAWS = 1
MAX_SECONDS = 5.0  # of a check before a run
MAX_LABELS = 12  # of an axis, in a message


def check_readings(study: Study, scale: str, label: str) -> None:
    """Check the analyses and claims of a study in seconds, before it is run.

    One untrained model of every condition is analysed, unless it is large or its task must be prepared first. After
    `MAX_SECONDS` of processor time no further analysis is started. Claims that read results which are left out, or
    those of simulations, are not checked.

    Args:
        study: The study.
        scale: The name of the scale.
        label: What messages call the study.

    Raises:
        StudyInvalid: An analysis fails, a formula in its texts cannot be typeset, or a claim reads what the results do
            not have.
    """
    start, results = time.process_time(), dict[str, xr.Dataset]()
    for condition in study.conditions:
        for analysis in condition.analyses if is_quick(condition, scale) else ():
            if time.process_time() - start < MAX_SECONDS:
                single = replace(condition, analyses=(analysis,))
                results |= analyse_untrained(study, scale, label, [single], num_seeds=1, only_last=True)
    check_result_texts(results, label)
    left_out = sorted(set(study.results) - set(results))
    check_claims(study, scale, label, DryResults(results, left_out))


def dry_run(study: Study, scale: str, label: str) -> dict[str, xr.Dataset]:
    """Run all analyses on untrained models, simulate all toy models, and check what the claims read from the results.

    Args:
        study: The study.
        scale: The name of the scale.
        label: What messages call the study.

    Returns:
        The results by name.

    Raises:
        StudyInvalid: An analysis or a simulation fails, a formula in its texts cannot be typeset, or a claim reads what
            the results do not have.
    """
    results = analyse_untrained(study, scale, label, study.conditions) | simulate_toy_models(study, scale, label)
    check_result_texts(results, label)
    check_claims(study, scale, label, DryResults(results))
    return results


class DryResults(Mapping[str, xr.Dataset]):
    """Results by name, which remember the one that was read last.

    Args:
        results: The results.
        left_out: Names of further results of the study, which were not computed.
    """

    def __init__(self, results: Mapping[str, xr.Dataset], left_out: Sequence[str] = ()) -> None:
        self._results, self._left_out = results, frozenset(left_out)
        self.last_read = ""

    def __getitem__(self, name: str) -> xr.Dataset:
        """Return a result, or raise ResultLeftOut if it was not computed."""
        if name in self._left_out:
            raise ResultLeftOut(name)
        self.last_read = ""
        dataset = self._results[name]
        self.last_read = name
        return dataset

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the results."""
        return iter(self._results)

    def __len__(self) -> int:
        """Return the number of results."""
        return len(self._results)


class ResultLeftOut(Exception):  # noqa: N818  it says what happened
    """A result was not computed in a dry run, so that claims that read it are not checked."""


def analyse_untrained(
    study: Study,
    scale: str,
    label: str,
    conditions: Sequence[Condition],
    *,
    num_seeds: int = 2,
    only_last: bool = False,
) -> dict[str, xr.Dataset]:
    """Run the analyses of conditions on untrained models, with few seeds and sequences.

    The results have the axes and labels of a run. The first and the last checkpoint are two untrained models;
    checkpoints between them have the values of the nearer one. A condition that records its training history takes
    two updates, because its analyses need them.

    Args:
        study: The study.
        scale: The name of the scale.
        label: What messages call the study.
        conditions: Those of the study that are analysed.
        num_seeds: Number of seeds.
        only_last: Analyse one checkpoint, whose values all others have, in half of the time.

    Returns:
        The results by name.

    Raises:
        StudyInvalid: An analysis fails.
    """
    results: dict[str, xr.Dataset] = {}
    for condition in conditions:
        where = label_condition(label, condition)
        with limit_threads(condition.scales[scale].training.threads), _silence_warnings():
            by_seed = [
                _analyse_seed(condition, scale, CHECK_SEED + seed, only_last, where) for seed in range(num_seeds)
            ]
        seeds = study.select_seeds(scale, num_seeds)
        results |= {
            name: concat_seeds({seed: one[name] for seed, one in zip(seeds, by_seed, strict=True)})
            for name in by_seed[0]
        }
    return results


def simulate_toy_models(study: Study, scale: str, label: str) -> dict[str, xr.Dataset]:
    """Simulate the toy models of a study with few seeds.

    Args:
        study: The study.
        scale: The name of the scale.
        label: What messages call the study.

    Returns:
        The results by name.

    Raises:
        StudyInvalid: A simulation fails.
    """
    results = {}
    for simulation in study.simulations:
        try:
            with limit_threads(1), _silence_warnings():
                by_seed = [simulation.scales[scale].simulate(seed) for seed in range(NUM_SIMULATED_SEEDS)]
        except Exception as error:
            raise StudyInvalid(
                f"{label}: the simulation {simulation.name} must run, but fails with {summarize_error(error)}; correct "
                "its toy model"
            ) from error
        seeds = study.select_seeds(scale, NUM_SIMULATED_SEEDS)
        results[simulation.name] = concat_seeds(dict(zip(seeds, by_seed, strict=True)))
    return results


def check_claims(study: Study, scale: str, label: str, results: DryResults) -> None:
    """Check that the quantities of all claims and requirements can be read from the results.

    Args:
        study: The study.
        scale: The name of the scale.
        label: What messages call the study.
        results: The results of a dry run. Claims that read a result that was left out are not checked.

    Raises:
        StudyInvalid: A quantity cannot be read; the message names the claim, the quantity and the valid labels.
    """
    for claim in study.claims:
        quantities = {"value": claim.value, "control": claim.control}
        quantities |= {f"requirement {one.statement!r}": one.value for one in claim.requirements}
        try:
            for field, quantity in quantities.items():
                _check_quantity(quantity, f"{label}: the {field} of the claim {claim.name!r}", results)
            with _silence_warnings():
                judge(claim, results, scale)
        except ResultLeftOut:
            continue


def _check_quantity(quantity: Quantity, name: str, results: DryResults) -> None:
    results.last_read = ""
    try:
        with _silence_warnings():
            quantity.per_seed(results)
    except ResultLeftOut:
        raise
    except Exception as error:
        raise StudyInvalid(
            f"{name} must be readable from the results, but fails with {summarize_error(error)}; "
            f"{_describe_labels(results, str(error))}"
        ) from error


def _analyse_seed(condition: Condition, scale: str, seed: int, only_last: bool, where: str) -> dict[str, xr.Dataset]:
    """Run all analyses together; if that fails, each by itself, to name the one that fails."""
    config = condition.scales[scale]
    few_sequences = min(config.sequences, NUM_SEQUENCES)
    try:
        return _analyse(condition, scale, seed, only_last, few_sequences)
    except Exception:
        results: dict[str, xr.Dataset] = {}
        for analysis in condition.analyses:
            single = replace(condition, analyses=(analysis,))
            try:
                results |= _analyse(single, scale, seed, only_last, few_sequences)
            except Exception:
                results |= _analyse_all_sequences(single, scale, seed, only_last, where)
        return results


def _analyse_all_sequences(
    condition: Condition, scale: str, seed: int, only_last: bool, where: str
) -> dict[str, xr.Dataset]:
    """Run one analysis on the sequences of a run, since some need more than a few."""
    try:
        return _analyse(condition, scale, seed, only_last, condition.scales[scale].sequences)
    except Exception as error:
        raise StudyInvalid(
            f"{where}: the analysis {condition.analyses[0].name} must run on the model and the task, but fails with "
            f"{summarize_error(error)}; correct its sites and options, or leave it out"
        ) from error


def _analyse(condition: Condition, scale: str, seed: int, only_last: bool, sequences: int) -> dict[str, xr.Dataset]:
    config, task = condition.scales[scale], condition.task_at(scale)
    few_draws = [
        replace(one, untrained_draws=min(one.untrained_draws, MAX_UNTRAINED_DRAWS)) for one in condition.analyses
    ]
    condition = replace(condition, analyses=tuple(few_draws))
    held_out = draw_evaluation_batches(task.validation_task(), sequences, sequences, seed)
    batches = tuple(batch.to("cpu", config.training.weight_dtype) for batch in held_out)
    with TemporaryDirectory() as folder:
        if config.training.history:
            checkpoints = _record_history(condition, scale, seed, batches, Path(folder))
        else:
            checkpoints = _build_checkpoints(condition, scale, seed, batches)
        steps = checkpoints.steps
        results = analyse_checkpoints(condition, checkpoints, steps[-1:] if only_last else (steps[0], steps[-1]))
    return {
        name: _fill_steps(results[name], analysis.select_steps(steps))
        for analysis in condition.analyses
        for name in [condition.result_name(analysis)]
    }


def _build_checkpoints(condition: Condition, scale: str, seed: int, batches: tuple[Batch, ...]) -> SeedCheckpoints:
    """Return checkpoints that are untrained models, another one at every step."""
    config, training = condition.model_at(scale), condition.scales[scale].training

    def build_model(step: int) -> Decoder:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_untrained_seed(seed, step))
            model = find_decoder_class(config)(config).eval()
        torch.nn.Module.to(model, dtype=training.weight_dtype)  # in place
        return model

    return SeedCheckpoints(
        task=condition.task_at(scale),
        steps=training.checkpoint_steps,
        seed=seed,
        evaluation_batches=batches,
        load=build_model,
        open_history=_refuse_history,
    )


def _record_history(
    condition: Condition, scale: str, seed: int, batches: tuple[Batch, ...], folder: Path
) -> SeedCheckpoints:
    """Take a few updates, whose history is recorded, and return the checkpoints before and after them."""
    task, training = condition.task_at(scale), condition.scales[scale].training
    short = replace(training, steps=HISTORY_STEPS, batch_size=HISTORY_BATCH_SIZE, warmup=0, checkpoints=2)
    run = Run.create(folder / "run", {})
    train_model(task, condition.model_at(scale), short, seed, run)
    recorded, first = open_checkpoints(task, short, run, seed, batches, "cpu"), training.checkpoint_steps[0]
    return replace(
        recorded,
        steps=training.checkpoint_steps,
        load=lambda step: recorded.load(0 if step == first else HISTORY_STEPS),
        open_history=lambda step: recorded.open_history(0 if step == first else HISTORY_STEPS),
    )


def _fill_steps(dataset: xr.Dataset, steps: Sequence[int]) -> xr.Dataset:
    """Give a result the steps of a run; those that were not analysed have the values of the nearest one."""
    return dataset.reindex(step=steps, method="nearest") if "step" in dataset.indexes else dataset


def _describe_labels(results: DryResults, message: str) -> str:
    """Return the valid labels of the axis that a message names, or all variables and axes of the last result read."""
    if not results.last_read:
        return f"the results are {', '.join(results)}"
    dataset = results[results.last_read]
    axis = next((str(axis) for axis in dataset.indexes if repr(axis) in message), "")
    if axis:
        return f"the axis {axis} of {results.last_read} has the labels {_list_labels(dataset, axis)}"
    axes = [f"{axis} ({_list_labels(dataset, str(axis))})" for axis in dataset.sizes]
    variables = ", ".join(map(str, dataset.data_vars))
    return f"{results.last_read} has the variables {variables} and the axes {', '.join(axes)}"


def _list_labels(dataset: xr.Dataset, axis: str) -> str:
    if axis not in dataset.indexes:
        return f"0 to {dataset.sizes[axis] - 1}"
    labels = [str(one) for one in dataset[axis].values]
    return ", ".join(labels if len(labels) <= MAX_LABELS else [*labels[: MAX_LABELS - 1], "...", labels[-1]])


@contextmanager
def _silence_warnings() -> Iterator[None]:
    """Ignore warnings inside the context: the run itself gives them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _refuse_history(step: int) -> NoReturn:
    raise ValueError("the training history must be recorded; set TrainingConfig(history=True)")
