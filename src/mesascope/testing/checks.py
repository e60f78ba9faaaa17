"""What a task, a measure and a study must satisfy, whatever they are about."""

from collections.abc import Sequence
from dataclasses import replace

import torch
import xarray as xr

from mesascope.activations import SITES, capture
from mesascope.analyses import Measure
from mesascope.axes import AXES
from mesascope.ground_truth.findings import must
from mesascope.models.transformer import Decoder
from mesascope.studies.base import SCALES, Claim, Study
from mesascope.studies.toy_model import Reduced
from mesascope.studies.verdicts import SUPPORTED, judge
from mesascope.tasks.base import Batch, Task, training_loss

SEQUENCES = 32


def check_task(task: Task) -> None:
    """A task samples alike from alike generators, judges a perfect prediction as perfect, and its oracles are causal.

    >>> from mesascope.tasks.affine import Affine
    >>> check_task(Affine(length=8))
    """
    batch, again = _sample(task, 0), _sample(task, 0)
    must(_same(batch, again), "the same generator must give the same sequences")
    must(not torch.equal(batch.inputs, _sample(task, 1).inputs), "another generator must give other sequences")
    must(bool((batch.weight >= 0).all()) and float(batch.weight.sum()) > 0, "weights must be 0 or more, some above 0")
    must(bool(batch.inputs.isfinite().all()), "inputs must be finite numbers")
    if batch.targets.is_floating_point():
        loss = task.loss(batch.targets, batch)
        must(loss.shape == batch.weight.shape, f"the loss must have one number per position, but has {loss.shape}")
        must(float(loss.abs().max()) < 1e-6, "the loss of the targets themselves must be 0")
        must(float(training_loss(task, batch.targets + 1, batch)) > 0, "a wrong prediction must have a loss above 0")
    _check_oracles(task, batch)


def check_measure(measure: Measure, model: torch.nn.Module, batch: Batch) -> xr.Dataset:
    """A measure asks for known sites, needs what it asks for, uses the vocabulary, and gives the same numbers again.

    Args:
        measure: the instrument.
        model: any model it is meant for.
        batch: sequences for it.

    Returns:
        What it measured, for further checks.
    """
    unknown = set(measure.sites) - set(SITES)
    must(not unknown, f"sites must be from mesascope.activations.SITES, but {measure.name} asks for {sorted(unknown)}")
    first, second = (measure(_recorded(measure, model, batch)) for _ in range(2))
    must(first.identical(second), f"{measure.name} must give the same numbers for the same capture")
    must(bool(first.data_vars), f"{measure.name} must return at least one variable")
    _check_labelled(measure.name, first)
    _check_needs(measure, model, batch)
    return first


def check_reduced(model: Reduced, seeded: bool = True) -> xr.Dataset:
    """A reduced model gives finite numbers that are labelled, the same for the same seed and others for another.

    Args:
        model: the reduced model, small enough to be simulated three times.
        seeded: whether anything in it is drawn.

    Returns:
        What was seen of it, for further checks.
    """
    first, second, other = (model.simulate(seed) for seed in (0, 0, 1))
    must(first.identical(second), "the same seed must give the same numbers")
    must(not seeded or not first.identical(other), "another seed must give other numbers")
    _check_labelled(type(model).__name__, first)
    return first


def check_study(study: Study, results: dict[str, xr.Dataset]) -> None:
    """A study's tasks are sound, its models fit them, and each claim is decided by numbers per seed and can fail.

    Args:
        study: the study.
        results: what its instruments gave, from a run at any scale.
    """
    for arm in study.settings:
        check_task(arm.task)
        batch = _sample(arm.task, 0)
        prediction = Decoder(arm.model)(batch.inputs).logits
        loss = arm.task.loss(prediction, batch)
        must(loss.shape == batch.weight.shape, f"{study.name} {arm.name}: the model must predict at every position")
    minutes = [study.scales[name].minutes for name in SCALES]
    must(minutes == sorted(minutes), f"{study.name}: smoke must be the shortest scale and paper the longest")
    missing = set(study.results) - set(results)
    must(not missing, f"{study.name}: results must hold every instrument's, but lack {sorted(missing)}")
    for claim in study.claims:
        verdict = judge(claim, results, "laptop")
        must(len(verdict.per_seed) == results[study.measures[0].name].sizes["seed"], f"{claim.name}: one number a seed")
        must(_can_fail(claim, results), f"{claim.name} must fail where statistic and control change places")


def _check_labelled(whose: str, found: xr.Dataset) -> None:
    """Every variable says what it is, along axes of the vocabulary."""
    for name, array in found.data_vars.items():
        for attribute in ("units", "about"):
            must(bool(array.attrs.get(attribute)), f"{whose}: {name} must say its {attribute}")
        strange = [dim for dim in array.dims if dim not in AXES and not str(dim).startswith("_")]
        must(not strange, f"{whose}: the axes of {name} must be from mesascope.axes, but it has {strange}")


def _sample(task: Task, seed: int) -> Batch:
    """A few sequences."""
    return task.sample(SEQUENCES, torch.Generator().manual_seed(seed))


def _same(one: Batch, other: Batch) -> bool:
    """Whether two batches are the same, bit for bit."""
    pairs = ((one.inputs, other.inputs), (one.targets, other.targets), (one.weight, other.weight))
    return all(torch.equal(a, b) for a, b in pairs) and one.latents.keys() == other.latents.keys()


def _check_oracles(task: Task, batch: Batch) -> None:
    """Oracles have the shape of a prediction and use no later input."""
    length = batch.inputs.shape[1]
    cut = length // 2
    later = batch.inputs.clone()
    later[:, cut:] = later[:, cut:].flip(0)
    changed = Batch(inputs=later, targets=batch.targets, weight=batch.weight, latents=batch.latents)
    others = task.oracles(changed)
    for name, prediction in task.oracles(batch).items():
        must(prediction.shape[:2] == batch.inputs.shape[:2], f"the oracle {name!r} must predict at every position")
        must(bool(prediction.isfinite().all()), f"the oracle {name!r} must predict finite numbers")
        must(torch.equal(prediction[:, :cut], others[name][:, :cut]), f"the oracle {name!r} must not look ahead")


def _recorded(measure: Measure, model: torch.nn.Module, batch: Batch, without: Sequence[str] = ()):
    """A capture of what the measure asks for."""
    sites = [site for site in measure.sites if site not in without]
    return capture(model, batch, sites, reduce=measure.reductions)


def _check_needs(measure: Measure, model: torch.nn.Module, batch: Batch) -> None:
    """Without one of its sites a measure must raise, not invent."""
    for site in measure.sites:
        try:
            found = measure(_recorded(measure, model, batch, without=[site]))
        except (KeyError, ValueError):
            continue
        must(not found.data_vars, f"{measure.name} asks for {site}, but does without it; ask for what is needed only")


def _can_fail(claim: Claim, results: dict[str, xr.Dataset]) -> bool:
    """Whether the claim is not supported when statistic and control change places."""
    swapped = replace(claim, statistic=claim.control, control=claim.statistic)
    words = {judge(claim, results, claim.scales[0]).word, judge(swapped, results, claim.scales[0]).word}
    return words != {SUPPORTED}
