"""Parts of the views of tokens and of vectors: checks, edits, and numbers as JSON."""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mesascope.activations import Capture, Edit, EditHadNoEffect, capture
from mesascope.explorer.sources import ExploredInput
from mesascope.explorer.subject import ExploredModel
from mesascope.interventions import mean, replace, zero

ABLATION_METHODS = ("zero", "mean")
PATCHED_SITES = ("resid_pre", "z")

View = dict[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadAblation:
    """The edits that switch heads off.

    Attributes:
        heads_by_layer: the heads, in order.
        edits: one edit per layer.
        reference_code: code that defines the references of mean ablation; empty for zero ablation.
    """

    heads_by_layer: Mapping[int, Sequence[int]]
    edits: Sequence[Edit]
    reference_code: str


def ablate_heads(subject: ExploredModel, heads: Sequence[Sequence[int]], method: str, length: int) -> HeadAblation:
    """Return the edits that switch heads off.

    Args:
        subject: the explored model.
        heads: pairs of a layer and a head, one or more.
        method: ``zero`` or ``mean``.
        length: the number of positions of the input.

    Raises:
        ValueError: there is no such head or method.
    """
    if not heads:
        raise ValueError("heads must have one head or more, as pairs of layer and head, but is empty")
    for layer, head in heads:
        check_head(subject, layer, head)
    if method not in ABLATION_METHODS:
        raise ValueError(f"a method must be one of {', '.join(ABLATION_METHODS)}, but got {method!r}")
    heads_by_layer: dict[int, list[int]] = {}
    for layer, head in sorted({(layer, head) for layer, head in heads}):
        heads_by_layer.setdefault(layer, []).append(head)
    wheres = [{"layer": layer, "head": each} for layer, each in heads_by_layer.items()]
    if method == "zero":
        return HeadAblation(
            heads_by_layer=heads_by_layer, edits=[zero("z", where) for where in wheres], reference_code=""
        )
    references, code = subject.capture_references(length)
    edits = [mean("z", references, where) for where in wheres]
    return HeadAblation(heads_by_layer=heads_by_layer, edits=edits, reference_code=code)


@dataclass(frozen=True, kw_only=True, eq=False)
class ActivationPatch:
    """The edit that puts an activation of a second input into the first.

    Attributes:
        where: index by axis.
        edit: the edit.
        source_acts: a capture of the second input, with the site and the output.
    """

    where: Mapping[str, int]
    edit: Edit
    source_acts: Capture


def patch_activation(
    subject: ExploredModel, source: ExploredInput, site: str, layer: int, position: int, head: int | None
) -> ActivationPatch:
    """Return the edit that replaces an activation by that of a second input.

    Args:
        subject: the explored model.
        source: the second input.
        site: the site that is patched.
        layer: the layer.
        position: the position.
        head: the head, at ``z``; all heads if it is None.
    """
    where = {"layer": layer, "pos": position} | ({} if head is None else {"head": head})
    source_acts = subject.capture_input(source)
    if site not in source_acts:
        source_acts = capture(subject.model, source.values, [site, "output"], layers=[layer])
    return ActivationPatch(where=where, edit=replace(site, source_acts, where), source_acts=source_acts)


def check_patch(subject: ExploredModel, site: str, layer: int, head: int | None) -> None:
    """Check that a site, a layer and a head exist.

    Args:
        subject: the explored model.
        site: the site that is patched.
        layer: the layer.
        head: the head, at ``z``.

    Raises:
        ValueError: one does not exist.
    """
    if site not in PATCHED_SITES:
        raise ValueError(f"a site must be one of {', '.join(PATCHED_SITES)}, but got {site!r}")
    if head is not None and site != "z":
        raise ValueError(f"head must be given at z only, but the site is {site}; omit it")
    if site == "z":
        check_head(subject, layer, head or 0)
    check_range("layer", layer, subject.layers)


@contextmanager
def collect_notes() -> Iterator[list[str]]:
    """Collect the warnings that an edit had no effect, as lines; the caller has the model in exclusive use."""
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", EditHadNoEffect)
        yield notes
    for one in caught:
        if issubclass(one.category, EditHadNoEffect):
            notes.append(str(one.message))
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


def check_head(subject: ExploredModel, layer: int, head: int) -> None:
    """Check that a layer has attention, and a head exists.

    Args:
        subject: the explored model.
        layer: the layer.
        head: the head.

    Raises:
        ValueError: one does not exist.
    """
    check_range("layer", layer, subject.layers)
    if layer not in subject.attention_layers:
        layers = ", ".join(map(str, subject.attention_layers))
        raise ValueError(f"layer must have attention, as the layers {layers} do, but got {layer}")
    check_range("head", head, subject.heads)


def check_range(name: str, value: int, size: int, first: int = 0) -> None:
    """Check that an index exists.

    Args:
        name: what it is called.
        value: the index.
        size: the number after the largest one.
        first: the smallest one.

    Raises:
        ValueError: it does not exist.
    """
    if not first <= value < size:
        raise ValueError(f"{name} must be from {first} to {size - 1}, but got {value}")


def name_depths(subject: ExploredModel) -> list[str]:
    """Return the names of the depths at which the residual stream is read.

    Args:
        subject: the explored model.
    """
    return [*(f"before layer {layer}" for layer in range(subject.layers)), "after the last layer"]


def encode_numbers(values: Tensor) -> Any:
    """Return numbers as nested lists; those that are not finite, which JSON lacks, are None.

    Args:
        values: the numbers.
    """
    if values.ndim == 0:
        value = float(values)
        return value if math.isfinite(value) else None
    if bool(values.isfinite().all()):
        return values.tolist()
    return [encode_numbers(each) for each in values]
