"""Dual form of a trained linear module: its outputs as attention over its training history."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations import UnsupportedModel
from mesascope.analyses.training.attended_instances import (
    BLOCK_ROWS,
    Queries,
    validate_width,
)
from mesascope.store import HistoryReader

MAX_CHECKED_QUERIES = 32  # queries whose outputs are computed from the history
MAX_DUAL_ERROR = 0.01  # maximum relative error of an output; histories of other trainings have errors of 0.5 and more
InstanceMask = Callable[[np.ndarray], np.ndarray]


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
    momentum, step_factors = _read_momentum(history), history.read_column("steps")
    of_weight, of_velocity = 1.0, 0.0
    gradient_coefficients = np.zeros(len(step_factors))
    for step in range(len(step_factors) - 1, -1, -1):
        rate, clip_factor = step_factors[step]
        coefficient = of_velocity - rate * of_weight
        gradient_coefficients[step] = clip_factor * coefficient
        of_weight, of_velocity = of_weight + decay * coefficient, momentum * coefficient
    return of_weight, gradient_coefficients


def _read_momentum(history: HistoryReader) -> float:
    if history.metadata["momentum"] is None:
        raise UnsupportedModel(
            "the dual form needs a history of gradient descent (SGD), but this is one of "
            f"{history.metadata['rule']}, whose steps are not sums over instances; only attended instances are "
            "available"
        )
    return float(history.metadata["momentum"])


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
        the outputs, split into the part of the initial weights and the sum over instances.

    Raises:
        UnsupportedModel: the history is not one of gradient descent.
        ValueError: the widths differ.
    """
    module_info = history.metadata["maps"][name]
    validate_width(history, f"{module_info['reads']}.in", queries)
    x = queries.double()
    initial_coefficient, step_coefficients = dual_coefficients(history, module_info["decay"])
    initial, learned = initial_coefficient * x @ weight.double().T, x.new_zeros(len(x), len(weight))
    bias_step_coefficients = None
    if bias is not None:
        bias_coefficient, bias_step_coefficients = dual_coefficients(history, module_info["bias decay"])
        initial = initial + bias_coefficient * bias.double()
    for step_index, is_included, x_n, d_n in _iterate_instances(history, name, instance_mask):
        learned += (x @ x_n.T * torch.from_numpy(is_included * step_coefficients[step_index])) @ d_n
        if bias_step_coefficients is not None:
            learned += torch.from_numpy(is_included * bias_step_coefficients[step_index]) @ d_n
    return DualForm(initial_part=initial, history_part=learned)


def _iterate_instances(
    history: HistoryReader, name: str, instance_mask: InstanceMask | None
) -> Iterator[tuple[np.ndarray, np.ndarray, Float[Tensor, "row d_in"], Float[Tensor, "row d_out"]]]:
    """Yield the step of each instance, 1 where it is included, its input and its error signal, block by block."""
    inputs, errors = f"{history.metadata['maps'][name]['reads']}.in", f"{name}.error"
    for first, (x_n, d_n) in history.iterate_blocks(inputs, errors, rows=BLOCK_ROWS):
        index = np.arange(first, first + len(x_n))
        is_included = np.ones(len(index)) if instance_mask is None else instance_mask(index).astype(float)
        step_index = index // history.columns[inputs].rows
        yield step_index, is_included, torch.from_numpy(x_n).double(), torch.from_numpy(d_n).double()


def random_half(indices: np.ndarray) -> np.ndarray:
    """Return ``True`` for a fixed random half of all instances: the top bit of Knuth's multiplicative hash.

    Args:
        indices: indices of the instances.
    """
    return (indices.astype(np.uint64) * np.uint64(11400714819323198485)) >> np.uint64(63) == 0


def compute_dual_errors(
    history: HistoryReader, initial: PreTrainedModel, model: PreTrainedModel, module_queries: Mapping[str, Tensor]
) -> dict[str, dict[str, Tensor]]:
    """Compute the relative errors of outputs computed from the history, from all of it and from a random half.

    Args:
        history: the history of stochastic gradient descent.
        initial: the model before training.
        model: the model after training.
        module_queries: inputs of every module, by its name; the first 32 are used.

    Returns:
        the errors by module, for ``dual_error`` (the whole history) and ``dual_error_half``.

    Raises:
        UnsupportedModel: an error is far beyond rounding, so the history is not that of these weights.
    """
    errors: dict[str, dict[str, Tensor]] = {"dual_error": {}, "dual_error_half": {}}
    for name, queries in module_queries.items():
        x, before = queries[:MAX_CHECKED_QUERIES].double(), _cpu_parameters(initial, name)
        after = {key: value.double() for key, value in _cpu_parameters(model, name).items()}
        output = torch.nn.functional.linear(x, after["weight"], after.get("bias"))
        for kind, mask in (("dual_error", None), ("dual_error_half", random_half)):
            dual_form = compute_dual_form(history, name, x, before["weight"], before.get("bias"), instance_mask=mask)
            errors[kind][name] = (dual_form.output - output).norm() / (output.norm() if output.any() else 1.0)
        if not errors["dual_error"][name] <= MAX_DUAL_ERROR:
            raise UnsupportedModel(
                f"the history must reproduce the outputs of {name} to a relative error of {MAX_DUAL_ERROR:g}, but the "
                f"error is {float(errors['dual_error'][name]):.1e}; it may belong to another training: delete the run "
                "and train again"
            )
    return errors


def _cpu_parameters(model: PreTrainedModel, name: str) -> dict[str, Tensor]:
    return {key: value.detach().cpu() for key, value in model.get_submodule(name).named_parameters()}
