"""Many edited forward passes of the same inputs in one batch, without recomputing the layers before the first edit."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from mesascope.activations.edits import Edit
from mesascope.activations.forward import eval_no_grad, run_model
from mesascope.activations.gradients import enable_activation_gradients, require_gradient
from mesascope.activations.hooks._branch_hooks import (
    BranchHook,
    HookPoint,
    TargetReachedError,
    make_identity_forward,
)
from mesascope.activations.hooks._module_hooks import attach_hooks, replace_forwards
from mesascope.activations.padding.masks import zero_padding
from mesascope.activations.recording._unedited_pass import UneditedPass
from mesascope.activations.sites import UnsupportedModel, get_site
from mesascope.activations.tolerances import allclose, relative_difference
from mesascope.activations.validation.inputs import InputsLike

# raised where layers cannot be skipped
SKIPPED_LAYER_ERRORS = (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError)


class BatchedEdits(UneditedPass):
    """Batched edited forward passes that share the unedited computation before the first edited layer.

    The branches of a run are copies of the same sequences, each with its own edits, concatenated along the batch axis.
    Layers before the first edited one are skipped: they pass the unedited residual stream on. The first run from each
    layer includes an unedited branch, which must reproduce the unedited pass.

    Args:
        model: any model that `capture` supports.
        inputs: tokens, vectors, a batch of a task, or the output of a tokenizer with its attention mask.
        site: the site to edit.
        attention_mask: (batch, pos), 1 where an input is not padding; padding is neither edited nor compared.
        all_positions: compute outputs at every position; otherwise at the last position only, if the model class can
            and no sequence ends with padding.
        accepts_iterations: accept a model that repeats its layers, and run all its layers in every pass. Its layers are
            calls of layers then, iteration * number of layers + layer.

    Raises:
        UnsupportedModel: the model cannot be captured, or it repeats its layers.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: InputsLike,
        site: str,
        *,
        attention_mask: Any = None,
        all_positions: bool = True,
        accepts_iterations: bool = False,
    ) -> None:
        super().__init__(
            model,
            inputs,
            site,
            attention_mask=attention_mask,
            all_positions=all_positions,
            accepts_iterations=accepts_iterations,
        )
        self._validated: set[tuple[int, HookPoint | None]] = set()

    @cached_property
    def _num_skippable(self) -> int:
        """The number of leading layers that can be skipped; none of those that are called again later."""
        if self._structure.num_iterations is not None:
            return 0
        return self._block_output_types.index(None) if None in self._block_output_types else self.num_layers

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

        Raises:
            UnsupportedModel: the output has no gradient with respect to the site, or sequences affect each other.
        """
        leaf, first = values.detach().clone().requires_grad_(), min(layer, self._num_skippable)
        replacements = [
            [Edit(site=site, where={"layer": layer}, fn=lambda old, number=number: leaf[number])]
            for number in range(len(leaf))
        ]
        if (first, None) not in self._validated:
            self._run_validated(replacements[:1], None)  # validate that branches are independent
        outputs = self._run_branches(replacements, min(layer, self._num_skippable), None, enable_gradients=True)
        require_gradient(outputs, site, layer)
        total = torch.stack([objective(prediction).sum() for prediction in outputs]).sum()
        return torch.autograd.grad(total, leaf)[0]

    def _run_validated(
        self, edits_by_branch: Sequence[Sequence[Edit]], target: HookPoint | None
    ) -> Float[Tensor, "branch batch *rest"]:
        """Run branches; validate the first run from each layer by an added unedited branch."""
        first = self._find_first_layer(edits_by_branch, target)
        if (first, target) in self._validated:
            return self._run_branches(edits_by_branch, first, target)
        unedited = BranchHook([], self.edited_layers, 0, 0, self.inputs, target, self.find_masks)
        mask = None if self.attention_mask is None else self.attention_mask.flip(1)
        self._run_from_layer(self.inputs.flip(1), mask, unedited, 0)  # other inputs: the model may cache its last pass
        try:
            results = self._run_branches([*edits_by_branch, ()], first, target)
        except torch.OutOfMemoryError:
            raise
        except SKIPPED_LAYER_ERRORS:
            if first == 0:
                raise
        else:
            if self._reproduces_unedited(results[-1], target, required=first == 0):
                self._validated.add((first, target))
                return results[:-1]
        self._num_skippable = 0  # some layer passes more than the residual stream to later layers
        return self._run_validated(edits_by_branch, target)

    def _find_first_layer(self, edits_by_branch: Sequence[Sequence[Edit]], target: HookPoint | None) -> int:
        """Return the first layer that must be run: none before it is edited or is the target."""
        layers = [n for edits in edits_by_branch for edit in edits for n in self.edited_layers(edit)]
        return min([*layers, self._num_skippable, self.num_layers - 1 if target is None else target[1]])

    def _reproduces_unedited(self, result: Tensor, target: HookPoint | None, *, required: bool) -> bool:
        """Return whether the result of an unedited branch is that of the unedited pass; raise if it must be."""
        expected = self.unedited_output if target is None else self.unedited_activation(*target)
        axes = ("batch", "pos", "d_out") if target is None else get_site(target[0]).axes_within_layer
        actual, expected = (zero_padding(x, axes, self.attention_mask) for x in (result, expected))
        actual, expected = (x.masked_fill(x.isneginf(), 0.0) for x in (actual, expected))  # of masked attn_scores
        if allclose(actual, expected):
            return True
        if required:
            raise UnsupportedModel(
                "the output for a sequence must not depend on the other sequences of the batch, but that of "
                f"{type(self.model).__name__} differs by {relative_difference(actual, expected):.1e} (relative); run "
                "one edit at a time with capture"
            )
        return False

    def _run_branches(
        self,
        edits_by_branch: Sequence[Sequence[Edit]],
        first_layer: int,
        target: HookPoint | None,
        *,
        enable_gradients: bool = False,
    ) -> Float[Tensor, "branch batch *rest"]:
        branches, rows, mask = len(edits_by_branch), len(self.inputs), self.attention_mask
        stream = self.unedited_activation("resid_pre", first_layer)
        hook_fn = BranchHook(edits_by_branch, self.edited_layers, rows, first_layer, stream, target, self.find_masks)
        repeated_inputs = self.inputs.repeat(branches, *[1] * (self.inputs.ndim - 1))
        results = self._run_from_layer(
            repeated_inputs,
            None if mask is None else mask.repeat(branches, 1),
            hook_fn,
            first_layer,
            enable_gradients=enable_gradients,
        )
        return results.unflatten(0, (branches, rows))

    def _run_from_layer(
        self,
        inputs: Shaped[Tensor, "rows pos *d_in"],
        mask: Int[Tensor, "rows pos"] | None,
        hook_fn: BranchHook,
        first_layer: int,
        *,
        enable_gradients: bool = False,
    ) -> Float[Tensor, "rows *rest"]:
        skip_layers = self._skip_layers(first_layer)
        with ExitStack() as contexts:
            contexts.enter_context(eval_no_grad(self.model))
            if enable_gradients:
                graph = enable_activation_gradients(self.model, self._structure.layers, activation_checkpointing=False)
                contexts.enter_context(graph)
            contexts.enter_context(skip_layers)
            contexts.enter_context(attach_hooks(self.model, self._structure.layers, hook_fn.layers_by_site, hook_fn))
            try:
                return run_model(self.model, inputs, mask, all_positions=self._all_positions)
            except TargetReachedError as reached:
                return reached.value

    def _skip_layers(self, first_layer: int) -> AbstractContextManager[None]:
        """Let the layers before the first one pass their input on."""
        skipped = self._structure.layers[:first_layer]
        forwards = [
            make_identity_forward(layer.stream_argument, self._block_output_types[number] is tuple)
            for number, layer in enumerate(skipped)
        ]
        return replace_forwards([self.model.get_submodule(layer.block) for layer in skipped], forwards)
