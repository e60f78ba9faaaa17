"""A model with its inputs and its layers: the sites of each layer and their shapes."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from mesascope.activations._memory import site_shape
from mesascope.activations.edits import Edit, validate_edit
from mesascope.activations.forward import eval_no_grad
from mesascope.activations.padding.validate_edits import validate_edit_padding
from mesascope.activations.sites import UnsupportedModel
from mesascope.activations.structure._read_structure import read_structure
from mesascope.activations.validation.arguments import validate_model
from mesascope.activations.validation.hook_points import validate_hook_points
from mesascope.activations.validation.identities import check_sites_available
from mesascope.activations.validation.inputs import InputsLike, prepare_inputs


class TracedModel:
    """A model, its inputs, and the layers found by tracing it.

    Args:
        model: any model that `capture` supports.
        inputs: tokens, vectors, a batch of a task, or the output of a tokenizer with its attention mask.
        attention_mask: (batch, pos), 1 where an input is not padding; padding may be on the left or on the right.
        accepts_iterations: accept a model that repeats its layers; its layers are calls of layers then.

    Raises:
        UnsupportedModel: the model cannot be captured, it repeats its layers, or it has chunks.
        ValueError: a sequence is all padding.
    """

    def __init__(
        self, model: nn.Module, inputs: InputsLike, attention_mask: Any = None, *, accepts_iterations: bool = False
    ) -> None:
        self.model = validate_model(model)
        self.inputs, self.attention_mask = prepare_inputs(self.model, inputs, attention_mask)
        if self.attention_mask is not None and not self.attention_mask.any(1).all():
            row = self.attention_mask.any(1).int().argmin().item()
            raise ValueError(f"a sequence must not be all padding, but sequence {row} is; leave it out")
        with eval_no_grad(self.model):
            self._structure = read_structure(self.model, self.inputs, self.attention_mask)
        if self._structure.chunks is not None:
            raise UnsupportedModel(
                "this intervention needs a model that processes all positions at once, but "
                f"{type(self.model).__name__} has chunks with a memory between them; use edits of capture"
            )
        if self._structure.num_iterations is not None and not accepts_iterations:
            raise UnsupportedModel(
                f"this intervention needs a model that calls each layer once, but {type(self.model).__name__} repeats "
                "its layers; use sweep, edits of capture, or a copy with as many layers as calls (unroll_steps, for a "
                "fixed number of steps)"
            )

    @property
    def num_positions(self) -> int:
        """The number of positions of all sequences."""
        return self.inputs.shape[0] * self.inputs.shape[1]

    def find_masks(self, site: str) -> tuple[Int[Tensor, "batch pos"] | None, None]:
        """Return the mask of the positions of a site, and ``None``: there is no other source.

        Args:
            site: the name of the site.
        """
        return self.attention_mask, None

    @property
    def num_layers(self) -> int:
        """The number of layers of the model; of calls of layers, if it repeats them."""
        return len(self._structure.layers)

    @property
    def axis_sizes(self) -> dict[str, int]:
        """The sizes of ``layer`` and, in a model that repeats its layers, of ``iteration``."""
        iterations = self._structure.num_iterations
        return {"layer": self._structure.num_blocks} | ({} if iterations is None else {"iteration": iterations})

    def edited_layers(self, edit: Edit) -> list[int]:
        """Return the layers that an edit changes; the calls of layers, in a model that repeats its layers.

        Args:
            edit: the edit.

        Raises:
            IndexError: an index is out of range.
            ValueError: iterations are selected in a model that calls each layer once.
        """
        return edit.edited_layers(self._structure.num_blocks, self._structure.num_iterations)

    def layers_with_site(self, site: str) -> list[int]:
        """Return the layers that have a site.

        Args:
            site: the name of the site.

        Returns:
            The indices of the layers, in order.
        """
        return [number for number, layer in enumerate(self._structure.layers) if site not in layer.missing]

    def layers_without_site(self, site: str) -> dict[int, str]:
        """Return the layers that lack a site, with the reasons.

        Args:
            site: the name of the site.

        Returns:
            The reason, by layer.
        """
        return {
            number: layer.missing[site] for number, layer in enumerate(self._structure.layers) if site in layer.missing
        }

    def is_parallel(self, layer: int) -> bool:
        """Return whether the MLP of a layer reads the residual stream before attention has written to it.

        Args:
            layer: the layer, counted from 0.

        Returns:
            ``True`` if attention and MLP run in parallel.
        """
        return self._structure.layers[layer].parallel

    def site_shape(self, site: str, layer: int) -> list[int]:
        """Return the shape of a site within one layer.

        Args:
            site: the name of the site.
            layer: the layer, counted from 0.

        Returns:
            The sizes of the axes of the site without ``layer``.
        """
        return site_shape(self._structure, layer, site, *self.inputs.shape[:2])

    def validate_edit(self, edit: Edit) -> None:
        """Check that an edit can be applied, before the model runs.

        Args:
            edit: the edit.

        Raises:
            UnsupportedModel: a layer lacks the site.
            ValueError: the source or the result of the edit has the wrong shape, or does not fit the padding.
            IndexError: an index is out of range.
        """
        layers = self.edited_layers(edit)
        check_sites_available(type(self.model).__name__, self._structure.layers, {edit.site: layers})
        validate_edit(
            edit, {n: self.site_shape(edit.site, n) for n in layers}, len(self.inputs), self._structure.trace.logits
        )
        validate_edit_padding(edit, self.inputs, self.attention_mask)

    def validate_sites(self, layers_by_site: Mapping[str, Sequence[int]]) -> None:
        """Validate hook points on the longest sequence, as `capture` does.

        Args:
            layers_by_site: layers by site.

        Raises:
            UnsupportedModel: a check fails.
        """
        with eval_no_grad(self.model):
            validate_hook_points(self.model, self._structure, layers_by_site, self.inputs, self.attention_mask)
