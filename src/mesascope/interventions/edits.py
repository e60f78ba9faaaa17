"""Edits by their usual names: zero, mean and resample ablation, scaling, steering, activation patching."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace as with_other
from operator import index

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mesascope.activations import Capture, Edit, EncoderDecoderCapture, get_site
from mesascope.activations.edits import AxisIndex
from mesascope.activations.padding.masks import find_real_entries
from mesascope.activations.padding.source_inputs import SourceInputs
from mesascope.activations.sites import CROSS_PREFIX, CROSS_SITES, DECODER, ENCODER, MEMORY_PREFIX, split_stack
from mesascope.argument_types import describe_value, validate_arguments
from mesascope.statistics import derangement

IndexByAxis = Mapping[str, AxisIndex]


@validate_arguments
def zero(site: str, where: IndexByAxis | None = None) -> Edit:
    """Set an activation to zero (zero ablation).

    Zeros are usually far from the activations seen in training: prefer `mean` or `resample`.

    Args:
        site: name of the site, one of `mesascope.activations.SITES`.
        where: index by axis; the whole site by default.

    Returns:
        The edit.

    Raises:
        ValueError: If the site or an axis does not exist, or the site is attn_scores.

    >>> zero("z", {"layer": 1, "head": [0, 2]}).where["head"]
    [0, 2]
    """
    return Edit(site=_validate_not_scores(site), where=dict(where or {}), fn=torch.zeros_like)


@validate_arguments
def knock_out_attention(site: str, keys: Sequence[int], where: IndexByAxis | None = None) -> Edit:
    """Hide some keys from attention heads (attention knockout, Geva et al. 2023).

    Scores of these keys become minus infinity, so that the weights of the other keys are renormalised to sum to 1. To
    set weights to zero without renormalising, use ``zero("pattern", {"key": keys})``.

    Args:
        site: ``attn_scores``; in an encoder-decoder ``encoder.attn_scores``, ``decoder.attn_scores`` or
            ``cross_attn_scores``; in a model with chunks also ``cross_attn_scores`` and ``memory_attn_scores``.
        keys: positions that are hidden; of cross-attention, positions of the source, or slots of the memory.
        where: index by axis (layer, head, batch, query); everywhere by default.

    Returns:
        The edit.

    Raises:
        ValueError: If the site is another one, or no keys are hidden; and when the edit is run, if a key does not exist
            or a query is left without any key.

    >>> knock_out_attention("encoder.attn_scores", range(3), {"layer": 1, "head": [0, 2]}).where["head"]
    [0, 2]
    """
    local = split_stack(site)[1]
    if local.removeprefix(CROSS_PREFIX).removeprefix(MEMORY_PREFIX) != "attn_scores":
        raise ValueError(f"attention is knocked out at attn_scores, but got {site}; write attn_scores, with its stack")
    axis = get_site(site).axes[-1]
    if where and axis in where:
        raise ValueError(f"keys must be given once, but where has {axis}, too; omit it")
    try:
        hidden = [index(key) for key in keys]
    except TypeError:
        hidden = []
    if not hidden or min(hidden) < 0:
        raise ValueError(f"keys must be positions counted from 0, at least one, but got {describe_value(keys)}")

    def hide(scores: Tensor) -> Tensor:
        if max(hidden) >= scores.shape[-1]:
            raise ValueError(f"keys must be below {scores.shape[-1]}, the number of keys, but got {max(hidden)}")
        changed = scores.clone()
        changed[..., hidden] = -torch.inf
        left_without = scores.isfinite().any(-1) & ~changed.isfinite().any(-1)
        if left_without.any():
            raise ValueError(
                f"every query must attend to a key that is not hidden, but {int(left_without.sum())} rows of {site} "
                "have none left; hide fewer keys, or select queries with where"
            )
        return changed

    return Edit(site=site, where=dict(where or {}), fn=hide)


@validate_arguments
def scale(site: str, factor: float, where: IndexByAxis | None = None) -> Edit:
    """Multiply an activation by a factor.

    Args:
        site: name of the site.
        factor: 0 sets the activation to zero, 1 has no effect.
        where: index by axis; the whole site by default.

    Returns:
        The edit.

    Raises:
        ValueError: As for `zero`.
    """
    return Edit(site=_validate_not_scores(site), where=dict(where or {}), fn=lambda old: factor * old)


@validate_arguments
def steer(
    site: str, direction: Tensor | Sequence[float], coefficient: float = 1.0, where: IndexByAxis | None = None
) -> Edit:
    """Add a multiple of a direction along the site's last axis (activation addition, Turner et al. 2023).

    Args:
        site: name of the site.
        direction: vector of the size of the site's last axis, such as ``d_model``; it is not normalised.
        coefficient: factor on the direction.
        where: index by axis; the whole site by default.

    Returns:
        The edit.

    Raises:
        ValueError: As for `zero`; and when the edit is run, if the direction has the wrong size.
    """

    try:
        direction = torch.as_tensor(direction)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"direction must be a vector of numbers, but got {describe_value(direction)}") from None

    def add_direction(old: Tensor) -> Tensor:
        if direction.shape != old.shape[-1:]:
            raise ValueError(
                f"a direction at {site} must have {old.shape[-1]} entries, but got shape {tuple(direction.shape)}"
            )
        return old + coefficient * direction.to(old)

    return Edit(site=_validate_not_scores(site), where=dict(where or {}), fn=add_direction)


@validate_arguments
def replace(site: str, source: Capture | EncoderDecoderCapture, where: IndexByAxis | None = None) -> Edit:
    """Replace an activation by its value in another run (activation patching).

    With padding, columns of the padded inputs correspond: the source must have an input in every edited column in which
    the edited run has one, and the same padding at attn_scores and pattern.

    Args:
        site: name of the site; the other run must have recorded it.
        source: the other run, with as many sequences of the same length; of an encoder-decoder, its capture or that of
            the stack of the site.
        where: index by axis; the whole site in all layers that the other run recorded by default.

    Returns:
        The edit.

    Raises:
        NotRecorded: If the other run did not record the site.
        ValueError: If the other run recorded only some query positions of attn_scores or pattern; and when the edit is
            run, if the padding of the two runs does not fit.
    """
    return _edit_from_capture(site, select_stack(site, source), where, lambda activation: activation)


@validate_arguments
def mean(site: str, source: Capture | EncoderDecoderCapture, where: IndexByAxis | None = None) -> Edit:
    """Replace an activation by its mean over sequences at the same position (mean ablation).

    With padding, positions are columns of the padded inputs, and the mean is over the sequences that have an input in
    the column. At attn_scores and pattern, sequences of unequal length have no mean, since they attend to other keys.

    Args:
        site: name of the site; the source must have recorded it.
        source: run over which the mean is taken, often of the batch that is edited; any number of sequences of the same
            length.
        where: as in `replace`.

    Returns:
        The edit.

    Raises:
        NotRecorded: As for `replace`.
        ValueError: As for `replace`.
    """

    acts = select_stack(site, source)

    def average(activation: Tensor) -> Tensor:
        mask = acts.attention_mask
        axes = get_site(site).axes_within_layer
        return activation.mean(1, keepdim=True) if mask is None else _average_real(activation, axes, mask)

    return _edit_from_capture(site, acts, where, average, shared=True)


@validate_arguments
def resample(
    site: str, source: Capture | EncoderDecoderCapture, where: IndexByAxis | None = None, seed: int = 0
) -> Edit:
    """Replace an activation by its value on another sequence of the batch (resample ablation, Chan et al. 2022).

    Sequences are permuted in one random cycle, so that none keeps its own activation; with padding, in one cycle for
    each length and side of padding.

    Args:
        site: name of the site; the source must have recorded it.
        source: run of two or more sequences.
        where: as in `replace`.
        seed: seed of the cycle.

    Returns:
        The edit.

    Raises:
        NotRecorded: As for `replace`.
        ValueError: As for `replace`, or if the source has one sequence, or with padding one of some length.
    """
    acts = select_stack(site, source)
    order = _draw_order(acts, seed)
    return _edit_from_capture(
        site, acts, where, lambda activation: activation[:, order.to(activation.device)], order=order
    )


def select_stack(site: str, source: Capture | EncoderDecoderCapture) -> Capture:
    """Return the capture that has a site: of an encoder-decoder, that of its stack.

    Args:
        site: name of the site, with its stack in an encoder-decoder.
        source: a capture.

    Returns:
        The capture of the stack.

    Raises:
        ValueError: If the site is of another stack, or of one stack where there are two.
    """
    stack, local = split_stack(site)
    has_memory = isinstance(source, Capture) and source.chunks is not None
    stack = DECODER if local in CROSS_SITES and not has_memory else stack
    if isinstance(source, EncoderDecoderCapture):
        if stack is None:
            raise ValueError(
                f"a site of an encoder-decoder must name its stack, but got {site}; write encoder.{site} or "
                f"decoder.{site}"
            )
        return source.encoder if stack == ENCODER else source.decoder
    if stack != source.stack:
        given = f"the {source.stack} of an encoder-decoder" if source.stack else "a model with one stack"
        raise ValueError(f"{site} must be a site of the captured stack, but the capture is of {given}")
    return source


def _draw_order(source: Capture, seed: int) -> Int[Tensor, " batch"]:
    """Draw a random cycle of the sequences with the same padding, for each kind of padding."""
    num_sequences, generator = len(source.inputs), torch.Generator().manual_seed(seed)
    if num_sequences < 2:
        raise ValueError("resample needs two or more sequences, but the source has one; pass a larger batch")
    masks = [mask.cpu() for mask in (source.attention_mask, source.source_mask) if mask is not None]
    if not masks:
        return derangement(num_sequences, generator)
    kinds, kind = torch.cat(masks, dim=1).unique(dim=0, return_inverse=True)
    order = torch.arange(num_sequences)
    for number, mask in enumerate(kinds):
        rows = (kind == number).nonzero()[:, 0]
        if len(rows) < 2:
            raise ValueError(
                f"with padding, resample needs two or more sequences of each length, but sequence {int(rows[0])} is "
                f"the only one with {int(mask.sum())} inputs in these columns; leave it out, or use mean"
            )
        order[rows] = rows[derangement(len(rows), generator)]
    return order


def _average_real(
    activation: Float[Tensor, "layer batch *rest"], axes: Sequence[str], mask: Int[Tensor, "batch pos"]
) -> Float[Tensor, "layer 1 *rest"]:
    """Return the mean over the sequences that have no padding at an entry; 0 where all have."""
    index = [torch.arange(size) for size in activation.shape[1:]]
    real = find_real_entries(axes, index, mask).to(activation.device)
    return activation.where(real, 0.0).sum(1, keepdim=True) / real.sum(0, keepdim=True).clamp(min=1)


def _edit_from_capture(
    site: str,
    source: Capture,
    where: IndexByAxis | None,
    transform: Callable[[Tensor], Tensor],
    *,
    shared: bool = False,
    order: Int[Tensor, " batch"] | None = None,
) -> Edit:
    has_layers = "layer" in get_site(site).axes
    indices: dict[str, AxisIndex] = {"layer": list(source.layers)} if has_layers else {}
    if has_layers and source.iterations is not None:
        indices["iteration"] = list(source.iterations)
    indices |= dict(where or {})
    source_inputs = SourceInputs(
        inputs=source.inputs, mask=source.attention_mask, order=order, source_mask=source.source_mask
    )
    edit = Edit(site=site, where=indices, fn=_take_source, shared_source=shared, source_inputs=source_inputs)
    recorded = source.unrolled(include_stopped=True)
    local = split_stack(site)[1]
    layers, activation = (recorded.layers, recorded[local]) if has_layers else ((0,), recorded[local][None])
    if local in ("attn_scores", "pattern") and len(source.queries) < source.inputs.shape[1]:
        raise ValueError(f"{site} must be recorded at all query positions, but queries= selected some; omit queries=")
    return with_other(edit, source=dict(zip(layers, transform(activation), strict=True)))


def _take_source(old: Tensor, source: Tensor) -> Tensor:
    return source


def _validate_not_scores(site: str) -> str:
    """Return the site, unless it is attn_scores."""
    if split_stack(site)[1].removeprefix(CROSS_PREFIX).removeprefix(MEMORY_PREFIX) == "attn_scores":
        raise ValueError(
            "attn_scores must stay -inf where a key is masked, but this edit changes them; edit pattern, or use replace"
        )
    return site
