"""The recorded activations of one run."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import torch
import xarray as xr
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations._memory import allocate_tensor
from mesascope.activations.readout._readout import Readout
from mesascope.activations.recording._iterations import join_calls, select_calls
from mesascope.activations.sites import ALL_SITES, ENCODER
from mesascope.activations.validation.site_names import find_site_of_hook
from mesascope.axes import to_data_array
from mesascope.summaries import Summarised, Summary, describe_tensor
from mesascope.tasks.base import Batch

NOT_PICKLED = ("model", "readout")


class NotRecorded(KeyError):  # noqa: N818  a KeyError by its base, which is no part of the name
    """A capture does not contain the requested site or reduction."""

    def __str__(self) -> str:
        """Return the message without the quotes that KeyError adds."""
        return str(self.args[0])


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Capture(Summarised, Mapping[str, Tensor]):
    """Recorded activations of one run of a model: a mapping from the names of sites and reductions to tensors.

    It can be pickled and saved by `torch.save`, without its model and its readout. Two captures are equal only if they
    are the same object.

    Attributes:
        sites: every recorded site and reduction, by name; axes as in :data:`SITES` and in ``axes``.
        axes: the axis names of each of them.
        inputs: the model inputs.
        batch: the batch of a task that was captured, if any.
        baselines: outputs of baselines on the same inputs, as passed to `capture`.
        attention_mask: 1 where an input is not padding; ``None`` without padding.
        layers: the recorded layers of the model, in order.
        iterations: the recorded iterations, in order; ``None`` in a model that calls each layer once.
        iterations_run: the number of iterations that ran for each sequence, with the other sequences of its forward
            pass, (batch) or in a model with chunks (batch, chunk); ``None`` in a model that calls each layer once.
        num_blocks: the number of layers of the model, if it repeats them; an unrolled capture keeps it.
        halts: the number of iterations depends on the inputs. The block runs at positions that have stopped, too, but
            the model discards what it computes there.
        chunks: the chunk of every column of the inputs; ``None`` in a model that processes all positions at once.
        queries: the query positions of the rows of ``attn_scores`` and ``pattern``.
        readout: the readout: output projections, unembedding and head counts.
        attn_implementation: the attention implementation that ran, such as ``sdpa``.
        model: the model; the readout needs it alive.
        stack: ``encoder`` or ``decoder`` of an encoder-decoder; ``None`` in a model with one stack.
        source_mask: of the decoder of an encoder-decoder: 1 where an input of the source is not padding; ``None``
            without padding.
        source_length: of the decoder of an encoder-decoder: the number of positions of the source.
        prefix_length: of an encoder-decoder: the number of first positions of the source that are vectors of a soft
            prefix.
    """

    sites: Mapping[str, Tensor]
    axes: Mapping[str, tuple[str, ...]]
    inputs: Shaped[Tensor, "batch pos *d_in"]
    batch: Batch | None
    baselines: Mapping[str, Tensor] = field(default_factory=dict)
    attention_mask: Int[Tensor, "batch pos"] | None
    layers: tuple[int, ...]
    iterations: tuple[int, ...] | None = None
    iterations_run: Int[Tensor, "batch *chunk"] | None = None
    num_blocks: int | None = None
    halts: bool = False
    chunks: Int[Tensor, "batch pos"] | None = None
    queries: tuple[int, ...]
    readout: Readout
    attn_implementation: str
    model: PreTrainedModel
    stack: str | None = None
    source_mask: Int[Tensor, "batch source"] | None = None
    source_length: int | None = None
    prefix_length: int = 0

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled: all that was recorded, without the model and the readout, which needs the model."""
        return {name: value for name, value in vars(self).items() if name not in NOT_PICKLED}

    def __copy__(self) -> "Capture":
        """Return a copy that shares everything, the model included."""
        return replace(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Capture":
        """Return a copy with its own recorded tensors; it shares the model and the readout."""
        recorded = {name: value for name, value in vars(self).items() if name not in NOT_PICKLED}
        return replace(self, **deepcopy(recorded, memo))

    if not TYPE_CHECKING:  # so that type checkers report an attribute that does not exist

        def __getattr__(self, name: str) -> NoReturn:
            """Explain why a capture that was pickled has no model and no readout."""
            if name in NOT_PICKLED:
                raise RuntimeError(f"a capture that was pickled has no {name}, which needs the model; capture again")
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __getitem__(self, name: str) -> Tensor:
        """Return a recorded site or reduction.

        Raises:
            NotRecorded: it was not recorded.
        """
        if name not in self.sites:
            site = find_site_of_hook(name)
            advice = f"write {site!r}, whose first axis is the layer" if site in self.sites else "pass it to capture"
            raise NotRecorded(f"{name!r} was not recorded; recorded are {', '.join(self.sites)}; {advice}")
        return self.sites[name]

    def __contains__(self, name: object) -> bool:
        """Return whether a site or reduction was recorded."""
        return name in self.sites

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of what was recorded."""
        return iter(self.sites)

    def __len__(self) -> int:
        """Return the number of recorded sites and reductions."""
        return len(self.sites)

    def __eq__(self, other: object) -> bool:
        """Return whether the other object is this capture."""
        return self is other

    def __hash__(self) -> int:
        """Return the hash of the object, not of its tensors."""
        return id(self)

    def summarise(self) -> Summary:
        """Return shape, dtype and memory of everything that was recorded."""
        batch, length = self.inputs.shape[:2]
        model = f" of {type(vars(self)['model']).__name__}" if "model" in vars(self) else ""
        model = f" of the {self.stack}{model}" if self.stack else model
        return Summary(
            title=f"Capture{model}: {batch} sequences of {length} positions, attention {self.attn_implementation}",
            header=("name", "axes", "dtype", "memory"),
            rows=[describe_tensor(name, tensor, self.axes[name]) for name, tensor in self.items()],
        )

    def unrolled(self, *, include_stopped: bool = False) -> "Capture":
        """Return a capture in which every call of a layer is a layer, without an axis ``iteration``.

        Call ``iteration * num_blocks + layer`` is that layer of a copy of the model with as many layers as calls.

        Args:
            include_stopped: accept a model that halts, although the activations include those of positions that have
                stopped, which the model discards.

        Returns:
            A view of the same activations; the capture itself if its model calls each layer once.

        Raises:
            ValueError: the model halts, or a recorded iteration did not run for every sequence.
        """
        if self.iterations is None or self.iterations_run is None or self.num_blocks is None:
            return self
        if self.halts and not include_stopped:
            raise ValueError(
                "layers of a model that halts also run at positions that have stopped, and the model discards what "
                "they compute there; pass capture.unrolled(include_stopped=True) to use all positions alike"
            )
        complete = int(self.iterations_run.min())
        if max(self.iterations) >= complete:
            raise ValueError(
                f"every recorded iteration must run for every sequence, but only {complete} did; pass "
                f"iterations=range({complete}) to capture"
            )
        sites, axes = join_calls(self.sites, self.axes)
        calls = tuple(select_calls(self.layers, self.iterations, self.num_blocks))
        return replace(self, sites=sites, axes=axes, layers=calls, iterations=None, iterations_run=None)

    def head_out(self, site: Literal["z", "cross_z"] = "z") -> Float[Tensor, "*calls batch head pos d_model"]:
        """Return what each head writes to the residual stream after its output projection: ``z`` @ W_O, head by head.

        Summed over heads, plus `Readout.output_bias`, it equals ``attn_out``; of cross-attention, plus
        `Readout.cross_output_bias`, ``cross_attn_out``.

        Args:
            site: ``z``, or ``cross_z`` for the heads of cross-attention.

        Returns:
            The output of every head of every recorded layer, (layer, batch, head, pos, d_model); in a model that
            repeats its layers, (layer, iteration, batch, head, pos, d_model).

        Raises:
            NotRecorded: the site was not recorded.
            UnsupportedModel: ``z`` does not reach the residual stream through a linear map.
        """
        readout, by_iteration = self.readout, self.iterations is not None
        projection = readout.output_projection if site == "z" else readout.cross_output_projection
        heads = self[site].transpose(0, 1).flatten(0, 1) if by_iteration else self[site]
        layers, batch, length, num_heads, _ = heads.shape
        outputs = allocate_tensor((layers, batch, num_heads, length, projection.shape[-1]), heads.dtype, heads.device)
        for layer, row in product(range(layers), range(batch)):
            torch.bmm(heads[layer, row].transpose(0, 1), projection[layer], out=outputs[layer, row])
        return outputs.unflatten(0, (len(self.iterations), -1)).transpose(0, 1) if self.iterations else outputs

    def to_xarray(self, name: str) -> xr.DataArray:
        """Return a recorded site or reduction as a labelled array; layers are numbered as in the model.

        Args:
            name: a recorded site or reduction.

        Returns:
            The array, on the CPU.

        Raises:
            NotRecorded: it was not recorded.
        """
        values, axes = self[name], self.axes[name]
        site = ALL_SITES.get(name)
        about = site.description if site else f"{name}, reduced during the forward pass"
        values = values.float() if values.dtype == torch.bfloat16 else values
        coords: dict[Hashable, Any] = {"layer": list(self.layers)} if "layer" in axes else {}
        coords |= {"query": list(self.queries)} if "query" in axes else {}
        coords |= {"iteration": list(self.iterations)} if self.iterations and "layer" in axes else {}
        coords |= {f"{axis}_label": (axis, self.source_labels) for axis in self._source_axes if axis in axes}
        return to_data_array(values, *axes, units="1", description=about, coords=coords)

    @property
    def source_labels(self) -> list[str]:
        """Labels of the positions of the source: ``prefix 0``, ``prefix 1``, ..., then ``0``, ``1``, ... of tokens."""
        length = self.inputs.shape[1] if self.source_length is None else self.source_length
        slots = self.prefix_length
        return [f"prefix {slot}" for slot in range(slots)] + [str(pos) for pos in range(length - slots)]

    @property
    def _source_axes(self) -> tuple[str, ...]:
        """The axes along which positions of a source with a prefix have labels."""
        if not self.prefix_length:
            return ()
        return ("pos", "query", "key") if self.stack == ENCODER else ("source",)

    def to_dataset(self, names: Sequence[str] | None = None) -> xr.Dataset:
        """Return recorded sites and reductions as labelled arrays.

        Args:
            names: what to include; everything that was recorded by default.

        Returns:
            One variable for each name, on the CPU.

        Raises:
            NotRecorded: one was not recorded.
        """
        return xr.Dataset({name: self.to_xarray(name) for name in (self if names is None else names)})
