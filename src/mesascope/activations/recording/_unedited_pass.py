"""The unedited pass of a model, from which edited passes branch off."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from mesascope.activations._memory import check_memory, site_bytes
from mesascope.activations.edits import Edit, apply_edit
from mesascope.activations.forward import eval_no_grad, run_model
from mesascope.activations.hooks._branch_hooks import (
    UneditedHook,
    record_output_types,
)
from mesascope.activations.hooks._module_hooks import attach_hooks
from mesascope.activations.padding.masks import pads_the_end
from mesascope.activations.sites import MEMORY_SITES, UnsupportedModel
from mesascope.activations.structure._traced_model import TracedModel
from mesascope.activations.validation.identities import check_sites_available
from mesascope.activations.validation.inputs import InputsLike


class UneditedPass(TracedModel):
    """The unedited pass of a model, run when it is first needed.

    Args:
        model: any model that `capture` supports.
        inputs: tokens, vectors, a batch of a task, or the output of a tokenizer with its attention mask.
        site: the site to edit; it and the residual stream are recorded.
        attention_mask: (batch, pos), 1 where an input is not padding.
        all_positions: compute outputs at every position; otherwise at the last position only, if the model class can
            and no sequence ends with padding.
        accepts_iterations: accept a model that repeats its layers.

    Raises:
        UnsupportedModel: the model cannot be captured.
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
        super().__init__(model, inputs, attention_mask, accepts_iterations=accepts_iterations)
        if site in MEMORY_SITES:
            raise UnsupportedModel(
                f"{site} must be a site of a model with a memory between chunks, but {type(self.model).__name__} has "
                "none; choose a site of a layer"
            )
        self._all_positions = all_positions or pads_the_end(self.attention_mask)
        self._edited_site, self._requested = site, dict[str, set[int]]()

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
        check_sites_available(type(self.model).__name__, self._structure.layers, layers_by_site)
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
    def _unedited_run(self) -> tuple[Tensor, "UneditedHook"]:
        """The output and the recorded activations of the unedited pass."""
        self.request_sites({"resid_pre": range(self.num_layers)})
        self.request_sites({self._edited_site: self.layers_with_site(self._edited_site)})
        layers_by_site = {site: sorted(layers) for site, layers in self._requested.items()}
        check_memory(site_bytes(self._structure, layers_by_site, *self.inputs.shape[:2]), self.inputs.device)
        hook = UneditedHook()
        with (
            eval_no_grad(self.model),
            attach_hooks(self.model, self._structure.layers, layers_by_site, hook),
            record_output_types(self.model, self._structure.layers, hook),
        ):
            output = run_model(self.model, self.inputs, self.attention_mask, all_positions=self._all_positions)
            return output, hook

    @cached_property
    def _block_output_types(self) -> list[type | None]:
        """The output type of every block, by layer; ``None`` for a block that returns more than the residual stream."""
        return [self._unedited_run[1].output_types.get(number) for number in range(self.num_layers)]

    def zeros_like_output(self) -> Float[Tensor, "batch predicted d_out"]:
        """Return zeros in the shape of the model's output, to try a metric on.

        Returns:
            Zeros (batch, predicted, d_out).
        """
        length = self.inputs.shape[1] if self._all_positions else 1
        logits = self._structure.trace.logits
        return logits.new_zeros(len(self.inputs), length, logits.shape[-1])

    def has_effect(self, edit: Edit) -> bool:
        """Return whether an edit changes any bit of the unedited activation.

        Args:
            edit: an edit of the site.

        Returns:
            ``False`` if the edited pass would be identical to the unedited one.
        """
        rows, mask, activations = len(self.inputs), self.attention_mask, self._unedited_run[1].activations
        return any(
            apply_edit(edit, activations[edit.site, number], number, range(rows), rows, mask) is not None
            for number in self.edited_layers(edit)
            if (edit.site, number) in activations  # an iteration may not run
        )
