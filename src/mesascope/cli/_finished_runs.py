"""Commands about finished runs: report, compare, runs."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from mesascope.cli._app import AsJson, app, out
from mesascope.cli._output import format_verdict_cell, print_verdict_table, read_verdict_rows


@app.command("report")
def report_command(
    run_dirs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.")], as_json: AsJson = False
) -> None:
    """Regenerate the reports of runs and show their verdicts."""
    from mesascope.report import summarize_run, write_report

    if as_json:
        print(json.dumps([summarize_run(path) for path in run_dirs], indent=2))
        return
    for path in run_dirs:
        page = write_report(path)
        print_verdict_table(path)
        out.print(f"Report: {page}", soft_wrap=True)


@app.command("compare")
def compare_command(
    first: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    second: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory to compare with.")],
) -> None:
    """Compare the verdicts of two runs."""
    from rich.table import Table

    tables = [{row["name"]: row for row in read_verdict_rows(path)} for path in (first, second)]
    table = Table("claim", str(first), str(second))
    for name in dict.fromkeys([*tables[0], *tables[1]]):
        table.add_row(escape(name), *(format_verdict_cell(rows.get(name)) for rows in tables))
    out.print(table)


@app.command("runs")
def runs_command(
    folder: Annotated[Path, typer.Argument(help="Folder that contains runs.")] = Path("runs"), as_json: AsJson = False
) -> None:
    """List the runs in a folder with their verdicts."""
    from mesascope.studies import published

    rows = published.list_runs(folder)
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    if not rows:
        out.print(f"no runs in {folder}/", soft_wrap=True)
    for row in rows:
        counts = ", ".join(f"{n} {word}" for word, n in row["verdicts"].items()) or row["state"]
        out.print(f"{row['path']}  {row['study']} {row['scale'] or ''}  {counts}", soft_wrap=True)
