"""Verdicts as cards: status, statement, value with interval, and a strip plot of the seeds."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mesascope.report.text import format_interval, format_number, format_sentence
from mesascope.studies.published import count_statuses

STATUS_STYLES = {  # status -> CSS class, and a symbol because colour must not be the only cue
    "supported": ("supported", "✓"),
    "contradicted": ("contradicted", "✕"),
    "no effect": ("no-effect", "="),
    "inconclusive": ("inconclusive", "~"),
    "not learned": ("not-learned", "∅"),
    "not tested at this scale": ("untested", "○"),
    "holds": ("untested", "✓"),
    "fails": ("contradicted", "✕"),
}
GROUPS = {  # kind of claim -> heading and explanation
    "replication": ("Verdicts", ""),
    "simulation": (
        "Simulations",
        "Claims about toy models. Their seeds are draws of one deterministic process, not replications of training.",
    ),
    "check": (
        "Sanity checks",
        "These hold by construction, or their control could not come out the other way. They are no evidence.",
    ),
}
STRIP_MARGIN = 5.0  # margin at either end, in percent of the width


def build_card(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """Build the template values of one verdict.

    Args:
        verdict: an entry of ``verdicts.json``.

    Returns:
        Texts and the strip plot.
    """
    kind, sign = STATUS_STYLES.get(str(verdict.get("status")), ("untested", "?"))
    unit = str(verdict.get("unit") or "")
    control = verdict.get("control")
    return {
        "kind": kind,
        "sign": sign,
        "status": str(verdict.get("status", "no verdict")),
        "name": str(verdict.get("name", "")).replace("_", " "),
        "statement": format_sentence(verdict.get("statement")),
        "reason": format_sentence(verdict.get("reason")),
        "source": str(verdict.get("source", "")),
        "description": format_sentence(verdict.get("description")),
        "value": format_number(verdict.get("value")) if verdict.get("value") is not None else "",
        "unit": "" if unit == "1" else unit,
        "interval": format_interval(verdict.get("interval")),
        "level": _format_percent(verdict.get("level")),
        "control": format_number(control) if control is not None else "",
        "control_description": str(verdict.get("control_description") or ""),
        "difference": format_interval(verdict.get("difference")),
        "requirement": _format_requirement(verdict),
        "strip": build_strip(verdict),
    }


def build_claim_groups(verdicts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Build the template values of all verdicts, grouped by the kind of their claim.

    Args:
        verdicts: the entries of ``verdicts.json``.

    Returns:
        One entry per kind that occurs: its name, heading, explanation, cards, and counts of statuses.
    """
    groups = []
    for kind, (heading, note) in GROUPS.items():
        members = [one for one in verdicts if get_kind(one) == kind]
        counts = [(count, build_card({"status": word})) for word, count in count_verdicts(members).items()]
        group = {"kind": kind, "heading": heading, "note": note, "cards": [build_card(one) for one in members]}
        groups += [group | {"counts": counts}] if members else []
    return groups


def get_kind(verdict: Mapping[str, Any]) -> str:
    """Return the kind of the claim of a verdict; a replication unless it says otherwise.

    Args:
        verdict: an entry of ``verdicts.json``.
    """
    kind = verdict.get("kind")
    return kind if isinstance(kind, str) and kind in GROUPS else "replication"


def count_verdicts(verdicts: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Count the verdicts of each status.

    Args:
        verdicts: the entries of ``verdicts.json``.

    Returns:
        Counts in the canonical order of statuses; statuses that do not occur are left out.

    >>> count_verdicts([{"status": "supported"}, {"status": "supported"}])
    {'supported': 2}
    """
    return count_statuses(str(one.get("status", "no verdict")) for one in verdicts)


def build_strip(verdict: Mapping[str, Any]) -> dict[str, Any] | None:
    """Compute the positions on the strip plot of a verdict.

    Args:
        verdict: an entry of ``verdicts.json``.

    Returns:
        Positions in percent of the width, tick labels and a text description; None if there are no numbers.
    """
    seeds, controls = (_keep_finite_numbers(verdict.get(k)) for k in ("per_seed", "control_per_seed"))
    control, value, threshold = (_keep_finite_numbers([verdict.get(k)]) for k in ("control", "value", "threshold"))
    ends = _keep_finite_numbers(verdict.get("interval"))
    all_values = [*seeds, *controls, *control, *value, *threshold, *ends]
    if not seeds and not value:
        return None
    to_percent, tick_values = _build_strip_scale(all_values)
    return {
        "seeds": [to_percent(v) for v in seeds],
        "controls": [to_percent(v) for v in controls or control],
        "interval": [to_percent(v) for v in ends] if len(ends) == 2 else [],
        "mean": to_percent(value[0]) if value else None,
        "threshold": to_percent(threshold[0]) if threshold else None,
        "threshold_text": format_number(threshold[0]) if threshold else "",
        "better": _locate_passing_side(verdict, to_percent(threshold[0]) if threshold else None),
        "ticks": [(to_percent(v), format_number(float(f"{v:.6g}"))) for v in tick_values],
        "words": _describe_strip(verdict, seeds, controls or control),
    }


def _build_strip_scale(values: Sequence[float]) -> tuple[Any, list[float]]:
    """Return the function from a value to percent of the width, and the values of the ticks."""
    log = min(values) > 0 and max(values) > 60 * min(values)
    scaled = [math.log10(v) for v in values] if log else list(values)
    low, high = min(scaled), max(scaled)
    if high == low:
        low, high = low - abs(low or 1) * 0.1, high + abs(high or 1) * 0.1
    tick_values = _choose_log_ticks(low, high) if log else _choose_linear_ticks(low, high)

    def to_percent(value: float) -> float:
        at = math.log10(value) if log else value
        return round(STRIP_MARGIN + (100 - 2 * STRIP_MARGIN) * (at - low) / (high - low), 2)

    return to_percent, tick_values


def _choose_linear_ticks(low: float, high: float) -> list[float]:
    """Return two to five round numbers between the ends.

    >>> _choose_linear_ticks(0.0, 1.0)
    [0.0, 0.5, 1.0]
    """
    raw = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _choose_log_ticks(low: float, high: float) -> list[float]:
    """Return at most five powers of ten between the ends, given as logarithms."""
    powers = list(range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1))
    every = max(1, -(-len(powers) // 5))
    return [10.0**k for k in powers[::every]] or [10**low, 10**high]


def _locate_passing_side(verdict: Mapping[str, Any], threshold: float | None) -> tuple[float, float] | None:
    """Return start and width of the side of the threshold on which the claim holds."""
    if threshold is None:
        return None
    return (threshold, 100 - threshold) if verdict.get("direction") == "above" else (0.0, threshold)


def _format_requirement(verdict: Mapping[str, Any]) -> str:
    direction, threshold = str(verdict.get("direction") or ""), verdict.get("threshold")
    if direction not in ("above", "below"):
        return ""
    if threshold is not None:
        return f"must be {direction} {format_number(threshold)}"
    return f"must be {direction} the control" if verdict.get("control") is not None else ""


def _describe_strip(verdict: Mapping[str, Any], seeds: Sequence[float], controls: Sequence[float]) -> str:
    """Return the text alternative of the strip plot."""
    parts = [
        f"per seed: {', '.join(map(format_number, seeds))}" if seeds else f"value {format_number(verdict.get('value'))}"
    ]
    parts += [f"control: {', '.join(map(format_number, controls))}"] if controls else []
    parts += [f"threshold: {format_number(verdict.get('threshold'))}"] if verdict.get("threshold") is not None else []
    return "; ".join(parts)


def _keep_finite_numbers(values: Any) -> list[float]:
    numbers = values if isinstance(values, list | tuple) else []
    return [float(v) for v in numbers if isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)]


def _format_percent(level: Any) -> str:
    return f"{100 * level:g}%" if isinstance(level, int | float) else ""
