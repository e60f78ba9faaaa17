"""Many edited forward passes of an encoder-decoder on the same sequences, in one batch."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations._memory import check_memory, site_bytes, site_shape
from mesascope.activations._model_structure import ModelStructure
from mesascope.activations.edits import Edit, apply_edit, validate_edit
from mesascope.activations.encoder_decoder._capture import capture_encoder_decoder
from mesascope.activations.encoder_decoder._captured import EncoderDecoderCapture
from mesascope.activations.encoder_decoder._forward import run_pair
from mesascope.activations.encoder_decoder._inputs import SourceAndTarget
from mesascope.activations.encoder_decoder._structure import read_stacks
from mesascope.activations.encoder_decoder._validation import validate_pair_hook_points
from mesascope.activations.forward import eval_no_grad
from mesascope.activations.gradients import ObjectiveFn, enable_activation_gradients, require_gradient
from mesascope.activations.hooks._branch_hooks import BranchHook, HookPoint, Masks, TargetReachedError, UneditedHook
from mesascope.activations.hooks._module_hooks import attach_hooks
from mesascope.activations.padding.masks import SOURCE_AXIS, zero_padding
from mesascope.activations.padding.validate_edits import validate_edit_padding
from mesascope.activations.sites import (
    CROSS_SITES,
    DECODER,
    ENCODER,
    MEMORY_SITES,
    STACKS,
    UnsupportedModel,
    get_site,
    locate_site,
)
from mesascope.activations.tolerances import allclose, relative_difference
from mesascope.activations.validation.identities import check_sites_available


def name_stack_of_site(site: str) -> tuple[str, str]:
    """Return the stack of a site, and the name of the site within the stack.

    Args:
        site: a site of an encoder-decoder, with the name of its stack unless only the decoder has it.

    Raises:
        ValueError: both stacks have the site, and it names none.
    """
    stack, local = locate_site(site)
    if local in MEMORY_SITES:
        raise UnsupportedModel(f"{site} must be a site of an encoder-decoder, which has no memory between chunks")
    if stack is None:
        raise ValueError(
            f"a site of an encoder-decoder must name its stack, but got {site}; write encoder.{site} or decoder.{site}"
        )
    if stack == ENCODER and local in CROSS_SITES:
        raise ValueError(f"{local} must be a site of the decoder, but got {site}")
    return stack, local


class PairedEdits:
    """Batched edited forward passes of an encoder-decoder, each of which runs all layers of both stacks.

    The branches of a run are copies of the same sequences, each with its own edits, concatenated along the batch axis.
    The first run includes an unedited branch, which must reproduce the unedited pass. Sites have the names of their
    stacks, and layers are counted within the stack.

    Args:
        model: an encoder-decoder.
        inputs: the source and the target.
        site: the site to edit.

    Raises:
        UnsupportedModel: the model cannot be captured.
        ValueError: the site names no stack.
    """

    def __init__(self, model: PreTrainedModel, inputs: SourceAndTarget, site: str) -> None:
        self.model, self.pair = model, inputs
        self._stack, _ = name_stack_of_site(site)
        self._edited_site, self._requested = site, dict[str, set[int]]()
        self._validated: set[HookPoint | None] = set()
        with eval_no_grad(model):
            self._structure = read_stacks(model, inputs)

    @property
    def inputs(self) -> Tensor:
        """The target, from which the output is predicted."""
        return self.pair.target

    @property
    def attention_mask(self) -> Int[Tensor, "batch pos"] | None:
        """1 where an input of the target is not padding; ``None`` without padding."""
        return self.pair.target_mask

    @property
    def num_positions(self) -> int:
        """The number of positions of all sources and targets."""
        return len(self.pair) * (self.pair.source.shape[1] + self.pair.target.shape[1])

    @property
    def num_layers(self) -> int:
        """The number of layers of the stack of the edited site."""
        return len(self._structure.stack(self._stack).layers)

    @property
    def axis_sizes(self) -> dict[str, int]:
        """The size of ``layer`` in the stack of the edited site."""
        return {"layer": self.num_layers}

    def count_layers(self, stack: str) -> int:
        """Return the number of layers of a stack.

        Args:
            stack: ``encoder`` or ``decoder``.
        """
        return len(self._structure.stack(stack).layers)

    def find_masks(self, site: str) -> Masks:
        """Return the mask of the positions of a site, and that of the source, if the site has an axis ``source``.

        Args:
            site: the name of the site.
        """
        _, mask = self.pair.side(name_stack_of_site(site)[0])
        return mask, self.pair.source_mask if SOURCE_AXIS in get_site(site).axes else None

    def edited_layers(self, edit: Edit) -> list[int]:
        """Return the layers that an edit changes, counted in the stack of its site.

        Args:
            edit: the edit.

        Raises:
            IndexError: an index is out of range.
            ValueError: iterations or chunks are selected.
        """
        return edit.edited_layers(self.count_layers(name_stack_of_site(edit.site)[0]))

    def layers_with_site(self, site: str) -> list[int]:
        """Return the layers of its stack that have a site.

        Args:
            site: the name of the site.
        """
        structure, local = self._locate(site)
        return [number for number, layer in enumerate(structure.layers) if local not in layer.missing]

    def layers_without_site(self, site: str) -> dict[int, str]:
        """Return the layers of its stack that lack a site, with the reasons.

        Args:
            site: the name of the site.
        """
        structure, local = self._locate(site)
        return {n: layer.missing[local] for n, layer in enumerate(structure.layers) if local in layer.missing}

    def is_parallel(self, stack: str, layer: int) -> bool:
        """Return whether the MLP of a layer reads the residual stream before attention has written to it.

        Args:
            stack: ``encoder`` or ``decoder``.
            layer: the layer.
        """
        return self._structure.stack(stack).layers[layer].parallel

    def site_shape(self, site: str, layer: int) -> list[int]:
        """Return the shape of a site within one layer.

        Args:
            site: the name of the site.
            layer: the layer.
        """
        structure, local = self._locate(site)
        x, _ = self.pair.side(name_stack_of_site(site)[0])
        return site_shape(structure, layer, local, *x.shape[:2], source=self.pair.source.shape[1])

    def validate_edit(self, edit: Edit) -> None:
        """Check that an edit can be applied, before the model runs.

        Args:
            edit: the edit.

        Raises:
            UnsupportedModel: a layer lacks the site.
            ValueError: the source or the result of the edit has the wrong shape, or does not fit the padding.
            IndexError: an index is out of range.
        """
        layers, (stack, local) = self.edited_layers(edit), name_stack_of_site(edit.site)
        self._check_available(edit.site, layers)
        shapes = {n: self.site_shape(edit.site, n) for n in layers}
        validate_edit(edit, shapes, len(self.pair), self._structure.decoder.trace.logits)
        source_mask = self.find_masks(edit.site)[1]
        validate_edit_padding(replace(edit, site=local), *self.pair.side(stack), source_mask)

    def validate_sites(self, layers_by_site: Mapping[str, Sequence[int]]) -> None:
        """Validate hook points on the longest sequences, as `capture` does.

        Args:
            layers_by_site: layers by site.

        Raises:
            UnsupportedModel: a check fails.
        """
        with eval_no_grad(self.model):
            hook_points = self._structure.count_through(layers_by_site)
            validate_pair_hook_points(self.model, self._structure, hook_points, self.pair)

    def request_sites(self, layers_by_site: Mapping[str, Sequence[int]]) -> None:
        """Record more sites in the unedited pass than the edited one; call it before any run.

        Args:
            layers_by_site: layers by site.

        Raises:
            UnsupportedModel: a layer lacks the site.
        """
        for site, layers in layers_by_site.items():
            self._check_available(site, layers)
            self._requested.setdefault(_canonical(site), set()).update(layers)

    def unedited_activation(self, site: str, layer: int) -> Float[Tensor, "batch *rest"]:
        """Return a recorded activation of the unedited pass.

        Args:
            site: the name of the site.
            layer: the layer.
        """
        return self._unedited_run[1].activations[_canonical(site), layer]

    @cached_property
    def unedited_output(self) -> Float[Tensor, "batch pos d_out"]:
        """The output of the unedited pass, which is run on first access."""
        return self._unedited_run[0]

    def zeros_like_output(self) -> Float[Tensor, "batch pos d_out"]:
        """Return zeros in the shape of the model's output, to try a metric on."""
        logits = self._structure.decoder.trace.logits
        return logits.new_zeros(*self.pair.target.shape[:2], logits.shape[-1])

    def has_effect(self, edit: Edit) -> bool:
        """Return whether an edit changes any bit of the unedited activation.

        Args:
            edit: an edit of a recorded site.
        """
        rows, masks = len(self.pair), self.find_masks(edit.site)
        return any(
            apply_edit(edit, self.unedited_activation(edit.site, n), n, range(rows), rows, *masks) is not None
            for n in self.edited_layers(edit)
        )

    def run_edits(self, edits_by_branch: Sequence[Sequence[Edit]]) -> Float[Tensor, "branch batch pos d_out"]:
        """Run several edited passes in one batch and return their outputs.

        Args:
            edits_by_branch: the edits of every pass, applied in order and validated by :meth:`validate_edit`.

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

        Raises:
            UnsupportedModel: the output for a sequence depends on the other sequences of the batch.
        """
        return self._run_validated(edits_by_branch, (_canonical(site), layer))

    def activation_gradients(
        self, site: str, layer: int, values: Float[Tensor, "branch batch *rest"], objective: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "branch batch *rest"]:
        """Return the gradient of an objective with respect to the values of a site, for several passes in one batch.

        Args:
            site: the site whose activation is replaced.
            layer: the layer of this site.
            values: the finite replacement values, one set per pass.
            objective: a function from outputs (batch, pos, d_out) to one number per sequence (batch).

        Raises:
            UnsupportedModel: the output has no gradient with respect to the site, or sequences affect each other.
        """
        leaf = values.detach().clone().requires_grad_()
        replacements = [
            [Edit(site=site, where={"layer": layer}, fn=lambda old, number=number: leaf[number])]
            for number in range(len(leaf))
        ]
        if None not in self._validated:
            self._run_validated(replacements[:1], None)  # validate that branches are independent
        outputs = self._run_branches(replacements, None, enable_gradients=True)
        require_gradient(outputs, site, layer)
        total = torch.stack([objective(prediction).sum() for prediction in outputs]).sum()
        return torch.autograd.grad(total, leaf)[0]

    def capture_run(
        self,
        inputs: SourceAndTarget,
        sites: Sequence[str],
        layers: Sequence[int] | None = None,
        objective: ObjectiveFn | None = None,
    ) -> EncoderDecoderCapture:
        """Record sites of a run, which may be another one.

        Args:
            inputs: its source and target.
            sites: sites of the stack of the edited site, or ``output``.
            layers: the layers of this stack; all by default.
            objective: replaces the loss in gradients.

        Returns:
            The capture.
        """
        by_stack = dict.fromkeys(STACKS) | {self._stack: layers}
        return capture_encoder_decoder(self.model, inputs, sites, layers=by_stack, objective=objective)

    def _locate(self, site: str) -> tuple[ModelStructure, str]:
        stack, local = name_stack_of_site(site)
        return self._structure.stack(stack), local

    def _check_available(self, site: str, layers: Sequence[int]) -> None:
        stack, local = name_stack_of_site(site)
        name = f"the {stack} of {type(self.model).__name__}"
        check_sites_available(name, self._structure.stack(stack).layers, {local: layers})

    @cached_property
    def _unedited_run(self) -> tuple[Tensor, UneditedHook]:
        """The output and the recorded activations of the unedited pass."""
        self.request_sites({self._edited_site: self.layers_with_site(self._edited_site)})
        layers_by_site = {site: sorted(layers) for site, layers in self._requested.items()}
        check_memory(sum(self._count_bytes(*each) for each in layers_by_site.items()), self.inputs.device)
        hook = UneditedHook()
        return self._run_hooked(self.pair, hook, layers_by_site), hook

    def _count_bytes(self, site: str, layers: Sequence[int]) -> int:
        structure, local = self._locate(site)
        x, _ = self.pair.side(name_stack_of_site(site)[0])
        return site_bytes(structure, {local: layers}, *x.shape[:2], source=self.pair.source.shape[1])

    def _run_validated(
        self, edits_by_branch: Sequence[Sequence[Edit]], target: HookPoint | None
    ) -> Float[Tensor, "branch batch *rest"]:
        """Run branches; the first run has an added unedited branch, which must reproduce the unedited pass."""
        if target in self._validated:
            return self._run_branches(edits_by_branch, target)
        results = self._run_branches([*edits_by_branch, ()], target)
        self._check_reproduces_unedited(results[-1], target)
        self._validated.add(target)
        return results[:-1]

    def _check_reproduces_unedited(self, result: Tensor, target: HookPoint | None) -> None:
        expected = self.unedited_output if target is None else self.unedited_activation(*target)
        axes = ("batch", "pos", "d_out") if target is None else get_site(target[0]).axes_within_layer
        mask = self.attention_mask if target is None else self.find_masks(target[0])[0]
        actual, expected = (zero_padding(x, axes, mask) for x in (result, expected))
        actual, expected = (x.masked_fill(x.isneginf(), 0.0) for x in (actual, expected))  # of masked attn_scores
        if not allclose(actual, expected):
            raise UnsupportedModel(
                "the output for a sequence must not depend on the other sequences of the batch, but that of "
                f"{type(self.model).__name__} differs by {relative_difference(actual, expected):.1e} (relative); run "
                "one edit at a time with capture"
            )

    def _run_branches(
        self, edits_by_branch: Sequence[Sequence[Edit]], target: HookPoint | None, *, enable_gradients: bool = False
    ) -> Float[Tensor, "branch batch *rest"]:
        edits = [[replace(edit, site=_canonical(edit.site)) for edit in each] for each in edits_by_branch]
        hook = BranchHook(edits, self.edited_layers, len(self.pair), 0, self.inputs, target, self.find_masks)
        inputs = self.pair.repeat(len(edits))
        results = self._run_hooked(inputs, hook, hook.layers_by_site, enable_gradients=enable_gradients)
        return results.unflatten(0, (len(edits), len(self.pair)))

    def _run_hooked(
        self,
        inputs: SourceAndTarget,
        hook_fn: Callable[[str, int, Tensor], Tensor | None],
        layers_by_site: Mapping[str, Sequence[int]],
        *,
        enable_gradients: bool = False,
    ) -> Float[Tensor, "rows *rest"]:
        """Run the model with a hook function that receives sites with their stacks; return the output or the target."""
        structure = self._structure

        def call_hook(site: str, number: int, value: Tensor) -> Tensor | None:
            stack, layer = structure.locate_layer(number)
            return hook_fn(_canonical(f"{stack}.{site}"), layer, value)

        hook_points = structure.count_through(layers_by_site)
        with ExitStack() as contexts:
            contexts.enter_context(eval_no_grad(self.model))
            if enable_gradients:
                graph = enable_activation_gradients(self.model, structure.layers, activation_checkpointing=False)
                contexts.enter_context(graph)
            contexts.enter_context(attach_hooks(self.model, structure.layers, hook_points, call_hook))
            try:
                return run_pair(self.model, inputs)
            except TargetReachedError as reached:
                return reached.value


def _canonical(site: str) -> str:
    """Return the name of a site with its stack, but without one if only the decoder has it."""
    stack, local = name_stack_of_site(site)
    return local if stack == DECODER and local in CROSS_SITES else f"{stack}.{local}"
