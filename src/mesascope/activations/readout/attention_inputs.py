"""What attention reads, and the values it makes of that: found by running the model on a probe, never from names."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from weakref import ReferenceType

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesascope.activations.forward import predict, quiet
from mesascope.activations.hooks.attention_interface import Attended, dispatching
from mesascope.activations.readout.output_head import Norm, read_norm
from mesascope.activations.sites import UnsupportedModel
from mesascope.activations.tolerances import close, distance

SEQUENCES = 32  # copies of the probe per forward pass, when unit vectors are read

Stream = Float[Tensor, "batch pos d_model"]
Values = Float[Tensor, "batch kv_head pos d_head"]
ValueMap = tuple[Float[Tensor, "kv_head d_model d_head"], Float[Tensor, "kv_head d_head"]]


class _Stop(Exception):  # noqa: N818  nothing went wrong: all that was wanted has been seen
    """Ends a forward pass early."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Read:
    """Where one layer's attention reads, and what it read on the probe.

    Attributes:
        attention: the module that calls the attention function.
        reader: the module whose argument ``at`` is what is read: that one, or one around it.
        norm: the module between the stream and that argument; ``None`` where the stream itself is read.
        stream, normed: the stream before the layer, and what is read.
        value: what the attention function got.
    """

    attention: nn.Module
    reader: nn.Module
    at: int | str
    norm: nn.Module | None
    stream: Stream
    normed: Stream
    value: Values


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """What the attention of recorded layers reads; what follows from it is found when it is first asked for.

    Attributes:
        held: the model, not kept alive by this.
        probe: what it read when its anatomy was found.
        reads: per recorded layer, or why it is not known.
        entrance: the module of the model's first layer, and which of its arguments is the stream.
        stream: what entered the first layer on the probe.
        depth: how many layers the model has.
    """

    held: ReferenceType[PreTrainedModel]
    probe: Shaped[Tensor, "batch pos *d_in"]
    reads: tuple[Read | str, ...]
    entrance: tuple[nn.Module, int | str]
    stream: Stream
    depth: int

    @cached_property
    def norms(self) -> tuple[Norm | None, ...]:
        """The norm before each layer's attention, as numbers.

        Raises:
            UnsupportedModel: what is read is not known, or the norm is of no known kind.
        """
        return tuple(
            None if read.norm is None else read_norm(read.norm, read.stream.flatten(0, 1), "the norm before attention")
            for read in self._known()
        )

    @property
    def model(self) -> PreTrainedModel:
        """The model.

        Raises:
            RuntimeError: it is gone.
        """
        model = self.held()
        if model is None:
            raise RuntimeError("a frame must be used while its model is there, but it is gone; keep the capture")
        return model

    def normed(self, layer: int, resid: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_model"]:
        """What the attention of the ``layer``-th recorded layer reads of this stream; raises as `norms` does."""
        norm = self._known()[layer].norm
        with torch.no_grad():
            return resid if norm is None else norm(resid)

    @cached_property
    def values(self) -> tuple[ValueMap, ...]:
        """Each layer's map from what is read to its values, and their bias: unit vectors, run through the model.

        Raises:
            UnsupportedModel: values do not follow linearly from what is read.
        """
        reads = self._known()
        width, length = self.stream.shape[-1], self.probe.shape[1]
        units = torch.eye(width + 1, width, dtype=self.stream.dtype, device=self.stream.device).roll(1, 0)
        filled = torch.cat([units, units.new_zeros(-len(units) % length, width)]).unflatten(0, (-1, length))
        found: list[list[Tensor]] = [[] for _ in reads]
        for part in filled.split(SEQUENCES):
            for each, value in zip(found, self._values_of([part] * len(reads)), strict=True):
                each.append(value.transpose(1, 2).flatten(0, 1))
        maps = [_as_map(torch.cat(each)[: width + 1]) for each in found]
        again = self._values_of([-2 * read.normed for read in reads])
        for layer, (read, value_map, turned) in enumerate(zip(reads, maps, again, strict=True)):
            _refuse_nonlinear(layer, value_map, ((read.normed, read.value), (-2 * read.normed, turned)))
        return tuple(maps)

    def embedding(self, tokens: Int[Tensor, " token"]) -> Float[Tensor, "token d_model"]:
        """What each token puts into the stream before the first layer, positions apart.

        Raises:
            UnsupportedModel: the inputs are vectors, or more than a scale stands between embedding and stream.
        """
        with torch.no_grad():
            return self._embed()(tokens.to(self.probe.device)) * self._scale

    @property
    def vocabulary(self) -> int:
        """How many tokens can be embedded; raises as `embedding` does."""
        return self._embed().num_embeddings

    @cached_property
    def _scale(self) -> float:
        """By what embeddings are multiplied: two probes that differ in their tokens alone differ by the embeddings."""
        if self.probe.is_floating_point():
            raise UnsupportedModel("an embedding of tokens needs tokens, but the model reads vectors")
        embed = self._embed()
        other = (self.probe + 1) % embed.weight.shape[0]
        with torch.no_grad():
            difference = embed(other) - embed(self.probe)
        moved = self._entering(other) - self.stream
        size = difference.double().square().sum().item()
        fitted = (difference.double() * moved.double()).sum().item() / size if size else 0.0
        for scale in (1.0, float(f"{fitted:.4g}"), fitted):
            if close(difference * scale, moved, self.stream.abs().max().item()):
                return scale
        raise UnsupportedModel(
            f"embeddings times a number must enter the first layer, but {type(self.model).__name__} does more with "
            f"them: the best number misses by {distance(difference * fitted, moved):.1e}"
        )

    def _embed(self) -> nn.Embedding:
        """The module that embeds tokens."""
        embed = self.model.get_input_embeddings()
        if not isinstance(embed, nn.Embedding):
            raise UnsupportedModel(
                f"tokens must be embedded by a torch.nn.Embedding, but {type(self.model).__name__} uses "
                f"{type(embed).__name__}"
            )
        return embed

    def _known(self) -> list[Read]:
        """What all layers read, or a refusal."""
        missing = {layer: why for layer, why in enumerate(self.reads) if isinstance(why, str)}
        if missing:
            raise UnsupportedModel(
                f"what attention reads must be known, but in layers {list(missing)} of those recorded it is not: "
                f"{next(iter(missing.values()))}"
            )
        return [read for read in self.reads if isinstance(read, Read)]

    def _values_of(self, given: Sequence[Stream]) -> list[Values]:
        """The values of all layers in one forward pass in which the attention of each reads what is given for it."""
        reads = self._known()
        wanted = {read.attention for read in reads}
        seen: dict[nn.Module, Tensor] = {}

        def see(call: Attended) -> tuple[Tensor, Tensor | None]:
            if call.module in wanted:
                seen[call.module] = call.value.clone()
            if len(seen) == len(wanted):
                raise _Stop
            return call.run(call.query, call.key, call.value)

        rows = self.probe[:1].repeat_interleave(len(given[0]), dim=0)
        with dispatching(self.model, see), ExitStack() as hooks:
            for read, x in zip(reads, given, strict=True):
                hook = partial(_replace_argument, read.at, x)
                hooks.callback(read.reader.register_forward_pre_hook(hook, with_kwargs=True).remove)
            self._run(rows)
        return [seen[read.attention] for read in reads]

    def _entering(self, tokens: Int[Tensor, "batch pos"]) -> Stream:
        """What enters the first layer."""
        module, at = self.entrance
        seen: list[Tensor] = []

        def look(_: nn.Module, args: tuple, kwargs: dict) -> None:
            seen.append((args[at] if isinstance(at, int) else kwargs[at]).clone())
            raise _Stop

        handle = module.register_forward_pre_hook(look, with_kwargs=True)
        try:
            self._run(tokens)
        finally:
            handle.remove()
        return seen[0]

    def _run(self, inputs: Shaped[Tensor, "batch pos *d_in"]) -> None:
        """A forward pass that somebody stops."""
        with quiet(self.model):
            try:
                predict(self.model, inputs)
            except _Stop:
                return
        raise UnsupportedModel(f"{type(self.model).__name__} must pass every place again, but did not; capture again")


def _replace_argument(at: int | str, new: Tensor, _: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """A hook that puts something else in place of one argument."""
    if isinstance(at, int):
        return (*args[:at], new, *args[at + 1 :]), kwargs
    return args, kwargs | {at: new}


def _as_map(values: Float[Tensor, "unit kv_head d_head"]) -> ValueMap:
    """The map and its bias, from the values of zero and of the unit vectors after it."""
    bias = values[0]
    return (values[1:] - bias).transpose(0, 1).contiguous(), bias


def _refuse_nonlinear(layer: int, value_map: ValueMap, pairs: Sequence[tuple[Stream, Values]]) -> None:
    """Refuse a map that does not give what the model gave, for the probe and for something far from it."""
    matrix, bias = value_map
    for normed, value in pairs:
        again = torch.einsum("bpm,kmd->bkpd", normed, matrix) + bias[:, None]
        if again.shape != value.shape or not close(again, value):
            raise UnsupportedModel(
                "values must follow linearly from what attention reads, but in the recorded layer "
                f"{layer} they do not: they miss by {distance(again, value):.1e}, as where a norm stands on the values"
            )
