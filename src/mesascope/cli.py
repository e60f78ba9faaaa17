"""Command line of mesascope. Each command imports its dependencies only when it runs."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Identify the algorithm inside a transformer's forward pass, and how training produces it.",
)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

EXIT_OK, EXIT_CONTRADICTED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130
STATUS_COLOURS = {"supported": "green", "contradicted": "red", "inconclusive": "yellow"}

AsJson = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


def main() -> None:
    """Run the command line; user errors print one line and exit with code 2."""
    with _handle_user_errors():
        app()


@app.command("list")
def list_command(
    folder: Annotated[Path, typer.Argument(help="Folder of runs.")] = Path("runs"), as_json: AsJson = False
) -> None:
    """List all studies with paper, cost and latest verdicts, and all tasks."""
    from mesascope.studies import published, registry

    studies, tasks, last = registry.list_studies(), registry.list_tasks(), published.load_latest_verdicts(folder)
    if as_json:
        study_rows = [{"paper": e.paper, "minutes": dict(e.minutes), "last": last.get(e.name)} for e in studies]
        rows = [{"kind": e.kind, "name": e.name, "title": e.title} for e in (*studies, *tasks)]
        print(
            json.dumps([row | more for row, more in zip(rows, study_rows + [{}] * len(tasks), strict=True)], indent=2)
        )
        return
    out.print("[bold]Studies[/bold] (mesascope run NAME; times on two CPU cores)")
    for entry in studies:
        costs = ", ".join(f"{scale} {_format_duration(minutes)}" for scale, minutes in entry.minutes.items())
        out.print(f"  [bold]{entry.name}[/bold]  {escape(entry.title)}", soft_wrap=True)
        out.print(f"      {escape(entry.paper)}; {costs}", soft_wrap=True)
        out.print(f"      {_format_last_verdicts(last.get(entry.name))}", soft_wrap=True)
    width = max(len(entry.name) for entry in tasks)
    out.print("[bold]Tasks[/bold] (mesascope.tasks)")
    for entry in tasks:
        out.print(f"  {entry.name:<{width}}  {escape(entry.title)}")


@app.command("show")
def show_command(study: str) -> None:
    """Show the scales, conditions, analyses and claims of a study, with the published verdicts."""
    from mesascope.studies.published import load_published
    from mesascope.studies.registry import load_study

    study_value = load_study(study)
    out.print(f"[bold]{escape(study_value.title)}[/bold]\n{escape(study_value.description)}\n")
    out.print(
        f"Paper: {escape(study_value.citation.authors)} ({study_value.citation.year}). "
        f"{escape(study_value.citation.title)}."
    )
    out.print(f"       {study_value.citation.url}\n\n[bold]Scales[/bold]")
    for name, config in study_value.main.scales.items():
        steps = f"{config.training.steps:,} steps".replace(",", " ")
        out.print(
            f"  {name:<7} {study_value.seeds[name]} seeds, {steps}, about {study_value.minutes[name]:g} min on "
            "two CPU cores"
        )
    for toy_model in study_value.simulations:
        out.print(f"\n[bold]{escape(toy_model.title)}[/bold]\n  {escape(toy_model.description)}")
    for condition in study_value.conditions:
        out.print(f"\n[bold]Analyses{escape(f': {condition.title}') if condition.title else ''}[/bold]")
        width = max((len(analysis.name) for analysis in condition.analyses), default=0)
        for analysis in condition.analyses:
            out.print(f"  {analysis.name:<{width}}  {escape(analysis.title)}")
    results = load_published().get(study_value.name, {"scale": "", "verdicts": {}})
    heading = f" and published verdicts at {results['scale']} scale" if results["verdicts"] else ""
    out.print(f"\n[bold]Claims[/bold]{heading}")
    for claim in study_value.claims:
        status = results["verdicts"].get(claim.name)
        verdict = f"[{STATUS_COLOURS.get(status, 'dim')}]{status}[/]: " if status else ""
        out.print(f"  {verdict}{escape(claim.statement)}\n    [dim]{escape(claim.source)}[/dim]")


@app.command("cite")
def cite_command(study: str) -> None:
    """Print the BibTeX entry of a study's paper."""
    from mesascope.studies.registry import load_study

    print(load_study(study).citation.bibtex)


@app.command("run")
def run_command(
    study: Annotated[str, typer.Argument(help="Name of a study, or a .py file that defines STUDY.")],
    scale: Annotated[str, typer.Option(help="smoke, laptop or paper.")] = "laptop",
    seeds: Annotated[int | None, typer.Option(help="Number of training replicates.")] = None,
    out_dir: Annotated[Path | None, typer.Option("--out", help="Directory of the run.")] = None,
    device: Device = "auto",
    on: Annotated[str | None, typer.Option(help="serial, processes or ray[:ADDRESS].")] = None,
    strict: Annotated[bool, typer.Option(help="Exit with 1 if a claim is contradicted.")] = False,
) -> None:
    """Run a study: train, analyse, judge its claims and write a report. Run again to resume."""
    from mesascope import api
    from mesascope.progress import ProgressDisplay
    from mesascope.runner import load_verdicts

    with _handle_interrupt(), ProgressDisplay(err) as display:
        finished_run = api.run(study, scale=scale, seeds=seeds, out=out_dir, device=device, on=on, progress=display)
    verdicts = load_verdicts(finished_run)
    for verdict in verdicts:
        _print_verdict(verdict)
    out.print(f"\nReport: {finished_run.path / 'report.html'}", soft_wrap=True)
    if strict and any(verdict.status == "contradicted" for verdict in verdicts):
        raise typer.Exit(EXIT_CONTRADICTED)


@app.command("inspect")
def inspect_command(
    model: Annotated[str, typer.Argument(help="Hub name, folder, or .gguf file.")],
    text: Annotated[Path | None, typer.Option(help="UTF-8 file; by default Python's manual.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Tokens per sequence; by default up to 512.")] = None,
    sequences: Annotated[int, typer.Option(help="Maximum number of sequences.")] = 4,
    out_dir: Annotated[Path | None, typer.Option("--out", help="Directory of the run.")] = None,
    analyses: Annotated[str | None, typer.Option(help="Comma-separated names of analyses.")] = None,
    steps: Annotated[str | None, typer.Option(help="Comma-separated revisions or checkpoint folders.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
) -> None:
    """Analyse a causal language model on a text and write a report. Run again to resume."""
    from mesascope import api
    from mesascope.progress import StageProgressBar

    with _handle_interrupt(), StageProgressBar(err) as stages:
        finished_run = api.inspect(
            model,
            text=text,
            tokens=tokens,
            sequences=sequences,
            out=out_dir,
            analyses=_split_names(analyses),
            steps=_split_names(steps),
            device=device,
            dtype=dtype,
            progress=stages,
        )
    for name, reason in finished_run.read_json("model")["skipped"].items():
        out.print(f"{name} was skipped: {escape(reason)}", soft_wrap=True)
    out.print(f"Report: {finished_run.path / 'report.html'}", soft_wrap=True)


@app.command("which-algorithm")
def which_algorithm_command(
    subject: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="Run, folder, Hub name or .gguf file.")],
    study: Annotated[str | None, typer.Option(help="Study that defines the task of a decoder folder.")] = None,
    sequences: Annotated[int, typer.Option(help="Number of sequences to sample.")] = 128,
    seed: Annotated[int, typer.Option(help="Seed of the sequences.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "cpu",
    as_json: AsJson = False,
) -> None:
    """Rank in-context algorithms by the similarity of their predictions to those of a model."""
    from mesascope import api
    from mesascope.inspection.algorithm_table import summarise_report

    def print_log_line(line: str) -> None:
        err.print(escape(line), soft_wrap=True)

    with _handle_interrupt():
        reports = api.rank_algorithms(
            subject, study=study, sequences=sequences, seed=seed, device=device, log=print_log_line
        )
    summaries = [summarise_report(answer) for answer in reports]
    if as_json:
        print(json.dumps(summaries, indent=2))
        return
    for summary_row in summaries:
        _print_ranking(summary_row)


@app.command("report")
def report_command(run_dirs: Annotated[list[Path], typer.Argument(metavar="RUN...")], as_json: AsJson = False) -> None:
    """Regenerate the reports of runs and show their verdicts."""
    from mesascope.report import summarize_run, write_report

    if as_json:
        print(json.dumps([summarize_run(path) for path in run_dirs], indent=2))
        return
    for path in run_dirs:
        page = write_report(path)
        _print_verdict_table(path)
        out.print(f"Report: {page}", soft_wrap=True)


@app.command("compare")
def compare_command(
    first: Annotated[Path, typer.Argument(metavar="RUN")], second: Annotated[Path, typer.Argument(metavar="RUN")]
) -> None:
    """Compare the verdicts of two runs."""
    from rich.table import Table

    tables = [{row["name"]: row for row in _read_verdict_rows(path)} for path in (first, second)]
    table = Table("claim", str(first), str(second))
    for name in dict.fromkeys([*tables[0], *tables[1]]):
        table.add_row(escape(name), *(_format_verdict_cell(rows.get(name)) for rows in tables))
    out.print(table)


@app.command("runs")
def runs_command(
    folder: Annotated[Path, typer.Argument(help="Folder of runs.")] = Path("runs"), as_json: AsJson = False
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


def _split_names(text: str | None) -> list[str] | None:
    return [name.strip() for name in text.split(",") if name.strip()] if text else None


def _print_verdict(verdict: Any) -> None:
    colour = STATUS_COLOURS.get(verdict.status, "dim")
    out.print(f"\n[bold {colour}]{verdict.status.upper()}[/bold {colour}]  {escape(verdict.statement)}")
    if verdict.value is not None:
        low, high = verdict.interval
        out.print(
            f"  {escape(verdict.description)}: {verdict.value:.3g} [{low:.3g}, {high:.3g}]".replace("[", "\\[")
            + f"; {escape(verdict.control_description)}: {verdict.control:.3g}"
        )
    out.print(f"  [dim]{escape(verdict.reason)}; {escape(verdict.source)}[/dim]")


def _print_verdict_table(path: Path) -> None:
    from rich.table import Table

    if not (path / "verdicts.json").exists():
        return
    table = Table("verdict", "claim", "value", "control")
    for row in _read_verdict_rows(path):
        colour = STATUS_COLOURS.get(row["status"], "dim")
        value, control = (f"{row[key]:.3g}" if row[key] is not None else "-" for key in ("value", "control"))
        table.add_row(f"[{colour}]{row['status']}[/{colour}]", escape(row["statement"]), value, control)
    out.print(table)


def _print_ranking(report: dict[str, Any]) -> None:
    from rich.table import Table

    heading = ", ".join(
        str(part) for part in (report["condition"], f"seed {report['seed']}") if part and "None" not in part
    )
    out.print(f"\n[bold]{escape(report['named'])}[/bold]  {escape(heading or report['task'])}")
    table = Table("algorithm (as fitted)", "predictions", "null", "errors", "weights", "shifted")
    for row in report["ranking"]:
        numbers = f" ({row['hyperparameters']})" if row["hyperparameters"] else ""
        weights = ", ".join(_format_similarity(value) for value in row["weights"].values()) or "-"
        marker = "" if row["distinguishable"] else " *"
        table.add_row(
            escape(row["label"] + numbers),
            _format_similarity(row["predictions"]) + marker,
            _format_similarity(row["null"]),
            _format_similarity(row["errors"]),
            weights,
            _format_similarity(min(row["shifted"].values())) if row["shifted"] else "-",
        )
    out.print(table)
    out.print(
        "[dim]1: equal to the model; 0: no better than the mean of its predictions. *: not distinguishable from the "
        "nearest. shifted: lowest similarity of predictions on out-of-distribution sequences[/dim]",
        soft_wrap=True,
    )
    for name, reason in report["skipped"].items():
        out.print(f"[dim]skipped: {escape(name)}: {escape(reason)}[/dim]", soft_wrap=True)
    for layer in report["layers"]:
        out.print(
            f"  {escape(layer['layer']):<10} {escape(layer['nearest'])} ({_format_similarity(layer['similarity'])})"
        )


def _format_similarity(value: float) -> str:
    """Format a similarity, which can be far below 0."""
    return "-" if value != value else "below -10" if value < -10 else f"{value:.3f}"


def _read_verdict_rows(path: Path) -> list[dict[str, Any]]:
    from mesascope.store import Run

    return Run.open(path).read_json("verdicts")


def _format_verdict_cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    return row["status"] if row["value"] is None else f"{row['status']} ({row['value']:.3g})"


def _format_last_verdicts(last: dict[str, Any] | None) -> str:
    """Format the counts of the latest verdicts."""
    if last is None:
        return "[dim]no verdicts yet[/dim]"
    origin = escape(last["run"]) if last["run"] else f"published, {last['scale']} scale"
    counts = (f"[{STATUS_COLOURS.get(word, 'dim')}]{n} {word}[/]" for word, n in last["verdicts"].items())
    return f"{origin}: {', '.join(counts)}"


def _format_duration(minutes: float) -> str:
    return f"{minutes:g} min" if minutes < 120 else f"{minutes / 60:.0f} h"


@contextmanager
def _handle_interrupt() -> Iterator[None]:
    """Print how to resume after Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        err.print("interrupted; run the same command again to resume")
        raise typer.Exit(EXIT_INTERRUPTED) from None


@contextmanager
def _handle_user_errors() -> Iterator[None]:
    """Print user errors in one line; other exceptions are bugs and keep their traceback."""
    try:
        yield
    except (ValueError, MemoryError) as error:
        _exit_with_error(str(error))
    except RuntimeError as error:
        if type(error).__module__.startswith("mesascope"):
            _exit_with_error(str(error))
        raise
    except OSError as error:
        if error.errno is None:
            raise
        _exit_with_error(f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror))


def _exit_with_error(line: str) -> None:
    if os.environ.get("MESASCOPE_DEBUG"):
        raise
    err.print(f"mesascope: {escape(' '.join(line.split()))}", soft_wrap=True)
    sys.exit(EXIT_BAD_INPUT)


if __name__ == "__main__":
    main()
