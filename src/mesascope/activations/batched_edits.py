"""Many edited forward passes of the same inputs in one batch, without recomputing the layers before the first edit."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesascope.activations._arguments import prepare_inputs, validate_model
from mesascope.activations._checks import check_sites_available
from mesascope.activations._layer_spec import LayerSpec
from mesascope.activations._memory import check_memory, site_bytes, site_shape
from mesascope.activations.capture import read_structure, validate_hook_points
from mesascope.activations.edits import Edit, apply_edit, validate_edit
from mesascope.activations.forward import eval_no_grad, run_model
from mesascope.activations.gradients import enable_activation_gradients
from mesascope.activations.hooks._module_hooks import attach_hooks, replace_forwards
from mesascope.activations.sites import UnsupportedModel
from mesascope.activations.tolerances import allclose, relative_difference
from mesascope.tasks.base import Batch

HookPoint = tuple[str, int]  # a site and a layer
SKIPPED_LAYER_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
)  # where layers cannot be skipped


class BatchedEdits:
    """Batched edited forward passes that share the unedited computation before the first edited layer.

    The branches of a run are copies of the same sequences, each with its own edits, concatenated along the batch axis.
    Layers before the first edited one are skipped: they pass the unedited residual stream on. The first run from each
    layer includes an unedited branch, which must reproduce the unedited pass.

    Args:
        model: any model that `capture` supports.
        inputs: tokens, vectors or a batch of a task; all sequences have the same length.
        site: the site to edit.
        all_positions: compute outputs at every position; otherwise at the last position only, if the model class can.

    Raises:
        UnsupportedModel: the model cannot be captured.
    """

    def __init__(self, model: nn.Module, inputs: Tensor | Batch, site: str, *, all_positions: bool = True) -> None:
        self.model = validate_model(model)
        self.inputs, _ = prepare_inputs(self.model, inputs, None)
        self._all_positions = all_positions
        self._edited_site, self._requested = site, dict[str, set[int]]()
        with eval_no_grad(self.model):
            self._trace, self._layer_specs = read_structure(self.model, self.inputs)
        self._validated: set[tuple[int, HookPoint | None]] = set()

    @cached_property
    def unedited_output(self) -> Float[Tensor, "batch predicted d_out"]:
        """The output of the unedited pass, which is run on first access."""
        return self._unedited_run[0]

    def request_sites(self, layers_by_site: Mapping[str, Sequence[int]]) -> None:
        """Record more sites in the unedited pass than the residual stream and the edited site; call it before any run.

        Args:
            layers_by_site: layers by site.

        Raises:
            UnsupportedModel: a layer lacks the site.
        """
        check_sites_available(type(self.model).__name__, self._layer_specs, layers_by_site)
        for site, layers in layers_by_site.items():
            self._requested.setdefault(site, set()).update(layers)

    def unedited_activation(self, site: str, layer: int) -> Float[Tensor, "batch *rest"]:
        """Return a recorded activation of the unedited pass.

        Args:
            site: the name of the site.
            layer: the layer, counted from 0.

        Returns:
            The activation, in the axes of the site without ``layer``.
        """
        return self._unedited_run[1].activations[site, layer]

    @cached_property
    def _unedited_run(self) -> tuple[Tensor, "_UneditedHook"]:
        """The output and the recorded activations of the unedited pass."""
        self.request_sites({"resid_pre": range(self.num_layers)})
        self.request_sites({self._edited_site: self.layers_with_site(self._edited_site)})
        layers_by_site = {site: sorted(layers) for site, layers in self._requested.items()}
        check_memory(
            site_bytes(self._trace, self._layer_specs, layers_by_site, *self.inputs.shape[:2]), self.inputs.device
        )
        hook = _UneditedHook()
        with (
            eval_no_grad(self.model),
            attach_hooks(self.model, self._layer_specs, layers_by_site, hook),
            _record_output_types(self.model, self._layer_specs, hook),
        ):
            return run_model(self.model, self.inputs, all_positions=self._all_positions), hook

    @cached_property
    def _block_output_types(self) -> list[type | None]:
        """The output type of every block, by layer; ``None`` for a block that returns more than the residual stream."""
        return [self._unedited_run[1].output_types.get(number) for number in range(self.num_layers)]

    @cached_property
    def _num_skippable(self) -> int:
        """The number of leading layers that can be skipped."""
        return self._block_output_types.index(None) if None in self._block_output_types else self.num_layers

    @property
    def num_layers(self) -> int:
        """The number of layers of the model."""
        return len(self._layer_specs)

    def layers_with_site(self, site: str) -> list[int]:
        """Return the layers that have a site.

        Args:
            site: the name of the site.

        Returns:
            The indices of the layers, in order.
        """
        return [number for number, layer in enumerate(self._layer_specs) if site not in layer.missing]

    def layers_without_site(self, site: str) -> dict[int, str]:
        """Return the layers that lack a site, with the reasons.

        Args:
            site: the name of the site.

        Returns:
            The reason, by layer.
        """
        return {number: layer.missing[site] for number, layer in enumerate(self._layer_specs) if site in layer.missing}

    def is_parallel(self, layer: int) -> bool:
        """Return whether the MLP of a layer reads the residual stream before attention has written to it.

        Args:
            layer: the layer, counted from 0.

        Returns:
            ``True`` if attention and MLP run in parallel.
        """
        return self._layer_specs[layer].parallel

    def site_shape(self, site: str, layer: int) -> list[int]:
        """Return the shape of a site within one layer.

        Args:
            site: the name of the site.
            layer: the layer, counted from 0.

        Returns:
            The sizes of the axes of the site without ``layer``.
        """
        return site_shape(self._trace, self._layer_specs[layer], site, *self.inputs.shape[:2])

    def validate_edit(self, edit: Edit) -> None:
        """Check that an edit can be applied, before the model runs.

        Args:
            edit: the edit.

        Raises:
            UnsupportedModel: a layer lacks the site.
            ValueError: the source or the result of the edit has the wrong shape.
            IndexError: an index is out of range.
        """
        layers = edit.edited_layers(self.num_layers)
        check_sites_available(type(self.model).__name__, self._layer_specs, {edit.site: layers})
        validate_edit(edit, {n: self.site_shape(edit.site, n) for n in layers}, len(self.inputs), self._trace.logits)

    def validate_sites(self, layers_by_site: Mapping[str, Sequence[int]]) -> None:
        """Validate hook points on the first sequence, as `capture` does.

        Args:
            layers_by_site: layers by site.

        Raises:
            UnsupportedModel: a check fails.
        """
        with eval_no_grad(self.model):
            validate_hook_points(self.model, self._layer_specs, layers_by_site, self.inputs, None)

    def zeros_like_output(self) -> Float[Tensor, "batch predicted d_out"]:
        """Return zeros in the shape of the model's output, to try a metric on.

        Returns:
            Zeros (batch, predicted, d_out).
        """
        length = self.inputs.shape[1] if self._all_positions else 1
        return self._trace.logits.new_zeros(len(self.inputs), length, self._trace.logits.shape[-1])

    def has_effect(self, edit: Edit) -> bool:
        """Return whether an edit changes any bit of the unedited activation.

        Args:
            edit: an edit of the site.

        Returns:
            ``False`` if the edited pass would be identical to the unedited one.
        """
        rows = len(self.inputs)
        layers = edit.edited_layers(self.num_layers)
        return any(
            apply_edit(edit, self._unedited_run[1].activations[edit.site, n], n, range(rows), rows) is not None
            for n in layers
        )

    def run_edits(self, edits_by_branch: Sequence[Sequence[Edit]]) -> Float[Tensor, "branch batch predicted d_out"]:
        """Run several edited passes in one batch and return their outputs.

        Args:
            edits_by_branch: the edits of every pass, applied in order and validated by :meth:`validate_edit`.

        Returns:
            The outputs of every pass.

        Raises:
            UnsupportedModel: the output for a sequence depends on the other sequences of the batch.
        """
        return self._run_validated(edits_by_branch, None)

    def run_until(
        self, edits_by_branch: Sequence[Sequence[Edit]], site: str, layer: int
    ) -> Float[Tensor, "branch batch *rest"]:
        """Run several edited passes in one batch up to a site, and return its activation.

        Args:
            edits_by_branch: the edits of every pass, as in :meth:`run_edits`.
            site: the site at which the passes stop; it is recorded (:meth:`request_sites`).
            layer: the layer of this site.

        Returns:
            The activation in every pass.

        Raises:
            UnsupportedModel: the output for a sequence depends on the other sequences of the batch.
        """
        return self._run_validated(edits_by_branch, (site, layer))

    def activation_gradients(
        self, site: str, layer: int, values: Float[Tensor, "branch batch *rest"], objective: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "branch batch *rest"]:
        """Return the gradient of an objective with respect to the values of a site, for several passes in one batch.

        Args:
            site: the site whose activation is replaced.
            layer: the layer of this site.
            values: the finite replacement values, one set per pass.
            objective: a function from outputs (batch, predicted, d_out) to one number per sequence (batch).

        Returns:
            The gradient, in the shape of ``values``.

        Raises:
            UnsupportedModel: the output has no gradient with respect to the site, or sequences affect each other.
        """
        leaf = values.detach().clone().requires_grad_()
        replacements = [
            [Edit(site=site, where={"layer": layer}, fn=lambda old, number=number: leaf[number])]
            for number in range(len(leaf))
        ]
        if (min(layer, self._num_skippable), None) not in self._validated:
            self._run_validated(replacements[:1], None)  # validate that branches are independent
        outputs = self._run_branches(replacements, min(layer, self._num_skippable), None, enable_gradients=True)
        if not outputs.requires_grad:
            raise UnsupportedModel(
                f"the output must be differentiable with respect to {site}, but in layer {layer} it has no gradient; "
                "choose another site"
            )
        total = torch.stack([objective(prediction).sum() for prediction in outputs]).sum()
        return torch.autograd.grad(total, leaf)[0]

    def _run_validated(
        self, edits_by_branch: Sequence[Sequence[Edit]], target: HookPoint | None
    ) -> Float[Tensor, "branch batch *rest"]:
        """Run branches; validate the first run from each layer by an added unedited branch."""
        edited_layers = [
            layer for edits in edits_by_branch for edit in edits for layer in edit.edited_layers(self.num_layers)
        ]
        first = min([*edited_layers, self._num_skippable, self.num_layers - 1 if target is None else target[1]])
        if (first, target) in self._validated:
            return self._run_branches(edits_by_branch, first, target)
        unedited = _BranchHook([], self.num_layers, 0, 0, self.inputs, target)
        self._run_from_layer(self.inputs.flip(1), unedited, 0)  # other inputs, in case the model caches its last pass
        try:
            results = self._run_branches([*edits_by_branch, ()], first, target)
        except torch.OutOfMemoryError:
            raise
        except SKIPPED_LAYER_ERRORS:
            if first == 0:
                raise
        else:
            expected = self.unedited_output if target is None else self.unedited_activation(*target)
            actual, expected = (
                x.masked_fill(x.isneginf(), 0.0) for x in (results[-1], expected)
            )  # of masked attn_scores
            if allclose(actual, expected):
                self._validated.add((first, target))
                return results[:-1]
            if first == 0:
                raise UnsupportedModel(
                    "the output for a sequence must not depend on the other sequences of the batch, but that of "
                    f"{type(self.model).__name__} differs by {relative_difference(actual, expected):.1e} "
                    "(relative); run one edit at "
                    "a time with capture"
                )
        self._num_skippable = 0  # some layer passes more than the residual stream to later layers
        return self._run_validated(edits_by_branch, target)

    def _run_branches(
        self,
        edits_by_branch: Sequence[Sequence[Edit]],
        first_layer: int,
        target: HookPoint | None,
        *,
        enable_gradients: bool = False,
    ) -> Float[Tensor, "branch batch *rest"]:
        rows = len(self.inputs)
        hook_fn = _BranchHook(
            edits_by_branch,
            self.num_layers,
            rows,
            first_layer,
            self.unedited_activation("resid_pre", first_layer),
            target,
        )
        repeated_inputs = self.inputs.repeat(len(edits_by_branch), *[1] * (self.inputs.ndim - 1))
        return self._run_from_layer(repeated_inputs, hook_fn, first_layer, enable_gradients=enable_gradients).unflatten(
            0, (len(edits_by_branch), rows)
        )

    def _run_from_layer(
        self,
        inputs: Shaped[Tensor, "rows pos *d_in"],
        hook_fn: "_BranchHook",
        first_layer: int,
        *,
        enable_gradients: bool = False,
    ) -> Float[Tensor, "rows *rest"]:
        skipped = self._layer_specs[:first_layer]
        forwards = [
            _make_identity_forward(layer.stream_argument, self._block_output_types[number] is tuple)
            for number, layer in enumerate(skipped)
        ]
        with (
            eval_no_grad(self.model),
            enable_activation_gradients(self.model, self._layer_specs, activation_checkpointing=False)
            if enable_gradients
            else nullcontext(),
            replace_forwards([self.model.get_submodule(layer.block) for layer in skipped], forwards),
            attach_hooks(self.model, self._layer_specs, hook_fn.layers_by_site, hook_fn),
        ):
            try:
                return run_model(self.model, inputs, all_positions=self._all_positions)
            except _TargetReachedError as reached:
                return reached.value


class _TargetReachedError(Exception):
    """The target activation has been computed; the rest of the forward pass is skipped."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value


class _UneditedHook:
    """Hook that stores every activation of the unedited pass."""

    def __init__(self) -> None:
        self.activations: dict[tuple[str, int], Tensor] = {}
        self.output_types: dict[int, type | None] = {}

    def __call__(self, site: str, layer: int, value: Float[Tensor, "batch *rest"]) -> Float[Tensor, "batch *rest"]:
        self.activations[site, layer] = value.detach().clone()
        return value


class _BranchHook:
    """Hook that applies every branch's edits to its rows, and inserts the unedited stream in the first layer run."""

    def __init__(
        self,
        edits_by_branch: Sequence[Sequence[Edit]],
        num_layers: int,
        rows: int,
        first_layer: int,
        stream: Shaped[Tensor, "..."],
        target: HookPoint | None,
    ) -> None:
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
                for layer in edit.edited_layers(num_layers):
                    self._edits.setdefault((edit.site, layer), []).append((number, edit))

    @property
    def layers_by_site(self) -> dict[str, list[int]]:
        hook_points = {*self._edits} | ({("resid_pre", self._first_layer)} if self._first_layer else set())
        hook_points |= {self._target} if self._target is not None else set()
        return {site: sorted(layer for other, layer in hook_points if other == site) for site, _ in hook_points}

    def __call__(self, site: str, layer: int, value: Float[Tensor, "rows *rest"]) -> Float[Tensor, "rows *rest"]:
        if site == "resid_pre" and layer == self._first_layer and self._first_layer:
            value = self._stream.repeat(self._num_branches, *[1] * (self._stream.ndim - 1))
        copied = False
        for number, edit in self._edits.get((site, layer), ()):
            branch_rows = slice(number * self._rows, (number + 1) * self._rows)
            new = apply_edit(edit, value[branch_rows], layer, range(self._rows), self._rows)
            if new is not None:
                value = value if copied else value.clone()
                value[branch_rows] = new
                copied = True
        if (site, layer) == self._target:
            raise _TargetReachedError(value)
        return value


@contextmanager
def _record_output_types(model: PreTrainedModel, layers: Sequence[LayerSpec], hook: _UneditedHook) -> Iterator[None]:
    """Record the output type of every block: ``None`` if a block returns more than the residual stream."""

    def record_type(number: int, module: nn.Module, args: tuple, output: Any) -> None:
        only_stream = isinstance(output, Tensor) or (isinstance(output, tuple) and len(output) == 1)
        hook.output_types[number] = type(output) if only_stream else None

    handles = [
        model.get_submodule(layer.block).register_forward_hook(partial(record_type, number))
        for number, layer in enumerate(layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _make_identity_forward(stream_argument: int | str, returns_tuple: bool) -> Callable[..., Any]:
    """Return a forward function that returns its input residual stream."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        stream = args[stream_argument] if isinstance(stream_argument, int) else kwargs[stream_argument]
        return (stream,) if returns_tuple else stream

    return forward
