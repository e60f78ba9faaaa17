"""Attention over the training history: a trained linear map as attention over all that it was trained on.

For y = W x trained by gradient descent, W_T = a W_0 + sum_n c_n d_n x_n^T with the inputs x_n and the error signals d_n
of every position of every batch, so y = a W_0 x + sum_n c_n d_n <x_n, x>: attention over every training example, with
the weight <x_n, x> (Irie, Csordas & Schmidhuber 2022). The coefficients a and c_n follow from learning rates, momentum,
weight decay and clipping. The history is read from disk in blocks, so memory does not grow with it.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations import UnsupportedModel
from mesascope.activations.linear_inputs import read_by
from mesascope.analyses.instrument import instrument
from mesascope.axes import label
from mesascope.store import History
from mesascope.tasks.base import Batch

MOST = 10  # of the most and of the least attended, as Wu & Varshney (2023) count them
RUN = 64  # neighbouring rows whose greatest and least weights are found together
BLOCK = 16_384  # rows of the history at once
FAR = 1_000_003  # places that neighbours are taken apart by the control's order, at least
TOGETHER = 32  # steps whose sequences the untrained model reads at once
CHECKED = 32  # queries whose outputs are put together again
REFUSED = 0.01  # a record that misses an output by more is another training's: those miss it by half and more
Kept = Callable[[np.ndarray], np.ndarray]
Queries = Float[Tensor, "query d_in"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Past:
    """What training left behind up to some step.

    Attributes:
        history: what linear maps read, and the error signals that came back.
        initial: the model before training.
        replay: the batches of all steps again, from the first.
    """

    history: History
    initial: PreTrainedModel
    replay: Callable[[], Iterator[Batch]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Attended:
    """The training instances that queries attend to most and least, by the place of each in the history.

    Attributes:
        top, last: which instances, best first; one step's instances stand together, in the order of its batch.
        top_weight, last_weight: their <x_n, x>.
    """

    top: Int[Tensor, "head query rank"]
    last: Int[Tensor, "head query rank"]
    top_weight: Float[Tensor, "head query rank"]
    last_weight: Float[Tensor, "head query rank"]


@dataclass(frozen=True, kw_only=True, eq=False)
class DualForm:
    """A trained map's outputs, put together from its start and its history.

    Attributes:
        initial: what is left of the first weights, and of the first bias.
        learned: the attention over the history.
    """

    initial: Float[Tensor, "query d_out"]
    learned: Float[Tensor, "query d_out"]

    @property
    def output(self) -> Float[Tensor, "query d_out"]:
        """Both."""
        return self.initial + self.learned


def attend(history: History, column: str, queries: Queries, *, heads: int = 1, most: int = MOST) -> Attended:
    """The instances with the largest and the smallest <x_n, x>, over the whole history.

    Args:
        history: with this column of inputs.
        column: such as ``layers.0.attention.q_proj.in``.
        queries: the vectors x, in the same space.
        heads: parts that the inputs are cut into, each of which attends for itself.
        most: how many of each.

    Raises:
        ValueError: there are fewer instances, or the widths differ.
    """
    _fitting(history, column, queries)
    total = history.steps * history.columns[column].rows
    if total < most:
        raise ValueError(f"a history must have at least {most} instances, but has {total}; train for longer")
    search = Search(queries, heads=heads, most=most)
    for start, (rows,) in history.blocks(column, rows=BLOCK):
        search.take(torch.from_numpy(rows), start)
    return search.found


class Search:
    """The instances that queries attend to most and least, among all that were looked through so far.

    Args:
        queries: the vectors x.
        heads: parts that all vectors are cut into.
        most: how many of each.
    """

    def __init__(self, queries: Queries, *, heads: int = 1, most: int = MOST) -> None:
        self._queries = queries.to(torch.float32).unflatten(1, (heads, -1)).transpose(0, 1).contiguous()
        self._top = _Extremes(heads, len(queries), most, largest=True)
        self._last = _Extremes(heads, len(queries), most, largest=False)
        self._held = torch.empty(0)

    @property
    def found(self) -> Attended:
        """What was found so far."""
        return Attended(
            top=self._top.places,
            last=self._last.places,
            top_weight=self._top.weights,
            last_weight=self._last.weights,
        )

    def take(self, rows: Float[Tensor, "row d_in"], start: int) -> None:
        """Look through a block of instances, the first of which has this place."""
        heads, count, _ = self._queries.shape
        split = rows.to(torch.float32).unflatten(1, (heads, -1))
        if self._held.shape != (count, len(rows)):
            self._held = torch.empty(count, len(rows))
        whole = len(rows) // RUN * RUN
        for head in range(heads):
            scores = torch.mm(self._queries[head], split[:, head].T, out=self._held)
            low, high = torch.aminmax(scores[:, :whole].unflatten(1, (-1, RUN)), dim=2)
            self._top.take(head, scores, high, start)
            self._last.take(head, scores, low, start)


def coefficients(history: History, decay: float) -> tuple[float, Float[np.ndarray, " steps"]]:
    """What is left of the start after all steps, and by how much each step's gradient has moved the weights since.

    With rate r, decay k, momentum m and the share s that clipping leaves of a gradient g: v' = m v + s g + k W and
    W' = W - r v', so that W_T = a W_0 + sum_n c_n g_n. Both follow from one pass backwards over the steps.

    Args:
        history: of stochastic gradient descent, with or without momentum.
        decay: the weight decay of these weights.

    Raises:
        UnsupportedModel: the rule of the updates has no such coefficients, as Adam's.
    """
    if history.facts["momentum"] is None:
        raise UnsupportedModel(
            "outputs can be put together from the history of gradient descent (SGD) alone, but this is of "
            f"{history.facts['rule']}, whose steps are no sum over instances; only the attended instances are known"
        )
    momentum, settings = float(history.facts["momentum"]), history.read("steps")
    of_weight, of_velocity = 1.0, 0.0
    found = np.zeros(len(settings))
    for step in range(len(settings) - 1, -1, -1):
        rate, kept = settings[step]
        pushed = of_velocity - rate * of_weight
        found[step] = kept * pushed
        of_weight, of_velocity = of_weight + decay * pushed, momentum * pushed
    return of_weight, found


def dual_form(
    history: History,
    name: str,
    queries: Queries,
    weight: Float[Tensor, "d_out d_in"],
    bias: Float[Tensor, " d_out"] | None = None,
    *,
    kept: Kept | None = None,
) -> DualForm:
    """The outputs of a trained map on these inputs, as attention over its history, in float64.

    Args:
        history: of stochastic gradient descent.
        name: of the map, such as ``layers.0.attention.q_proj``.
        queries: what it reads now.
        weight, bias: of the map before training.
        kept: which instances count, by their places; all by default.

    Raises:
        UnsupportedModel: the history is not one of gradient descent.
        ValueError: the widths differ.
    """
    told = history.facts["maps"][name]
    inputs, errors = f"{told['reads']}.in", f"{name}.error"
    _fitting(history, inputs, queries)
    x, rows = queries.double(), history.columns[inputs].rows
    start, pushes = coefficients(history, told["decay"])
    initial, learned = start * x @ weight.double().T, x.new_zeros(len(x), len(weight))
    bias_start, bias_pushes = (0.0, pushes) if bias is None else coefficients(history, told["bias decay"])
    for first, (x_n, d_n) in history.blocks(inputs, errors, rows=BLOCK):
        place = np.arange(first, first + len(x_n))
        counted = np.ones(len(place)) if kept is None else kept(place).astype(float)
        pushed = torch.from_numpy(counted * pushes[place // rows])
        d = torch.from_numpy(d_n).double()
        learned += (x @ torch.from_numpy(x_n).double().T * pushed) @ d
        if bias is not None:
            learned += torch.from_numpy(counted * bias_pushes[place // rows]) @ d
    return DualForm(initial=initial if bias is None else initial + bias_start * bias.double(), learned=learned)


@instrument(title="Attention over the training history", order=13)
def history_attention(
    past: Past, model: PreTrainedModel, batch: Batch, most: int = MOST, queries: int = 256
) -> xr.Dataset:
    """Which training instances a linear map attends to (Irie et al. 2022; Wu & Varshney 2023 count the 10 most and the
    10 least attended that share the label of the query). A query is what the map reads at the last position of a
    held-out sequence; instances are all positions of all batches so far, as the map read them then; the weight of an
    instance is <x_n, x>. Chance is the share of all instances that have the query's label. Untrained: the same
    instances and queries as the model before training reads them, so that what the vectors of tokens and the mere
    number of instances bring stands apart. Permuted: the labels of the instances in a random order. Maps that read the
    same attend alike; the output map attends for each head, and the mean over heads is given. For gradient descent,
    with momentum or without, the outputs of every map are put together again from its start and its whole history, and
    a map that misses them is refused; with half of the instances left out they are missed. For Adam only the attended
    instances are known: its steps are no sum over instances.

    Args:
        past: what training left behind, up to the step of the model.
        model: the model as it is.
        batch: held-out sequences with labels.
        most: how many of the most and the least attended.
        queries: sequences whose last position is looked at.
    """
    history, maps = past.history, Maps(past.history.facts["maps"])
    some = batch[slice(queries)]
    reads = _last_read(model, some, list(maps.places))
    labels = [name for name in history.facts["labels"] if name in some.labels]
    if not labels:
        raise ValueError("attention over the history needs labels at every position, but the task gives none")
    found: dict[str, xr.DataArray] = {}
    ground = Ground(history, labels)
    wanted = torch.stack([some.labels[name][:, -1] for name in labels], dim=-1).cpu()
    enough = len(ground) >= most
    attended = {n: attend(history, f"{n}.in", reads[n], heads=maps.heads[n], most=most) for n in maps.readers if enough}
    untrained = _replayed(past, some, maps, most) if enough else {}
    for kind, seen, truth in (
        ("", attended, ground.at),
        ("_untrained", untrained, ground.at),
        ("_permuted", attended, ground.permuted),
    ):
        for end in ("top", "last"):
            shares = {name: _share(truth(getattr(one, end)), wanted) for name, one in seen.items()}
            found |= maps.labelled(f"{end}{kind}", shares, labels, most)
    about = "share of all instances that have the query's label"
    found["chance"] = label(ground.share(wanted), "stat", units="1", about=about, coords={"stat": labels})
    if history.facts["momentum"] is not None:
        found |= _identities(past, model, reads, maps)
    found["instances"] = label(float(len(ground)), units="instances", about="positions of all batches so far")
    return xr.Dataset(found, attrs={"rule": history.facts["rule"]})


class Ground:
    """The labels of all instances, on disk.

    Args:
        history: whose instances.
        names: of the labels.
    """

    def __init__(self, history: History, names: list[str]) -> None:
        self._history = history
        self._columns = [history.facts["labels"].index(name) for name in names]
        self._total = history.steps * history.columns["labels"].rows

    def __len__(self) -> int:
        """How many instances."""
        return self._total

    def at(self, places: Int[Tensor, "*rest"]) -> Int[Tensor, "*rest label"]:
        """The labels at these places."""
        return torch.from_numpy(self._history.take("labels", places.numpy())[..., self._columns]).long()

    def permuted(self, places: Int[Tensor, "*rest"]) -> Int[Tensor, "*rest label"]:
        """The labels that stand there when all are in another order, fixed and as good as random."""
        step = next(odd for odd in range(FAR, 2 * FAR) if math.gcd(odd, max(self._total, 1)) == 1)
        return self.at((places * step + step // 3) % max(self._total, 1))

    def share(self, wanted: Int[Tensor, "query label"]) -> Float[Tensor, " label"]:
        """How often the label of a query is that of an instance, on average over queries."""
        if not self._total:
            return torch.full((len(self._columns),), torch.nan, dtype=torch.float64)
        same = torch.zeros(len(self._columns), dtype=torch.float64)
        for _, (rows,) in self._history.blocks("labels"):
            for k, column in enumerate(self._columns):
                kinds, counts = torch.from_numpy(rows[:, column]).unique(return_counts=True)
                same[k] += ((kinds[None] == wanted[:, k, None]) * counts).sum(1).double().mean()
        return same / self._total


def half(place: np.ndarray) -> np.ndarray:
    """A fixed random half of all instances: the upper bit of a multiplicative hash of their places (Knuth)."""
    return (place.astype(np.uint64) * np.uint64(11400714819323198485)) >> np.uint64(63) == 0


class _Extremes:
    """The largest or the smallest weights so far, of every head and query, and where they are."""

    def __init__(self, heads: int, queries: int, most: int, *, largest: bool) -> None:
        worst = -torch.inf if largest else torch.inf
        self.weights = torch.full((heads, queries, most), worst)
        self.places = torch.zeros(heads, queries, most, dtype=torch.long)
        self._largest = largest

    def take(self, head: int, scores: Float[Tensor, "query row"], ends: Float[Tensor, "query run"], start: int) -> None:
        """Look through one block. The greatest few lie in the runs with the greatest ends: only those are searched."""
        most = self.weights.shape[2]
        rows = torch.arange(ends.shape[1] * RUN, scores.shape[1]).expand(len(scores), -1)  # what is left after the runs
        if ends.shape[1]:
            runs = ends.topk(min(most, ends.shape[1]), dim=1, largest=self._largest).indices
            rows = torch.cat([(runs[:, :, None] * RUN + torch.arange(RUN)).flatten(1), rows], dim=1)
        weights = torch.cat([self.weights[head], scores.gather(1, rows)], dim=1)
        places = torch.cat([self.places[head], rows + start], dim=1)
        self.weights[head], best = weights.topk(most, dim=1, largest=self._largest)
        self.places[head] = places.gather(1, best)


class Maps:
    """The linear maps of a history by layer and place in it, and how numbers about them are labelled.

    Args:
        told: what the history says of each map, by its name.
    """

    def __init__(self, told: Mapping[str, Mapping[str, Any]]) -> None:
        order = ("embed", *(name for name in told if name.startswith("layers.")), "readout")  # as the model calls them
        self.places = {name: _place(name) for name in order if name in told}
        self.readers = [name for name in self.places if told[name]["reads"] == name]
        self.heads = {name: int(told[name]["heads"]) for name in told}
        self._layers = list(dict.fromkeys(layer for layer, _ in self.places.values()))
        self._maps = list(dict.fromkeys(place for _, place in self.places.values()))

    def labelled(
        self, name: str, shares: Mapping[str, Tensor], labels: list[str], most: int
    ) -> dict[str, xr.DataArray]:
        """The shares of all maps, and their means over the maps of a layer."""
        values = self.table(shares, len(labels))
        end, _, kind = name.partition("_")
        about = f"share of the {most} {'most' if end == 'top' else 'least'} attended instances with the query's label"
        about += {"": "", "untrained": ", both read by the untrained model", "permuted": ", labels permuted"}[kind]
        coords = {"layer": self._layers, "map": self._maps, "stat": labels}
        mean = {"layer": self._layers, "stat": labels}
        each = label(values, "layer", "map", "stat", units="1", about=about, coords=coords)
        layers = label(
            values.nanmean(1), "layer", "stat", units="1", about=f"{about}, mean over maps", coords=mean
        ).assign_attrs(LOOKS.get(name, {}))
        return {name: each, f"{name}_by_layer": layers}

    def errors(self, name: str, errors: Mapping[str, Tensor], about: str) -> dict[str, xr.DataArray]:
        """Errors of all maps."""
        coords = {"layer": self._layers, "map": self._maps}
        values = self.table({key: value[None] for key, value in errors.items()}, 1)[..., 0]
        return {name: label(values, "layer", "map", units="1", about=about, coords=coords).assign_attrs(scale="log")}

    def table(self, values: Mapping[str, Tensor], width: int) -> Float[Tensor, "layer map _"]:
        """Values by layer and place, not a number where there is none."""
        table = torch.full((len(self._layers), len(self._maps), width), torch.nan, dtype=torch.float64)
        for name, value in values.items():
            layer, place = self.places[name]
            table[self._layers.index(layer), self._maps.index(place)] = value
        return table


LOOKS: Mapping[str, Mapping[str, Any]] = {
    "top": {"headline": 1, "over_training": 1, "title": "attended with the same label"},
    "last": {"control_of": "top_by_layer", "control": "least attended"},
    "top_untrained": {"control_of": "top_by_layer", "control": "untrained"},
    "top_permuted": {"control_of": "top_by_layer", "control": "labels permuted"},
}


def _place(name: str) -> tuple[str, str]:
    """Layer of a map and place in it, as people read them.

    >>> _place("layers.0.attention.q_proj"), _place("readout")
    (('0', 'attention.q_proj'), ('read-out', 'readout'))
    """
    parts = name.split(".", 2)
    return (parts[1], parts[2]) if len(parts) == 3 else ("embedding" if name == "embed" else "read-out", name)


def _last_read(model: PreTrainedModel, batch: Batch, names: list[str]) -> dict[str, Float[Tensor, "query _"]]:
    """What maps read at the last position of every sequence."""
    return {name: x[:, -1].cpu() for name, x in read_by(model, batch, names).items()}


def _share(labels: Int[Tensor, "head query rank label"], wanted: Int[Tensor, "query label"]) -> Float[Tensor, " label"]:
    """How many of the attended instances have the label of their query."""
    return (labels == wanted[None, :, None, :]).double().mean((0, 1, 2))


def _replayed(past: Past, batch: Batch, maps: Maps, most: int) -> dict[str, Attended]:
    """What the model before training attends to, among the same instances, which it reads anew."""
    queries = _last_read(past.initial, batch, maps.readers)
    searches = {name: Search(queries[name], heads=maps.heads[name], most=most) for name in maps.readers}
    batches, start = islice(past.replay(), past.history.steps), 0
    while several := list(islice(batches, TOGETHER)):
        inputs = torch.cat([batch.inputs for batch in several])
        read = read_by(past.initial, inputs, maps.readers)
        for name, search in searches.items():
            search.take(read[name].flatten(0, 1).cpu(), start)
        start += inputs.shape[:2].numel()
    return {name: search.found for name, search in searches.items()}


def _identities(past: Past, model: PreTrainedModel, reads: Mapping[str, Tensor], maps: Maps) -> dict[str, xr.DataArray]:
    """How far outputs that are put together from the history are from the real ones, with all of it and with half.

    Raises:
        UnsupportedModel: much farther than rounding: the history is not that of these weights.
    """
    errors: dict[str, dict[str, Tensor]] = {"dual_error": {}, "dual_error_half": {}}
    for name in maps.places:
        x, start = reads[name][:CHECKED].double(), _parameters(past.initial, name)
        held = {key: value.double() for key, value in _parameters(model, name).items()}
        real = torch.nn.functional.linear(x, held["weight"], held.get("bias"))
        for kind, kept in (("dual_error", None), ("dual_error_half", half)):
            put = dual_form(past.history, name, x, start["weight"], start.get("bias"), kept=kept).output
            errors[kind][name] = (put - real).norm() / (real.norm() if real.any() else 1.0)
        if not errors["dual_error"][name] <= REFUSED:
            raise UnsupportedModel(
                f"the history must give the outputs of {name} to {REFUSED:g}, but misses them by "
                f"{float(errors['dual_error'][name]):.1e}; it may be of another training: delete the run and "
                "train again"
            )
    about = "relative error of outputs put together from the start and the whole history"
    found = maps.errors("dual_error", errors["dual_error"], about)
    return found | maps.errors("dual_error_half", errors["dual_error_half"], f"{about}, a random half left out")


def _parameters(model: PreTrainedModel, name: str) -> dict[str, Tensor]:
    """Weight and bias of a map."""
    return {key: value.detach().cpu() for key, value in model.get_submodule(name).named_parameters()}


def _fitting(history: History, column: str, queries: Queries) -> None:
    """Refuse queries of another width."""
    width = history.columns[column].width
    if queries.shape[1] != width:
        raise ValueError(f"queries must have the {width} features of {column}, but have {queries.shape[1]}")
