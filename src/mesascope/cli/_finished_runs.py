"""Commands about runs: status, report, verify, compare, table, figures, log, push, sync, runs."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from mesascope.cli._app import AsJson, app, err, out, print_line
from mesascope.cli._exit_codes import EXIT_BAD_INPUT, EXIT_DAMAGED
from mesascope.cli._locations import RunLocation, RunLocations, open_location, print_log_line
from mesascope.cli._output import (
    format_status,
    format_verdict_cell,
    load_verdict_rows,
    print_verdict_table,
    split_names,
)


@app.command("report")
def report_command(runs: RunLocations, as_json: AsJson = False) -> None:
    """Regenerate the reports of runs and show their verdicts."""
    from mesascope.report import NO_CHECKSUMS, summarize_run, write_report

    run_dirs = [open_location(run) for run in runs]
    if as_json:
        print(json.dumps([summarize_run(path) for path in run_dirs], indent=2))
        return
    problems: list[str] = []
    for path in run_dirs:
        page = write_report(path, problems.append)
        print_verdict_table(path)
        print_line(f"Report: {page}")
    for problem in problems:
        print_line(f"mesascope: {problem}", err)
    if any(problem != NO_CHECKSUMS for problem in problems):
        raise typer.Exit(EXIT_BAD_INPUT)


@app.command("status")
def status_command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run directory or URL, also of a run that goes on.")],
    as_json: AsJson = False,
) -> None:
    """Show how far every job of a run is, and whether a process works on it."""
    from mesascope.studies.run_status import read_run_status

    status = read_run_status(open_location(run))
    if as_json:
        print(json.dumps(status.as_json(), indent=2))
        return
    for line in format_status(status):
        print_line(line)


@app.command("verify")
def verify_command(runs: RunLocations) -> None:
    """Verify the checksum of every file of runs; exit with code 1 if a file is damaged."""
    from mesascope.store import VerificationResult, verify_run
    from mesascope.store.remote import DamagedObject, is_url

    damaged = False
    for run in runs:
        problems: list[str] = []
        try:
            result = verify_run(open_location(run, problems.append, weights=True))
        except DamagedObject as error:
            result = VerificationResult(files=1, problems=(str(error),))
        problems += result.problems
        for line in problems:
            print_line(line)
        damaged = damaged or bool(problems)
        name = run if is_url(run) else Path(run)
        print_line(f"{name}: {result.files} files and checkpoints verified, {len(problems)} damaged")
    if damaged:
        raise typer.Exit(EXIT_DAMAGED)


@app.command("compare")
def compare_command(
    first: RunLocation,
    second: Annotated[str, typer.Argument(metavar="RUN", help="Run directory or URL to compare with.")],
    page: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE.html",
            help="Also write a page: what differs in settings and environment, and the verdicts of both runs in all "
            "cells.",
        ),
    ] = None,
) -> None:
    """Compare the verdicts of two runs."""
    from rich.table import Table

    folders = open_location(first), open_location(second)
    tables = [{row["name"]: row for row in load_verdict_rows(path)} for path in folders]
    table = Table("claim", escape(first), escape(second))
    for name in dict.fromkeys([*tables[0], *tables[1]]):
        table.add_row(escape(name), *(format_verdict_cell(rows.get(name)) for rows in tables))
    if page is not None:
        from mesascope.report import write_comparison

        write_comparison(*folders, page)
    out.print(table)
    if page is not None:
        print_line(f"Page: {page}")


@app.command("table")
def table_command(
    runs: RunLocations,
    form: Annotated[str, typer.Option("--format", help="csv, markdown or latex.")] = "csv",
    results: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Instead of verdicts: the values of results, such as similarity, or of variables, such as "
            "similarity.score.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Instead of verdicts: a table of the report of one run.")] = None,
) -> None:
    """Print the verdicts of runs as one table, in all cells, for a spreadsheet or a paper; or their results."""
    from mesascope.studies.verdict_table import FORMULA_COLUMNS, collect_verdicts
    from mesascope.table_formats import format_table

    if name is not None and (results is not None or len(runs) > 1):
        raise ValueError("--name must be given with one run and without --results; print one table at a time")
    run_dirs = [open_location(run) for run in runs]
    if name is not None:
        from mesascope.report.export import select_table

        table = select_table(run_dirs[0], name)
    elif results is not None:
        from mesascope.report.export import tabulate_results

        table = tabulate_results(run_dirs, split_names(results) or [])
    else:
        table = collect_verdicts(run_dirs)
    print(format_table(table, form, FORMULA_COLUMNS), end="")


@app.command("figures")
def figures_command(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    form: Annotated[str, typer.Option("--format", help="svg, pdf or png.")] = "pdf",
    out_dir: Annotated[Path | None, typer.Option("--out", help="Folder to write to; by default RUN/figures.")] = None,
    only: Annotated[
        str | None, typer.Option(help="Comma-separated names of figures, with * for any characters; all by default.")
    ] = None,
) -> None:
    """Write the figures of a report as files for a paper, with a file of captions. Needs the extra figures."""
    from mesascope.report.export import write_figures

    def print_problem(line: str) -> None:
        print_line(f"mesascope: {line}", err)

    paths = write_figures(run_dir, out_dir or run_dir / "figures", form, split_names(only), print_problem)
    for path in paths:
        print_line(str(path))


@app.command("log")
def log_command(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, also of a run that goes on.")],
    to: Annotated[
        list[str], typer.Option(metavar="LOGGER", help="tensorboard[:FOLDER], wandb or trackio; repeatable.")
    ],
) -> None:
    """Log the training curves and evaluations of a run to TensorBoard, Weights & Biases or trackio."""
    from mesascope.loggers import create_loggers, log_run

    problems: list[str] = []
    count = log_run(run_dir, create_loggers(to, run_dir), problems.append)
    for problem in problems:
        print_line(f"mesascope: {problem}", err)
    if problems:
        raise typer.Exit(EXIT_BAD_INPUT)
    print_line(f"{count} models logged to {', '.join(to)}")


@app.command("push")
def push_command(
    run: RunLocation,
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Repository on the Hub, such as me/affine.")],
    private: Annotated[bool, typer.Option("--private", help="Create a private repository.")] = False,
) -> None:
    """Push a finished run with its models to the Hugging Face Hub, with the token of `hf auth login`."""
    from mesascope.hub import push

    print_line(f"Pushed to {push(open_location(run, weights=True), repo, private=private)}")


@app.command("sync")
def sync_command(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, which no process uses.")],
    url: Annotated[
        str | None, typer.Argument(metavar="URL", help="Such as s3://bucket/name; by default that of the last time.")
    ] = None,
) -> None:
    """Synchronise a run with shared storage: S3, or any URL that fsspec opens."""
    from mesascope.store.remote import sync_run

    print_line(f"Synchronised with {sync_run(run_dir, url, log=print_log_line)}")


@app.command("runs")
def runs_command(
    folder: Annotated[Path, typer.Argument(help="Folder that contains runs.")] = Path("runs"),
    as_json: AsJson = False,
    as_html: Annotated[bool, typer.Option("--html", help="Write index.html with a link to every report.")] = False,
) -> None:
    """List the runs in a folder with their verdicts."""
    from mesascope.studies import published

    if as_html:
        from mesascope.report import write_run_index

        print_line(f"Index: {write_run_index(folder)}")
        return
    rows = published.list_runs(folder)
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    if not rows:
        print_line(f"no runs in {folder}/")
    for row in rows:
        counts = ", ".join(f"{n} {word}" for word, n in row["verdicts"].items()) or row["state"]
        print_line(f"{row['path']}  {row['study']} {row['scale'] or ''}  {counts}")
