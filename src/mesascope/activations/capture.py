"""Recording a model's forward pass, site by site, in bounded memory."""

from collections.abc import Hashable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import product

import torch
import xarray as xr
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesascope.activations.arguments import (
    chosen_layers,
    on_device,
    positions,
    refuse_names,
    stored_layers,
    transformers_model,
)
from mesascope.activations.cache import checked, framed, note_checked, remember, remembered
from mesascope.activations.checks import check_padding, check_untouched, refuse_changed, refuse_missing
from mesascope.activations.edits import Edit, refuse
from mesascope.activations.forward import first_position, predict, quiet
from mesascope.activations.gradients import Objective, backward, differentiable
from mesascope.activations.hooks.attention_interface import kernel_of
from mesascope.activations.hooks.module_hooks import attach
from mesascope.activations.layer_spec import Layer
from mesascope.activations.layer_view import LayerReduction
from mesascope.activations.memory import estimate, make_room, refuse_too_large, shape
from mesascope.activations.readout.build import make_frame
from mesascope.activations.readout.readout import Frame
from mesascope.activations.recorder import Passing, Recorder, Reduction
from mesascope.activations.sites import SITES, UnsupportedModel, gradient_of
from mesascope.activations.structure.find_layers import read_layers
from mesascope.activations.structure.trace import Trace, trace
from mesascope.axes import label
from mesascope.tasks.base import Batch

PROBE = 8  # positions of the first sequence on which the anatomy is read
CHECKED = 256  # positions of the first sequence on which the checks are made
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
        queries: the positions whose rows ``score`` and ``pattern`` have.
        frame: projections, read-out and head counts.
        kernel: the attention implementation that ran, such as ``sdpa``.
        source: the model, kept here for the frame.
    """

    sites: Mapping[str, Tensor]
    axes: Mapping[str, tuple[str, ...]]
    inputs: Shaped[Tensor, "batch pos *d_in"]
    batch: Batch | None
    oracles: Mapping[str, Tensor] = field(default_factory=dict)
    attention_mask: Int[Tensor, "batch pos"] | None
    layers: tuple[int, ...]
    queries: tuple[int, ...]
    frame: Frame
    kernel: str
    source: PreTrainedModel

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

    def head_writes(self) -> Float[Tensor, "layer batch head pos d_model"]:
        """What each head adds to the residual stream: ``head_out`` through its part of the output projection.

        Summed over heads, with `Frame.output_bias`, it is ``attn_write``.

        Raises:
            NotRecorded: ``head_out`` was not recorded.
            UnsupportedModel: head outputs do not reach the stream through a linear map.
        """
        heads, projection = self["head_out"], self.frame.output_projection
        layers, batch, length, number, _ = heads.shape
        found = make_room((layers, batch, number, length, projection.shape[-1]), heads.dtype, heads.device)
        for layer, row in product(range(layers), range(batch)):
            torch.bmm(heads[layer, row].transpose(0, 1), projection[layer], out=found[layer, row])
        return found

    def xarray(self, name: str) -> xr.DataArray:
        """The same as a labelled array, its layers numbered as in the model; raises as indexing does."""
        values, axes = self[name], self.axes[name]
        about = SITES[name].about if name in SITES else f"{name}, reduced while the model ran"
        values = values.float() if values.dtype == torch.bfloat16 else values
        coords: dict[Hashable, Sequence[int]] = {"layer": list(self.layers)} if "layer" in axes else {}
        coords |= {"query": list(self.queries)} if "query" in axes else {}
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
    reduce: Mapping[str, Reduction | LayerReduction] | None = None,
    layers: Sequence[int] | None = None,
    queries: Sequence[int] | None = None,
    objective: Objective | None = None,
    check: bool = True,
) -> Capture:
    """Run a model and record what happens inside, in evaluation mode.

    Sites that end in ``_grad`` are gradients of the loss summed over positions: the next token's cross-entropy, or
    the targets' of the batch (squared error where they are vectors), or of ``objective`` summed over sequences.
    Nothing but they needs a backward pass.

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
        queries: positions whose rows of score and pattern are wanted; all by default.
        objective: what gradients are of, in place of the loss: from predictions (batch, pos, d_out) to (batch); such
            as a metric of :mod:`mesascope.interventions`. All sequences run at once then.
        check: before the run, hold the first sequence (its first 256 positions) against the untouched model and
            check every identity. What was found holds for this model until a weight or the kernel changes.

    Raises:
        UnsupportedModel: the model, or a layer, has no such site, or a check does not hold.
        NotEnoughMemory: what is to be kept does not fit.
        ValueError: a site or an index that does not exist.

    >>> from mesascope.models.transformer import Decoder, DecoderConfig
    >>> model = Decoder(DecoderConfig(d_in=1, d_out=1, hidden_size=8, num_attention_heads=2))
    >>> capture(model, torch.ones(4, 6, 1), ["pattern"])["pattern"].shape
    torch.Size([3, 4, 2, 6, 6])
    """
    model = transformers_model(model)
    x, mask = on_device(model, inputs, attention_mask)
    batch = inputs.to(model.device) if isinstance(inputs, Batch) else None
    reduce = dict(reduce or {})
    refuse_names(sites, reduce)
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, but got {batch_size}")
    if objective is not None and batch_size is not None:
        raise ValueError("an objective is of the whole batch, but batch_size cuts it; leave out either")
    at = positions(queries, x.shape[1], edits)
    with quiet(model):
        probe, known = examine(model, x, mask)
        chosen = chosen_layers(layers, len(known))
        recorder = Recorder(
            keep=sites,
            reduce=reduce,
            edits=edits,
            layers=chosen,
            count=len(known),
            batch=len(x),
            lacking=_lacking(known),
        )
        _refuse_edited_gradients(recorder, edits)
        places = {gradient_of(name) or name: at for name, at in recorder.places.items()}
        refuse_missing(type(model).__name__, known, places)
        kept = stored_layers(sites, chosen)
        refuse_too_large(estimate(probe, known, kept, len(x), x.shape[1], len(at)), x.device)
        for edit in edits:
            shapes = {n: shape(probe, known[n], edit.site, *x.shape[:2]) for n in edit.layers(len(known))}
            refuse(edit, shapes, min(batch_size or len(x), len(x)), probe.logits)
        if check:
            check_places(model, known, places, x, mask)
        frame = framed(model, chosen, lambda: make_frame(model, known, chosen, probe))
        _run(
            model,
            known,
            recorder,
            _Run(x=x, mask=mask, batch=batch, queries=at, frame=frame, objective=objective),
            batch_size or len(x),
        )
    recorder.warn_unchanged()
    return Capture(
        sites=recorder.kept,
        axes={name: SITES[name].axes for name in sites} | _reduced_axes(reduce),
        inputs=x,
        batch=inputs if isinstance(inputs, Batch) else None,
        oracles=dict(oracles or {}),
        attention_mask=mask,
        layers=tuple(chosen),
        queries=tuple(at.tolist()),
        frame=frame,
        kernel=kernel_of(model),
        source=model,
    )


def estimate_bytes(
    model: nn.Module, inputs: Tensor | Batch, sites: Sequence[str] = USUAL, layers: Sequence[int] | None = None
) -> int:
    """How many bytes a capture of these sites will keep; nothing but a probe of 8 positions is run.

    Raises:
        UnsupportedModel: as `capture` does.
    """
    model = transformers_model(model)
    x, mask = on_device(model, inputs, None)
    refuse_names(sites, {})
    with quiet(model):
        probe, known = examine(model, x, mask)
    chosen = chosen_layers(layers, len(known))
    kept = stored_layers(sites, chosen)
    return estimate(probe, known, kept, *x.shape[:2])


def attending(model: nn.Module, inputs: Tensor | Batch) -> list[int]:
    """The layers that have attention, counted from 0: all but in hybrids; nothing but a probe is run.

    Raises:
        UnsupportedModel: as `capture` does.
    """
    model = transformers_model(model)
    x, mask = on_device(model, inputs, None)
    with quiet(model):
        _, known = examine(model, x, mask)
    return [number for number, layer in enumerate(known) if layer.attention is not None]


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
    if mask is not None:
        first_position(model, row[0])
    known = remembered(model, probe)
    if known is not None:
        return known
    alone = predict(model, probe)
    try:
        seen = trace(model, lambda: predict(model, probe))
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise UnsupportedModel(
            f"a model must run with its attention function wrapped, but {type(model).__name__} fails: {error}; its "
            "modelling file may choose its path by the name of the attention implementation"
        ) from error
    layers = read_layers(model, seen)
    refuse_changed(type(model).__name__, alone, seen.logits)
    return remember(model, probe, (seen, layers))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Run:
    """What all micro-batches of a run share."""

    x: Shaped[Tensor, "batch pos *d_in"]
    mask: Int[Tensor, "batch pos"] | None
    batch: Batch | None
    queries: Int[Tensor, " query"]
    frame: Frame
    objective: Objective | None


def _run(model: PreTrainedModel, known: Sequence[Layer], recorder: Recorder, run: _Run, batch_size: int) -> None:
    """All sequences, in micro-batches; where a gradient is wanted, each goes forth and back."""
    back = recorder.differentiates
    queries = run.queries if len(run.queries) < run.x.shape[1] else None
    for start in range(0, len(run.x), batch_size):
        rows = slice(start, min(start + batch_size, len(run.x)))
        x, mask = run.x[rows], None if run.mask is None else run.mask[rows]
        batch = None if run.batch is None else run.batch[rows]
        view = {"inputs": x, "mask": mask, "queries": run.queries, "frame": run.frame, "batch": batch}
        view["parallel"] = {number: layer.parallel for number, layer in enumerate(known)}
        recorder.passing = Passing(rows=range(rows.start, rows.stop), view=view)
        with differentiable(model, known) if back else nullcontext():
            with attach(
                model, known, recorder.places, recorder, queries=queries, enter=recorder.enter, room=recorder.room
            ):
                prediction = predict(model, x, mask, everywhere=recorder.predicts)
            recorder.predicted(prediction)
            if back:
                backward(prediction, x, mask, batch, run.objective)
        del prediction


def check_places(
    model: PreTrainedModel,
    known: Sequence[Layer],
    places: Mapping[str, Sequence[int]],
    inputs: Shaped[Tensor, "batch pos *d_in"],
    mask: Int[Tensor, "batch pos"] | None,
) -> None:
    """The checks, on the first positions and once for the same model and places; padding whenever there is some."""
    inputs, mask = inputs[:, :CHECKED], None if mask is None else mask[:, :CHECKED]
    if not checked(model, places):
        check_untouched(model, known, places, inputs, mask)
        note_checked(model, places)
    check_padding(model, inputs, mask)


def _lacking(known: Sequence[Layer]) -> dict[str, list[int]]:
    """For every site and its gradient, the layers that do not have it."""
    return {
        name: [number for number, layer in enumerate(known) if (gradient_of(name) or name) in layer.missing]
        for name in SITES
    }


def _reduced_axes(reduce: Mapping[str, Reduction | LayerReduction]) -> dict[str, tuple[str, ...]]:
    """The axes of everything that reductions give."""
    single = {name: how.stacked for name, how in reduce.items() if isinstance(how, Reduction)}
    several = [how.axes for how in reduce.values() if isinstance(how, LayerReduction)]
    return single | {name: ("layer", *axes) for each in several for name, axes in each.items()}


def _refuse_edited_gradients(recorder: Recorder, edits: Sequence[Edit]) -> None:
    """Refuse gradients through edits: a layer is run again, unedited, when its gradient is taken."""
    if edits and recorder.differentiates:
        raise ValueError("gradients must be of the untouched model, but edits were given; leave out either")
