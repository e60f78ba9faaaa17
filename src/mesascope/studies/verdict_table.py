"""One table of the verdicts of several runs, for a spreadsheet or a paper; reading them imports no torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mesascope.checksums import RunError, read_run_record
from mesascope.studies.cells import OWN_SETTING, load_cells

if TYPE_CHECKING:
    import pandas as pd

FORMULA_COLUMNS = ("claim",)  # texts with formulas
COLUMNS = ("run", "study", "scale", "cell", "seeds", "claim", "verdict", "value", "control", "difference", "p_value")


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
            name = cell.name or (OWN_SETTING if len(cells) > 1 else "")
            about = {"run": str(path), "study": record.get("study"), "scale": record.get("scale"), "cell": name}
            rows += [{**about, "seeds": cell.seeds, **_summarize_verdict(verdict)} for verdict in cell.verdicts]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _summarize_verdict(verdict: Any) -> dict[str, Any]:
    interval = verdict.get("difference")
    return {
        "claim": verdict["statement"],
        "verdict": verdict["status"],
        **{name: verdict.get(name) for name in ("value", "control", "p_value")},
        "difference": sum(interval) / 2 if interval else None,
    }
