"""Verdicts of a run in all cells of its grid, read from files without importing torch.

The directory of a run holds the study in its own setting; each further cell is a run of its own under ``cells/``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesascope.checksums import RunError, read_run_record, read_verdict_rows
from mesascope.studies.cell_names import Cell, parse_cell

CELLS_FOLDER = "cells"
OWN_SETTING = "as in the study"  # stands for the empty name of a cell beside others


@dataclass(frozen=True, kw_only=True)
class JudgedCell:
    """The verdicts of one cell.

    Attributes:
        name: such as ``block=bare,heads=4``; empty for a study without factors.
        path: the directory of its run.
        seeds: number of seeds.
        verdicts: rows of ``verdicts.json``.
    """

    name: str
    path: Path
    seeds: int
    verdicts: Sequence[Mapping[str, Any]]

    @property
    def levels(self) -> Cell:
        """The level of every factor."""
        return parse_cell(self.name) if self.name else {}


@dataclass(frozen=True, kw_only=True)
class ClaimOverCells:
    """The verdicts on one claim in all cells.

    Attributes:
        name: of the claim.
        statement: of the claim.
        source: who claims it.
        kind: replication, simulation or check.
        statuses: the verdict by the name of a cell.
    """

    name: str
    statement: str
    source: str
    kind: str
    statuses: Mapping[str, str]

    @property
    def support(self) -> str:
        """In how many cells the claim is supported, or the check holds, such as ``5 of 8``."""
        word = "holds" if self.kind == "check" else "supported"
        return f"{sum(status == word for status in self.statuses.values())} of {len(self.statuses)}"


def load_cells(run_dir: Path) -> list[JudgedCell]:
    """Load the verdicts of all cells of a run that have been judged.

    Args:
        run_dir: the directory of the run.

    Returns:
        the study's own setting first, then other cells in the order of their levels; cells that are not judged yet are
        left out.

    Raises:
        RunError: the files of a cell are damaged.
    """
    folders = [run_dir, *sorted((run_dir / CELLS_FOLDER).glob("*"))]
    cells = [cell for folder in folders if (cell := _load_cell(folder)) is not None]
    order = _read_level_order(run_dir)
    return sorted(cells, key=lambda cell: [order.get(pair, len(order)) for pair in cell.levels.items()])


def tabulate_claims(cells: Sequence[JudgedCell]) -> list[ClaimOverCells]:
    """Collect the verdicts on every claim over cells.

    Args:
        cells: the judged cells of a run.

    Returns:
        one entry per claim, in the order of the first cell.
    """
    rows = {row["name"]: row for cell in reversed(cells) for row in reversed(cell.verdicts)}
    statuses = {
        name: {c.name: one["status"] for c in cells for one in c.verdicts if one["name"] == name} for name in rows
    }
    return [
        ClaimOverCells(
            name=name,
            statement=row["statement"],
            source=row["source"],
            kind=row.get("kind", "replication"),
            statuses=statuses[name],
        )
        for name, row in reversed(rows.items())
    ]


def _read_level_order(run_dir: Path) -> dict[tuple[str, str], int]:
    """Return the position of every level of every factor, as ``run.json`` lists them."""
    try:
        factors = read_run_record(run_dir).get("factors", {})
        return {
            (name, level): position for name, one in factors.items() for position, level in enumerate(one["levels"])
        }
    except (RunError, KeyError, TypeError, AttributeError):
        return {}


def _load_cell(folder: Path) -> JudgedCell | None:
    if not (folder / "verdicts.json").exists():
        return None  # unfinished: the cell has no verdicts yet
    record = read_run_record(folder)
    verdicts = read_verdict_rows(folder, record)
    seeds = record.get("seeds")
    return JudgedCell(
        name=str(record.get("cell", "")),
        path=folder,
        seeds=len(seeds) if isinstance(seeds, list) else 0,
        verdicts=verdicts,
    )
