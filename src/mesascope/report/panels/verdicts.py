"""Verdicts as cards: the word, the sentence, the number with its interval, and a strip of the seeds."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mesascope.report.text import interval, number, sentence
from mesascope.studies.published import counts

WORDS = {  # the word -> its class in the style sheet, and a sign so that colour never stands alone
    "supported": ("supported", "✓"),
    "contradicted": ("contradicted", "✕"),
    "inconclusive": ("inconclusive", "~"),
    "not tested at this scale": ("untested", "○"),
}
EDGE = 5.0  # per cent of the strip left free at either end


def card(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """What the template writes for one claim."""
    kind, sign = WORDS.get(str(verdict.get("word")), ("untested", "?"))
    unit = str(verdict.get("unit") or "")
    control = verdict.get("control")
    return {
        "kind": kind,
        "sign": sign,
        "word": str(verdict.get("word", "no verdict")),
        "name": str(verdict.get("name", "")).replace("_", " "),
        "sentence": sentence(verdict.get("sentence")),
        "reason": sentence(verdict.get("reason")),
        "source": str(verdict.get("source", "")),
        "about": sentence(verdict.get("about")),
        "value": number(verdict.get("value")) if verdict.get("value") is not None else "",
        "unit": "" if unit == "1" else unit,
        "interval": interval(verdict.get("interval")),
        "level": _per_cent(verdict.get("level")),
        "control": number(control) if control is not None else "",
        "control_about": str(verdict.get("control_about") or ""),
        "difference": interval(verdict.get("difference")),
        "asked": _asked(verdict),
        "strip": strip(verdict),
    }


def counted(verdicts: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many verdicts of each word, in the order of the words; words not met are left out.

    >>> counted([{"word": "supported"}, {"word": "supported"}])
    {'supported': 2}
    """
    return counts(str(one.get("word", "no verdict")) for one in verdicts)


def strip(verdict: Mapping[str, Any]) -> dict[str, Any] | None:
    """Where everything lies on the strip, in per cent of its width; None where there are no numbers."""
    seeds, controls = _numbers(verdict.get("per_seed")), _numbers(verdict.get("control_per_seed"))
    control, value, bound = (_numbers([verdict.get(k)]) for k in ("control", "value", "bound"))
    ends = _numbers(verdict.get("interval"))
    drawn = [*seeds, *controls, *control, *value, *bound, *ends]
    if not seeds and not value:
        return None
    place, marks = _scale(drawn)
    return {
        "seeds": [place(v) for v in seeds],
        "controls": [place(v) for v in controls or control],
        "interval": [place(v) for v in ends] if len(ends) == 2 else [],
        "mean": place(value[0]) if value else None,
        "bound": place(bound[0]) if bound else None,
        "bound_text": number(bound[0]) if bound else "",
        "better": _better(verdict, place(bound[0]) if bound else None),
        "ticks": [(place(v), number(float(f"{v:.6g}"))) for v in marks],
        "words": _in_words(verdict, seeds, controls or control),
    }


def _scale(values: Sequence[float]) -> tuple[Any, list[float]]:
    """A function from a value to per cent of the width, and round values to mark."""
    log = min(values) > 0 and max(values) > 60 * min(values)
    turned = [math.log10(v) for v in values] if log else list(values)
    low, high = min(turned), max(turned)
    if high == low:
        low, high = low - abs(low or 1) * 0.1, high + abs(high or 1) * 0.1
    marks = _log_marks(low, high) if log else _marks(low, high)

    def place(value: float) -> float:
        at = math.log10(value) if log else value
        return round(EDGE + (100 - 2 * EDGE) * (at - low) / (high - low), 2)

    return place, marks


def _marks(low: float, high: float) -> list[float]:
    """Two to five round numbers between the ends.

    >>> _marks(0.0, 1.0)
    [0.0, 0.5, 1.0]
    """
    raw = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_marks(low: float, high: float) -> list[float]:
    """Powers of ten between the ends, at most five."""
    powers = list(range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1))
    every = max(1, -(-len(powers) // 5))
    return [10.0**k for k in powers[::every]] or [10**low, 10**high]


def _better(verdict: Mapping[str, Any], bound: float | None) -> tuple[float, float] | None:
    """The side of the bound on which the claim holds, as start and width."""
    if bound is None:
        return None
    return (bound, 100 - bound) if verdict.get("direction") == "above" else (0.0, bound)


def _asked(verdict: Mapping[str, Any]) -> str:
    """What the claim asks of the number."""
    direction, bound = str(verdict.get("direction") or ""), verdict.get("bound")
    if direction not in ("above", "below"):
        return ""
    if bound is not None:
        return f"must be {direction} {number(bound)}"
    return f"must be {direction} the control" if verdict.get("control") is not None else ""


def _in_words(verdict: Mapping[str, Any], seeds: Sequence[float], controls: Sequence[float]) -> str:
    """The strip for those who cannot see it."""
    parts = [f"per seed: {', '.join(map(number, seeds))}" if seeds else f"value {number(verdict.get('value'))}"]
    parts += [f"control: {', '.join(map(number, controls))}"] if controls else []
    parts += [f"bound: {number(verdict.get('bound'))}"] if verdict.get("bound") is not None else []
    return "; ".join(parts)


def _numbers(values: Any) -> list[float]:
    """The finite numbers of a list."""
    found = values if isinstance(values, list | tuple) else []
    return [float(v) for v in found if isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)]


def _per_cent(level: Any) -> str:
    """A level as a percentage."""
    return f"{100 * level:g} %" if isinstance(level, int | float) else ""
