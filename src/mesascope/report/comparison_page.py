"""The comparison of two runs as one HTML page: what differs in settings and environment, and every verdict of both."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from mesascope.checksums import RunError, read_run_record
from mesascope.report import run_info, run_tables
from mesascope.report.page import load_template, read_asset
from mesascope.report.panels.verdicts import build_card
from mesascope.report.text import format_count, format_sentence
from mesascope.store import write_atomically
from mesascope.studies.cells import OWN_SETTING, load_cells

OPPOSITES = frozenset({"supported", "contradicted"})
VERSION_NAMES = ("mesascope", "torch", "transformers", "numpy", "python")
ENVIRONMENT_NAMES = ("revision", "platform", "processors", "threads", "device", "dtype")


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """Parts of a run that the page shows.

    Attributes:
        name: the name of the directory, or its path if both runs have the same name.
        link: relative address of its report; empty if there is none.
        facts: study, scale, cells, seeds and date, by label.
        settings: parameters by dotted name.
        environment: revision, machine and versions by label.
        verdicts: rows of ``verdicts.json`` by cell and name of the claim.
    """

    name: str
    link: str
    facts: Mapping[str, str]
    settings: Mapping[str, str]
    environment: Mapping[str, str]
    verdicts: Mapping[tuple[str, str], Mapping[str, Any]]


def write_comparison(first: Path | str, second: Path | str, page: Path | str) -> Path:
    """Write the comparison of two runs as one self-contained HTML page.

    Args:
        first: the directory of a run with verdicts.
        second: the directory of the run to compare with.
        page: the file to write, whose name ends with ``.html``.

    Returns:
        The path of the page.

    Raises:
        ValueError: if ``page`` is no ``.html`` file, or its folder does not exist.
        RunError: if a run has no verdicts, or its files are damaged.
    """
    page = Path(page)
    if page.suffix != ".html" or not page.parent.is_dir():
        raise ValueError(f"a page must be an .html file in a folder that exists, but got {page}; give another file")
    write_atomically(page, render_comparison(Path(first), Path(second), page.parent))
    return page


def render_comparison(first: Path, second: Path, folder: Path) -> str:
    """Render the comparison of two runs.

    Args:
        first: the directory of a run with verdicts.
        second: the directory of the run to compare with.
        folder: where the page will lie; links to the reports are relative to it.

    Returns:
        The HTML text.

    Raises:
        RunError: if a run has no verdicts, or its files are damaged.
    """
    paths = (first.resolve(), second.resolve())
    same_name = paths[0].name == paths[1].name
    runs = [_load_compared(path, str(path) if same_name else path.name, folder.resolve()) for path in paths]
    rows = [_compare_verdicts(key, runs) for key in dict.fromkeys(key for run in runs for key in run.verdicts)]
    return load_template("comparison.html.j2").render(
        runs=runs,
        facts=_tabulate_both([run.facts for run in runs]),
        differences=[
            (heading, rows)
            for heading, rows in (
                ("Settings that differ", _find_differences([run.settings for run in runs])),
                ("Environment that differs", _find_differences([run.environment for run in runs])),
            )
            if rows
        ],
        summary=_summarize_changes(rows),
        rows=sorted(rows, key=lambda row: not row["changed"]),
        has_cells=len({row["cell"] for row in rows}) > 1,
        style=Markup(read_asset("page.css")),
    )


def _load_compared(path: Path, name: str, folder: Path) -> ComparedRun:
    record, cells = read_run_record(path), load_cells(path)
    if not cells:
        raise RunError(f"{path} must have verdicts, but has none; finish the run first")
    provenance = record.get("provenance")
    provenance = provenance if isinstance(provenance, Mapping) else {}
    recorded = {**provenance, **record}
    seeds = record.get("seeds")
    facts = {
        "study": record.get("study"),
        "title": run_info.get_page_title(record),
        "scale": record.get("scale"),
        "cells": len(cells) if len(cells) > 1 else cells[0].name.replace(",", ", "),
        "seeds": len(seeds) if isinstance(seeds, list) else None,
        "date": str(recorded.get("started") or "")[:10],
    }
    tables = run_tables.tabulate_parameters(record)
    report = path / "report.html"
    return ComparedRun(
        name=name,
        link=quote(os.path.relpath(report, folder)) if report.is_file() else "",
        facts={label: str(value) for label, value in facts.items() if value},
        settings={f"{heading}: {label}": value for heading, rows in tables for label, value in rows},
        environment={one: str(recorded[one]) for one in (*ENVIRONMENT_NAMES, *VERSION_NAMES) if recorded.get(one)},
        verdicts={
            (cell.name or OWN_SETTING, str(row.get("name") or number)): row
            for cell in cells
            for number, row in enumerate(cell.verdicts)
        },
    )


def _tabulate_both(columns: Sequence[Mapping[str, str]]) -> list[tuple[str, list[str]]]:
    """Return the rows of a table: a label, and its value in each column, or a dash."""
    labels = dict.fromkeys(label for column in columns for label in column)
    return [(label, [column.get(label, "–") for column in columns]) for label in labels]


def _find_differences(columns: Sequence[Mapping[str, str]]) -> list[tuple[str, list[str]]]:
    return [(label, values) for label, values in _tabulate_both(columns) if len(set(values)) > 1]


def _compare_verdicts(key: tuple[str, str], runs: Sequence[ComparedRun]) -> dict[str, Any]:
    """Return the row of one claim in one cell, by the names of the template."""
    verdicts = [run.verdicts.get(key) for run in runs]
    given = [one for one in verdicts if one is not None]
    statuses = {str(one.get("status")) for one in given}
    return {
        "cell": key[0].replace(",", ", "),
        "statement": format_sentence(given[0].get("statement") or key[1]),
        "changed": len(statuses) > 1 or len(given) < len(verdicts),
        "in_both": len(given) == len(verdicts),
        "opposite": statuses == OPPOSITES,
        "cards": [None if one is None else build_card(one) for one in verdicts],
    }


def _summarize_changes(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return how many verdicts differ, and how many are opposite.

    >>> same = {"in_both": True, "changed": False, "opposite": False}
    >>> _summarize_changes([same, same | {"changed": True, "opposite": True}, same | {"in_both": False}])
    '1 of 2 verdicts differs, and 1 is the opposite (supported and contradicted). 1 claim is in one of the runs only.'
    """
    shared = [row for row in rows if row["in_both"]]
    changed, opposite = sum(row["changed"] for row in shared), sum(row["opposite"] for row in shared)
    words = f"{changed} of {format_count(len(shared), 'verdict')} {'differs' if changed == 1 else 'differ'}"
    words += f", and {opposite or 'none'} {'is' if opposite < 2 else 'are'} the opposite (supported and contradicted)."
    if unmatched := len(rows) - len(shared):
        words += f" {format_count(unmatched, 'claim')} {'is' if unmatched == 1 else 'are'} in one of the runs only."
    return words
