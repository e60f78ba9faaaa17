"""Attention over the training history: a trained linear module as attention over all its training inputs.

For y = W x trained by gradient descent, W_T = a W_0 + sum_n c_n d_n x_n^T with the inputs x_n and the error signals d_n
of every position of every batch, so y = a W_0 x + sum_n c_n d_n <x_n, x>: attention over every training instance, with
the weight <x_n, x> (Irie, Csordas & Schmidhuber 2022). The coefficients a and c_n follow from learning rates, momentum,
weight decay and clipping. The history is read from disk in blocks, so memory does not grow with its length.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations.recording.module_inputs import module_inputs
from mesascope.analyses.base import analysis
from mesascope.analyses.training._instance_labels import InstanceLabels
from mesascope.analyses.training._module_table import ModuleTable
from mesascope.analyses.training.attended_instances import (
    NUM_ATTENDED,
    AttendedInstances,
    AttentionSearch,
    find_attended_instances,
)
from mesascope.analyses.training.dual_form import compute_dual_errors
from mesascope.axes import to_data_array
from mesascope.store import HistoryReader
from mesascope.tasks.base import Batch

REPLAY_STEPS = 32  # training steps per forward pass of the untrained model


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


@analysis(
    title="Attention over the training history",
    description=r"""The training instances that a linear module attends to (Irie et al. 2022; Wu & Varshney 2024
    count how many of the 10 most and the 10 least attended instances have the label of the query). A query is the
    input of the module at the last position of a held-out sequence. Instances are all positions of all training
    batches so far, with the inputs of the module at that time; the weight of an instance is $\langle x_n, x
    \rangle$. Chance is the fraction of all instances with the label of the query. Controls: the labels of the
    instances permuted; the same instances and queries as read by the untrained model, which separates the effect of
    token vectors and of the number of instances; the least attended instances. Modules with the same input have the
    same attention; the output projection attends per head, and the mean over heads is given. For gradient descent,
    with or without momentum, the outputs of every module are computed again from its initial weights and its whole
    history; a module whose outputs differ is refused, and the error with a random half of the instances is given for
    comparison. For Adam only the attended instances are available, since its steps are not sums over instances.""",
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
        raise ValueError(
            "history_attention needs integer latents at every position, but the batches of the task have none"
        )
    instance_labels = InstanceLabels(history, labels)
    query_labels = torch.stack([query_batch.categorical_latents[name][:, -1] for name in labels], dim=-1).cpu()
    attended, untrained = {}, {}
    if len(instance_labels) >= num_attended:
        attended = _search_history(history, module_queries, modules, num_attended)
        untrained = _search_untrained_model(training_history, query_batch, modules, num_attended)
    matches = _compare_labels(attended, untrained, instance_labels, query_labels)
    variables = modules.label_matches(matches, labels, num_attended)
    variables["chance"] = _label_chance(instance_labels, query_labels, labels)
    if history.metadata["momentum"] is not None:
        errors = compute_dual_errors(history, training_history.initial, model, module_queries)
        variables |= _label_dual_errors(errors, modules)
    variables["instances"] = to_data_array(
        float(len(instance_labels)), units="instances", description="positions of all training batches so far"
    )
    return xr.Dataset(variables, attrs={"rule": history.metadata["rule"]})


def _search_history(
    history: HistoryReader, queries: Mapping[str, Tensor], modules: ModuleTable, num_attended: int
) -> dict[str, AttendedInstances]:
    return {
        name: find_attended_instances(
            history, f"{name}.in", queries[name], heads=modules.heads[name], num_attended=num_attended
        )
        for name in modules.attending_modules
    }


def _compare_labels(
    attended: Mapping[str, AttendedInstances],
    untrained: Mapping[str, AttendedInstances],
    instance_labels: InstanceLabels,
    query_labels: Int[Tensor, "query label"],
) -> dict[tuple[str, str], dict[str, Tensor]]:
    """Return the fractions of instances with the query's label by module, for each end and kind of comparison."""
    kinds = (
        ("", attended, instance_labels.labels_at),
        ("untrained", untrained, instance_labels.labels_at),
        ("permuted", attended, instance_labels.permuted_labels_at),
    )
    return {
        (end, kind): {
            name: _matching_fraction(read_labels(one.top if end == "top" else one.bottom), query_labels)
            for name, one in found.items()
        }
        for end in ("top", "last")
        for kind, found, read_labels in kinds
    }


def _label_chance(
    instance_labels: InstanceLabels, query_labels: Int[Tensor, "query label"], labels: list[str]
) -> xr.DataArray:
    about, frequency = "fraction of all instances with the query's label", instance_labels.label_frequency(query_labels)
    return to_data_array(frequency, "stat", units="1", description=about, coords={"stat": labels})


def _label_dual_errors(errors: Mapping[str, Mapping[str, Tensor]], modules: ModuleTable) -> dict[str, xr.DataArray]:
    about = "relative error of outputs computed from the initial weights and the whole history"
    half = f"{about}, without a random half of the instances"
    return modules.label_errors("dual_error", errors["dual_error"], about) | modules.label_errors(
        "dual_error_half", errors["dual_error_half"], half
    )


def _inputs_at_last_position(
    model: PreTrainedModel, batch: Batch, names: list[str]
) -> dict[str, Float[Tensor, "query _"]]:
    return {name: x[:, -1].cpu() for name, x in module_inputs(model, batch, names).items()}


def _matching_fraction(
    labels: Int[Tensor, "head query rank label"], query_labels: Int[Tensor, "query label"]
) -> Float[Tensor, " label"]:
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
