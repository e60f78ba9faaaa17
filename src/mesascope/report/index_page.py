"""The index of a folder of runs: one HTML table with links to the reports. Only the files of the runs are read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from mesascope.checksums import read_run_record
from mesascope.report.page import load_template, read_asset
from mesascope.report.panels.verdicts import STATUS_STYLES
from mesascope.report.run_info import get_page_title
from mesascope.report.text import format_count
from mesascope.store import write_atomically
from mesascope.studies.cells import load_cells
from mesascope.studies.published import list_runs


def write_run_index(folder: Path | str) -> Path:
    """Write the index of a folder of runs.

    Args:
        folder: the folder that contains the run directories.

    Returns:
        The path of the written ``index.html``.

    Raises:
        ValueError: if there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(
            f"the folder of runs must exist, but {folder} does not; give the folder that contains the runs"
        )
    path = folder / "index.html"
    write_atomically(path, render_index(folder))
    return path


def render_index(folder: Path) -> str:
    """Render the index of a folder of runs.

    Args:
        folder: the folder that contains the run directories.

    Returns:
        The HTML text. The row of a run that cannot be read says why.
    """
    rows = [_describe_run(row) for row in list_runs(folder)]
    style = Markup(read_asset("page.css"))
    return load_template("index.html.j2").render(folder=folder.resolve().name, rows=rows, style=style)


def _describe_run(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the texts of a row, by their names in the template."""
    path = Path(row["path"])
    has_report = (path / "report.html").is_file()
    return {
        "name": path.name,
        "link": f"{quote(path.name)}/report.html" if has_report else "",
        "state": row["state"],
        "study": str(row["study"] or "–"),
        "scale": str(row["scale"] or "–"),
        "verdicts": [
            (count, status, *STATUS_STYLES.get(status, ("untested", "?"))) for status, count in row["verdicts"].items()
        ],
        **_describe_record(path),
    }


def _describe_record(path: Path) -> dict[str, str]:
    """Return title, cells, date and number of seeds of a run; dashes if it cannot be read."""
    try:
        record, cells = read_run_record(path), load_cells(path)
    except (OSError, ValueError):  # the state of the run has the reason
        return {"title": "", **dict.fromkeys(("cells", "date", "seeds"), "–")}
    seeds = record.get("seeds")
    provenance = record.get("provenance")
    started = record.get("started") or (provenance.get("started") if isinstance(provenance, Mapping) else None)
    return {
        "title": get_page_title(record),
        "cells": _describe_cells([one.name for one in cells]),
        "date": str(started or "–")[:10],
        "seeds": str(len(seeds)) if isinstance(seeds, list) and seeds else "–",
    }


def _describe_cells(names: Sequence[str]) -> str:
    """Return the levels of the only cell, or the number of cells; a dash for a study without factors."""
    if len(names) > 1:
        return format_count(len(names), "cell")
    return ", ".join(names).replace(",", ", ") or "–"
