"""Tables of the report: model, parameters, environment and timings of the run."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from mesascope.formulas import render_plain
from mesascope.report.text import format_number

TIME_UNITS = ((3600.0, "h"), (60.0, "min"), (1.0, "s"))


def tabulate_model(model: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Tabulate everything that is recorded about the model.

    Args:
        model: the contents of ``model.json``.

    Returns:
        At most one table: a heading and its rows.
    """
    return [("model", _flatten_mapping(model))] if model else []


def tabulate_parameters(run: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Tabulate the parameters of a run; nested names are joined by dots.

    Args:
        run: the contents of ``run.json``.

    Returns:
        A heading and its rows for each group of parameters.
    """
    given = run.get("parameters")
    if not isinstance(given, Mapping):
        return []
    loose = [(str(k), format_value(v)) for k, v in given.items() if not isinstance(v, Mapping)]
    parts = [(str(k).replace("_", " "), _flatten_mapping(v)) for k, v in given.items() if isinstance(v, Mapping) and v]
    return ([("general", loose)] if loose else []) + parts


def tabulate_environment(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Tabulate code revision, machine, text and package versions.

    Args:
        run: the contents of ``run.json``.

    Returns:
        Pairs of label and value.
    """
    names = ("revision", "platform", "threads", "device", "dtype", "started")
    rows = [(name, _format_date(run[name]) if name == "started" else str(run[name])) for name in names if run.get(name)]
    text = run.get("text")
    rows += [(f"text: {k}", str(v)) for k, v in text.items()] if isinstance(text, Mapping) else []
    versions = run.get("versions")
    rows += [(str(k), str(v)) for k, v in versions.items()] if isinstance(versions, Mapping) else []
    return rows


def tabulate_timings(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Tabulate the duration of each stage and the total.

    Args:
        run: the contents of ``run.json``.

    Returns:
        Pairs of stage and duration.
    """
    seconds = run.get("seconds")
    if isinstance(seconds, int | float):
        return [("total", _format_duration(seconds))]
    if not isinstance(seconds, Mapping):
        return []
    rows = [(str(k), _format_duration(v)) for k, v in seconds.items() if isinstance(v, int | float)]
    return [*rows, ("total", _format_duration(sum_stage_seconds(run)))] if len(rows) > 1 else rows


def sum_stage_seconds(run: Mapping[str, Any]) -> float:
    """Sum the duration of all stages. A stage named ``total`` is used as the sum.

    Args:
        run: the contents of ``run.json``.

    Returns:
        The duration in seconds; 0 if unknown.
    """
    seconds = run.get("seconds")
    stages = seconds if isinstance(seconds, Mapping) else {"total": seconds}
    durations = {str(k): float(v) for k, v in stages.items() if isinstance(v, int | float)}
    return durations.get("total", sum(durations.values()))


def _format_duration(seconds: float | int) -> str:
    """Format a duration in a suitable unit.

    >>> _format_duration(0.5), _format_duration(90), _format_duration(7200)
    ('0.5 s', '1.5 min', '2 h')
    """
    size, unit = next((one for one in TIME_UNITS if seconds >= one[0]), TIME_UNITS[-1])
    return f"{format_number(round(seconds / size, 1) if seconds >= 1 else seconds)} {unit}"


def _flatten_mapping(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, inner in value.items():
        name = f"{prefix}{key}"
        inner = render_plain(inner) if name == "title" and isinstance(inner, str) else inner
        rows += (
            _flatten_mapping(inner, f"{name}.")
            if isinstance(inner, Mapping) and inner
            else [(name, format_value(inner))]
        )
    return rows


def format_value(value: Any) -> str:
    """Format a recorded value.

    Args:
        value: a value of ``run.json`` or ``model.json``.

    Returns:
        The text.

    >>> format_value([True, 0.5])
    'yes, 0.5'
    """
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(format_value, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def _format_date(value: Any) -> str:
    """Format an ISO date; return other text unchanged."""
    try:
        return datetime.fromisoformat(str(value)).strftime("%d %B %Y, %H:%M").lstrip("0")
    except ValueError:
        return str(value)
