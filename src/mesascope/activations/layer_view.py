"""One layer while the model runs: what a reduction of several sites is given."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from jaxtyping import Float, Int, Shaped
from torch import Tensor

from mesascope.activations.readout.readout import Frame
from mesascope.activations.sites import site
from mesascope.tasks.base import Batch

Stream = Float[Tensor, "batch pos d_model"]
SUBLAYERS = ("attention", "mlp")
WRITES = {"attention": "attn_write", "mlp": "mlp_write"}


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerView:
    """One layer of one micro-batch. It is gone when the model runs on; only what is returned is kept.

    Attributes:
        layer: its number in the model. slot: its place among the layers recorded.
        sites: what was asked for, without the axis ``layer``.
        inputs: what the model reads, for these sequences.
        mask: 1 where an input is real; ``None`` where all are.
        rows: which sequences of the whole batch these are.
        queries: the positions whose rows ``score`` and ``pattern`` have.
        batch: the sequences with their targets, if they came from a task.
        frame: projections and read-out of the model.
        parallel: the MLP reads the stream before attention has written to it.
        rerun: the queries that the layer's attention would compute from another stream.
    """

    layer: int
    slot: int
    sites: Mapping[str, Tensor]
    inputs: Shaped[Tensor, "batch pos *d_in"]
    mask: Int[Tensor, "batch pos"] | None
    rows: range
    queries: Int[Tensor, " query"]
    batch: Batch | None
    frame: Frame
    parallel: bool
    rerun: Callable[[Tensor], Tensor]

    def __getitem__(self, name: str) -> Tensor:
        """A site that was asked for.

        Raises:
            KeyError: it was not.
        """
        if name not in self.sites:
            raise KeyError(f"{name!r} must be among the sites asked for, but those are {', '.join(self.sites)}")
        return self.sites[name]

    def __contains__(self, name: object) -> bool:
        """Whether a site is there."""
        return name in self.sites

    def at(self, some: Int[Tensor, " fewer"]) -> "LayerView":
        """The same view of fewer queries: these of them."""
        rows = {name: self.sites[name][:, :, some] for name in ("score", "pattern") if name in self.sites}
        return replace(self, queries=self.queries[some], sites={**self.sites, **rows})

    def before(self, sublayer: str) -> Stream:
        """The stream that a sublayer reads; the MLP's needs ``attn_write`` too."""
        if sublayer == "attention" or self.parallel:
            return self["resid_pre"]
        return self["resid_pre"] + self["attn_write"]

    def update(self, sublayer: str) -> Stream:
        """What a sublayer adds to the stream."""
        return self[WRITES[sublayer]]

    def gradient(self, sublayer: str) -> Stream:
        """The gradient of the summed loss by the stream that a sublayer reads."""
        direct = sublayer == "attention" or self.parallel
        return self["resid_pre_grad" if direct else "attn_write_grad"]

    def query(self, stream: Stream) -> Float[Tensor, "batch head pos d_head"]:
        """The queries that this layer would compute from another stream, differentiable."""
        return self.rerun(stream)


@dataclass(frozen=True, kw_only=True)
class LayerReduction:
    """Small things computed from several sites of one layer while the model runs, so that none of them is kept.

    Where a gradient is asked for, the layer is seen when the gradient arrives, else when the layer is done.

    Attributes:
        sites: what is needed, each without the axis ``layer``.
        optional: what is given too in layers that have it, such as ``mlp_write``.
        fn: gets one layer for one micro-batch; returns tensors whose first axis is ``batch``, by name.
        axes: of every result, ``batch`` first; ``layer`` is put before them when layers are stacked.

    Raises:
        ValueError: there is no such site, it has no layers, or a first axis is not ``batch``.
    """

    sites: tuple[str, ...]
    fn: Callable[[LayerView], Mapping[str, Tensor]]
    axes: Mapping[str, tuple[str, ...]]
    optional: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse sites that do not exist or belong to no layer, and results that are not per sequence."""
        loose = [name for name in (*self.sites, *self.optional) if "layer" not in site(name).axes]
        if loose:
            raise ValueError(f"sites of a layer reduction must have layers, but {loose[0]} has none")
        wrong = [name for name, axes in self.axes.items() if not axes or axes[0] != "batch"]
        if wrong:
            raise ValueError(f"the first axis of {wrong[0]} must be batch, but its axes are {self.axes[wrong[0]]}")


def refuse_unlike(name: str, axes: tuple[str, ...], batch: int, result: Shaped[Tensor, "..."]) -> None:
    """Refuse a result of another shape than promised.

    Raises:
        ValueError: it has other axes, or other sequences.
    """
    if result.ndim != len(axes) or result.shape[0] != batch:
        raise ValueError(
            f"the reduction {name} must return {axes} with {batch} sequences, but got the shape {tuple(result.shape)}"
        )
