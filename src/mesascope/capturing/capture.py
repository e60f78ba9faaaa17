"""Recording a model's forward pass, site by site, in bounded memory."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import xarray as xr
from jaxtyping import Int, Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesascope.axes import label
from mesascope.capturing.anatomy import read_layers
from mesascope.capturing.checks import check_padding, check_untouched, refuse_changed, refuse_missing
from mesascope.capturing.edits import Edit
from mesascope.capturing.forward import predict, quiet
from mesascope.capturing.frame import Frame
from mesascope.capturing.framing import make_frame
from mesascope.capturing.hooks import attach, kernel_of
from mesascope.capturing.layer import Layer
from mesascope.capturing.memory import estimate, refuse_too_large
from mesascope.capturing.recorder import Recorder, Reduction
from mesascope.capturing.sites import SITES, UnsupportedModel, site
from mesascope.capturing.trace import Trace, trace
from mesascope.tasks.base import Batch

PROBE = 8  # positions of the first sequence on which the anatomy is read
USUAL = ("resid_pre", "resid_post", "prediction")


class NotRecorded(KeyError):  # noqa: N818  it is a KeyError, and says what is missing
    """A site or a reduction was asked for that this capture does not hold."""

    def __str__(self) -> str:
        """The message without the quotes that KeyError puts around it."""
        return str(self.args[0])


@dataclass(frozen=True, kw_only=True, eq=False)
class Capture:
    """What was recorded.

    Attributes:
        sites: every recorded site and reduction, by name; axes as in :data:`SITES`, and as in ``axes``.
        axes: the axis names of each of them.
        inputs: what the model read.
        batch: the batch that it came from, if it came from one.
        oracles: other predictors on the same inputs, as they were given.
        attention_mask: 1 where an input is real; ``None`` where all are.
        layers: which layers of the model were recorded, in order.
        frame: projections, read-out and head counts.
        kernel: the attention implementation that ran, such as ``sdpa``.
    """

    sites: Mapping[str, Tensor]
    axes: Mapping[str, tuple[str, ...]]
    inputs: Shaped[Tensor, "batch pos *d_in"]
    batch: Batch | None
    oracles: Mapping[str, Tensor] = field(default_factory=dict)
    attention_mask: Int[Tensor, "batch pos"] | None
    layers: tuple[int, ...]
    frame: Frame
    kernel: str

    def __getitem__(self, name: str) -> Tensor:
        """A recorded site, or a reduction by its name.

        Raises:
            NotRecorded: it is not there.
        """
        if name not in self.sites:
            raise NotRecorded(f"{name!r} was not recorded; recorded are {', '.join(self.sites)}; ask capture for it")
        return self.sites[name]

    def __contains__(self, name: object) -> bool:
        """Whether a site or reduction was recorded."""
        return name in self.sites

    def xarray(self, name: str) -> xr.DataArray:
        """The same as a labelled array, its layers numbered as in the model; raises as indexing does."""
        values, axes = self[name], self.axes[name]
        about = SITES[name].about if name in SITES else f"{name}, reduced while the model ran"
        values = values.float() if values.dtype == torch.bfloat16 else values
        coords: dict[Hashable, Sequence[int]] = {"layer": list(self.layers)} if "layer" in axes else {}
        return label(values, *axes, units="1", about=about, coords=coords)


def capture(
    model: nn.Module,
    inputs: Tensor | Batch,
    sites: Sequence[str] = USUAL,
    *,
    oracles: Mapping[str, Tensor] | None = None,
    edits: Sequence[Edit] = (),
    attention_mask: Tensor | None = None,
    batch_size: int | None = None,
    reduce: Mapping[str, Reduction] | None = None,
    layers: Sequence[int] | None = None,
    check: bool = True,
) -> Capture:
    """Run a model and record what happens inside, without gradients and in evaluation mode.

    Args:
        model: any transformers causal language model that dispatches its attention, or one of ours.
        inputs: tokens (batch, pos), vectors (batch, pos, d_in), or a batch of a task.
        sites: what to keep, from :data:`SITES`.
        oracles: predictions of others on the same inputs, kept beside.
        edits: changes, applied in order before anything is recorded.
        attention_mask: (batch, pos), 1 where an input is real; padding may stand on either side.
        batch_size: sequences per forward pass; all at once by default.
        reduce: small things to compute from large sites layer by layer, by the name they shall have.
        layers: which layers to record; all by default.
        check: before the run, hold one whole sequence against the untouched model and check every identity.

    Raises:
        UnsupportedModel: the model, or a layer, has no such site, or a check does not hold.
        NotEnoughMemory: what is to be kept does not fit.
        ValueError: a site or an index that does not exist.

    >>> from mesascope.models.transformer import Decoder, DecoderConfig
    >>> model = Decoder(DecoderConfig(d_in=1, d_out=1, hidden_size=8, num_attention_heads=2))
    >>> capture(model, torch.ones(4, 6, 1), ["pattern"])["pattern"].shape
    torch.Size([3, 4, 2, 6, 6])
    """
    model = _transformers_model(model)
    x, mask = _on_device(model, inputs, attention_mask)
    reduce = dict(reduce or {})
    _refuse_names(sites, reduce)
    with quiet(model):
        probe, known = examine(model, x, mask)
        chosen = _chosen(layers, len(known))
        recorder = Recorder(keep=sites, reduce=reduce, edits=edits, layers=chosen, count=len(known), batch=len(x))
        refuse_missing(type(model).__name__, known, recorder.places)
        kept = {name: chosen if "layer" in SITES[name].axes else chosen[:1] for name in sites}
        refuse_too_large(estimate(probe, known, kept, *x.shape[:2]), x.device)
        if check:
            check_untouched(model, known, recorder.places, x, mask)
            check_padding(model, x, mask)
        _run(model, known, recorder, x, mask, batch_size or len(x))
        frame = make_frame(model, known, chosen, probe)
    recorder.warn_unchanged()
    return Capture(
        sites=recorder.kept,
        axes={name: SITES[name].axes for name in sites} | {name: how.stacked for name, how in reduce.items()},
        inputs=x,
        batch=inputs if isinstance(inputs, Batch) else None,
        oracles=dict(oracles or {}),
        attention_mask=mask,
        layers=tuple(chosen),
        frame=frame,
        kernel=kernel_of(model),
    )


def estimate_bytes(
    model: nn.Module, inputs: Tensor | Batch, sites: Sequence[str] = USUAL, layers: Sequence[int] | None = None
) -> int:
    """How many bytes a capture of these sites will keep; nothing but a probe of 8 positions is run.

    Raises:
        UnsupportedModel: as `capture` does.
    """
    model = _transformers_model(model)
    x, mask = _on_device(model, inputs, None)
    _refuse_names(sites, {})
    with quiet(model):
        probe, known = examine(model, x, mask)
    chosen = _chosen(layers, len(known))
    kept = {name: chosen if "layer" in SITES[name].axes else chosen[:1] for name in sites}
    return estimate(probe, known, kept, *x.shape[:2])


def examine(
    model: PreTrainedModel, inputs: Shaped[Tensor, "batch pos *d_in"], mask: Int[Tensor, "batch pos"] | None = None
) -> tuple[Trace, tuple[Layer, ...]]:
    """Read a model's anatomy from a probe: the first real inputs of the first sequence.

    Raises:
        UnsupportedModel: it cannot be read, or tracing changes the prediction.
    """
    row = inputs[0] if mask is None else inputs[0, mask[0].bool()]
    probe = row[None, :PROBE]
    if probe.shape[1] == 0:
        raise ValueError("the first sequence must have a real input, but the attention mask hides all of it")
    alone = predict(model, probe)
    try:
        seen = trace(model, lambda: predict(model, probe))
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise UnsupportedModel(
            f"a model must run with its attention function wrapped, but {type(model).__name__} fails: {error}; its "
            "modelling file may choose its path by the name of the attention implementation"
        ) from error
    known = read_layers(model, seen)
    refuse_changed(type(model).__name__, alone, seen.logits)
    return seen, known


def _run(
    model: PreTrainedModel,
    known: Sequence[Layer],
    recorder: Recorder,
    inputs: Shaped[Tensor, "batch pos *d_in"],
    mask: Int[Tensor, "batch pos"] | None,
    batch_size: int,
) -> None:
    """All sequences, in micro-batches."""
    with attach(model, known, recorder.places, recorder):
        for start in range(0, len(inputs), batch_size):
            rows = range(start, min(start + batch_size, len(inputs)))
            recorder.rows = rows
            part = None if mask is None else mask[rows.start : rows.stop]
            recorder.predicted(predict(model, inputs[rows.start : rows.stop], part))


def _transformers_model(model: nn.Module) -> PreTrainedModel:
    """The model, if it is one of transformers' kind."""
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModel(
            f"a model must be a transformers.PreTrainedModel, but got {type(model).__name__}; "
            "wrap it as one whose attention goes through transformers' attention interface"
        )
    return model


def _on_device(
    model: PreTrainedModel, inputs: Tensor | Batch, mask: Tensor | None
) -> tuple[Shaped[Tensor, "batch pos *d_in"], Int[Tensor, "batch pos"] | None]:
    """Inputs and mask where the model is; a mask that hides nothing is none."""
    x = (inputs.inputs if isinstance(inputs, Batch) else inputs).to(model.device)
    if x.ndim not in (2, 3) or 0 in x.shape:
        raise ValueError(f"inputs must be (batch, pos) or (batch, pos, d_in) and not empty, but got {tuple(x.shape)}")
    if mask is not None and mask.shape != x.shape[:2]:
        raise ValueError(f"attention_mask must be (batch, pos) = {tuple(x.shape[:2])}, but got {tuple(mask.shape)}")
    return x, None if mask is None or bool(mask.bool().all()) else mask.to(model.device).long()


def _refuse_names(sites: Sequence[str], reduce: Mapping[str, Reduction]) -> None:
    """Refuse sites that do not exist, and reductions named as a site."""
    for name in sites:
        site(name)
    clash = sorted(set(reduce) & set(SITES))
    if clash:
        raise ValueError(f"a reduction must have a name of its own, but {clash[0]!r} is a site; choose another")


def _chosen(layers: Sequence[int] | None, count: int) -> list[int]:
    """The layers to be recorded, counted from 0."""
    wrong = [layer for layer in layers or () if not -count <= layer < count]
    if wrong or (layers is not None and not layers):
        raise ValueError(f"layers must lie within the {count} layers of the model, but got {list(layers or ())}")
    return list(range(count)) if layers is None else [layer % count for layer in layers]
