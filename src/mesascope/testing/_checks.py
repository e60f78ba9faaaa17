"""Conformance checks of tasks, analyses, toy models and studies."""

from collections.abc import Sequence
from dataclasses import replace

import torch
import xarray as xr

from mesascope.activations import SITES, capture
from mesascope.analyses.base import Analysis
from mesascope.axes import AXES
from mesascope.formulas import FormulaError, validate_formulas
from mesascope.ground_truth.detections import require
from mesascope.models.load import find_decoder_class
from mesascope.runner import StudyInvalid, check_models, check_texts, dry_run
from mesascope.studies.base import SCALES, Claim, Study
from mesascope.studies.toy_model import ToyModel
from mesascope.studies.verdicts import SUPPORTED, judge
from mesascope.tasks.base import Batch, Task, training_loss

NUM_SEQUENCES = 32
DRY_SCALE = "smoke"


def check_task(task: Task) -> None:
    """Check that a task is reproducible, that its loss is zero at the targets, and that its baselines are causal.

    Formulas in its docstring must be valid, since its first line is the description of the task in `mesascope list`.

    Args:
        task: the task.

    Raises:
        AssertionError: a condition does not hold.

    >>> from mesascope.tasks.affine import Affine
    >>> check_task(Affine(length=8))
    """
    first_line = (type(task).__doc__ or "").strip().partition("\n")[0]
    _check_formulas(f"{type(task).__name__}, the first line of the docstring", first_line)
    batch, again = _sample_batch(task, 0), _sample_batch(task, 0)
    require(_batches_equal(batch, again), "the same generator must give the same sequences")
    require(not torch.equal(batch.inputs, _sample_batch(task, 1).inputs), "another generator must give other sequences")
    require(
        bool((batch.weight >= 0).all()) and float(batch.weight.sum()) > 0, "weights must be 0 or more, some above 0"
    )
    require(bool(batch.inputs.isfinite().all()), "inputs must be finite numbers")
    if batch.targets.is_floating_point():
        _check_loss(task, batch)
    _check_baselines(task, batch)


def _check_loss(task: Task, batch: Batch) -> None:
    loss = task.loss(batch.targets, batch)
    require(loss.shape == batch.weight.shape, f"the loss must have one number per position, but has {loss.shape}")
    require(float(loss.abs().max()) < 1e-6, "the loss of the targets themselves must be 0")
    require(float(training_loss(task, batch.targets + 1, batch)) > 0, "a wrong prediction must have a loss above 0")


def check_analysis(analysis: Analysis, model: torch.nn.Module, batch: Batch) -> xr.Dataset:
    """Check that an analysis requests known sites, needs each of them, labels its results, and is deterministic.

    Formulas in its texts and in those of its results must be valid.

    Args:
        analysis: an analysis of a capture.
        model: a model that the analysis supports.
        batch: sequences for the model.

    Returns:
        The results of the analysis, for further checks.

    Raises:
        AssertionError: a condition does not hold.
    """
    unknown = set(analysis.sites) - set(SITES)
    for name in ("title", "description"):
        _check_formulas(f"{analysis.name}, the {name}", getattr(analysis, name))
    require(
        not unknown, f"sites must be from mesascope.activations.SITES, but {analysis.name} asks for {sorted(unknown)}"
    )
    first, second = (analysis(_capture_sites(analysis, model, batch)) for _ in range(2))
    require(first.identical(second), f"{analysis.name} must give the same numbers for the same capture")
    require(bool(first.data_vars), f"{analysis.name} must return at least one variable")
    _check_labels(analysis.name, first)
    _check_required_sites(analysis, model, batch)
    return first


def check_toy_model(model: ToyModel, seeded: bool = True) -> xr.Dataset:
    """Check that a toy model is reproducible, depends on its seed, and labels its results.

    Args:
        model: a toy model small enough to be simulated three times.
        seeded: whether the simulation draws random numbers.

    Returns:
        The results of the simulation, for further checks.

    Raises:
        AssertionError: a condition does not hold.
    """
    first, second, other = (model.simulate(seed) for seed in (0, 0, 1))
    require(first.identical(second), "the same seed must give the same numbers")
    require(not seeded or not first.identical(other), "another seed must give other numbers")
    _check_labels(type(model).__name__, first)
    return first


def check_study(study: Study, results: dict[str, xr.Dataset] | None = None) -> None:
    """Check that a study's models fit its tasks, that its analyses run, and that its claims can be read and can fail.

    Formulas in its texts must be valid.

    Without results, nothing is trained: every analysis runs at smoke scale on untrained models of 2 seeds, with two
    checkpoints and few sequences, and the quantities of every claim and requirement are read from what they return. A
    condition that records its training history takes two updates, because its analyses need them.

    Args:
        study: the study.
        results: results of its analyses by name, from a run at any scale; those of untrained models by default.

    Raises:
        AssertionError: a condition does not hold; the message is one line. Where a claim reads what the results do not
            have, it names the claim, the quantity and the valid labels.

    >>> from mesascope.studies import registry
    >>> check_study(registry.load_study("newton"))
    """
    try:
        check_texts(study, study.name)
        check_models(study, DRY_SCALE, study.name)
        results = dry_run(study, DRY_SCALE, study.name) if results is None else results
    except StudyInvalid as error:
        raise AssertionError(str(error)) from error
    for condition in study.conditions:
        check_task(condition.task)
        batch = _sample_batch(condition.task, 0)
        loss = condition.task.loss(find_decoder_class(condition.model)(condition.model)(batch.inputs).logits, batch)
        complete = loss.shape == batch.weight.shape
        require(complete, f"{study.name} {condition.name}: the model must predict at every position")
    minutes = [study.minutes[name] for name in SCALES]
    require(minutes == sorted(minutes), f"{study.name}: smoke must be the shortest scale and paper the longest")
    missing = set(study.results) - set(results)
    require(not missing, f"{study.name}: results must include every analysis, but lack {sorted(missing)}")
    for claim in study.claims:
        _check_claim(claim, results, results[study.main.analyses[0].name].sizes["seed"])


def _check_claim(claim: Claim, results: dict[str, xr.Dataset], seeds: int) -> None:
    found = len(judge(claim, results, "laptop").per_seed)
    require(found == seeds, f"{claim.name} must have one number per seed, but has {found} for {seeds} seeds")
    require(_can_fail(claim, results), f"{claim.name} must not stay supported if statistic and control are swapped")


def _check_labels(owner: str, dataset: xr.Dataset) -> None:
    for name, array in dataset.data_vars.items():
        for attribute in ("units", "description"):
            require(bool(array.attrs.get(attribute)), f"{owner}: {name} must have the attribute {attribute!r}")
        for attribute in ("title", "description", "tautology"):
            _check_formulas(f"{owner}, the attribute {attribute} of {name}", str(array.attrs.get(attribute, "")))
        unknown = [dim for dim in array.dims if dim not in AXES and not str(dim).startswith("_")]
        require(not unknown, f"{owner}: the axes of {name} must be from mesascope.axes, but it has {unknown}")


def _check_formulas(owner: str, text: str) -> None:
    try:
        validate_formulas(text)
    except FormulaError as error:
        raise AssertionError(f"{owner}: {error}") from error


def _sample_batch(task: Task, seed: int) -> Batch:
    return task.sample(NUM_SEQUENCES, torch.Generator().manual_seed(seed))


def _batches_equal(first: Batch, second: Batch) -> bool:
    pairs = ((first.inputs, second.inputs), (first.targets, second.targets), (first.weight, second.weight))
    return all(torch.equal(a, b) for a, b in pairs) and first.latents.keys() == second.latents.keys()


def _check_baselines(task: Task, batch: Batch) -> None:
    """Check that baselines have the shape of a prediction and do not depend on later inputs."""
    length = batch.inputs.shape[1]
    cut = length // 2
    changed_inputs = batch.inputs.clone()
    changed_inputs[:, cut:] = changed_inputs[:, cut:].flip(0)
    changed = Batch(inputs=changed_inputs, targets=batch.targets, weight=batch.weight, latents=batch.latents)
    changed_predictions = task.baselines(changed)
    for name, prediction in task.baselines(batch).items():
        require(prediction.shape[:2] == batch.inputs.shape[:2], f"the baseline {name!r} must predict at every position")
        require(bool(prediction.isfinite().all()), f"the baseline {name!r} must predict finite numbers")
        require(
            torch.equal(prediction[:, :cut], changed_predictions[name][:, :cut]),
            f"the baseline {name!r} must be causal",
        )


def _capture_sites(analysis: Analysis, model: torch.nn.Module, batch: Batch, without: Sequence[str] = ()):
    sites = [site for site in analysis.sites if site not in without]
    return capture(model, batch, sites, reduce=analysis.reductions)


def _check_required_sites(analysis: Analysis, model: torch.nn.Module, batch: Batch) -> None:
    """Check that an analysis raises, or returns nothing, if one of its sites is missing."""
    for site in analysis.sites:
        try:
            results = analysis(_capture_sites(analysis, model, batch, without=[site]))
        except (KeyError, ValueError):
            continue
        require(not results.data_vars, f"{analysis.name} must use every site it requests, but works without {site}")


def _can_fail(claim: Claim, results: dict[str, xr.Dataset]) -> bool:
    exchanged = replace(claim, value=claim.control, control=claim.value)
    statuses = {judge(claim, results, claim.scales[0]).status, judge(exchanged, results, claim.scales[0]).status}
    return statuses != {SUPPORTED}
