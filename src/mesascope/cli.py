"""The command line: a thin door to `mesascope.api`. It imports what a command needs when the command runs."""

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
    help="Which algorithm runs inside a transformer's forward pass, and how it gets there during training.",
)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

DONE, CONTRADICTED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
COLOURS = {"supported": "green", "contradicted": "red", "inconclusive": "yellow"}

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


def main() -> None:
    """Run the command line; a mistake of the user's gives one line and exit code 2."""
    with _one_line_errors():
        app()


@app.command("list")
def list_(
    folder: Annotated[Path, typer.Argument(help="Where to look for runs.")] = Path("runs"), as_json: AsJson = False
) -> None:
    """Show the studies, each with its paper, its cost and its last verdicts, and the tasks."""
    from mesascope.studies import published, registry

    studies, tasks, last = registry.studies(), registry.tasks(), published.last(folder)
    if as_json:
        told = [{"paper": e.paper, "minutes": dict(e.minutes), "last": last.get(e.name)} for e in studies]
        rows = [{"kind": e.kind, "name": e.name, "title": e.title} for e in (*studies, *tasks)]
        print(json.dumps([row | more for row, more in zip(rows, told + [{}] * len(tasks), strict=True)], indent=2))
        return
    out.print("[bold]Studies[/bold] (mesascope run NAME; on two cores)")
    for entry in studies:
        costs = ", ".join(f"{scale} {_duration(minutes)}" for scale, minutes in entry.minutes.items())
        out.print(f"  [bold]{entry.name}[/bold]  {escape(entry.title)}", soft_wrap=True)
        out.print(f"      {escape(entry.paper)}; {costs}", soft_wrap=True)
        out.print(f"      {_told(last.get(entry.name))}", soft_wrap=True)
    width = max(len(entry.name) for entry in tasks)
    out.print("[bold]Tasks[/bold] (mesascope.tasks)")
    for entry in tasks:
        out.print(f"  {entry.name:<{width}}  {escape(entry.title)}")


@app.command()
def show(study: str) -> None:
    """Tell what a study does: setting, scales, instruments, claims and what became of them."""
    from mesascope.studies.published import published
    from mesascope.studies.registry import load

    value = load(study)
    out.print(f"[bold]{escape(value.title)}[/bold]\n{escape(value.about)}\n")
    out.print(f"Paper: {escape(value.citation.authors)} ({value.citation.year}). {escape(value.citation.title)}.")
    out.print(f"       {value.citation.url}\n\n[bold]Scales[/bold]")
    for name, scale in value.scales.items():
        steps = f"{scale.training.steps:,} steps".replace(",", " ")
        out.print(f"  {name:<7} {scale.seeds} seeds, {steps}, about {scale.minutes:g} min on two cores")
    for theory in value.theories:
        out.print(f"\n[bold]{escape(theory.title)}[/bold]\n  {escape(theory.about)}")
    for arm in value.settings:
        out.print(f"\n[bold]Instruments{escape(f': {arm.title}') if arm.title else ''}[/bold]")
        for one in arm.instruments:
            out.print(f"  {one.name:<12} {escape(one.title)}")
    found = published().get(value.name, {"scale": "", "verdicts": {}})
    heading = f" and their verdicts at {found['scale']} scale, as published" if found["verdicts"] else ""
    out.print(f"\n[bold]Claims[/bold]{heading}")
    for claim in value.claims:
        word = found["verdicts"].get(claim.name)
        verdict = f"[{COLOURS.get(word, 'dim')}]{word}[/]: " if word else ""
        out.print(f"  {verdict}{escape(claim.sentence)}\n    [dim]{escape(claim.source)}[/dim]")


@app.command()
def cite(study: str) -> None:
    """Print the BibTeX of a study's paper."""
    from mesascope.studies.registry import load

    print(load(study).citation.bibtex)


@app.command()
def run(
    study: Annotated[str, typer.Argument(help="A study's name, or a .py file that holds STUDY.")],
    scale: Annotated[str, typer.Option(help="smoke, laptop or paper.")] = "laptop",
    seeds: Annotated[int | None, typer.Option(help="Training replicates.")] = None,
    out_dir: Annotated[Path | None, typer.Option("--out", help="The run's directory.")] = None,
    device: Device = "auto",
    on: Annotated[str | None, typer.Option(help="here, processes or ray[:ADDRESS].")] = None,
    strict: Annotated[bool, typer.Option(help="Exit with 1 if a claim is contradicted.")] = False,
) -> None:
    """Re-run a study end to end; run it again to go on after a stop."""
    from mesascope import api
    from mesascope.progress import Display
    from mesascope.runner import verdicts_of

    with _interruptible(), Display(err) as display:
        done = api.run(study, scale=scale, seeds=seeds, out=out_dir, device=device, on=on, watcher=display)
    verdicts = verdicts_of(done)
    for verdict in verdicts:
        _print_verdict(verdict)
    out.print(f"\nReport: {done.path / 'report.html'}", soft_wrap=True)
    if strict and any(verdict.word == "contradicted" for verdict in verdicts):
        raise typer.Exit(CONTRADICTED)


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="A Hub name, a folder, or a .gguf file.")],
    text: Annotated[Path | None, typer.Option(help="A UTF-8 file; Python's manual by default.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Tokens of each sequence; 512, or what fits.")] = None,
    sequences: Annotated[int, typer.Option(help="How many sequences of the text, at most.")] = 4,
    out_dir: Annotated[Path | None, typer.Option("--out", help="The run's directory.")] = None,
    measures: Annotated[str | None, typer.Option(help="Names of measures, with commas between.")] = None,
    steps: Annotated[str | None, typer.Option(help="Revisions or folders over time, with commas between.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
) -> None:
    """Open a language model on a text; run it again to go on after a stop."""
    from mesascope import api
    from mesascope.progress import Stages

    with _interruptible(), Stages(err) as stages:
        done = api.inspect(
            model,
            text=text,
            tokens=tokens,
            sequences=sequences,
            out=out_dir,
            measures=_names(measures),
            steps=_names(steps),
            device=device,
            dtype=dtype,
            progress=stages,
        )
    for name, why in done.read_json("model")["left out"].items():
        out.print(f"{name} was left out: {escape(why)}", soft_wrap=True)
    out.print(f"Report: {done.path / 'report.html'}", soft_wrap=True)


@app.command("which-algorithm")
def which_algorithm(
    subject: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="A run, a folder, a Hub name or a .gguf file.")],
    study: Annotated[str | None, typer.Option(help="Whose task is meant, for a decoder in a folder.")] = None,
    sequences: Annotated[int, typer.Option(help="How many sequences are drawn.")] = 128,
    seed: Annotated[int, typer.Option(help="Of the sequences.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "cpu",
    as_json: AsJson = False,
) -> None:
    """Rank the algorithms that a model may have learned in context by how near they come to what it does."""
    from mesascope import api
    from mesascope.inspection.algorithm_table import summary

    def say(line: str) -> None:
        err.print(escape(line), soft_wrap=True)

    with _interruptible():
        answers = api.which_algorithm(subject, study=study, sequences=sequences, seed=seed, device=device, say=say)
    told = [summary(answer) for answer in answers]
    if as_json:
        print(json.dumps(told, indent=2))
        return
    for one in told:
        _print_ranking(one)


@app.command()
def report(run_dirs: Annotated[list[Path], typer.Argument(metavar="RUN...")], as_json: AsJson = False) -> None:
    """Draw the reports of runs anew, and show their verdicts in a table."""
    from mesascope.report import draw, summary

    if as_json:
        print(json.dumps([summary(path) for path in run_dirs], indent=2))
        return
    for path in run_dirs:
        page = draw(path)
        _print_table(path)
        out.print(f"Report: {page}", soft_wrap=True)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="RUN")], second: Annotated[Path, typer.Argument(metavar="RUN")]
) -> None:
    """Set the verdicts of two runs side by side."""
    from rich.table import Table

    tables = [{row["name"]: row for row in _verdict_rows(path)} for path in (first, second)]
    table = Table("claim", str(first), str(second))
    for name in dict.fromkeys([*tables[0], *tables[1]]):
        table.add_row(escape(name), *(_cell(rows.get(name)) for rows in tables))
    out.print(table)


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(help="Where to look.")] = Path("runs"), as_json: AsJson = False
) -> None:
    """Show the runs in a folder and what they found."""
    from mesascope.studies import published

    rows = published.runs(folder)
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    if not rows:
        out.print(f"no runs in {folder}/", soft_wrap=True)
    for row in rows:
        counts = ", ".join(f"{n} {word}" for word, n in row["verdicts"].items()) or row["state"]
        out.print(f"{row['path']}  {row['study']} {row['scale'] or ''}  {counts}", soft_wrap=True)


def _names(given: str | None) -> list[str] | None:
    """What stands between commas."""
    return [name.strip() for name in given.split(",") if name.strip()] if given else None


def _print_verdict(verdict: Any) -> None:
    """A claim's verdict in two or three lines."""
    colour = COLOURS.get(verdict.word, "dim")
    out.print(f"\n[bold {colour}]{verdict.word.upper()}[/bold {colour}]  {escape(verdict.sentence)}")
    if verdict.value is not None:
        low, high = verdict.interval
        out.print(
            f"  {escape(verdict.about)}: {verdict.value:.3g} [{low:.3g}, {high:.3g}]".replace("[", "\\[")
            + f"; {escape(verdict.control_about)}: {verdict.control:.3g}"
        )
    out.print(f"  [dim]{escape(verdict.reason)}; {escape(verdict.source)}[/dim]")


def _print_table(path: Path) -> None:
    """A run's verdicts, a line each, if it has any."""
    from rich.table import Table

    if not (path / "verdicts.json").exists():
        return
    table = Table("verdict", "claim", "value", "control")
    for row in _verdict_rows(path):
        colour = COLOURS.get(row["word"], "dim")
        value, control = (f"{row[key]:.3g}" if row[key] is not None else "-" for key in ("value", "control"))
        table.add_row(f"[{colour}]{row['word']}[/{colour}]", escape(row["sentence"]), value, control)
    out.print(table)


def _print_ranking(one: dict[str, Any]) -> None:
    """The algorithms beside a model, the nearest first."""
    from rich.table import Table

    where = ", ".join(str(part) for part in (one["setting"], f"seed {one['seed']}") if part and "None" not in part)
    out.print(f"\n[bold]{escape(one['named'])}[/bold]  {escape(where or one['task'])}")
    table = Table("algorithm, as fitted", "predictions", "null", "errors", "weights", "elsewhere")
    for row in one["ranking"]:
        numbers = f" ({row['numbers']})" if row["numbers"] else ""
        weights = ", ".join(_number(value) for value in row["weights"].values()) or "-"
        same = "" if row["told apart"] else " *"
        table.add_row(
            escape(row["called"] + numbers),
            _number(row["predictions"]) + same,
            _number(row["null"]),
            _number(row["errors"]),
            weights,
            _number(min(row["shifted"].values())) if row["shifted"] else "-",
        )
    out.print(table)
    out.print(
        "[dim]1: the same as the model; 0: no better than the mean of its predictions. *: not told apart from the "
        "nearest. elsewhere: predictions on sequences from other distributions, the worst of them[/dim]",
        soft_wrap=True,
    )
    for name, why in one["not run"].items():
        out.print(f"[dim]not run: {escape(name)}: {escape(why)}[/dim]", soft_wrap=True)
    for layer in one["layers"]:
        out.print(f"  {escape(layer['layer']):<10} {escape(layer['nearest'])} ({_number(layer['similarity'])})")


def _number(value: float) -> str:
    """A similarity, which may be far below 0."""
    return "-" if value != value else "below -10" if value < -10 else f"{value:.3f}"


def _verdict_rows(path: Path) -> list[dict[str, Any]]:
    """The verdicts of a run that has them."""
    from mesascope.store import Run

    return Run.open(path).read_json("verdicts")


def _cell(row: dict[str, Any] | None) -> str:
    """A verdict in a table."""
    if row is None:
        return "-"
    return row["word"] if row["value"] is None else f"{row['word']} ({row['value']:.3g})"


def _told(last: dict[str, Any] | None) -> str:
    """Last verdicts in a line."""
    if last is None:
        return "[dim]no verdicts yet[/dim]"
    where = escape(last["run"]) if last["run"] else f"published, {last['scale']} scale"
    counts = (f"[{COLOURS.get(word, 'dim')}]{n} {word}[/]" for word, n in last["verdicts"].items())
    return f"{where}: {', '.join(counts)}"


def _duration(minutes: float) -> str:
    """Minutes, or hours where there are many."""
    return f"{minutes:g} min" if minutes < 120 else f"{minutes / 60:.0f} h"


@contextmanager
def _interruptible() -> Iterator[None]:
    """After Ctrl-C, say how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        err.print("interrupted; run the same command again to go on")
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """What the user can mend is told in one line; everything else is a bug and keeps its traceback."""
    try:
        yield
    except (ValueError, MemoryError) as error:
        _fail(str(error))
    except RuntimeError as error:
        if type(error).__module__.startswith("mesascope"):
            _fail(str(error))
        raise
    except OSError as error:
        if error.errno is None:
            raise
        _fail(f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror))


def _fail(line: str) -> None:
    """Print one line and leave with exit code 2."""
    if os.environ.get("MESASCOPE_DEBUG"):
        raise
    err.print(f"mesascope: {escape(' '.join(line.split()))}", soft_wrap=True)
    sys.exit(BAD_INPUT)


if __name__ == "__main__":
    main()
