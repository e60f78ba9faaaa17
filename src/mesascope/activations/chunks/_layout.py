"""The positions of chunks, and activations of chunks as parts of activations of whole sequences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int, Shaped
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations._layer_spec import ChunkSpec, LayerSpec
from mesascope.activations.padding.masks import POSITION_AXES
from mesascope.activations.sites import MEMORY_PREFIX, MEMORY_SITES, get_site
from mesascope.models.recurrent.model import RecurrentTransformer

CHUNK_AXIS = "chunk"


@dataclass(frozen=True, kw_only=True, eq=False)
class ChunkLayout:
    """The positions of the chunks of a batch, and the calls of blocks in all chunks.

    A forward pass calls the blocks of the first chunk, updates the memory, calls the blocks of the second chunk, and so
    on. These calls are numbered through: `num_calls` of each chunk, and one more for the update.

    Attributes:
        columns: by sequence, the columns of the padded inputs in the order in which chunks take them.
        length: the number of positions of a chunk.
        num_calls: the number of calls of blocks in a chunk, as many as there are specifications of layers.
    """

    columns: Int[Tensor, "batch pos"]
    length: int
    num_calls: int

    @property
    def num_chunks(self) -> int:
        """The number of chunks."""
        return -(-self.columns.shape[1] // self.length)

    @property
    def chunk_of_position(self) -> Int[Tensor, "batch pos"]:
        """The chunk of every column of the padded inputs."""
        chunks = torch.arange(self.columns.shape[1], device=self.columns.device) // self.length
        return torch.empty_like(self.columns).scatter(1, self.columns, chunks.expand_as(self.columns))

    def find_columns(self, chunk: int) -> Int[Tensor, "batch part"]:
        """Return the columns of a chunk.

        Args:
            chunk: the chunk.
        """
        return self.columns[:, chunk * self.length : (chunk + 1) * self.length]

    def select_mask(self, mask: Int[Tensor, "batch pos"] | None, chunk: int) -> Int[Tensor, "batch part"] | None:
        """Return the mask of the positions of a chunk.

        Args:
            mask: 1 where an input is not padding.
            chunk: the chunk.
        """
        return None if mask is None else mask.gather(1, self.find_columns(chunk).to(mask.device))

    def locate_call(self, number: int) -> tuple[int, int | None]:
        """Return the chunk of a call, and its index in the chunk; ``None`` for the update of the memory.

        Args:
            number: the number of the call in the forward pass.
        """
        chunk, call = divmod(number, self.num_calls + 1)
        return chunk, None if call == self.num_calls else call

    def expand_layers(self, layers: Sequence[LayerSpec], update: LayerSpec | None) -> tuple[LayerSpec, ...]:
        """Return the specification of every call of a forward pass.

        Args:
            layers: the specifications of the calls of one chunk.
            update: the specification of the update of the memory; needed if there is more than one chunk.
        """
        calls: list[LayerSpec] = []
        for chunk in range(self.num_chunks):
            calls += [replace(layer, chunk=chunk) for layer in layers]
            if chunk + 1 < self.num_chunks and update is not None:
                calls.append(replace(update, chunk=chunk))
        return tuple(calls)

    def expand_hook_points(self, layers_by_site: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
        """Return the numbers of calls by site; the update of the memory has the sites of a layer.

        Args:
            layers_by_site: indices of specifications of one chunk, by site.
        """
        stride, numbers = self.num_calls + 1, dict[str, list[int]]()
        for site, layers in layers_by_site.items():
            if site in MEMORY_SITES:
                calls = [chunk * stride + self.num_calls for chunk in range(self.num_chunks - 1)]
            else:
                calls = [chunk * stride + layer for chunk in range(self.num_chunks) for layer in layers]
            numbers.setdefault(site.removeprefix(MEMORY_PREFIX), []).extend(calls)
        return numbers

    @property
    def first_calls(self) -> range:
        """The number of the first call of each chunk."""
        return range(0, self.num_chunks * (self.num_calls + 1), self.num_calls + 1)

    def scatter(
        self, site: str, part: Shaped[Tensor, "batch *part"], chunk: int, into: Shaped[Tensor, "batch *whole"] | None
    ) -> Shaped[Tensor, "batch *whole"]:
        """Return an activation of whole sequences with the values of one chunk.

        Positions of other chunks are NaN, or those of ``into``. Keys of other chunks have no weight: 0 in a pattern,
        and minus infinity in scores.

        Args:
            site: the name of the site.
            part: its activation in the chunk.
            chunk: the chunk.
            into: an activation of whole sequences, which is changed; a new one by default.
        """
        axes, size = get_site(site).axes_within_layer, self.columns.shape[1]
        if CHUNK_AXIS in axes:
            whole = part.new_full((len(part), self.num_chunks, *part.shape[1:]), torch.nan) if into is None else into
            whole[:, chunk] = part
            return whole
        if "query" in axes and "key" in axes:
            shape = [*part.shape[:-1], size]
            no_weight = part.new_full(shape, -torch.inf if site.endswith("attn_scores") else 0)
            part = no_weight.scatter(part.ndim - 1, self._index(part, chunk, part.ndim - 1), part)
        axis = next(number for number, name in enumerate(axes) if name in POSITION_AXES)
        shape = [size if number == axis else length for number, length in enumerate(part.shape)]
        whole = part.new_full(shape, torch.nan) if into is None else into
        return whole.scatter_(axis, self._index(part, chunk, axis), part)

    def gather(self, site: str, whole: Shaped[Tensor, "batch *whole"], chunk: int) -> Shaped[Tensor, "batch *part"]:
        """Return the values of one chunk from an activation of whole sequences; the inverse of `scatter`.

        Args:
            site: the name of the site.
            whole: its activation in whole sequences.
            chunk: the chunk.
        """
        axes, part = get_site(site).axes_within_layer, whole
        if CHUNK_AXIS in axes:
            return whole[:, chunk]
        for axis, name in enumerate(axes):
            if name in POSITION_AXES:
                sizes = [self.find_columns(chunk).shape[1] if n == axis else size for n, size in enumerate(part.shape)]
                part = part.gather(axis, self._index(part.new_empty(sizes), chunk, axis))
        return part

    def _index(self, part: Tensor, chunk: int, axis: int) -> Tensor:
        """Return the columns of a chunk along an axis, in the shape of its activation."""
        columns = self.find_columns(chunk).to(part.device)
        shape = [len(columns), *(columns.shape[1] if number == axis else 1 for number in range(1, part.ndim))]
        return columns.reshape(shape).expand(part.shape)


def find_layout(
    model: PreTrainedModel,
    chunks: ChunkSpec | None,
    num_calls: int,
    inputs: Shaped[Tensor, "batch pos *d_in"],
    mask: Int[Tensor, "batch pos"] | None,
) -> ChunkLayout | None:
    """Return the positions of chunks for some inputs; ``None`` in a model that processes all positions at once.

    Args:
        model: the model.
        chunks: its chunks.
        num_calls: the number of calls of blocks in a chunk.
        inputs: its inputs.
        mask: 1 where an input is not padding.
    """
    if chunks is None:
        return None
    assert isinstance(model, RecurrentTransformer)
    return ChunkLayout(columns=model.order_positions(inputs, mask), length=chunks.length, num_calls=num_calls)
