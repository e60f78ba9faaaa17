"""Many edited forward passes of the same inputs at once, without computing again what no edit can change."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesascope.capturing.arguments import on_device, transformers_model
from mesascope.capturing.capture import check_places, examine
from mesascope.capturing.checks import refuse_missing
from mesascope.capturing.edits import Edit, apply, refuse
from mesascope.capturing.forward import predict, quiet
from mesascope.capturing.hooks import attach, running
from mesascope.capturing.layer import Layer
from mesascope.capturing.memory import estimate, refuse_too_large, shape
from mesascope.capturing.rounding import close, distance
from mesascope.capturing.sites import UnsupportedModel
from mesascope.tasks.base import Batch

FAILURES = (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError)  # of a model that misses a layer


class Stem:
    """An untouched forward pass, from which edited ones branch off.

    A branch is the same sequences with one edit. Branches that run together lie side by side along the batch axis;
    layers before the first edited one only hand the untouched stream on. The first time a layer is branched from, an
    unedited branch runs along and must predict what the untouched pass predicted.

    Args:
        model: any model that capture supports.
        inputs: tokens, vectors or a batch of a task; all of the same length.
        site: what is going to be edited.
        everywhere: whether predictions are wanted at every position; at the last alone otherwise, where the class can.

    Raises:
        UnsupportedModel: as `capture` does.
    """

    def __init__(self, model: nn.Module, inputs: Tensor | Batch, site: str, *, everywhere: bool = True) -> None:
        self.model = transformers_model(model)
        self.inputs, _ = on_device(self.model, inputs, None)
        self._everywhere = everywhere
        self._site = site
        with quiet(self.model):
            self._probe, self._known = examine(self.model, self.inputs)
        self._tried: set[int] = set()

    @cached_property
    def prediction(self) -> Float[Tensor, "batch predicted d_out"]:
        """Of the untouched pass, which is run when it is first asked for."""
        return self._untouched[0]

    @cached_property
    def _untouched(self) -> tuple[Tensor, "_Watching"]:
        """The untouched pass: its prediction, and what was seen."""
        places = {"resid_pre": list(range(self.layers))} | {self._site: self.having(self._site)}
        refuse_too_large(estimate(self._probe, self._known, places, *self.inputs.shape[:2]), self.inputs.device)
        watching = _Watching()
        with (
            quiet(self.model),
            attach(self.model, self._known, places, watching),
            _noting(self.model, self._known, watching),
        ):
            return predict(self.model, self.inputs, everywhere=self._everywhere), watching

    @cached_property
    def _gives(self) -> list[type | None]:
        """By layer, in what it gives the stream, if it gives nothing else."""
        return [self._untouched[1].gives.get(number) for number in range(self.layers)]

    @cached_property
    def _reach(self) -> int:
        """How many leading layers can hand on the stream."""
        return self._gives.index(None) if None in self._gives else self.layers

    @property
    def layers(self) -> int:
        """How many layers the model has."""
        return len(self._known)

    def having(self, site: str) -> list[int]:
        """The layers that have a site."""
        return [number for number, layer in enumerate(self._known) if site not in layer.missing]

    def shape(self, site: str, layer: int) -> list[int]:
        """The sizes of a site's axes within a layer."""
        return shape(self._probe, self._known[layer], site, *self.inputs.shape[:2])

    def refuse(self, edit: Edit) -> None:
        """Refuse an edit that cannot be made, before the model runs for it; raises as `capture` does."""
        layers = edit.layers(self.layers)
        refuse_missing(type(self.model).__name__, self._known, {edit.site: layers})
        refuse(edit, {n: self.shape(edit.site, n) for n in layers}, len(self.inputs), self._probe.logits)

    def check(self, edit: Edit) -> None:
        """Hold the first sequence against the untouched model, as `capture` does; raises as it does."""
        with quiet(self.model):
            check_places(self.model, self._known, {edit.site: edit.layers(self.layers)}, self.inputs, None)

    def like(self) -> Float[Tensor, "batch predicted d_out"]:
        """Zeros of the shape of predictions, to try a metric on."""
        length = self.inputs.shape[1] if self._everywhere else 1
        return self._probe.logits.new_zeros(len(self.inputs), length, self._probe.logits.shape[-1])

    def changes(self, edit: Edit) -> bool:
        """Whether an edit changes any bit of what the untouched pass had at the site; else its branch is that pass."""
        rows = len(self.inputs)
        layers = edit.layers(self.layers)
        return any(apply(edit, self._untouched[1].seen[edit.site, n], n, range(rows), rows) is not None for n in layers)

    def branch(self, edits: Sequence[Edit]) -> Float[Tensor, "branch batch predicted d_out"]:
        """The predictions of so many edited passes, run as one.

        Args:
            edits: one for each branch; they fit (:meth:`refuse`).

        Raises:
            UnsupportedModel: what one sequence predicts depends on which others run beside it.
        """
        first = min(min(edit.layers(self.layers), default=self.layers) for edit in edits)
        first = min(first, self._reach, self.layers - 1)
        if first in self._tried:
            return self._run(edits, first)
        with quiet(self.model):  # other sequences, for a model that remembers what it computed last
            predict(self.model, self.inputs.flip(1), everywhere=self._everywhere)
        try:
            prediction = self._run([*edits, None], first)
        except torch.OutOfMemoryError:
            raise
        except FAILURES:
            if first == 0:
                raise
        else:
            if close(prediction[-1], self.prediction):
                self._tried.add(first)
                return prediction[:-1]
            if first == 0:
                raise UnsupportedModel(
                    f"what a sequence predicts must not depend on those beside it, but {type(self.model).__name__} "
                    f"differs by {distance(prediction[-1], self.prediction):.1e} of it; run one edit at a time with "
                    "capture"
                )
        self._reach = 0  # some layer hands on more than its stream, past those that follow
        return self.branch(edits)

    def _run(self, edits: Sequence[Edit | None], first: int) -> Float[Tensor, "branch batch predicted d_out"]:
        """Branches from one layer on; nothing is edited where there is no edit."""
        rows = len(self.inputs)
        branches = _Branches(edits, self.layers, rows, first, self._untouched[1].seen["resid_pre", first])
        together = self.inputs.repeat(len(edits), *[1] * (self.inputs.ndim - 1))
        skipped = self._known[:first]
        forwards = [_hand_on(layer.stream_at, self._gives[number] is tuple) for number, layer in enumerate(skipped)]
        with (
            quiet(self.model),
            running([self.model.get_submodule(layer.block) for layer in skipped], forwards),
            attach(self.model, self._known, branches.places, branches),
        ):
            prediction = predict(self.model, together, everywhere=self._everywhere)
        return prediction.unflatten(0, (len(edits), rows))


class _Watching:
    """Keeps what is at every place, and how blocks give the stream."""

    def __init__(self) -> None:
        self.seen: dict[tuple[str, int], Tensor] = {}
        self.gives: dict[int, type | None] = {}

    def __call__(self, site: str, layer: int, value: Float[Tensor, "batch *rest"]) -> Float[Tensor, "batch *rest"]:
        """Keep it, and leave it as it is."""
        self.seen[site, layer] = value.detach().clone()
        return value


class _Branches:
    """Makes every branch's edit in that branch alone, and puts the untouched stream in before the first layer."""

    def __init__(
        self, edits: Sequence[Edit | None], layers: int, rows: int, first: int, stream: Float[Tensor, "..."]
    ) -> None:
        self._edits, self._rows, self._first, self._stream = edits, rows, first, stream
        self._layers = [set(edit.layers(layers)) if edit is not None else set() for edit in edits]

    @property
    def places(self) -> dict[str, list[int]]:
        """Every site that is edited, and in which layers."""
        places: dict[str, set[int]] = {"resid_pre": {self._first} if self._first else set()}
        for edit, layers in zip(self._edits, self._layers, strict=True):
            if edit is not None:
                places.setdefault(edit.site, set()).update(layers)
        return {site: sorted(layers) for site, layers in places.items()}

    def __call__(self, site: str, layer: int, value: Float[Tensor, "rows *rest"]) -> Float[Tensor, "rows *rest"]:
        """Take what is at a site for all branches, and say what shall be there."""
        count = len(self._edits)
        if site == "resid_pre" and layer == self._first and self._first:
            value = self._stream.repeat(count, *[1] * (self._stream.ndim - 1))
        fresh = False
        for number, edit in enumerate(self._edits):
            if edit is None or edit.site != site or layer not in self._layers[number]:
                continue
            mine = slice(number * self._rows, (number + 1) * self._rows)
            new = apply(edit, value[mine], layer, range(self._rows), self._rows)
            if new is not None:
                value = value if fresh else value.clone()
                value[mine] = new
                fresh = True
        return value


@contextmanager
def _noting(model: PreTrainedModel, layers: Sequence[Layer], watching: _Watching) -> Iterator[None]:
    """While this lasts, note how blocks give the stream: alone, in a tuple of one, or with other things."""

    def note(number: int, module: nn.Module, args: tuple, output: Any) -> None:
        alone = isinstance(output, Tensor) or (isinstance(output, tuple) and len(output) == 1)
        watching.gives[number] = type(output) if alone else None

    handles = [
        model.get_submodule(layer.block).register_forward_hook(partial(note, number))
        for number, layer in enumerate(layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hand_on(at: int | str, wrapped: bool) -> Callable[..., Any]:
    """A block that does nothing."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        stream = args[at] if isinstance(at, int) else kwargs[at]
        return (stream,) if wrapped else stream

    return forward
