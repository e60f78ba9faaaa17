"""Verdicts of whole studies on two threads and without the fused kernel: none may turn into its opposite.

``python -m tests.studies.rounding RUN...`` repeats finished runs with other rounding errors, which training amplifies,
and writes the number of verdicts that change into docs/verdicts.md.
"""

import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from mesascope import api
from mesascope.studies import registry
from mesascope.studies.base import Condition, Study
from mesascope.studies.cells import load_cells

PAGE = Path(__file__).parents[2] / "docs" / "verdicts.md"
BEGIN, END = "<!-- rounding: begin -->", "<!-- rounding: end -->"
THREADS = 2
OPPOSITES = ({"supported", "contradicted"}, {"holds", "fails"})
Statuses = dict[tuple[str, str], str]  # by cell and claim


def use_threads(name: str) -> Study:
    """Return a study whose models are trained with another number of threads."""
    study = registry.load_study(name)
    return replace(study, conditions=tuple(map(_use_threads, study.conditions)))


def _use_threads(condition: Condition) -> Condition:
    scales = {
        name: replace(config, training=replace(config.training, threads=THREADS))
        for name, config in condition.scales.items()
    }
    return replace(condition, scales=scales)


def repeat_run(name: str, scale: str, folder: Path) -> Path:
    """Run a study with other rounding errors, and return the folder of the run.

    A compiler that cannot be run and an empty cache are a machine without the fused kernel. Seeds run one after
    another, because processes with two threads each compete for the processors.
    """
    os.environ |= {"CXX": str(folder / "no-compiler"), "XDG_CACHE_HOME": str(folder / "cache")}
    file = folder / f"rounding_{name.replace('-', '_')}.py"
    file.write_text(f"from tests.studies.rounding import use_threads\n\nSTUDY = use_threads({name!r})\n")
    return api.run(str(file), scale=scale, out=folder / "run", device="cpu", on="serial").path


def read_statuses(run: Path) -> Statuses:
    """Return the status of every claim of a finished run, by cell and name."""
    return {(cell.name, row["name"]): row["status"] for cell in load_cells(run) for row in cell.verdicts}


def compare_statuses(first: Statuses, second: Statuses) -> tuple[list[str], list[str]]:
    """Return the claims whose status changes, and those whose status turns into its opposite, with both words.

    Raises:
        ValueError: The runs have other claims or cells.
    """
    if first.keys() != second.keys():
        raise ValueError(f"both runs must have the same claims and cells, but {first.keys() ^ second.keys()} differ")
    changed = {key: (status, second[key]) for key, status in first.items() if second[key] != status}
    lines = {key: f"{key[1]}{f' ({key[0]})' if key[0] else ''}: {' -> '.join(words)}" for key, words in changed.items()}
    return list(lines.values()), [lines[key] for key, words in changed.items() if set(words) in OPPOSITES]


def format_row(run: Path) -> str:
    """Return the row of a run: the number of verdicts, of those that change, and of those that become the opposite."""
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        repeated = read_statuses(repeat_run(record["study"], record["scale"], Path(folder)))
    first = read_statuses(run)
    changed, opposite = compare_statuses(first, repeated)
    return f"| `{record['study']}` | {len(first)} | {len(changed)} | {len(opposite)} | {'; '.join(changed)} |"


def main() -> None:
    """Write the rows of the runs on the command line into the page, and keep other rows."""
    for run in map(Path, sys.argv[1:]):
        text = PAGE.read_text(encoding="utf-8")
        before, table, after = text.split(BEGIN)[0], text.split(BEGIN)[1].split(END)[0], text.split(END)[1]
        rows = {row.split("`")[1]: row for row in table.splitlines() if row.startswith("| `")}
        row = format_row(run)
        rows[row.split("`")[1]] = row
        head = ["| study | verdicts | changed | opposite | which |", "|---|---|---|---|---|"]
        PAGE.write_text("\n".join([before + BEGIN, *head, *sorted(rows.values()), END + after]), encoding="utf-8")


if __name__ == "__main__":
    main()
