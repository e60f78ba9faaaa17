"""Requests to record and edit activations, by stack of an encoder-decoder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from mesascope.activations._layer_view import LayerReduction
from mesascope.activations._model_structure import ModelStructure
from mesascope.activations.edits import Edit
from mesascope.activations.recording._micro_batch import Reduction
from mesascope.activations.sites import DECODER, ENCODER, STACKS, locate_site
from mesascope.activations.validation.arguments import select_layers

LayersLike = Sequence[int] | Mapping[str, Sequence[int] | None] | None


@dataclass(kw_only=True)
class StackRequest:
    """Sites, reductions and edits of one stack.

    Attributes:
        layers: the layers to record, counted within the stack.
        sites: the sites to record.
        reduce: the reductions of sites.
        edits: the edits.
    """

    layers: list[int]
    sites: list[str] = field(default_factory=list)
    reduce: dict[str, Reduction | LayerReduction] = field(default_factory=dict)
    edits: list[Edit] = field(default_factory=list)


def split_request(
    stacks: Mapping[str, ModelStructure],
    sites: Sequence[str],
    reduce: Mapping[str, Reduction | LayerReduction],
    edits: Sequence[Edit],
    layers: LayersLike,
) -> dict[str, StackRequest]:
    """Return the sites, reductions and edits of each stack.

    A site without the name of a stack is recorded in both, except the sites of cross-attention and the output, which
    only the decoder has. Edits name their stack, or are of cross-attention.

    Args:
        stacks: the structures of encoder and decoder, by name.
        sites: the sites to record.
        reduce: reductions by name.
        edits: the edits.
        layers: the layers to record in both stacks, or by stack: a stack that is not named is not recorded, and
            ``None`` selects all its layers.

    Raises:
        ValueError: a name is ambiguous, or a stack lacks a site by its nature.
    """
    by_stack = _split_layers(layers)
    selected = {name: select_layers(by_stack[name], stacks[name].num_blocks) for name in by_stack}
    requests = {name: StackRequest(layers=selected.get(name, [])) for name in STACKS}
    for site in sites:
        stack, local = _locate(site)
        for name in selected if stack is None else (stack,):
            if name not in selected:
                raise ValueError(f"{site} must be in a stack that layers= names, but that names {list(selected)}")
            requests[name].sites.append(local)
    for result, how in reduce.items():
        for name, local in _split_reduction(how, list(selected)).items():
            if name not in selected:
                raise ValueError(f"{result} must be of a stack that layers= names, but that names {list(selected)}")
            requests[name].reduce[result] = local
    for edit in edits:
        stack, local = _locate(edit.site)
        if stack is None:
            raise ValueError(
                f"an edit in an encoder-decoder must name its stack, but got {edit.site}; write encoder.{local} or "
                f"decoder.{local}"
            )
        requests[stack].edits.append(replace(edit, site=local))
    return requests


def _split_layers(layers: LayersLike) -> dict[str, Sequence[int] | None]:
    if not isinstance(layers, Mapping):
        return dict.fromkeys(STACKS, layers)
    unknown = [name for name in layers if name not in STACKS]
    if unknown or not layers:
        raise ValueError(f"layers must be by {' and '.join(STACKS)}, but got {list(layers)}")
    return dict(layers)


def _locate(site: str) -> tuple[str | None, str]:
    """Return the stack of a site, ``None`` if both have it, and its name within the stack."""
    stack, local = locate_site(site)
    if stack == ENCODER and locate_site(local)[0] == DECODER:
        raise ValueError(
            f"{local} must be a site of the decoder, but got {site}; the states of the encoder are resid_post"
        )
    return stack, local


def _split_reduction(how: Reduction | LayerReduction, names: Sequence[str]) -> dict[str, Reduction | LayerReduction]:
    """Return a reduction by stack, in terms of the sites of the stack."""
    sites = (how.site,) if isinstance(how, Reduction) else (*how.sites, *how.optional_sites)
    located = [_locate(site) for site in sites]
    stacks = {stack for stack, _ in located if stack is not None}
    if len(stacks) > 1:
        raise ValueError(f"a reduction must be of one stack, but got {', '.join(sites)}")
    if isinstance(how, Reduction):
        local: Reduction | LayerReduction = replace(how, site=located[0][1])
    else:
        required, optional = ([_locate(site)[1] for site in each] for each in (how.sites, how.optional_sites))
        local = replace(how, sites=tuple(required), optional_sites=tuple(optional))
    return dict.fromkeys(stacks or names, local)
