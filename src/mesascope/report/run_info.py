"""The parts of the page that are words: what was run, where it comes from, how to cite it."""

import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from mesascope.report.text import number, several

OPENED = {  # facts of a model that stand at the top, and what they are called there
    "class": "model class",
    "parameters": "parameters",
    "layers": "layers",
    "heads": "heads",
    "dtype": "dtype",
    "device": "device",
    "kernel": "attention kernel",
}
TIMES = ((3600.0, "h"), (60.0, "min"), (1.0, "s"))


def heading(run: Mapping[str, Any]) -> str:
    """The title of the page."""
    if run.get("title"):
        return str(run["title"])
    return str(run.get("model") if is_inspection(run) else run.get("study") or "A run")


def is_inspection(run: Mapping[str, Any]) -> bool:
    """Whether a model was opened, rather than a study run."""
    return run.get("study") == "inspect"


def badges(run: Mapping[str, Any]) -> list[str]:
    """Short facts that stand above the title."""
    text = run.get("text")
    tokens = text.get("tokens") if isinstance(text, Mapping) else None
    tokens = f"{tokens:,}" if isinstance(tokens, int) else tokens
    found = [
        "inspected model" if is_inspection(run) else f"study {run['study']}" if run.get("study") else "",
        f"{run['scale']} scale" if run.get("scale") else "",
        several(len(run["seeds"]), "seed") if isinstance(run.get("seeds"), list) and run["seeds"] else "",
        f"{tokens} tokens of {text.get('source', 'text')}" if isinstance(text, Mapping) and tokens else "",
        str(run.get("started", ""))[:10],
    ]
    return [one for one in found if one]


def opened(run: Mapping[str, Any], model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was opened, and on what: the facts that a reader of an inspection needs first; nothing for a study."""
    if not is_inspection(run):
        return []
    text = run.get("text")
    text = text if isinstance(text, Mapping) else {}
    known = {**{k: run[k] for k in ("dtype", "device", "kernel") if k in run}, **model}
    rows = [(OPENED[name], _counted(name, known[name])) for name in OPENED if known.get(name) not in (None, "")]
    rows += [("tokens", _tokens(text))] if text.get("tokens") else []
    rows += [("text", str(text["source"]))] if text.get("source") else []
    return rows


def details(model: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """A table of all that was written down about the model; nothing where nothing was."""
    return [("model", _flat(model))] if model else []


def _counted(name: str, value: Any) -> str:
    """A fact as text; a number of parameters also in millions.

    >>> _counted("parameters", 134515008), _counted("dtype", "float32")
    ('134.5 million', 'float32')
    """
    if name != "parameters" or not isinstance(value, int | float):
        return _value(value)
    size, words = next(
        ((s, w) for s, w in ((1e9, " billion"), (1e6, " million"), (1e3, " thousand")) if value >= s), (1, "")
    )
    return f"{value / size:.4g}{words}"


def _tokens(text: Mapping[str, Any]) -> str:
    """How many tokens, and in how many sequences."""
    tokens, sequences = text["tokens"], text.get("sequences")
    many = f"{tokens:,}" if isinstance(tokens, int) else str(tokens)
    if not isinstance(sequences, int) or sequences < 2:
        return many
    return f"{many} in {several(sequences, 'sequence')}"


def command(run: Mapping[str, Any]) -> str:
    """The command line that makes this run again, as recorded or put together."""
    if given := run.get("command"):
        return given if isinstance(given, str) else shlex.join(map(str, given))
    if is_inspection(run):
        return shlex.join(["mesascope", "inspect", str(run.get("model", "MODEL")), *_flags(run)])
    words = ["mesascope", "run", str(run.get("study", "STUDY"))]
    words += ["--scale", str(run["scale"])] if run.get("scale") else []
    words += ["--seeds", str(len(run["seeds"]))] if isinstance(run.get("seeds"), list) and run["seeds"] else []
    return shlex.join(words)


def _flags(run: Mapping[str, Any]) -> list[str]:
    """The options of an inspection that are not those by default."""
    text, given = run.get("text"), run.get("parameters")
    text = text if isinstance(text, Mapping) else {}
    given = given if isinstance(given, Mapping) else {}
    tokens, sequences = text.get("tokens"), text.get("sequences")
    each = tokens // sequences if isinstance(tokens, int) and isinstance(sequences, int) and sequences else None
    told = {
        "--text": text.get("file"),
        "--tokens": each,
        "--sequences": sequences,
        "--measures": ",".join(map(str, given.get("measures") or ())),
        "--steps": ",".join(map(str, given.get("steps") or ())),
        "--device": run.get("device") if run.get("device") != "cpu" else None,
        "--dtype": run.get("dtype") if run.get("dtype") != "float32" else None,
    }
    return [word for name, value in told.items() if value for word in (name, str(value))]


def paper(run: Mapping[str, Any]) -> dict[str, str] | None:
    """The citation as text; an address is kept only if it is one of the web."""
    cited = run.get("citation")
    if not isinstance(cited, Mapping):
        return None
    authors = cited.get("authors", "")
    url = str(cited.get("url") or "")
    return {
        "title": str(cited.get("title", "")),
        "authors": (", ".join(map(str, authors)) if isinstance(authors, list | tuple) else str(authors)).rstrip("."),
        "venue": ", ".join(str(cited[k]) for k in ("venue", "year") if cited.get(k)),
        "url": url if url.startswith(("https://", "http://")) else "",
        "bibtex": str(cited.get("bibtex") or ""),
    }


def parameters(run: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """A table for each part of the parameters; nested names are joined by dots."""
    given = run.get("parameters")
    if not isinstance(given, Mapping):
        return []
    loose = [(str(k), _value(v)) for k, v in given.items() if not isinstance(v, Mapping)]
    parts = [(str(k).replace("_", " "), _flat(v)) for k, v in given.items() if isinstance(v, Mapping) and v]
    return ([("general", loose)] if loose else []) + parts


def setting(run: Mapping[str, Any], arm: str) -> str:
    """What one of a study's settings is called; nothing for its own.

    >>> setting({"parameters": {"text": {"title": "real text"}}}, "text")
    'real text'
    """
    given = run.get("parameters")
    told = given.get(arm) if isinstance(given, Mapping) else None
    return str(told.get("title") or arm) if isinstance(told, Mapping) else arm


def circumstances(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Code, machine and time."""
    names = ("revision", "platform", "threads", "device", "dtype", "started")
    rows = [(name, _moment(run[name]) if name == "started" else str(run[name])) for name in names if run.get(name)]
    text = run.get("text")
    rows += [(f"text: {k}", str(v)) for k, v in text.items()] if isinstance(text, Mapping) else []
    versions = run.get("versions")
    rows += [(str(k), str(v)) for k, v in versions.items()] if isinstance(versions, Mapping) else []
    return rows


def timings(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How long each stage took, and all of them."""
    spent = run.get("seconds")
    if isinstance(spent, int | float):
        return [("all", duration(spent))]
    if not isinstance(spent, Mapping):
        return []
    rows = [(str(k), duration(v)) for k, v in spent.items() if isinstance(v, int | float)]
    return [*rows, ("all", duration(total_seconds(run)))] if len(rows) > 1 else rows


def total_seconds(run: Mapping[str, Any]) -> float:
    """Seconds of all stages; a stage called ``total`` is the sum already."""
    spent = run.get("seconds")
    stages = spent if isinstance(spent, Mapping) else {"total": spent}
    known = {str(k): float(v) for k, v in stages.items() if isinstance(v, int | float)}
    return known.get("total", sum(known.values()))


def notes(run: Mapping[str, Any]) -> list[str]:
    """Remarks made while it ran."""
    given = run.get("notes")
    return [str(one) for one in given] if isinstance(given, list | tuple) else [str(given)] if given else []


def duration(seconds: float | int) -> str:
    """A time in the unit that suits it.

    >>> duration(0.5), duration(90), duration(7200)
    ('0.5 s', '1.5 min', '2 h')
    """
    size, unit = next((one for one in TIMES if seconds >= one[0]), TIMES[-1])
    return f"{number(round(seconds / size, 1) if seconds >= 1 else seconds)} {unit}"


def _flat(value: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """A nested mapping as rows."""
    rows: list[tuple[str, str]] = []
    for key, inner in value.items():
        name = f"{before}{key}"
        rows += _flat(inner, f"{name}.") if isinstance(inner, Mapping) and inner else [(name, _value(inner))]
    return rows


def _value(value: Any) -> str:
    """A parameter as text."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_value, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def _moment(value: Any) -> str:
    """A point in time as people write it; left alone if it is none."""
    try:
        return datetime.fromisoformat(str(value)).strftime("%d %B %Y, %H:%M").lstrip("0")
    except ValueError:
        return str(value)
