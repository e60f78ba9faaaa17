"""The hook function of a model with chunks: edits the activations of each chunk, and joins them for the recorder."""

from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mesascope.activations.chunks._layout import CHUNK_AXIS, ChunkLayout
from mesascope.activations.edits import Edit, apply_edit
from mesascope.activations.hooks._block_call import BlockCall
from mesascope.activations.hooks.attention_interface import AttentionCall
from mesascope.activations.recording._recorder import Recorder
from mesascope.activations.sites import MEMORY_PREFIX, get_site, strip_gradient_suffix


@dataclass(kw_only=True, eq=False)
class ChunkJoiner:
    """Hook function that edits activations chunk by chunk, and passes them to a recorder when all chunks have run.

    Attributes:
        recorder: stores and reduces activations of whole sequences.
        layout: the chunks of the micro-batch.
    """

    recorder: Recorder
    layout: ChunkLayout
    _joined: dict[tuple[str, int], Tensor] = field(default_factory=dict, init=False)
    _calls: dict[int, dict[int, BlockCall]] = field(default_factory=dict, init=False)
    _attention_calls: dict[int, dict[int, AttentionCall]] = field(default_factory=dict, init=False)

    @property
    def layers_by_site(self) -> dict[str, list[int]]:
        """The numbers of calls by site, counted through all chunks."""
        return self.layout.expand_hook_points(self.recorder.layers_by_site)

    def __call__(self, site: str, number: int, value: Float[Tensor, "batch *part"]) -> Tensor | None:
        """Keep the activation of a chunk after its edits, and return it if an edit had an effect; the hook function."""
        chunk, call = self.layout.locate_call(number)
        name, layer = (MEMORY_PREFIX + site, 0) if call is None else (site, call)
        replacement = self.recorder.edit(name, layer, value, partial(self._edit_chunk, chunk))
        value = (value if replacement is None else replacement).detach()
        if self.recorder.records(name, layer):
            self._joined[name, layer] = self.layout.scatter(name, value, chunk, self._joined.get((name, layer)))
        return replacement

    def on_layer_start(self, number: int, call: BlockCall) -> None:
        """Keep the call of a block.

        Args:
            number: the number of the call.
            call: the call.
        """
        chunk, layer = self.layout.locate_call(number)
        if layer is not None and self.recorder.reduces_layers:
            self._calls.setdefault(layer, {})[chunk] = call

    def on_attention_call(self, number: int, call: AttentionCall) -> None:
        """Keep a call of self-attention.

        Args:
            number: the number of the call of the block.
            call: the call.
        """
        chunk, layer = self.layout.locate_call(number)
        if layer is not None and self.recorder.reduces_layers:
            self._attention_calls.setdefault(layer, {})[chunk] = call

    def record_joined(self, *, gradients: bool) -> None:
        """Record the activations of whole sequences, or their gradients.

        Args:
            gradients: record gradients, which are known after the backward pass.
        """
        micro_batch = self.recorder.micro_batch
        if not gradients:
            for layer in self._calls:
                micro_batch.recompute_fns[layer] = partial(self._recompute_query, layer)
                if layer in self._attention_calls:
                    micro_batch.visible_keys_fns[layer] = partial(self._find_visible_keys, layer)
        for site, layer in [key for key in self._joined if (strip_gradient_suffix(key[0]) is not None) == gradients]:
            whole = self._joined.pop((site, layer))
            if "query" in get_site(site).axes:
                whole = whole[:, :, micro_batch.context.queries.to(whole.device)]
            self.recorder.record(site, layer, whole)

    def _edit_chunk(
        self,
        chunk: int,
        edit: Edit,
        value: Float[Tensor, "batch *part"],
        layer: int,
        rows: range,
        batch_size: int,
        mask: Int[Tensor, "batch pos"] | None,
        source_mask: Int[Tensor, "batch source"] | None,
    ) -> Tensor | None:
        """Return the activation of a chunk after an edit of whole sequences; ``None`` if the edit changes no bit."""
        if chunk not in edit.edited_indices(CHUNK_AXIS, self.layout.num_chunks):
            return None
        whole = self.layout.scatter(edit.site, value, chunk, None)
        changed = apply_edit(edit, whole, layer, rows, batch_size, mask, source_mask)
        new = None if changed is None else self.layout.gather(edit.site, changed, chunk)
        if new is None or torch.equal(new, value):
            return None
        if bool((new.isnan() & ~value.isnan()).any()):
            raise ValueError(
                "an edit in a model with chunks must change every position by itself, but that of "
                f"{edit.site} returned NaN in chunk {chunk}: what it receives is NaN at positions of other chunks, "
                "which run earlier or later; select positions of one chunk with where={'pos': ...}"
            )
        return new

    def _recompute_query(self, layer: int, stream: Float[Tensor, "batch pos d_model"]) -> Tensor:
        """Return the queries that a layer would compute from another residual stream of whole sequences."""
        joined: Tensor | None = None
        for chunk, call in self._calls[layer].items():
            query = call.compute_query(self.layout.gather("resid_pre", stream, chunk))
            scattered = self.layout.scatter("query", query, chunk, None)
            joined = scattered if joined is None else torch.where(scattered.isnan(), joined, scattered)
        assert joined is not None
        return joined

    def _find_visible_keys(self, layer: int) -> Tensor:
        """Return where queries of whole sequences can attend to keys: in their own chunk, by its mask."""
        joined: Tensor | None = None
        for chunk, call in self._attention_calls[layer].items():
            visible = call.visible_keys_fn()().to(call.query.dtype).expand(len(call.query), -1, -1, -1)
            joined = self.layout.scatter("pattern", visible, chunk, joined)
        assert joined is not None
        return joined == 1
