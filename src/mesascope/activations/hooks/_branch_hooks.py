"""Hook functions of batched edits: the unedited pass, and branches that start from it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesascope.activations._layer_spec import LayerSpec
from mesascope.activations.edits import Edit, apply_edit
from mesascope.activations.exclusive_use import guard_hook
from mesascope.activations.hooks._module_arguments import read_argument

HookPoint = tuple[str, int]  # a site and a layer
# 1 where an input is not padding, along the positions of a site and along those that cross-attention attends to
Masks = tuple[Int[Tensor, "batch pos"] | None, Int[Tensor, "batch source"] | None]


class TargetReachedError(Exception):
    """The target activation has been computed; the rest of the forward pass is skipped."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value


class UneditedHook:
    """Hook that stores every activation of the unedited pass."""

    def __init__(self) -> None:
        self.activations: dict[tuple[str, int], Tensor] = {}
        self.output_types: dict[int, type | None] = {}

    def __call__(self, site: str, layer: int, value: Float[Tensor, "batch *rest"]) -> None:
        self.activations[site, layer] = value.detach().clone()


class BranchHook:
    """Hook that applies every branch's edits to its rows, and inserts the unedited stream in the first layer run."""

    def __init__(
        self,
        edits_by_branch: Sequence[Sequence[Edit]],
        edited_layers: Callable[[Edit], Sequence[int]],
        rows: int,
        first_layer: int,
        stream: Shaped[Tensor, "..."],
        target: HookPoint | None,
        find_masks: Callable[[str], Masks],
    ) -> None:
        self._find_masks = find_masks
        self._num_branches, self._rows, self._first_layer, self._stream, self._target = (
            len(edits_by_branch),
            rows,
            first_layer,
            stream,
            target,
        )
        self._edits: dict[HookPoint, list[tuple[int, Edit]]] = {}
        for number, edits in enumerate(edits_by_branch):
            for edit in edits:
                for layer in edited_layers(edit):
                    self._edits.setdefault((edit.site, layer), []).append((number, edit))

    @property
    def layers_by_site(self) -> dict[str, list[int]]:
        hook_points = {*self._edits} | ({("resid_pre", self._first_layer)} if self._first_layer else set())
        hook_points |= {self._target} if self._target is not None else set()
        return {site: sorted(layer for other, layer in hook_points if other == site) for site, _ in hook_points}

    def __call__(self, site: str, layer: int, value: Float[Tensor, "rows *rest"]) -> Float[Tensor, "rows *rest"] | None:
        replacement = None
        if site == "resid_pre" and layer == self._first_layer and self._first_layer:
            replacement = self._stream.repeat(self._num_branches, *[1] * (self._stream.ndim - 1))
        for number, edit in self._edits.get((site, layer), ()):
            branch_rows = slice(number * self._rows, (number + 1) * self._rows)
            old = (value if replacement is None else replacement)[branch_rows]
            new = apply_edit(edit, old, layer, range(self._rows), self._rows, *self._find_masks(site))
            if new is not None:
                replacement = value.clone() if replacement is None else replacement
                replacement[branch_rows] = new
        if (site, layer) == self._target:
            raise TargetReachedError(value if replacement is None else replacement)
        return replacement


@contextmanager
def record_output_types(model: PreTrainedModel, layers: Sequence[LayerSpec], hook: UneditedHook) -> Iterator[None]:
    """Record the output type of every block: ``None`` if a block returns more than the residual stream.

    Args:
        model: the model.
        layers: the specification of every layer.
        hook: its ``output_types`` are filled.
    """

    def record_type(number: int, module: nn.Module, args: tuple, output: Any) -> None:
        only_stream = isinstance(output, Tensor) or (isinstance(output, tuple) and len(output) == 1)
        hook.output_types[number] = type(output) if only_stream else None

    with ExitStack() as handles:
        for number, layer in enumerate(layers):
            block = model.get_submodule(layer.block)
            handles.callback(block.register_forward_hook(guard_hook(partial(record_type, number))).remove)
        yield


def make_identity_forward(stream_argument: int | str, returns_tuple: bool) -> Callable[..., Any]:
    """Return a forward function that returns its input residual stream.

    Args:
        stream_argument: position or keyword of the residual stream.
        returns_tuple: whether the stream is returned in a tuple.
    """

    def forward(*args: Any, **kwargs: Any) -> Any:
        stream = read_argument(stream_argument, args, kwargs)
        return (stream,) if returns_tuple else stream

    return forward
