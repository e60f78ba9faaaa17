"""Many edited forward passes of the same inputs at once, without computing again what no edit can change."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesascope.activations.arguments import on_device, transformers_model
from mesascope.activations.capture import check_places, examine
from mesascope.activations.checks import refuse_missing
from mesascope.activations.edits import Edit, apply, refuse
from mesascope.activations.forward import predict, quiet
from mesascope.activations.gradients import differentiable
from mesascope.activations.hooks.module_hooks import attach, running
from mesascope.activations.layer_spec import Layer
from mesascope.activations.memory import estimate, refuse_too_large, shape
from mesascope.activations.sites import UnsupportedModel
from mesascope.activations.tolerances import close, distance
from mesascope.tasks.base import Batch

Place = tuple[str, int]  # a site and a layer
FAILURES = (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError)  # of a model that misses a layer


class Stem:
    """An untouched forward pass, from which edited ones branch off.

    A branch is the same sequences with some edits. Branches that run together lie side by side along the batch axis;
    layers before the first edited one only hand the untouched stream on. The first time a layer is branched from, an
    unedited branch runs along and must give what the untouched pass gave.

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
        self._site, self._kept = site, dict[str, set[int]]()
        with quiet(self.model):
            self._probe, self._known = examine(self.model, self.inputs)
        self._tried: set[tuple[int, Place | None]] = set()

    @cached_property
    def prediction(self) -> Float[Tensor, "batch predicted d_out"]:
        """Of the untouched pass, which is run when it is first asked for."""
        return self._untouched[0]

    def keep(self, places: Mapping[str, Sequence[int]]) -> None:
        """Keep more of the untouched pass than the streams and the site; ask before anything is run.

        Raises:
            UnsupportedModel: a layer lacks the site.
        """
        refuse_missing(type(self.model).__name__, self._known, places)
        for site, layers in places.items():
            self._kept.setdefault(site, set()).update(layers)

    def seen(self, site: str, layer: int) -> Float[Tensor, "batch *rest"]:
        """What the untouched pass had at a place that is kept."""
        return self._untouched[1].seen[site, layer]

    @cached_property
    def _untouched(self) -> tuple[Tensor, "_Watching"]:
        """The untouched pass: its prediction, and what was seen."""
        self.keep({"resid_pre": range(self.layers)})
        self.keep({self._site: self.having(self._site)})
        places = {site: sorted(layers) for site, layers in self._kept.items()}
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

    def missing(self, site: str) -> dict[int, str]:
        """The layers that lack a site, and why."""
        return {number: layer.missing[site] for number, layer in enumerate(self._known) if site in layer.missing}

    def parallel(self, layer: int) -> bool:
        """Whether a layer's MLP reads the stream before attention has written to it."""
        return self._known[layer].parallel

    def shape(self, site: str, layer: int) -> list[int]:
        """The sizes of a site's axes within a layer."""
        return shape(self._probe, self._known[layer], site, *self.inputs.shape[:2])

    def refuse(self, edit: Edit) -> None:
        """Refuse an edit that cannot be made, before the model runs for it; raises as `capture` does."""
        layers = edit.layers(self.layers)
        refuse_missing(type(self.model).__name__, self._known, {edit.site: layers})
        refuse(edit, {n: self.shape(edit.site, n) for n in layers}, len(self.inputs), self._probe.logits)

    def check(self, places: Mapping[str, Sequence[int]]) -> None:
        """Hold the first sequence against the untouched model, as `capture` does; raises as it does."""
        with quiet(self.model):
            check_places(self.model, self._known, places, self.inputs, None)

    def like(self) -> Float[Tensor, "batch predicted d_out"]:
        """Zeros of the shape of predictions, to try a metric on."""
        length = self.inputs.shape[1] if self._everywhere else 1
        return self._probe.logits.new_zeros(len(self.inputs), length, self._probe.logits.shape[-1])

    def changes(self, edit: Edit) -> bool:
        """Whether an edit changes any bit of what the untouched pass had at the site; else its branch is that pass."""
        rows = len(self.inputs)
        layers = edit.layers(self.layers)
        return any(apply(edit, self._untouched[1].seen[edit.site, n], n, range(rows), rows) is not None for n in layers)

    def branch(self, branches: Sequence[Sequence[Edit]]) -> Float[Tensor, "branch batch predicted d_out"]:
        """The predictions of so many edited passes, run as one.

        Args:
            branches: the edits of each, made in order; they fit (:meth:`refuse`).

        Raises:
            UnsupportedModel: what one sequence predicts depends on which others run beside it.
        """
        return self._tried_out(branches, None)

    def reached(self, branches: Sequence[Sequence[Edit]], site: str, layer: int) -> Float[Tensor, "branch batch *rest"]:
        """What is at a place in so many edited passes, run as one and no further than there.

        Args:
            branches: as in :meth:`branch`.
            site, layer: the place; it is kept (:meth:`keep`).

        Raises:
            UnsupportedModel: as :meth:`branch` does.
        """
        return self._tried_out(branches, (site, layer))

    def slopes(
        self, site: str, layer: int, values: Float[Tensor, "branch batch *rest"], objective: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "branch batch *rest"]:
        """The gradient of an objective by what is put at a place, in so many passes, run as one forth and back.

        Args:
            site, layer: the place.
            values: what is put there, in each pass; finite.
            objective: a number for each sequence, from its predictions.

        Raises:
            UnsupportedModel: as :meth:`branch` does, or no gradient comes from the prediction to the place.
        """
        leaf = values.detach().clone().requires_grad_()
        put = [
            [Edit(site=site, where={"layer": layer}, fn=lambda old, number=number: leaf[number])]
            for number in range(len(leaf))
        ]
        if (min(layer, self._reach), None) not in self._tried:
            self._tried_out(put[:1], None)  # whether branches may run beside one another
        found = self._run(put, min(layer, self._reach), None, graph=True)
        if not found.requires_grad:
            raise UnsupportedModel(f"a prediction must have a gradient by {site}, but that of layer {layer} has none")
        total = torch.stack([objective(prediction).sum() for prediction in found]).sum()
        return torch.autograd.grad(total, leaf)[0]

    def _tried_out(self, branches: Sequence[Sequence[Edit]], goal: Place | None) -> Float[Tensor, "branch batch *rest"]:
        """Branches as far as a goal, or to their predictions; the first time with an unedited one beside them."""
        edited = [layer for edits in branches for edit in edits for layer in edit.layers(self.layers)]
        first = min([*edited, self._reach, self.layers - 1 if goal is None else goal[1]])
        if (first, goal) in self._tried:
            return self._run(branches, first, goal)
        unedited = _Branches([], self.layers, 0, 0, self.inputs, goal)
        self._pass(self.inputs.flip(1), unedited, 0)  # other sequences, for a model that remembers its last pass
        try:
            found = self._run([*branches, ()], first, goal)
        except torch.OutOfMemoryError:
            raise
        except FAILURES:
            if first == 0:
                raise
        else:
            plain = self.prediction if goal is None else self.seen(*goal)
            alone, plain = (x.masked_fill(x.isneginf(), 0.0) for x in (found[-1], plain))  # masked scores
            if close(alone, plain):
                self._tried.add((first, goal))
                return found[:-1]
            if first == 0:
                raise UnsupportedModel(
                    f"what a sequence predicts must not depend on those beside it, but {type(self.model).__name__} "
                    f"differs by {distance(alone, plain):.1e} of it; run one edit at a time with capture"
                )
        self._reach = 0  # some layer hands on more than its stream, past those that follow
        return self._tried_out(branches, goal)

    def _run(
        self, branches: Sequence[Sequence[Edit]], first: int, goal: Place | None, *, graph: bool = False
    ) -> Float[Tensor, "branch batch *rest"]:
        """Branches from one layer on, as far as a goal; with a graph, if there shall be gradients."""
        rows = len(self.inputs)
        touch = _Branches(branches, self.layers, rows, first, self.seen("resid_pre", first), goal)
        together = self.inputs.repeat(len(branches), *[1] * (self.inputs.ndim - 1))
        return self._pass(together, touch, first, graph=graph).unflatten(0, (len(branches), rows))

    def _pass(
        self, inputs: Shaped[Tensor, "rows pos *d_in"], touch: "_Branches", first: int, *, graph: bool = False
    ) -> Float[Tensor, "rows *rest"]:
        """A forward pass from one layer on: its prediction, or what is at the goal."""
        skipped = self._known[:first]
        forwards = [_hand_on(layer.stream_at, self._gives[number] is tuple) for number, layer in enumerate(skipped)]
        with (
            quiet(self.model),
            differentiable(self.model, self._known, thrifty=False) if graph else nullcontext(),
            running([self.model.get_submodule(layer.block) for layer in skipped], forwards),
            attach(self.model, self._known, touch.places, touch),
        ):
            try:
                return predict(self.model, inputs, everywhere=self._everywhere)
            except _ReachedError as reached:
                return reached.value


class _ReachedError(Exception):
    """What was wanted has been seen; nothing after it is run."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value


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
    """Makes every branch's edits in that branch alone, and puts the untouched stream in before the first layer."""

    def __init__(
        self,
        branches: Sequence[Sequence[Edit]],
        layers: int,
        rows: int,
        first: int,
        stream: Shaped[Tensor, "..."],
        goal: Place | None,
    ) -> None:
        self._count, self._rows, self._first, self._stream, self._goal = len(branches), rows, first, stream, goal
        self._edits: dict[Place, list[tuple[int, Edit]]] = {}
        for number, edits in enumerate(branches):
            for edit in edits:
                for layer in edit.layers(layers):
                    self._edits.setdefault((edit.site, layer), []).append((number, edit))

    @property
    def places(self) -> dict[str, list[int]]:
        """Every site that is edited or wanted, and in which layers."""
        wanted = {*self._edits} | ({("resid_pre", self._first)} if self._first else set())
        wanted |= {self._goal} if self._goal is not None else set()
        return {site: sorted(layer for other, layer in wanted if other == site) for site, _ in wanted}

    def __call__(self, site: str, layer: int, value: Float[Tensor, "rows *rest"]) -> Float[Tensor, "rows *rest"]:
        """Take what is at a site for all branches, and say what shall be there."""
        if site == "resid_pre" and layer == self._first and self._first:
            value = self._stream.repeat(self._count, *[1] * (self._stream.ndim - 1))
        fresh = False
        for number, edit in self._edits.get((site, layer), ()):
            mine = slice(number * self._rows, (number + 1) * self._rows)
            new = apply(edit, value[mine], layer, range(self._rows), self._rows)
            if new is not None:
                value = value if fresh else value.clone()
                value[mine] = new
                fresh = True
        if (site, layer) == self._goal:
            raise _ReachedError(value)
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
