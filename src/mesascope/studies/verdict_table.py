"""One table of the verdicts of several runs, for a spreadsheet or a paper; reading them imports no torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mesascope.checksums import RunError, read_run_record
from mesascope.studies.cells import load_cells

if TYPE_CHECKING:
    import pandas as pd

FORMATS = ("csv", "markdown", "latex")
COLUMNS = ("run", "study", "scale", "cell", "seeds", "claim", "verdict", "value", "control", "difference", "p_value")
_SPECIAL_CHARACTERS = str.maketrans({character: f"\\{character}" for character in "&%$#_{}"}) | {
    ord("\\"): r"\textbackslash{}",
    ord("~"): r"\textasciitilde{}",
    ord("^"): r"\textasciicircum{}",
}


def collect_verdicts(run_dirs: Sequence[Path]) -> "pd.DataFrame":
    """Return the verdicts of runs, one row for each claim in each cell.

    Args:
        run_dirs: the directories of the runs.

    Returns:
        The columns `COLUMNS`: value and control are means over seeds, and the difference is the middle of its interval.

    Raises:
        RunError: a run has no verdicts, or its files are damaged.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for path in run_dirs:
        record, cells = read_run_record(path), load_cells(path)
        if not cells:
            raise RunError(f"{path} must have verdicts, but has none; finish the run first")
        for cell in cells:
            about = {"run": str(path), "study": record.get("study"), "scale": record.get("scale"), "cell": cell.name}
            rows += [{**about, "seeds": cell.seeds, **_summarize_verdict(verdict)} for verdict in cell.verdicts]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def format_table(table: "pd.DataFrame", form: str) -> str:
    """Return a table as text; numbers have four significant digits except in CSV.

    Args:
        table: the table.
        form: one of `FORMATS`. LaTeX needs the package booktabs.

    Raises:
        ValueError: there is no such format.
    """
    if form not in FORMATS:
        raise ValueError(f"a format must be one of {', '.join(FORMATS)}, but got {form!r}")
    if form == "csv":
        return table.to_csv(index=False)
    rows = [[_format_cell(value) for value in row] for row in table.itertuples(index=False)]
    if form == "markdown":
        lines = [list(table.columns), ["---"] * len(table.columns), *rows]
        return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)
    escaped = [[cell.translate(_SPECIAL_CHARACTERS) for cell in row] for row in [list(table.columns), *rows]]
    head, *body = (" & ".join(row) + r" \\" for row in escaped)
    lines = [rf"\begin{{tabular}}{{{'l' * len(table.columns)}}}", r"\toprule", head, r"\midrule", *body]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _summarize_verdict(verdict: Any) -> dict[str, Any]:
    interval = verdict.get("difference")
    return {
        "claim": verdict["statement"],
        "verdict": verdict["status"],
        **{name: verdict.get(name) for name in ("value", "control", "p_value")},
        "difference": sum(interval) / 2 if interval else None,
    }


def _format_cell(value: Any) -> str:
    if value is None or value != value:  # NaN stands for a missing number
        return ""
    return f"{value:.4g}" if isinstance(value, float) else " ".join(str(value).split())
