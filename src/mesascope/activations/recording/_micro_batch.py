"""The micro-batch that is being run, and reductions of single sites."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from jaxtyping import Int, Shaped
from torch import Tensor

from mesascope.activations._layer_view import LayerReduction
from mesascope.activations.readout._readout import Readout
from mesascope.activations.sites import get_site
from mesascope.argument_types import validate_fields
from mesascope.tasks.base import Batch


@dataclass(frozen=True, kw_only=True)
class Reduction:
    """A reduction of a site to a smaller tensor, computed during the run so that the site is not stored.

    Attributes:
        site: the site to reduce.
        fn: function from the site in one layer for one micro-batch to a tensor whose first axis is ``batch``.
        axes: the axes of the result, ``batch`` first; results of all layers are stacked along a leading ``layer`` axis.

    Raises:
        ValueError: the site does not exist, or the first axis is not ``batch``.
    """

    site: str
    fn: Callable[[Tensor], Tensor]
    axes: tuple[str, ...]

    def __post_init__(self) -> None:
        """Validate the site and the axes of the result."""
        validate_fields(self)
        get_site(self.site)
        if not self.axes or self.axes[0] != "batch":
            raise ValueError(f"the first axis of a reduction must be batch, but got {self.axes}")

    @property
    def stacked_axes(self) -> tuple[str, ...]:
        """The axes of the result over all layers."""
        return ("layer", *self.axes) if "layer" in get_site(self.site).axes else self.axes


def reduction_axes(reduce: Mapping[str, Reduction | LayerReduction]) -> dict[str, tuple[str, ...]]:
    """Return the axes of every result of reductions.

    Args:
        reduce: the reductions, by name.
    """
    single = {name: how.stacked_axes for name, how in reduce.items() if isinstance(how, Reduction)}
    several = [how.axes for how in reduce.values() if isinstance(how, LayerReduction)]
    return single | {name: ("layer", *axes) for each in several for name, axes in each.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchContext:
    """Values of one micro-batch that the views of all its layers share.

    Attributes:
        inputs: the model inputs of these sequences.
        mask: 1 where an input is not padding; ``None`` without padding.
        queries: the query positions of the rows of ``attn_scores`` and ``pattern``.
        batch: the sequences with their targets, if a batch of a task was captured.
        readout: the readout of the model.
        parallel: by layer: the MLP reads the residual stream before attention has written to it.
        has_cross: by layer: it has cross-attention.
        source_mask: 1 where an input of the source of an encoder-decoder is not padding; ``None`` without padding.
    """

    inputs: Shaped[Tensor, "batch pos *d_in"]
    mask: Int[Tensor, "batch pos"] | None
    queries: Int[Tensor, " query"]
    batch: Batch | None
    readout: Readout
    parallel: tuple[bool, ...]
    has_cross: tuple[bool, ...]
    source_mask: Int[Tensor, "batch source"] | None = None


@dataclass(kw_only=True)
class MicroBatch:
    """The state of the micro-batch that is being run.

    Attributes:
        rows: the indices of its sequences in the whole batch.
        context: the values that the views of all layers share.
        pending: by layer, activations that reductions of several sites still need.
        visible_keys_fns: by layer, a function that returns where queries can attend to keys.
        recompute_fns: by layer, a function from a residual stream to the queries that the layer would compute.
    """

    rows: range
    context: BatchContext
    pending: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    visible_keys_fns: dict[int, Callable[[], Tensor]] = field(default_factory=dict)
    recompute_fns: dict[int, Callable[[Tensor], Tensor]] = field(default_factory=dict)
