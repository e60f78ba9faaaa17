"""Verdicts of runs and published verdicts, read from files without importing torch."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mesascope.checksums import is_older_format, read_run_record, read_verdict_rows
from mesascope.studies.cells import CELLS_FOLDER

PUBLISHED = Path(__file__).parent / "published.json"  # written with the pages under docs/studies
DECIDED_STATUSES = ("supported", "contradicted", "no effect", "inconclusive", "not learned")
STATUSES = (*DECIDED_STATUSES, "not tested at this scale")  # in the order in which they are printed


def load_published() -> dict[str, dict[str, Any]]:
    """Load the published verdicts: by study the scale, the number of seeds, and the status of each claim.

    Returns:
        The content of ``published.json``: ``verdicts`` has the claims of replications, ``others`` the simulations and
        the checks, which hold or fail. For a study that was run in several cells of its factors, ``cells`` has the
        same of each further cell. ``further_scales`` has the entry of every other scale that was published.
    """
    return json.loads(PUBLISHED.read_text(encoding="utf-8"))


def list_statuses(entry: Mapping[str, Any]) -> list[str]:
    """Return the statuses of all claims of a published study, in all cells of its grid.

    Args:
        entry: The entry of the study in :func:`load_published`.

    Returns:
        One status per claim and cell, without simulations and checks.

    >>> list_statuses({"verdicts": {"a": "supported"}, "cells": {"heads=1": {"verdicts": {"a": "no effect"}}}})
    ['supported', 'no effect']
    """
    cells = [entry, *entry.get("cells", {}).values()]
    return [status for cell in cells for status in cell["verdicts"].values()]


def list_runs(folder: Path) -> list[dict[str, Any]]:
    """List the runs in a folder.

    Args:
        folder: The folder that contains the run directories.

    Returns:
        One row per run: path, study, scale, state and number of verdicts by status. The state of a run that cannot be
        read says why.
    """
    return [_summarize_run(file.parent) for file in sorted(folder.glob("*/run.json"))]


def load_latest_verdicts(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the latest verdicts of every study: of the last run in a folder that decided a claim, else the published.

    Args:
        folder: The folder that contains the run directories.

    Returns:
        By study: the run (None if published), the scale, and the number of verdicts by status.
    """
    found = {
        name: {"run": None, "scale": one["scale"], "verdicts": count_statuses(list_statuses(one))}
        for name, one in load_published().items()
    }
    judged = sorted(folder.glob("*/verdicts.json"), key=lambda file: file.stat().st_mtime)
    for row in map(_summarize_run, (file.parent for file in judged)):
        if set(row["verdicts"]) & set(DECIDED_STATUSES):
            found[row["study"]] = {"run": row["path"], "scale": row["scale"], "verdicts": row["verdicts"]}
    return found


def count_statuses(statuses: Iterable[str]) -> dict[str, int]:
    """Count the verdicts of each status.

    Args:
        statuses: The statuses of verdicts.

    Returns:
        Counts in the canonical order of statuses; statuses that do not occur are left out.

    >>> count_statuses(["not tested", "contradicted", "supported", "contradicted"])
    {'supported': 1, 'contradicted': 2, 'not tested': 1}
    """
    given = list(statuses)
    order = [*STATUSES, *sorted(set(given) - set(STATUSES))]
    return {status: given.count(status) for status in order if status in given}


def _summarize_run(path: Path) -> dict[str, Any]:
    """Return the row of one run."""
    empty = {"path": str(path), "study": "?", "scale": None, "verdicts": {}}
    try:
        record = read_run_record(path)
        rows = [row for file in _list_verdict_files(path) for row in read_verdict_rows(file.parent)]
        words = [row["status"] for row in rows if row.get("kind", "replication") == "replication"]
        verdicts = {"study": record.get("study"), "scale": record.get("scale"), "verdicts": count_statuses(words)}
    except (OSError, ValueError) as error:
        return {**empty, "state": f"unreadable: {error}"}
    state = "done" if (path / "report.html").exists() else "unfinished"
    return {**empty, **verdicts, "state": f"{state}, without checksums" if is_older_format(record) else state}


def _list_verdict_files(path: Path) -> list[Path]:
    """Return the files of verdicts of a run: its own, and those of the other cells of its grid."""
    own = path / "verdicts.json"
    return [*([own] if own.exists() else []), *sorted((path / CELLS_FOLDER).glob("*/verdicts.json"))]
