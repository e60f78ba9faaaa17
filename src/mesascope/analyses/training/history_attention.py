"""Attention over the training history: a trained linear module as attention over all its training inputs.

For y = W x trained by gradient descent, W_T = a W_0 + sum_n c_n d_n x_n^T with the inputs x_n and the error signals d_n
of every position of every batch, so y = a W_0 x + sum_n c_n d_n <x_n, x>: attention over every training instance, with
the weight <x_n, x> (Irie, Csordas & Schmidhuber 2022). The coefficients a and c_n follow from learning rates, momentum,
weight decay and clipping. The history is read from disk in blocks, so memory does not grow with its length.
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
from mesascope.activations.linear_inputs import module_inputs
from mesascope.analyses.base import analysis
from mesascope.analyses.nulls import Null, with_null
from mesascope.axes import to_data_array
from mesascope.store import HistoryReader
from mesascope.tasks.base import Batch

NUM_ATTENDED = 10  # number of most and of least attended instances (Wu & Varshney 2023)
RUN_LENGTH = 64  # consecutive rows whose largest and smallest weights are computed together
BLOCK_ROWS = 16_384  # rows of the history in memory at once
MIN_STRIDE = 1_000_003  # minimum distance of neighbouring instances in the permutation of the control
REPLAY_STEPS = 32  # training steps per forward pass of the untrained model
MAX_CHECKED_QUERIES = 32  # queries whose outputs are computed from the history
MAX_DUAL_ERROR = 0.01  # maximum relative error of an output; histories of other trainings have errors of 0.5 and more
InstanceMask = Callable[[np.ndarray], np.ndarray]
Queries = Float[Tensor, "query d_in"]


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingHistory:
    """The training history up to some step.

    Attributes:
        history: the recorded inputs and error signals of the linear modules.
        initial: the model before training.
        replay: function that yields the batches of all steps again, from the first.
    """

    history: HistoryReader
    initial: PreTrainedModel
    replay: Callable[[], Iterator[Batch]]


@dataclass(frozen=True, kw_only=True, eq=False)
class AttendedInstances:
    """The training instances that queries attend to most and least, by their index in the history.

    Attributes:
        top, bottom: indices of the instances, most extreme first; the instances of one step are contiguous, in the
            order of its batch.
        top_weight, bottom_weight: their <x_n, x>.
    """

    top: Int[Tensor, "head query rank"]
    bottom: Int[Tensor, "head query rank"]
    top_weight: Float[Tensor, "head query rank"]
    bottom_weight: Float[Tensor, "head query rank"]


@dataclass(frozen=True, kw_only=True, eq=False)
class DualForm:
    """The outputs of a trained linear module, computed from its initial weights and its history.

    Attributes:
        initial_part: contribution of the initial weights and the initial bias.
        history_part: attention over the history.
    """

    initial_part: Float[Tensor, "query d_out"]
    history_part: Float[Tensor, "query d_out"]

    @property
    def output(self) -> Float[Tensor, "query d_out"]:
        """The sum of both parts."""
        return self.initial_part + self.history_part


def find_attended_instances(
    history: HistoryReader, column: str, queries: Queries, *, heads: int = 1, num_attended: int = NUM_ATTENDED
) -> AttendedInstances:
    """Find the instances with the largest and the smallest <x_n, x> in the whole history.

    Args:
        history: a history with this column of inputs.
        column: name of the column, such as ``layers.0.attention.q_proj.in``.
        queries: the vectors x, of the same width.
        heads: number of equal parts into which all vectors are split; each part attends on its own.
        num_attended: number of instances at each end.

    Returns:
        the instances.

    Raises:
        ValueError: there are fewer instances, or the widths differ.
    """
    _validate_width(history, column, queries)
    total = history.steps * history.columns[column].rows
    if total < num_attended:
        raise ValueError(f"a history must have at least {num_attended} instances, but has {total}; train for longer")
    search = AttentionSearch(queries, heads=heads, num_attended=num_attended)
    for start, (rows,) in history.iterate_blocks(column, rows=BLOCK_ROWS):
        search.search_block(torch.from_numpy(rows), start)
    return search.attended_instances


class AttentionSearch:
    """Search for the instances that queries attend to most and least, in blocks of instances.

    Args:
        queries: the vectors x.
        heads: number of equal parts into which all vectors are split.
        num_attended: number of instances at each end.
    """

    def __init__(self, queries: Queries, *, heads: int = 1, num_attended: int = NUM_ATTENDED) -> None:
        self._queries = queries.to(torch.float32).unflatten(1, (heads, -1)).transpose(0, 1).contiguous()
        self._top = _ExtremeWeights(heads, len(queries), num_attended, largest=True)
        self._bottom = _ExtremeWeights(heads, len(queries), num_attended, largest=False)
        self._buffer = torch.empty(0)

    @property
    def attended_instances(self) -> AttendedInstances:
        """The instances with the extreme weights among all blocks searched so far."""
        return AttendedInstances(
            top=self._top.indices,
            bottom=self._bottom.indices,
            top_weight=self._top.weights,
            bottom_weight=self._bottom.weights,
        )

    def search_block(self, rows: Float[Tensor, "row d_in"], start: int) -> None:
        """Search a block of instances.

        Args:
            rows: the inputs x_n of the block.
            start: index of its first instance in the history.
        """
        heads, count, _ = self._queries.shape
        split = rows.to(torch.float32).unflatten(1, (heads, -1))
        if self._buffer.shape != (count, len(rows)):
            self._buffer = torch.empty(count, len(rows))
        whole = len(rows) // RUN_LENGTH * RUN_LENGTH
        for head in range(heads):
            scores = torch.mm(self._queries[head], split[:, head].T, out=self._buffer)
            low, high = torch.aminmax(scores[:, :whole].unflatten(1, (-1, RUN_LENGTH)), dim=2)
            self._top.update_from_block(head, scores, high, start)
            self._bottom.update_from_block(head, scores, low, start)


def dual_coefficients(history: HistoryReader, decay: float) -> tuple[float, Float[np.ndarray, " steps"]]:
    """Compute the coefficients of the initial weights and of the gradient of every step in the trained weights.

    With learning rate r, weight decay k, momentum m and the factor s of gradient clipping for a gradient g, the update
    is v' = m v + s g + k W and W' = W - r v', so that W_T = a W_0 + sum_n c_n g_n. One pass backwards over the steps
    gives a and all c_n.

    Args:
        history: the history of stochastic gradient descent, with or without momentum.
        decay: weight decay of these weights.

    Returns:
        a, and c_n for every step.

    Raises:
        UnsupportedModel: the optimiser has no such coefficients, as Adam.
    """
    if history.metadata["momentum"] is None:
        raise UnsupportedModel(
            "the dual form needs a history of gradient descent (SGD), but this is of "
            f"{history.metadata['rule']}, whose steps are not sums over instances; only attended instances are "
            "available"
        )
    momentum, step_factors = float(history.metadata["momentum"]), history.read_column("steps")
    of_weight, of_velocity = 1.0, 0.0
    gradient_coefficients = np.zeros(len(step_factors))
    for step in range(len(step_factors) - 1, -1, -1):
        rate, clip_factor = step_factors[step]
        coefficient = of_velocity - rate * of_weight
        gradient_coefficients[step] = clip_factor * coefficient
        of_weight, of_velocity = of_weight + decay * coefficient, momentum * coefficient
    return of_weight, gradient_coefficients


def compute_dual_form(
    history: HistoryReader,
    name: str,
    queries: Queries,
    weight: Float[Tensor, "d_out d_in"],
    bias: Float[Tensor, " d_out"] | None = None,
    *,
    instance_mask: InstanceMask | None = None,
) -> DualForm:
    """Compute the outputs of a trained linear module as attention over its history, in float64.

    Args:
        history: the history of stochastic gradient descent.
        name: name of the module, such as ``layers.0.attention.q_proj``.
        queries: its present inputs.
        weight: its weight before training.
        bias: its bias before training.
        instance_mask: function from indices of instances to ``True`` where they are included; all by default.

    Returns:
        both parts of the outputs.

    Raises:
        UnsupportedModel: the history is not one of gradient descent.
        ValueError: the widths differ.
    """
    module_info = history.metadata["maps"][name]
    inputs, errors = f"{module_info['reads']}.in", f"{name}.error"
    _validate_width(history, inputs, queries)
    x, rows = queries.double(), history.columns[inputs].rows
    initial_coefficient, step_coefficients = dual_coefficients(history, module_info["decay"])
    initial, learned = initial_coefficient * x @ weight.double().T, x.new_zeros(len(x), len(weight))
    bias_initial_coefficient, bias_step_coefficients = (
        (0.0, step_coefficients) if bias is None else dual_coefficients(history, module_info["bias decay"])
    )
    for first, (x_n, d_n) in history.iterate_blocks(inputs, errors, rows=BLOCK_ROWS):
        instance_index = np.arange(first, first + len(x_n))
        is_included = (
            np.ones(len(instance_index)) if instance_mask is None else instance_mask(instance_index).astype(float)
        )
        row_coefficients = torch.from_numpy(is_included * step_coefficients[instance_index // rows])
        d = torch.from_numpy(d_n).double()
        learned += (x @ torch.from_numpy(x_n).double().T * row_coefficients) @ d
        if bias is not None:
            learned += torch.from_numpy(is_included * bias_step_coefficients[instance_index // rows]) @ d
    return DualForm(
        initial_part=initial if bias is None else initial + bias_initial_coefficient * bias.double(),
        history_part=learned,
    )


@analysis(
    title="Attention over the training history",
    description="""The training instances that a linear module attends to (Irie et al. 2022; Wu & Varshney 2023 count
    how many of the 10 most and the 10 least attended instances have the label of the query). A query is the input of
    the module at the last position of a held-out sequence. Instances are all positions of all training batches so far,
    with the inputs of the module at that time; the weight of an instance is <x_n, x>. Chance is the fraction of all
    instances with the label of the query. Controls: the labels of the instances permuted; the same instances and
    queries as read by the untrained model, which separates the effect of token vectors and of the number of instances;
    the least attended instances. Modules with the same input have the same attention; the output projection attends
    per head, and the mean over heads is given. For gradient descent, with or without momentum, the outputs of every
    module are computed again from its initial weights and its whole history; a module whose outputs differ is refused,
    and the error with a random half of the instances is given for comparison. For Adam only the attended instances are
    available, since its steps are not sums over instances.""",
    input="history",
)
def history_attention(
    training_history: TrainingHistory,
    model: PreTrainedModel,
    batch: Batch,
    num_attended: int = NUM_ATTENDED,
    queries: int = 256,
) -> xr.Dataset:
    """Find the training instances that every linear module attends to, and compare their labels with the query's.

    Args:
        training_history: the training history up to the step of the model.
        model: the model at that step.
        batch: held-out sequences with labels.
        num_attended: number of most and of least attended instances per query.
        queries: number of sequences whose last position is a query.

    Returns:
        ``top`` (layer, map, stat) and ``top_by_layer`` (layer, stat) with their nulls, ``chance`` (stat),
        ``instances``, and for gradient descent ``dual_error`` and ``dual_error_half`` (layer, map).

    Raises:
        ValueError: the task gives no labels.
        UnsupportedModel: the history does not reproduce the outputs of a module.
    """
    history, modules = training_history.history, ModuleTable(training_history.history.metadata["maps"])
    query_batch = batch[slice(queries)]
    module_queries = _inputs_at_last_position(model, query_batch, list(modules.positions))
    labels = [name for name in history.metadata["labels"] if name in query_batch.categorical_latents]
    if not labels:
        raise ValueError("history_attention needs labels at every position, but the task gives none")
    instance_labels = InstanceLabels(history, labels)
    query_labels = torch.stack([query_batch.categorical_latents[name][:, -1] for name in labels], dim=-1).cpu()
    has_enough_instances = len(instance_labels) >= num_attended
    attended = {
        name: find_attended_instances(
            history, f"{name}.in", module_queries[name], heads=modules.heads[name], num_attended=num_attended
        )
        for name in modules.attending_modules
        if has_enough_instances
    }
    untrained = (
        _search_untrained_model(training_history, query_batch, modules, num_attended) if has_enough_instances else {}
    )
    matches = {
        (end, kind): {
            name: _matching_fraction(truth(one.top if end == "top" else one.bottom), query_labels)
            for name, one in seen.items()
        }
        for end in ("top", "last")
        for kind, seen, truth in (
            ("", attended, instance_labels.labels_at),
            ("untrained", untrained, instance_labels.labels_at),
            ("permuted", attended, instance_labels.permuted_labels_at),
        )
    }
    variables = modules.label_matches(matches, labels, num_attended)
    about = "fraction of all instances with the query's label"
    variables["chance"] = to_data_array(
        instance_labels.label_frequency(query_labels), "stat", units="1", description=about, coords={"stat": labels}
    )
    if history.metadata["momentum"] is not None:
        variables |= _dual_form_errors(training_history, model, module_queries, modules)
    variables["instances"] = to_data_array(
        float(len(instance_labels)), units="instances", description="positions of all training batches so far"
    )
    return xr.Dataset(variables, attrs={"rule": history.metadata["rule"]})


class InstanceLabels:
    """The labels of all instances, on disk.

    Args:
        history: the history of the instances.
        names: names of the labels.
    """

    def __init__(self, history: HistoryReader, names: list[str]) -> None:
        self._history = history
        self._columns = [history.metadata["labels"].index(name) for name in names]
        self._total = history.steps * history.columns["labels"].rows

    def __len__(self) -> int:
        """Return the number of instances."""
        return self._total

    def labels_at(self, indices: Int[Tensor, "*rest"]) -> Int[Tensor, "*rest label"]:
        """Return the labels of instances.

        Args:
            indices: indices of the instances.

        Returns:
            labels, along a new last axis.
        """
        return torch.from_numpy(self._history.read_rows("labels", indices.numpy())[..., self._columns]).long()

    def permuted_labels_at(self, indices: Int[Tensor, "*rest"]) -> Int[Tensor, "*rest label"]:
        """Return the labels of instances under a fixed permutation of all instances that separates neighbours.

        Args:
            indices: indices of the instances.

        Returns:
            labels, along a new last axis.
        """
        stride = next(odd for odd in range(MIN_STRIDE, 2 * MIN_STRIDE) if math.gcd(odd, max(self._total, 1)) == 1)
        return self.labels_at((indices * stride + stride // 3) % max(self._total, 1))

    def label_frequency(self, query_labels: Int[Tensor, "query label"]) -> Float[Tensor, " to_data_array"]:
        """Return the fraction of instances that have the label of a query, averaged over queries.

        Args:
            query_labels: labels of the queries.

        Returns:
            one fraction per label; NaN without instances.
        """
        if not self._total:
            return torch.full((len(self._columns),), torch.nan, dtype=torch.float64)
        total_frequency = torch.zeros(len(self._columns), dtype=torch.float64)
        for _, (rows,) in self._history.iterate_blocks("labels"):
            for k, column in enumerate(self._columns):
                label_values, counts = torch.from_numpy(rows[:, column]).unique(return_counts=True)
                total_frequency[k] += ((label_values[None] == query_labels[:, k, None]) * counts).sum(1).double().mean()
        return total_frequency / self._total


def random_half(indices: np.ndarray) -> np.ndarray:
    """Return ``True`` for a fixed random half of all instances: the top bit of Knuth's multiplicative hash.

    Args:
        indices: indices of the instances.
    """
    return (indices.astype(np.uint64) * np.uint64(11400714819323198485)) >> np.uint64(63) == 0


class _ExtremeWeights:
    """The largest or the smallest weights so far, for every head and query, and their indices."""

    def __init__(self, heads: int, queries: int, num_attended: int, *, largest: bool) -> None:
        worst = -torch.inf if largest else torch.inf
        self.weights = torch.full((heads, queries, num_attended), worst)
        self.indices = torch.zeros(heads, queries, num_attended, dtype=torch.long)
        self._largest = largest

    def update_from_block(
        self, head: int, scores: Float[Tensor, "query row"], ends: Float[Tensor, "query run"], start: int
    ) -> None:
        """Search one block.

        The most extreme weights are in the runs with the most extreme ends, so only those runs are searched.
        """
        num_attended = self.weights.shape[2]
        rows = torch.arange(ends.shape[1] * RUN_LENGTH, scores.shape[1]).expand(
            len(scores), -1
        )  # the rows after the last whole run
        if ends.shape[1]:
            runs = ends.topk(min(num_attended, ends.shape[1]), dim=1, largest=self._largest).indices
            rows = torch.cat([(runs[:, :, None] * RUN_LENGTH + torch.arange(RUN_LENGTH)).flatten(1), rows], dim=1)
        weights = torch.cat([self.weights[head], scores.gather(1, rows)], dim=1)
        indices = torch.cat([self.indices[head], rows + start], dim=1)
        self.weights[head], best = weights.topk(num_attended, dim=1, largest=self._largest)
        self.indices[head] = indices.gather(1, best)


class ModuleTable:
    """The linear modules of a history by layer and name in the layer, and the labelling of results about them.

    Args:
        modules: the facts about each module in the history, by its name.
    """

    def __init__(self, modules: Mapping[str, Mapping[str, Any]]) -> None:
        order = (
            "embed",
            *(name for name in modules if name.startswith("layers.")),
            "readout",
        )  # in the order of the forward pass
        self.positions = {name: _layer_and_module(name) for name in order if name in modules}
        self.attending_modules = [name for name in self.positions if modules[name]["reads"] == name]
        self.heads = {name: int(modules[name]["heads"]) for name in modules}
        self._layers = list(dict.fromkeys(layer for layer, _ in self.positions.values()))
        self._maps = list(dict.fromkeys(slot for _, slot in self.positions.values()))

    def label_matches(
        self, matches: Mapping[tuple[str, str], Mapping[str, Tensor]], labels: list[str], num_attended: int
    ) -> dict[str, xr.DataArray]:
        """Label the matching fractions of all modules, and their means over the modules of a layer, with their nulls.

        Args:
            matches: fractions by module, for each end of the ranking (``top``, ``last``) and each kind of
                :data:`KIND_SUFFIXES`.
            labels: names of the labels.
            num_attended: number of instances at each end.

        Returns:
            ``top`` and ``top_by_layer``, each with its nulls: permuted labels, the untrained model, and the least
            attended instances, which have the first two nulls themselves.
        """
        coords = {"layer": self._layers, "map": self._maps, "stat": labels}
        layer_coords = {"layer": self._layers, "stat": labels}
        by_map, by_layer = {}, {}
        for (end, kind), values in matches.items():
            table, extreme = self.build_table(values, len(labels)), "most" if end == "top" else "least"
            about = (
                f"fraction of the {num_attended} {extreme} attended instances with the query's "
                f"label{KIND_SUFFIXES[kind]}"
            )
            by_map[end, kind] = to_data_array(
                table, "layer", "map", "stat", units="1", description=about, coords=coords
            )
            about = f"{about}, mean over modules"
            by_layer[end, kind] = to_data_array(
                table.nanmean(1), "layer", "stat", units="1", description=about, coords=layer_coords
            )
        by_layer["top", ""] = by_layer["top", ""].assign_attrs(
            headline=1, over_training=1, title="attended with the same label"
        )
        return _with_nulls("top", by_map) | _with_nulls("top_by_layer", by_layer)

    def label_errors(self, name: str, errors: Mapping[str, Tensor], about: str) -> dict[str, xr.DataArray]:
        """Label the errors of all modules.

        Args:
            name: name of the variable.
            errors: error by module.
            description: description of the variable.

        Returns:
            the variable by its name.
        """
        coords = {"layer": self._layers, "map": self._maps}
        values = self.build_table({key: value[None] for key, value in errors.items()}, 1)[..., 0]
        return {
            name: to_data_array(values, "layer", "map", units="1", description=about, coords=coords).assign_attrs(
                scale="log"
            )
        }

    def build_table(self, values: Mapping[str, Tensor], width: int) -> Float[Tensor, "layer map _"]:
        """Arrange values by layer and module; NaN where a layer has no such module.

        Args:
            values: values by module.
            width: number of values per module.

        Returns:
            the table.
        """
        table = torch.full((len(self._layers), len(self._maps), width), torch.nan, dtype=torch.float64)
        for name, value in values.items():
            layer, module_name = self.positions[name]
            table[self._layers.index(layer), self._maps.index(module_name)] = value
        return table


KIND_SUFFIXES = {"": "", "untrained": ", both computed by the untrained model", "permuted": ", labels permuted"}


def _with_nulls(name: str, arrays: Mapping[tuple[str, str], xr.DataArray]) -> dict[str, xr.DataArray]:
    def make_nulls(end: str) -> tuple[Null, Null]:
        permuted = Null(name="labels permuted", value=arrays[end, "permuted"])
        return permuted, Null(name="untrained", value=arrays[end, "untrained"])

    least = Null(name="least attended", value=arrays["last", ""])
    variables = with_null(name, arrays["top", ""], *make_nulls("top"), least)
    least_name = f"{name}_null_least_attended"
    return variables | with_null(least_name, variables[least_name], *make_nulls("last"))


def _layer_and_module(name: str) -> tuple[str, str]:
    """Return the layer of a module and its name in the layer, as shown on pages.

    >>> _layer_and_module("layers.0.attention.q_proj"), _layer_and_module("readout")
    (('0', 'attention.q_proj'), ('read-out', 'readout'))
    """
    parts = name.split(".", 2)
    return (parts[1], parts[2]) if len(parts) == 3 else ("embedding" if name == "embed" else "read-out", name)


def _inputs_at_last_position(
    model: PreTrainedModel, batch: Batch, names: list[str]
) -> dict[str, Float[Tensor, "query _"]]:
    return {name: x[:, -1].cpu() for name, x in module_inputs(model, batch, names).items()}


def _matching_fraction(
    labels: Int[Tensor, "head query rank label"], query_labels: Int[Tensor, "query label"]
) -> Float[Tensor, " to_data_array"]:
    return (labels == query_labels[None, :, None, :]).double().mean((0, 1, 2))


def _search_untrained_model(
    training_history: TrainingHistory, batch: Batch, modules: ModuleTable, num_attended: int
) -> dict[str, AttendedInstances]:
    """Find the instances that the untrained model attends to, by reading the same training batches again."""
    queries = _inputs_at_last_position(training_history.initial, batch, modules.attending_modules)
    searches = {
        name: AttentionSearch(queries[name], heads=modules.heads[name], num_attended=num_attended)
        for name in modules.attending_modules
    }
    batches, start = islice(training_history.replay(), training_history.history.steps), 0
    while step_batches := list(islice(batches, REPLAY_STEPS)):
        inputs = torch.cat([batch.inputs for batch in step_batches])
        inputs_by_module = module_inputs(training_history.initial, inputs, modules.attending_modules)
        for name, search in searches.items():
            search.search_block(inputs_by_module[name].flatten(0, 1).cpu(), start)
        start += inputs.shape[:2].numel()
    return {name: search.attended_instances for name, search in searches.items()}


def _dual_form_errors(
    training_history: TrainingHistory,
    model: PreTrainedModel,
    module_queries: Mapping[str, Tensor],
    modules: ModuleTable,
) -> dict[str, xr.DataArray]:
    """Compute the relative errors of outputs computed from the history, from all of it and from a random half.

    Raises:
        UnsupportedModel: an error is far beyond rounding, so the history is not that of these weights.
    """
    errors: dict[str, dict[str, Tensor]] = {"dual_error": {}, "dual_error_half": {}}
    for name in modules.positions:
        x, initial_parameters = (
            module_queries[name][:MAX_CHECKED_QUERIES].double(),
            _cpu_parameters(training_history.initial, name),
        )
        parameters = {key: value.double() for key, value in _cpu_parameters(model, name).items()}
        output = torch.nn.functional.linear(x, parameters["weight"], parameters.get("bias"))
        for kind, row_filter in (("dual_error", None), ("dual_error_half", random_half)):
            reconstructed = compute_dual_form(
                training_history.history,
                name,
                x,
                initial_parameters["weight"],
                initial_parameters.get("bias"),
                instance_mask=row_filter,
            ).output
            errors[kind][name] = (reconstructed - output).norm() / (output.norm() if output.any() else 1.0)
        if not errors["dual_error"][name] <= MAX_DUAL_ERROR:
            raise UnsupportedModel(
                f"the history must reproduce the outputs of {name} to a relative error of {MAX_DUAL_ERROR:g}, "
                "but the error "
                f"is {float(errors['dual_error'][name]):.1e}; it may be of another training: delete the run and train "
                "again"
            )
    about = "relative error of outputs computed from the initial weights and the whole history"
    variables = modules.label_errors("dual_error", errors["dual_error"], about)
    return variables | modules.label_errors(
        "dual_error_half", errors["dual_error_half"], f"{about}, without a random half of the instances"
    )


def _cpu_parameters(model: PreTrainedModel, name: str) -> dict[str, Tensor]:
    return {key: value.detach().cpu() for key, value in model.get_submodule(name).named_parameters()}


def _validate_width(history: HistoryReader, column: str, queries: Queries) -> None:
    width = history.columns[column].width
    if queries.shape[1] != width:
        raise ValueError(f"queries must have the {width} features of {column}, but have {queries.shape[1]}")
