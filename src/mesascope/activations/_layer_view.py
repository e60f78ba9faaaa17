"""Reductions of several sites of one layer, and the view of the layer that they receive."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from mesascope.activations.readout._readout import Readout
from mesascope.activations.sites import get_site
from mesascope.tasks.base import Batch

ResidualActivations = Float[Tensor, "batch pos d_model"]
SUBLAYERS = ("attention", "mlp")
SUBLAYER_OUTPUTS = {"attention": "attn_out", "mlp": "mlp_out"}


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerView:
    """The activations of one layer for one micro-batch. They are freed as the model runs on; only results are stored.

    Attributes:
        layer: the index of the layer in the model; of the call, if the model repeats its layers: iteration * number of
            layers + layer.
        recorded_index: its index among the recorded layers.
        sites: the requested sites, without the axes ``layer`` and ``iteration``.
        inputs: the model inputs of these sequences.
        mask: 1 where an input is not padding; ``None`` without padding.
        rows: the indices of these sequences in the whole batch.
        queries: the query positions of the rows of ``attn_scores`` and ``pattern``.
        batch: the sequences with their targets, if a batch of a task was captured.
        readout: the readout of the model.
        parallel: the MLP reads the residual stream before attention has written to it.
        has_cross: the layer has cross-attention.
        visible_keys_fn: a function that returns where queries can attend to keys; ``None`` without attention.
        mask_is_additive: the attention weights are the softmax of scores plus mask, so that hidden keys have none.
        recompute_fn: a function from another residual stream to the queries that the layer would compute from it.
    """

    layer: int
    recorded_index: int
    sites: Mapping[str, Tensor]
    inputs: Shaped[Tensor, "batch pos *d_in"]
    mask: Int[Tensor, "batch pos"] | None
    rows: range
    queries: Int[Tensor, " recompute_query"]
    batch: Batch | None
    readout: Readout
    parallel: bool
    recompute_fn: Callable[[Tensor], Tensor]
    has_cross: bool = False
    visible_keys_fn: Callable[[], Tensor] | None = None
    mask_is_additive: bool = False

    def __getitem__(self, name: str) -> Tensor:
        """Return a requested site.

        Raises:
            KeyError: the site was not requested.
        """
        if name not in self.sites:
            raise KeyError(f"{name!r} must be among the requested sites, but those are {', '.join(self.sites)}")
        return self.sites[name]

    def __contains__(self, name: object) -> bool:
        """Return whether a site is available."""
        return name in self.sites

    @cached_property
    def visible_keys(self) -> Bool[Tensor, "#batch #head query key"]:
        """``True`` where a query can attend to a key, by the mask of the model (causal, windowed, or other).

        A key that has attention weight in the recorded ``pattern`` is visible, too: some models multiply by their mask.

        Raises:
            ValueError: the layer has no attention.
        """
        if self.visible_keys_fn is None:
            raise ValueError(f"visible keys need attention, but layer {self.layer} has none")
        visible = self.visible_keys_fn()
        visible = visible[:, :, self.queries.to(visible.device)]
        if self.mask_is_additive or "pattern" not in self.sites:
            return visible
        weighted = (self.sites["pattern"] * ~visible).any(1, keepdim=True)
        return visible | weighted if weighted.any() else visible

    def select_queries(self, indices: Int[Tensor, " fewer"]) -> "LayerView":
        """Return the view restricted to some of its queries.

        Args:
            indices: indices into `queries`.

        Returns:
            A view with fewer rows of ``attn_scores`` and ``pattern``.
        """
        rows = {name: self.sites[name][:, :, indices] for name in ("attn_scores", "pattern") if name in self.sites}
        return replace(self, queries=self.queries[indices], sites={**self.sites, **rows})

    def sublayer_input(self, sublayer: str) -> ResidualActivations:
        """Return the residual stream that a sublayer reads; for a sequential MLP it is ``resid_pre + attn_out``.

        In a layer with cross-attention, the MLP also reads what it adds, ``cross_attn_out``.

        Args:
            sublayer: ``attention`` or ``mlp``.

        Returns:
            The residual stream (batch, pos, d_model).
        """
        if sublayer == "attention" or self.parallel:
            return self["resid_pre"]
        stream = self["resid_pre"] + self["attn_out"]
        return stream + self["cross_attn_out"] if self.has_cross else stream

    def sublayer_output(self, sublayer: str) -> ResidualActivations:
        """Return the residual update of a sublayer.

        Args:
            sublayer: ``attention`` or ``mlp``.

        Returns:
            ``attn_out`` or ``mlp_out`` (batch, pos, d_model).
        """
        return self[SUBLAYER_OUTPUTS[sublayer]]

    def sublayer_input_gradient(self, sublayer: str) -> ResidualActivations:
        """Return the gradient of the summed loss with respect to the residual stream that a sublayer reads.

        Args:
            sublayer: ``attention`` or ``mlp``.

        Returns:
            The gradient (batch, pos, d_model).
        """
        reads_resid_pre = sublayer == "attention" or self.parallel
        return self["resid_pre_grad" if reads_resid_pre else "attn_out_grad"]

    def recompute_query(self, stream: ResidualActivations) -> Float[Tensor, "batch head pos d_head"]:
        """Return the queries that this layer would compute from another residual stream, differentiably.

        Args:
            stream: the residual stream (batch, pos, d_model).

        Returns:
            The queries (batch, head, pos, d_head).
        """
        return self.recompute_fn(stream)


@dataclass(frozen=True, kw_only=True)
class LayerReduction:
    """A reduction of several sites of one layer, computed during the run so that the sites are not stored.

    It runs after the forward pass of the layer, or after its backward pass if a gradient is among the sites.

    Attributes:
        sites: the sites that ``fn`` needs, each without the axis ``layer``.
        optional_sites: sites that are added in layers that have them, such as ``mlp_out``.
        fn: function from the view of one layer for one micro-batch to results by name; their first axis is ``batch``.
        axes: the axes of every result, ``batch`` first; the results of all layers are stacked along a new first axis.

    Raises:
        ValueError: a site does not exist or has no layers, or the first axis of a result is not ``batch``.
    """

    sites: tuple[str, ...]
    fn: Callable[[LayerView], Mapping[str, Tensor]]
    axes: Mapping[str, tuple[str, ...]]
    optional_sites: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Validate the sites and the axes of the results."""
        without_layers = [name for name in (*self.sites, *self.optional_sites) if "layer" not in get_site(name).axes]
        if without_layers:
            raise ValueError(f"sites of a layer reduction must have layers, but {without_layers[0]} has none")
        invalid = [name for name, axes in self.axes.items() if not axes or axes[0] != "batch"]
        if invalid:
            raise ValueError(f"the first axis of {invalid[0]} must be batch, but its axes are {self.axes[invalid[0]]}")


def check_reduction_shape(name: str, axes: tuple[str, ...], batch_size: int, result: Shaped[Tensor, "..."]) -> None:
    """Check the shape of a reduction's result.

    Args:
        name: the name of the reduction.
        axes: the declared axes, ``batch`` first.
        batch_size: the number of sequences.
        result: the result.

    Raises:
        ValueError: the number of axes or of sequences differs.
    """
    if result.ndim != len(axes) or result.shape[0] != batch_size:
        raise ValueError(
            f"the reduction {name} must return {axes} with {batch_size} sequences, but got the shape "
            f"{tuple(result.shape)}"
        )
