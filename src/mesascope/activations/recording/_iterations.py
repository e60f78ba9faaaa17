"""The axis ``iteration`` of a model that repeats its layers: activations by call, or by layer and iteration."""

from collections.abc import Mapping, Sequence

from torch import Tensor

Axes = tuple[str, ...]


def select_calls(layers: Sequence[int], iterations: Sequence[int] | None, num_layers: int) -> list[int]:
    """Return the indices of the recorded calls of layers: the layers themselves, or those of every iteration.

    Args:
        layers: the layers to record.
        iterations: the iterations to record; ``None`` in a model that calls each layer once.
        num_layers: the number of layers of the model.

    >>> select_calls([0, 2], [1, 4], 3)
    [3, 5, 12, 14]
    """
    return [iteration * num_layers + layer for iteration in iterations or [0] for layer in layers]


def split_calls(
    recorded: Mapping[str, Tensor], axes: Mapping[str, Axes], num_iterations: int
) -> tuple[dict[str, Tensor], dict[str, Axes]]:
    """Split the axis ``layer`` of activations, over calls of layers, into ``layer`` and ``iteration``.

    Args:
        recorded: activations by name; calls are in order of iterations, and of layers within each. Those with the axes
            iteration batch were recorded as batch iteration, and are transposed.
        axes: their axes.
        num_iterations: the number of iterations.

    Returns:
        Views of the activations, and their axes.
    """
    by_call = {name for name, names in axes.items() if names[0] == "layer"}
    values = {}
    for name, value in recorded.items():
        values[name] = value.unflatten(0, (num_iterations, -1)).transpose(0, 1) if name in by_call else value
        if axes[name][0] == "iteration":
            values[name] = value.transpose(0, 1)
    new_axes = {name: ("layer", "iteration", *names[1:]) if name in by_call else names for name, names in axes.items()}
    return values, new_axes


def join_calls(recorded: Mapping[str, Tensor], axes: Mapping[str, Axes]) -> tuple[dict[str, Tensor], dict[str, Axes]]:
    """Join the axes ``layer`` and ``iteration`` into one axis ``layer`` over calls; the inverse of `split_calls`.

    Args:
        recorded: activations by name.
        axes: their axes.

    Returns:
        Views of the activations, and their axes.
    """
    split = {name for name, names in axes.items() if names[:2] == ("layer", "iteration")}
    values = {name: value.transpose(0, 1).flatten(0, 1) if name in split else value for name, value in recorded.items()}
    return values, {name: ("layer", *names[2:]) if name in split else names for name, names in axes.items()}
