"""One attention call, seen and edited: what goes in, scores, weights, and what each head gives."""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor

from mesascope.activations.hooks import attention_math
from mesascope.activations.hooks.attention_interface import Attended
from mesascope.activations.layer_spec import Layer
from mesascope.activations.sites import UnsupportedModel

Touch = Callable[[str, int, Tensor], Tensor]
Room = Callable[[str, int, Tensor], Tensor | None]
Wanted = set[tuple[str, int]]
SCORES = 2**19  # made at once, so that they stay in the cache of a processor until they are weights


def attend(
    call: Attended,
    layer: Layer,
    number: int,
    wanted: Wanted,
    touch: Touch,
    queries: Int[Tensor, " query"] | None,
    room: Room | None,
) -> tuple[Tensor, Tensor | None]:
    """Show what goes in, let the original compute, show what comes out; mix by hand only what was edited."""

    def show(site: str, value: Tensor) -> Tensor:
        return touch(site, number, value) if (site, number) in wanted else value

    query, key, value = show("query", call.query), show("key", call.key), show("value", call.value)
    out, returned = call.run(query, key, value)
    if queries is not None:
        with torch.no_grad():
            _show_rows(call, layer, (query.detach(), key.detach(), returned), queries, show, wanted, number)
    elif ("score", number) in wanted or ("pattern", number) in wanted:
        with torch.no_grad():
            pattern = _show_all(call, layer, (query.detach(), key.detach(), returned), show, wanted, number, room)
        if pattern is not None:
            out = attention_math.mix(pattern, value)
    return show("head_out", out), returned


def _show_all(
    call: Attended,
    layer: Layer,
    seen: tuple[Tensor, Tensor, Tensor | None],
    show: Callable[[str, Tensor], Tensor],
    wanted: Wanted,
    number: int,
    room: Room | None,
) -> Tensor | None:
    """Show score and pattern; give the pattern if either was edited."""
    query, key, returned = seen
    place = partial(room, "pattern", number) if room is not None and ("pattern", number) in wanted else None
    pattern = before = attention_weights(call, layer, query, key, returned, place)
    if ("score", number) in wanted:
        score = attention_math.score_of(call.scores(query, key), call.added(query, key))
        shown = show("score", score)
        pattern = pattern if shown is score else attention_math.pattern_of_score(shown)
    pattern = show("pattern", pattern)
    return None if pattern is before else pattern


def _show_rows(
    call: Attended,
    layer: Layer,
    seen: tuple[Tensor, Tensor, Tensor | None],
    queries: Int[Tensor, " query"],
    show: Callable[[str, Tensor], Tensor],
    wanted: Wanted,
    number: int,
) -> None:
    """Show the rows of some queries; no other row is computed where the softmax of plain scores is the pattern."""
    query, key, returned = seen
    plain = layer.weights is not None and layer.weights.how == "plain"
    if ("score", number) in wanted or (("pattern", number) in wanted and plain):
        score, added = call.scores(query[:, :, queries], key), call.added(query, key)[:, :, queries]
        if ("score", number) in wanted:
            show("score", attention_math.score_of(score, added))
        if ("pattern", number) in wanted and plain:
            show("pattern", attention_math.pattern_of(score, added))
    if ("pattern", number) in wanted and not plain:
        show("pattern", attention_weights(call, layer, query, key, returned)[:, :, queries])


def attention_weights(
    call: Attended,
    layer: Layer,
    query: Tensor,
    key: Tensor,
    returned: Tensor | None,
    room: Callable[[Tensor], Tensor | None] | None = None,
) -> Tensor:
    """The attention weights of one call, in the way that was found to be right for its layer."""
    how = layer.weights.how if layer.weights else "returned"
    if how == "plain":
        like = query.new_empty(()).expand(*query.shape[:3], key.shape[2])
        place = None if room is None else room(like)
        return _plain(call, query, key, like.new_empty(like.shape) if place is None else place)
    if how == "unit":
        return call.run_unit(query, key)
    found = returned if how == "returned" else call.run_eager(query, key, call.value)
    if found is None:
        raise UnsupportedModel(f"{layer.block} must give its attention weights, but the {call.kernel} kernel gave none")
    return found


def _plain(call: Attended, query: Tensor, key: Tensor, place: Tensor) -> Tensor:
    """The softmax of plain scores, put into its place a few sequences at a time: their scores stay in the cache."""
    added = call.added(query, key).expand(len(query), -1, -1, -1)
    some = max(1, SCORES // place[0].numel()) if place.device.type == "cpu" else len(place)
    for start in range(0, len(place), some):
        rows = slice(start, start + some)
        pattern = attention_math.pattern_of(call.scores(query[rows], key[rows]), added[rows], place[rows])
        if pattern.data_ptr() != place[rows].data_ptr():
            place[rows] = pattern
    return place
