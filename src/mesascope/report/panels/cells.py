"""Map of verdicts: one row per claim, one column per cell of the study's factors."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mesascope.report.panels.verdicts import build_card
from mesascope.report.text import format_count, format_sentence
from mesascope.studies.cells import OWN_SETTING, JudgedCell, load_cells, tabulate_claims


def build_cell_map(run_dir: Path, run: Mapping[str, Any]) -> dict[str, Any] | None:
    """Build the template values of the map of verdicts over cells.

    Args:
        run_dir: the run directory.
        run: the contents of ``run.json``.

    Returns:
        ``columns`` (one per cell: its levels, number of seeds, and a link to its report), ``rows`` (one per claim: its
        statement, in how many cells it is supported, and the status in each cell) and ``factors`` (name, description
        and levels); None unless two or more cells have been judged.
    """
    cells = load_cells(run_dir)
    if len(cells) < 2:
        return None
    varied = list_varied_factors(cells)
    claims = [claim for claim in tabulate_claims(cells) if claim.kind != "check"]
    return {
        "columns": [_build_column(cell, varied, run_dir) for cell in cells],
        "rows": [
            {
                "statement": format_sentence(claim.statement),
                "support": claim.support,
                "cells": [
                    build_card({"status": claim.statuses[cell.name]}) if cell.name in claim.statuses else None
                    for cell in cells
                ],
            }
            for claim in claims
        ],
        "factors": describe_factors(run, varied),
    }


def list_varied_factors(cells: Sequence[JudgedCell]) -> list[str]:
    """Return the factors that differ between cells.

    Args:
        cells: the judged cells of a run.
    """
    names = dict.fromkeys(name for cell in cells for name in cell.levels)
    return [name for name in names if len({cell.levels.get(name) for cell in cells}) > 1]


def describe_factors(run: Mapping[str, Any], names: Sequence[str]) -> list[tuple[str, str]]:
    """Return a sentence about each factor: what it is, and what its levels are.

    Args:
        run: the contents of ``run.json``.
        names: of the factors.

    Returns:
        pairs of name and sentence; factors that are not recorded are left out.

    >>> run = {"factors": {"heads": {"description": "heads per layer", "levels": {"4": "4 heads", "1": "1 head"}}}}
    >>> describe_factors(run, ["heads"])
    [('heads', 'heads per layer. 4: 4 heads; 1: 1 head')]
    """
    recorded = run.get("factors")
    factors = recorded if isinstance(recorded, Mapping) else {}
    sentences = []
    for name in names:
        factor = factors.get(name)
        if isinstance(factor, Mapping) and isinstance(factor.get("levels"), Mapping):
            levels = "; ".join(f"{level}: {words}" for level, words in factor["levels"].items())
            sentences.append((name, f"{factor.get('description', '')}. {levels}"))
    return sentences


def _build_column(cell: JudgedCell, varied: Sequence[str], run_dir: Path) -> dict[str, Any]:
    own = cell.path == run_dir
    return {
        "levels": [(name, cell.levels.get(name, OWN_SETTING)) for name in varied],
        "seeds": format_count(cell.seeds, "seed"),
        "link": "" if own else f"{cell.path.relative_to(run_dir).as_posix()}/report.html",
    }
