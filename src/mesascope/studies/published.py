"""What runs came to, read from their files and from what is published: needs no torch."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PUBLISHED = Path(__file__).parent / "published.json"  # written with the pages under docs/studies
DECIDED = ("supported", "contradicted", "inconclusive")
WORDS = (*DECIDED, "not tested at this scale")  # of a verdict, in the order in which they are shown


def published() -> dict[str, dict[str, Any]]:
    """What the runs behind the pages under docs/studies came to: by study its scale, seeds and verdicts by claim."""
    return json.loads(PUBLISHED.read_text(encoding="utf-8"))


def runs(folder: Path) -> list[dict[str, Any]]:
    """The runs in a folder, each by path, study, scale, state, and how many verdicts of each kind it has; a run that
    cannot be read says so.
    """
    return [_run(file.parent) for file in sorted(folder.glob("*/run.json"))]


def last(folder: Path) -> dict[str, dict[str, Any]]:
    """By study what the last run in a folder came to that decided anything, else what is published of it."""
    found = {
        name: {"run": None, "scale": one["scale"], "verdicts": counts(one["verdicts"].values())}
        for name, one in published().items()
    }
    judged = sorted(folder.glob("*/verdicts.json"), key=lambda file: file.stat().st_mtime)
    for row in map(_run, (file.parent for file in judged)):
        if set(row["verdicts"]) & set(DECIDED):
            found[row["study"]] = {"run": row["path"], "scale": row["scale"], "verdicts": row["verdicts"]}
    return found


def counts(words: Iterable[str]) -> dict[str, int]:
    """How often each word of a verdict was said, in the order of the words; words not met are left out.

    >>> counts(["not tested", "contradicted", "supported", "contradicted"])
    {'supported': 1, 'contradicted': 2, 'not tested': 1}
    """
    said = list(words)
    return {word: said.count(word) for word in sorted(set(said), key=[*WORDS, *sorted(set(said) - set(WORDS))].index)}


def _run(path: Path) -> dict[str, Any]:
    """One run."""
    empty = {"path": str(path), "study": "?", "scale": None, "verdicts": {}}
    try:
        record = json.loads((path / "run.json").read_text(encoding="utf-8"))
        file = path / "verdicts.json"
        words = [row["word"] for row in json.loads(file.read_text(encoding="utf-8"))] if file.exists() else []
        told = {"study": record.get("study"), "scale": record.get("scale"), "verdicts": counts(words)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return {**empty, "state": f"unreadable: {error}"}
    return {**empty, **told, "state": "done" if (path / "report.html").exists() else "unfinished"}
