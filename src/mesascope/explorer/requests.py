"""Requests of the page: JSON objects, checked and passed to the views."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from mesascope.activations.exclusive_use import exclusive_use
from mesascope.explorer import vector_views, views
from mesascope.explorer.subject import ExploredModel
from mesascope.explorer.vector_sequences import VectorSequences
from mesascope.explorer.view_parts import View

MAX_BODY = 200_000  # bytes of a request
MAX_SHOWN = 60  # letters of a wrong value in a message


def _is_prompt(value: Any) -> bool:
    return isinstance(value, str) or _is_integer(value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_pair_list(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(map(_is_integer, pair)) for pair in value
    )


PROMPT = (_is_prompt, "a text, or the number of a sequence")
INTEGER = (_is_integer, "an integer of up to 64 bits")
TEXT = (lambda value: isinstance(value, str), "a text")
HEADS = (_is_pair_list, "a list of pairs of layer and head, such as [[0, 1], [2, 3]]")
Kind = tuple[Callable[[Any], bool], str]
# by name: the view, the keys that it needs, and those that may be left out; the first view shows the input
ViewTable = Mapping[str, tuple[Callable[..., View], Mapping[str, Kind], Mapping[str, Kind]]]

PATTERN = (views.view_pattern, {"prompt": PROMPT, "layer": INTEGER, "head": INTEGER}, {})
TOKEN_VIEWS: ViewTable = {
    "tokens": (views.view_tokens, {"prompt": PROMPT}, {}),
    "pattern": PATTERN,
    "lens": (views.view_lens, {"prompt": PROMPT, "position": INTEGER}, {"k": INTEGER}),
    "attribution": (views.view_attribution, {"prompt": PROMPT, "position": INTEGER}, {"token": INTEGER}),
    "ablation": (
        views.view_ablation,
        {"prompt": PROMPT, "heads": HEADS},
        {"method": TEXT, "position": INTEGER, "k": INTEGER},
    ),
    "patching": (
        views.view_patching,
        {"prompt": PROMPT, "source_prompt": PROMPT, "site": TEXT, "layer": INTEGER, "position": INTEGER},
        {"head": INTEGER, "read_position": INTEGER, "k": INTEGER},
    ),
}
VECTOR_VIEWS: ViewTable = {
    "terms": (vector_views.view_terms, {"prompt": PROMPT}, {}),
    "pattern": PATTERN,
    "lens": (vector_views.view_term_lens, {"prompt": PROMPT, "position": INTEGER}, {}),
    "objective": (vector_views.view_objective, {"prompt": PROMPT, "position": INTEGER}, {"objective": TEXT}),
    "attribution": (
        vector_views.view_term_attribution,
        {"prompt": PROMPT, "position": INTEGER},
        {"coordinate": INTEGER},
    ),
    "ablation": (vector_views.view_term_ablation, {"prompt": PROMPT, "heads": HEADS}, {"method": TEXT}),
    "patching": (
        vector_views.view_term_patching,
        {"prompt": PROMPT, "source_prompt": PROMPT, "site": TEXT, "layer": INTEGER, "position": INTEGER},
        {"head": INTEGER},
    ),
}


def find_views(subject: ExploredModel) -> ViewTable:
    """Return the views of a model: those of tokens or those of vectors.

    Args:
        subject: the explored model.
    """
    return VECTOR_VIEWS if isinstance(subject.source, VectorSequences) else TOKEN_VIEWS


def answer_request(subject: ExploredModel, view: str, body: bytes) -> View:
    """Compute a view; one request after another uses the model.

    Args:
        subject: the explored model.
        view: the name of the view, a key of `find_views`.
        body: the request, a JSON object with the arguments of the view.

    Returns:
        The view.

    Raises:
        ValueError: the request is malformed, or the view refuses it.
    """
    function, needed, optional = find_views(subject)[view]
    arguments = _parse_object(body)
    missing = next((key for key in needed if key not in arguments), None)
    if missing is not None:
        raise ValueError(f"a request for {view} must have {', '.join(needed)}, but lacks {missing}")
    kinds = {**needed, **optional}
    for key, value in arguments.items():
        if key not in kinds:
            raise ValueError(f"a request for {view} must have no keys but {', '.join(kinds)}, but has {_shorten(key)}")
        is_valid, expected = kinds[key]
        if not is_valid(value):
            raise ValueError(f"{key} must be {expected}, but got {_shorten(value)}")
    with exclusive_use(subject.model):
        return function(subject, **arguments)


def _parse_object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"a request must be a JSON object, but cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"a request must be a JSON object, but is {_shorten(value)}")
    return value


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"
