"""Checks of the identities that recorded activations must satisfy; an error names the check and the deviation."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesascope.activations._layer_spec import LayerSpec, name_call
from mesascope.activations._model_structure import ModelStructure
from mesascope.activations.chunks._layout import ChunkLayout, find_layout
from mesascope.activations.exclusive_use import guard_hook
from mesascope.activations.forward import run_model
from mesascope.activations.hooks import _attention_math as attention_math
from mesascope.activations.hooks._block_counter import BlockCounter
from mesascope.activations.hooks._module_arguments import first_tensor
from mesascope.activations.hooks._module_hooks import attach_hooks
from mesascope.activations.sites import CROSS_PREFIX, MEMORY_SITES, UnsupportedModel, split_stack
from mesascope.activations.tolerances import allclose, bitwise_equal, relative_difference, terms_sum_to

STREAM_SITES = ("resid_pre", "attn_out", "cross_attn_out", "mlp_out", "resid_post")
ATTENTION_WEIGHTS = ("attn_scores", "pattern")
CHECKED_SITES = frozenset({*STREAM_SITES, "value", "z", "resid_mid", "cross_resid_mid"})
SITES_OF_SUM = ("attn_out", "resid_mid", "cross_attn_out", "cross_resid_mid", "mlp_out")
LONG_SEQUENCE = 256  # positions above which not everything is compared at every position
NUM_CHECKED_QUERIES = 32  # rows of attention weights that are checked in a long sequence


def check_sites_available(
    model_name: str, layers: Sequence[LayerSpec], layers_by_site: Mapping[str, Sequence[int]]
) -> None:
    """Check that the requested layers have the requested sites.

    Args:
        model_name: the class name of the model.
        layers: the specification of every layer.
        layers_by_site: layers by site.

    Raises:
        UnsupportedModel: a layer lacks a site; the message gives the reason and the layers that have it.
    """
    for site, requested in layers_by_site.items():
        stack, local = split_stack(site)
        if stack is not None:
            raise UnsupportedModel(
                f"{site} must be a site of an encoder-decoder, but {model_name} is opened as one stack of layers; "
                f"write {local!r}, or use capture and its edits"
            )
        if site in MEMORY_SITES:
            raise UnsupportedModel(
                f"{site} must be a site of a model with a memory between chunks, which capture and its edits open, but "
                f"got it for {model_name}; choose a site of a layer"
            )
        unavailable = [number for number in requested if site in layers[number].missing]
        if unavailable:
            lacking = {layers[number].block for number in unavailable}
            blocks = list(dict.fromkeys(layer.block for layer in layers))
            without_site = {layer.block for layer in layers if site in layer.missing}
            available = [number for number, block in enumerate(blocks) if block not in without_site]
            advice = f"pass layers={available}" if available else "omit the site"
            raise UnsupportedModel(
                f"{site} must exist in every requested layer, but {model_name} lacks it in layers "
                f"{[number for number, block in enumerate(blocks) if block in lacking]} "
                f"({layers[unavailable[0]].missing[site]}); {advice}"
            )


def check_hooked_forward(
    model: PreTrainedModel,
    structure: ModelStructure,
    layers_by_site: Mapping[str, Sequence[int]],
    inputs: Shaped[Tensor, "1 pos *d_in"],
    mask: Int[Tensor, "1 pos"] | None,
) -> None:
    """Run one sequence with and without hooks, and check outputs, hook calls and identities.

    The outputs must be bitwise equal, every hook point must be called once, attention weights must reproduce ``z``, and
    the residual updates must sum to the change of the residual stream. In a long sequence, the residual stream after
    the last layer replaces the outputs of all positions but the last, and attention weights are checked at 32 queries.

    Args:
        model: the model.
        structure: its structure.
        layers_by_site: layers by site.
        inputs: tokens or vectors of one sequence.
        mask: 1 where an input is not padding.

    Raises:
        UnsupportedModel: one of these conditions is violated.
    """
    layers, chunks = structure.layers, structure.chunks
    run = partial(run_model, model, inputs, mask, all_positions=inputs.shape[1] <= LONG_SEQUENCE)
    layout = find_layout(model, chunks, len(layers), inputs, mask)
    if layout is None:
        queries = spread_queries(inputs.shape[1], mask)
        check_hooked_run(model, layers, layers_by_site, run, [mask] * len(layers), queries)
        return
    calls = layout.expand_layers(layers, chunks and chunks.update)
    num_slots = chunks.num_slots if chunks is not None else 0
    masks = [_mask_of_call(layout, number, mask, num_slots) for number in range(len(calls))]
    check_hooked_run(model, calls, layout.expand_hook_points(layers_by_site), run, masks)


def _mask_of_call(layout: ChunkLayout, number: int, mask: Int[Tensor, "1 pos"] | None, num_slots: int) -> Tensor | None:
    """Return the mask of the positions that a call computes; slots are padding after a chunk that is padding."""
    chunk, call = layout.locate_call(number)
    part = layout.select_mask(mask, chunk)
    if part is None or call is not None:
        return part
    return None if bool(part.any()) else part.new_zeros(1, num_slots)


def check_hooked_run(
    model: PreTrainedModel,
    layers: Sequence[LayerSpec],
    layers_by_site: Mapping[str, Sequence[int]],
    run: Callable[[], Tensor],
    masks: Sequence[Int[Tensor, "batch _"] | None],
    queries: Int[Tensor, " query"] | None = None,
) -> None:
    """Run a model with and without hooks, and check outputs, hook calls and identities, as `check_hooked_forward` does.

    Args:
        model: the model.
        layers: the specification of every layer.
        layers_by_site: layers by site.
        run: runs the model and returns its output.
        masks: by layer, 1 where an input is not padding.
        queries: the rows of attention weights that are checked; all by default.

    Raises:
        UnsupportedModel: one of the conditions is violated.
    """
    checker = IdentityChecker(layers_by_site, layers, masks, queries)
    expected = run_recording_streams(model, [layers[-1].block], run)
    with attach_hooks(model, layers, checker.layers_by_site, checker, queries=queries) as counter:
        hooked = run_recording_streams(model, [layers[-1].block], run)
    name = type(model).__name__
    for before, after in zip(expected, hooked, strict=True):
        check_output_unchanged(name, before, after)
    checker.check_counts(name, layers_by_site, counter)


def run_recording_streams(
    model: PreTrainedModel, blocks: Sequence[str], run: Callable[[], Tensor]
) -> tuple[Tensor, ...]:
    """Run a model, and return its outputs, followed by the residual stream after the last call of each block.

    Args:
        model: the model.
        blocks: the names of the blocks.
        run: runs the model and returns its output.
    """
    with record_streams(model, blocks) as streams:
        output = run()
    return output, *(streams[block] for block in blocks)


@contextmanager
def record_streams(model: PreTrainedModel, blocks: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Context manager: record the residual stream after the last call of each block, as it is then.

    Args:
        model: the model.
        blocks: the names of the blocks.

    Yields:
        The streams by the name of the block, which are there after the forward pass.
    """
    streams: dict[str, Tensor] = {}

    def record_stream(block: str, module: nn.Module, args: tuple, output: Any) -> None:
        tensor = first_tensor(output)
        if tensor is not None:
            streams[block] = tensor.clone()

    handles = [
        model.get_submodule(block).register_forward_hook(guard_hook(partial(record_stream, block))) for block in blocks
    ]
    try:
        yield streams
    finally:
        for handle in handles:
            handle.remove()


def spread_queries(length: int, mask: Int[Tensor, "1 pos"] | None) -> Int[Tensor, " query"] | None:
    """Return 32 positions of a long sequence, without padding, the first and the last among them.

    Args:
        length: the number of positions.
        mask: 1 where an input is not padding.
    """
    if length <= LONG_SEQUENCE:
        return None
    real = torch.arange(length) if mask is None else mask[0].nonzero()[:, 0].cpu()
    return real[torch.linspace(0, len(real) - 1, NUM_CHECKED_QUERIES).long()].unique()


def check_output_unchanged(
    model_name: str, expected: Float[Tensor, "batch pos d_out"], hooked: Float[Tensor, "batch pos d_out"]
) -> None:
    """Check that a model's output is bitwise the same with and without hooks.

    Args:
        model_name: the class name of the model.
        expected: the output without hooks.
        hooked: the output with hooks.

    Raises:
        UnsupportedModel: a bit differs.
    """
    if (
        expected is not hooked
        and not bitwise_equal(expected, hooked)
        and not (expected.isnan() & hooked.isnan() | (expected == hooked)).all()
    ):
        raise UnsupportedModel(
            f"capturing must not change the output (bitwise), but that of {model_name} changes by "
            f"{relative_difference(hooked, expected):.1e} (relative); its modelling file may branch on the "
            "name of the attention "
            "implementation"
        )


class IdentityChecker:
    """Hook that checks identities layer by layer and holds the activations of one layer at most.

    Args:
        layers_by_site: the hook points that are checked; those whose activations are compared with them are added.
        layers: the specification of every layer.
        masks: by layer, 1 where an input is not padding.
        queries: the rows of attention weights that are checked; all by default.
    """

    def __init__(
        self,
        layers_by_site: Mapping[str, Sequence[int]],
        layers: Sequence[LayerSpec],
        masks: Sequence[Int[Tensor, "batch _"] | None],
        queries: Int[Tensor, " query"] | None,
    ) -> None:
        self._layers, self._masks, self._queries = layers, masks, queries
        self._activations: dict[str, Tensor] = {}
        self._layer = -1
        self._call_counts: dict[tuple[str, int], int] = {}
        requested = {site: set(chosen) for site, chosen in layers_by_site.items()}
        for prefix in ("", CROSS_PREFIX):
            weights = (requested.get(f"{prefix}{site}", ()) for site in ATTENTION_WEIGHTS)
            weighted_layers = set().union(*weights)
            for site in ("value", "z"):
                requested.setdefault(f"{prefix}{site}", set()).update(weighted_layers)
        update_layers = set().union(*(requested.get(site, ()) for site in SITES_OF_SUM))
        if update_layers:
            for site in STREAM_SITES:
                available = {number for number in update_layers if site not in layers[number].missing}
                requested.setdefault(site, set()).update(available)
        self.layers_by_site = {site: tuple(sorted(chosen)) for site, chosen in requested.items()}

    def __call__(self, site: str, layer: int, value: Float[Tensor, "..."]) -> None:
        """Check an activation with the others of its layer; this is the hook function."""
        self._call_counts[site, layer] = self._call_counts.get((site, layer), 0) + 1
        if layer != self._layer:
            self._activations.clear()
            self._layer = layer
        local = site.removeprefix(CROSS_PREFIX)
        if local in ATTENTION_WEIGHTS:  # computed by the hooks, so that the model cannot overwrite them
            is_part = self._queries is None or value.shape[2] == len(self._queries)
            self._activations[site] = value if is_part else value[:, :, self._queries]
        elif local in CHECKED_SITES:
            self._activations[site] = value.clone()
        if site.removeprefix(CROSS_PREFIX) == "z":
            self._check_attention_weights(self._layers[layer], site.removesuffix("z"))
        if site == "resid_post":
            self._check_residual_sum(self._layers[layer])

    def check_counts(self, model_name: str, layers_by_site: Mapping[str, Sequence[int]], counter: BlockCounter) -> None:
        """Check that every hook point was called once in every layer that ran.

        Args:
            model_name: the class name of the model.
            layers_by_site: layers by site.
            counter: the counter of the calls of blocks.

        Raises:
            UnsupportedModel: one was not.
        """
        for site, chosen in layers_by_site.items():
            for number in chosen:
                count = self._call_counts.get((site, number), 0)
                if count != counter.has_run(number):
                    raise UnsupportedModel(
                        f"every site must be computed once per forward pass, but {site} in "
                        f"{name_call(self._layers, number)} of {model_name} was computed {count} times; omit the site"
                    )

    def _check_attention_weights(self, layer: LayerSpec, prefix: str) -> None:
        """Check that attention weights times values give ``z``, and that the softmax of scores gives the weights."""
        out, value = self._checked_rows(self._activations[f"{prefix}z"]), self._activations.get(f"{prefix}value")
        for site in (f"{prefix}pattern", f"{prefix}attn_scores"):
            weights = self._activations.get(site)
            if weights is None or value is None:
                continue
            pattern = attention_math.scores_to_pattern(weights) if site.endswith("scores") else weights
            mixed = self._checked_rows(attention_math.mix_values(pattern, value))
            self._check_reproduces_z(mixed, out, site, layer)

    def _check_residual_sum(self, layer: LayerSpec) -> None:
        """Check that the residual updates sum to the change of the residual stream, also from and to ``resid_mid``."""
        if "attn_out" not in self._activations:
            return
        terms = [site for site in STREAM_SITES[:-1] if site in self._activations]
        self._check_sum("resid_post", terms, layer, "attn_out and mlp_out")
        for site, last in (("resid_mid", "attn_out"), ("cross_resid_mid", "cross_attn_out")):
            if site in self._activations:
                number = terms.index(last) + 1
                self._check_sum(site, terms[:number], layer, site)
                self._check_sum("resid_post", [site, *terms[number:]], layer, site)

    def _check_sum(self, total: str, terms: Sequence[str], layer: LayerSpec, omit: str) -> None:
        parts = [self._activations[site] for site in terms]
        if not terms_sum_to(self._activations[total], *parts):
            deviation = relative_difference(torch.stack(parts).sum(0), self._activations[total])
            raise UnsupportedModel(
                f"{', '.join(terms[:-1])} and {terms[-1]} must sum to {total}, but in {layer.block} deviate by "
                f"{deviation:.1e} (relative); omit {omit}"
            )

    def _check_reproduces_z(
        self, mixed: Float[Tensor, "..."], z: Float[Tensor, "..."], site: str, layer: LayerSpec
    ) -> None:
        has_inputs = z.numel() > 0  # a chunk may be padding alone
        if has_inputs and not allclose(mixed, z):
            raise UnsupportedModel(
                f"{site} must reproduce z, but in {layer.block} deviates by "
                f"{relative_difference(mixed, z):.1e} (relative); "
                "omit it, or load the model with attn_implementation='eager'"
            )

    def _checked_rows(self, z: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "real head d_head"]:
        """Return the rows of the checked queries, or of all that are not padding."""
        mask = self._masks[self._layer]
        if self._queries is not None:
            return (z if z.shape[1] == len(self._queries) else z[:, self._queries]).flatten(0, 1)
        return z.flatten(0, 1) if mask is None else z[mask.bool()]
