"""Which algorithm a model runs: the one whose predictions, errors and weights on the prompt are nearest to its own."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.analyses.algorithms.agreement import (
    Asked,
    Predictor,
    asked,
    gradients,
    predicted,
    read_at_every_depth,
    weights_alike,
)
from mesascope.analyses.algorithms.fit import Answers, Fitted, fit, fit_iterations
from mesascope.analyses.instrument import instrument
from mesascope.analyses.statistics import halves
from mesascope.axes import label
from mesascope.tasks.algorithms import Algorithm
from mesascope.tasks.base import Batch, Task
from mesascope.tasks.icl.base import InContext

DRAWS = 1000  # of the bootstrap over sequences
LEVEL = (0.025, 0.975)
RESOLUTION = 1e-3  # of similarity: below it algorithms are not told apart, for their numbers are fitted no finer
MOST = 1e9  # times the variance: so far off are predictions without bounds, that they leave numbers
NONE = "none of these"
TRAINED = "as in training"


@instrument(title="Which algorithm", steps="last", order=15)
def which_algorithm(
    model: PreTrainedModel | Predictor,
    task: Task,
    batch: Batch,
    seed: int = 0,
    layers: bool = True,
    elsewhere: bool = True,
    iterations: int | None = None,
) -> xr.Dataset:
    """The algorithms that a model may have learned, held against what it does. The numbers of each (iterations, step,
    ridge) are fitted to the model's predictions on half of the sequences; everything is told of the other half, and of
    sequences from other distributions with the same numbers. Similarity of predictions: the share of the variance of
    the model's predictions that the algorithm's explain, position by position (1: the same; 0: no better than their
    mean). Of errors: the cosine between both errors (Fu et al. 2024). Of weights: the mean cosine, over sequences,
    between the gradients of both last predictions by what the prompt shows (Akyürek et al. 2023). Null: the same
    algorithm, what is asked unchanged, but the examples those of another sequence. The model is named after the
    nearest algorithm; of those that a bootstrap over sequences cannot tell from it, after the one with the fewest
    fitted numbers; and none of these, if the nearest is no better than its null. Layers: the same for what an affine
    lens, fitted to the answers on the first half, reads at every depth, and for the model's own read-out there; of
    algorithms with iterations only these are fitted anew.

    Args:
        model: one of ours, or a function from inputs to predictions.
        task: learned in context; it gives the algorithms and the other distributions.
        batch: sequences of the task, 32 or more.
        seed: of the sequences from other distributions, and of the bootstrap.
        layers: whether layers are read, too; of a model alone.
        elsewhere: whether other distributions are looked at, too.
        iterations: that algorithms with iterations make; as many as fit best by default.
    """
    if not isinstance(task, InContext):
        raise ValueError(f"a task must be learned in context to have algorithms, but {type(task).__name__} is not")
    if len(batch) < 32:
        raise ValueError(f"algorithms are fitted and told apart over 32 sequences or more, but got {len(batch)}")
    first, second = (batch[rows] for rows in halves(len(batch)))
    here, there = asked(model, task, first), asked(model, task, second)
    read = read_at_every_depth(model, task, batch) if layers and isinstance(model, PreTrainedModel) else {}
    cut, found, by_layer = len(first), {}, {}
    for algorithm in (_limited(each, iterations) for each in task.algorithms()):
        ours = found[algorithm.name] = fit(algorithm, here.shown, here.prediction, here.weight)
        fitted = fit_iterations(ours, here.shown, [values[:cut] for values in read.values()], here.weight)
        by_layer[algorithm.name] = dict(zip(read, fitted, strict=True))
    return xr.Dataset(
        _by_setting(model, task, there, found, task.shifts() if elsewhere else {}, seed)
        | _named(there, found, seed)
        | _by_depth(there, {place: values[cut:] for place, values in read.items()}, by_layer)
    )


def _limited(algorithm: Algorithm, iterations: int | None) -> Algorithm:
    """An algorithm that makes so many iterations, if it makes any."""
    if iterations is None or not algorithm.unit or iterations not in algorithm.ticks:
        return algorithm
    return replace(algorithm, ticks=(iterations,))


def _by_setting(
    model: PreTrainedModel | Predictor,
    task: InContext,
    there: Asked,
    found: Mapping[str, Fitted],
    shifts: Mapping[str, InContext],
    seed: int,
) -> dict[str, xr.DataArray]:
    """Similarities and errors, on sequences as in training and on others."""
    settings, left_out = {TRAINED: there}, {}
    for name, shifted in shifts.items():
        drawn = shifted.sample(len(there.batch), torch.Generator().manual_seed(seed)).to(there.batch.inputs.device)
        try:
            settings[name] = asked(model, task, drawn)
        except torch.OutOfMemoryError:
            raise
        except (ValueError, IndexError, RuntimeError) as error:  # such as of a sequence longer than the context
            left_out[name] = " ".join(str(error).split())
    stats = ["predictions", "errors", *(f"weights: {group}" for group in task.shown(there.batch.inputs))]
    alike = [_likeness(model, task, each, list(found.values())) for each in settings.values()]
    own = [[each.loss(one(each.shown)) for one in found.values()] for each in settings.values()]
    losses = [each.loss(each.prediction) for each in settings.values()]
    names, where = {"predictor": list(found)}, {"setting": list(settings)}
    unit = "squared units of the answers"
    similarity = label(
        np.array(alike),
        "setting",
        "predictor",
        "stat",
        units="1",
        about="similarity of the algorithm with the model",
        coords=where | names | {"stat": stats},
    )
    return {
        "similarity": similarity.assign_attrs(
            {f"left out: {name}": why for name, why in left_out.items()}, headline=1, view="ranking", first=TRAINED
        ),
        "error": label(
            np.array(own), "setting", "predictor", units=unit, about="error of the algorithm", coords=where | names
        ).assign_attrs(scale="log"),
        "model_error": label(
            np.array(losses), "setting", units=unit, about="error of the model", coords=where
        ).assign_attrs(scale="log"),
    }


def _likeness(
    model: PreTrainedModel | Predictor, task: InContext, each: Asked, found: Sequence[Fitted]
) -> list[list[float]]:
    """All similarities of the algorithms with the model; of weights where predictions can be differentiated."""
    inputs, place, weights = each.batch.inputs, each.shown.at[-1], [[] for _ in found]
    if task.shown(inputs):
        ours = gradients(lambda x: task.answers(predicted(model, x)[:, [place]])[:, 0], inputs)
        weights = [weights_alike(ours, task, inputs, one) for one in found]
    predictions = [one(each.shown) for one in found]
    return [
        [each.similarity(answers), each.errors(answers), *alike]
        for answers, alike in zip(predictions, weights, strict=True)
    ]


def _named(there: Asked, found: Mapping[str, Fitted], seed: int) -> dict[str, xr.DataArray]:
    """The nearest algorithm, what it is held against, and which others cannot be told from it."""
    fitted, spread, generator = list(found.values()), there.spread, torch.Generator().manual_seed(seed)
    partners = _cycle(len(spread), generator).to(spread.device)
    miss = torch.stack([there.misses(one(there.shown)) for one in fitted]).clamp_max(MOST * float(spread.mean()))
    null = torch.stack([_null(there, one, partners) for one in fitted])
    times = _bootstrap(len(spread), generator).to(spread.device)
    whole = spread @ times
    alike, beyond = 1 - miss @ times / whole, (null - miss) @ times / whole
    best = int(miss.sum(1).argmin())
    apart = (alike[best] - alike).quantile(LEVEL[0], dim=1) > RESOLUTION
    beats = bool(spread.sum() > 0) and bool(beyond[best].quantile(LEVEL[0]) > 0)
    near = [n for n in range(len(fitted)) if not apart[n]]
    chosen = min(near, key=lambda n: (fitted[n].free, float(miss[n].sum())))
    numbers = ["; ".join(f"{key} {value:.3g}" for key, value in one.parameters.items()) for one in fitted]

    def table(values: Tensor | Sequence, units: str, about: str) -> xr.DataArray:
        return label(values, "predictor", units=units, about=about, coords={"predictor": list(found)})

    return {
        "named": label(
            np.array(fitted[chosen].name if beats else NONE), units="text", about="what the model is named after"
        ),
        "low": table(alike.quantile(LEVEL[0], dim=1), "1", "similarity of predictions, lower end of its interval"),
        "high": table(alike.quantile(LEVEL[1], dim=1), "1", "similarity of predictions, upper end of its interval"),
        "null": table(
            1 - null.sum(1) / spread.sum(), "1", "the same with another sequence's examples, or 0 if that is more"
        ),
        "apart": table(apart.int(), "1", "whether it can be told from the nearest one"),
        "called": table([one.name for one in fitted], "text", "what it is called with its iterations"),
        "iterations": table([one.iteration for one in fitted], "1", "iterations, as fitted"),
        "fitted": table(
            [next(iter(one.parameters.values()), float("nan")) for one in fitted],
            "1",
            "the first other number, as fitted",
        ),
        "numbers": table(numbers, "text", "all other numbers, as fitted"),
    }


def _null(there: Asked, one: Fitted, partners: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """How far the model's predictions are from the algorithm's with another sequence's examples, or from their own
    mean: from what is nearer. An algorithm that uses no examples is held against the mean.
    """
    spread, answers = there.spread, one(there.shown)
    swapped = one(there.shown.swapped(partners))
    other = there.misses(swapped)
    return spread if torch.equal(answers, swapped) or float(other.sum()) > float(spread.sum()) else other


def _cycle(count: int, generator: torch.Generator) -> Int[Tensor, " batch"]:
    """For every sequence another one."""
    order = torch.randperm(count, generator=generator)
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    return partner


def _bootstrap(count: int, generator: torch.Generator) -> Float[Tensor, "batch draw"]:
    """How often each sequence comes in every draw with replacement."""
    drawn = torch.randint(0, count, (count, DRAWS), generator=generator)
    return torch.zeros(count, DRAWS, dtype=torch.float64).scatter_add_(0, drawn, torch.ones_like(drawn).double())


def _by_depth(
    there: Asked, read: Mapping[tuple[str, str], Answers], by_layer: Mapping[str, Mapping[tuple[str, str], Fitted]]
) -> dict[str, xr.DataArray]:
    """By lens and depth, how near each algorithm comes to what is read, and with how many iterations."""
    if not read:
        return {}
    lenses, names = list(dict.fromkeys(lens for lens, _ in read)), list(dict.fromkeys(depth for _, depth in read))
    near = np.array(
        [
            [
                [
                    there.read_as(read[lens, depth]).similarity(one[lens, depth](there.shown))
                    for one in by_layer.values()
                ]
                for lens in lenses
            ]
            for depth in names
        ]
    )
    iterations = np.array(
        [[[one[lens, depth].iteration for one in by_layer.values()] for lens in lenses] for depth in names]
    )
    coords = {"layer": names, "lens": lenses, "predictor": list(by_layer)}
    ordered = np.nan_to_num(near[:, 0], nan=-np.inf)
    nearest = [
        list(by_layer.values())[column][lenses[0], names[n]].name if ordered[n, column] > 0 else NONE
        for n, column in enumerate(ordered.argmax(1))
    ]
    about = "similarity of predictions with what a lens reads at this depth"

    def table(values: np.ndarray, about: str) -> xr.DataArray:
        return label(values, "layer", "lens", "predictor", units="1", about=about, coords=coords)

    return {
        "layer_similarity": table(near, about),
        "layer_iterations": table(iterations, "iterations that come nearest to it, all other numbers as the model's"),
        "layer_nearest": label(
            np.array(nearest),
            "layer",
            units="text",
            about="the algorithm that is nearest to what the affine lens reads",
            coords={"layer": names},
        ),
    }
