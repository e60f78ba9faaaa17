"""Verdicts and rankings in the terminal."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from mesascope.cli._app import STATUS_COLOURS, out, print_line
from mesascope.formulas import render_plain

if TYPE_CHECKING:
    from mesascope.store import Run
    from mesascope.studies.cells import JudgedCell
    from mesascope.studies.run_status import JobStatus, RunStatus

RANKING_LEGEND = (
    "[dim]1: equal to the model; 0: no better than the mean of its predictions. *: not distinguishable from the "
    "most similar one by its predictions; =: nor by weights and other inputs. steps: similarity relative to the "
    "predicted steps from the last term. shifted: lowest similarity of predictions on out-of-distribution "
    "sequences[/dim]"
)

MAX_PRINTED_EDGES = 20
_NOUNS = {"replication": "claim", "simulation": "simulated claim", "check": "check"}  # by the kind of a claim

_VERDICT_TYPES = {  # of the fields that are printed
    "name": str,
    "status": str,
    "statement": str,
    "value": int | float | None,
    "control": int | float | None,
}


def format_text(text: str) -> str:
    """Format a text with formulas for the terminal.

    Args:
        text: The text.

    Returns:
        The text with formulas in Unicode, escaped for rich.
    """
    return escape(render_plain(text))


def print_verdicts(verdicts: Sequence[Any], scale: str) -> None:
    """Print verdicts with their numbers; claims and checks that are not tested are only counted.

    Args:
        verdicts: The verdicts.
        scale: The scale of the run.
    """
    untested = Counter(verdict.kind for verdict in verdicts if verdict.status == "not tested at this scale")
    for verdict in verdicts:
        if verdict.status != "not tested at this scale":
            print_verdict(verdict)
    if untested:
        counts = [(untested[kind], noun) for kind, noun in _NOUNS.items() if untested[kind]]
        words = " and ".join(f"{count} {noun}{'s' if count > 1 else ''}" for count, noun in counts)
        verb = "is" if untested.total() == 1 else "are"
        print_line(f"\n{words} {verb} not tested at {scale} scale; the report lists all of them")


def print_titles(titles: Mapping[str, str]) -> None:
    """Print names with their titles as two indented columns.

    Args:
        titles: The titles, which may contain formulas, by name.
    """
    from rich.padding import Padding
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    for name, title in titles.items():
        table.add_row(escape(name), format_text(title))
    out.print(Padding(table, (0, 0, 0, 2), expand=False))


def print_indented(text: str, indent: int) -> None:
    """Print a text of which every line is indented, also those after a line break in a narrow terminal.

    Args:
        text: The text, with rich's markup.
        indent: The number of spaces.
    """
    from rich.padding import Padding

    out.print(Padding(out.render_str(text), (0, 0, 0, indent), expand=False))


def print_verdict(verdict: Any) -> None:
    """Print a verdict with its numbers.

    Args:
        verdict: The verdict.
    """
    colour = STATUS_COLOURS.get(verdict.status, "dim")
    out.print(f"\n[bold {colour}]{verdict.status.upper()}[/bold {colour}]  {format_text(verdict.statement)}")
    if verdict.value is not None:
        interval = " [{:.3g}, {:.3g}]".format(*verdict.interval) if verdict.interval else ""  # none for one seed
        value = f"{render_plain(verdict.description)}: {verdict.value:.3g}{interval}"
        print_indented(escape(f"{value}; {render_plain(verdict.control_description)}: {verdict.control:.3g}"), indent=2)
    print_indented(f"[dim]{format_text(verdict.reason)}; {format_text(verdict.source)}[/dim]", indent=2)


def print_verdict_table(path: Path) -> None:
    """Print the verdicts of a run as a table, if it has any.

    Args:
        path: The directory of the run.
    """
    from rich.table import Table

    if not (path / "verdicts.json").exists():
        return
    table = Table("verdict", "claim", "value", "control")
    for row in load_verdict_rows(path):
        colour = STATUS_COLOURS.get(row["status"], "dim")
        value, control = (f"{row[key]:.3g}" if row[key] is not None else "-" for key in ("value", "control"))
        table.add_row(f"[{colour}]{escape(row['status'])}[/{colour}]", format_text(row["statement"]), value, control)
    out.print(table)


def print_cells(cells: Sequence["JudgedCell"]) -> None:
    """Print the verdicts on every claim in all cells of a run.

    Args:
        cells: The judged cells; the study's own setting is the first.
    """
    from mesascope.studies.cells import OWN_SETTING, tabulate_claims

    own = escape(cells[0].name or OWN_SETTING)
    out.print(f"\n[bold]Verdicts in {len(cells)} cells[/bold] (those above: {own})", soft_wrap=True)
    for claim in tabulate_claims(cells):
        out.print(f"\n[bold]{claim.support} cells[/bold]: {format_text(claim.statement)}", soft_wrap=True)
        for status in dict.fromkeys(claim.statuses.values()):
            names = "; ".join(cell or OWN_SETTING for cell, given in claim.statuses.items() if given == status)
            out.print(f"  [{STATUS_COLOURS.get(status, 'dim')}]{status}[/]: {escape(names)}", soft_wrap=True)


def format_status(status: "RunStatus") -> list[str]:
    """Format the state of a run: one line for the run, and one for every condition in every cell.

    Args:
        status: The state.

    Returns:
        Lines of text.
    """
    user = "no process uses it" if status.holder is None else f"process {status.holder} uses it"
    counts = ", ".join(f"{count} {state}" for state, count in status.counts.items())
    changed = f"last change {status.seconds_since_change:.0f} s ago"
    head = (
        f"{status.path}: {status.study} at {status.scale} scale, {len(status.jobs)} jobs: {counts}; {changed}; {user}"
    )
    groups: dict[str, list[JobStatus]] = {}
    for job in status.jobs:
        groups.setdefault(" ".join(filter(None, [job.cell, job.condition])), []).append(job)
    return [head, *(f"  {_format_jobs(label, jobs)}" for label, jobs in groups.items())]


def _format_jobs(label: str, jobs: Sequence["JobStatus"]) -> str:
    """Format the jobs of one condition: the seeds in each state, and the step of each that is not at an end."""
    by_state: dict[str, list[str]] = {}
    for job in jobs:
        is_between = 0 < job.step < job.steps
        text = f"{job.seed} (step {job.step} of {job.steps})" if is_between else str(job.seed)
        by_state.setdefault(job.state, []).append(text)
    states = [f"{state}: seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}" for state, seeds in by_state.items()]
    return "; ".join([f"{label} {states[0]}".strip(), *states[1:]])


def print_circuit(run: "Run") -> None:
    """Print the edges of a circuit, its faithfulness and its stability.

    Args:
        run: The run of a search.
    """
    from rich.table import Column, Table

    edges = run.read_results("circuit")
    size, units = int(edges["score"].attrs["circuit_size"]), edges["score"].attrs["units"]
    table = Table(Column("edge", no_wrap=True), f"score ({units})", "95 % interval", "effect", "in resamples")
    for rank in range(min(size, MAX_PRINTED_EDGES)):
        edge = edges.isel(rank=rank)
        effect = float(edge["effect"])
        table.add_row(
            escape(f"{edge['sender_name'].item()} -> {edge['receiver_name'].item()}"),
            f"{float(edge['score']):.3g}",
            f"[{float(edge['low']):.3g}, {float(edge['high']):.3g}]",
            "-" if effect != effect else f"{effect:.3g}",
            f"{float(edge['inclusion']):.0%}",
        )
    out.print(table)
    if size > MAX_PRINTED_EDGES:
        print_line(f"{size - MAX_PRINTED_EDGES} more edges in {run.path / 'results' / 'circuit.nc'}")
    for name in ("circuit_test", "circuit_faithfulness"):
        print_line(render_plain(run.read_results(name).attrs["description"]) + ".")


def print_ranking(report: dict[str, Any]) -> None:
    """Print the ranking of algorithms for one model.

    Args:
        report: The report, as summarised by `summarise_report`.
    """
    heading = ", ".join(
        str(part) for part in (report["condition"], f"seed {report['seed']}") if part and "None" not in part
    )
    out.print(f"\n[bold]{escape(report['named'])}[/bold]  {escape(heading or report['task'])}")
    out.print(_ranking_table(report["ranking"]))
    out.print(RANKING_LEGEND, soft_wrap=True)
    for name, reason in report["skipped"].items():
        out.print(f"[dim]skipped: {escape(name)}: {escape(reason)}[/dim]", soft_wrap=True)
    for layer in report["layers"]:
        similarity, embedding = (_format_similarity(layer[name]) for name in ("similarity", "embedding"))
        before = "" if layer is report["layers"][0] else f"; at the embedding {embedding}"
        out.print(f"  {escape(layer['layer']):<10} {escape(layer['nearest'])} ({similarity}{before})", soft_wrap=True)


def _ranking_table(ranking: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    has_steps = any(row["relative_to_steps"] is not None for row in ranking)
    steps_column = ["steps"] if has_steps else []
    table = Table("algorithm (as fitted)", "predictions", *steps_column, "null", "errors", "weights", "shifted")
    for row in ranking:
        notes = [
            row["hyperparameters"],
            f"{', '.join(row['at_edge'])} at the edge of the grid" if row["at_edge"] else "",
        ]
        numbers = f" ({'; '.join(filter(None, notes))})" if any(notes) else ""
        weights = ", ".join(_format_similarity(value) for value in row["weights"].values()) or "-"
        marker = " *" + "=" * row["tied"] if not row["distinguishable"] else ""
        steps = [_format_similarity(row["relative_to_steps"])] if has_steps else []
        table.add_row(
            escape(row["label"] + numbers),
            _format_similarity(row["predictions"]) + marker,
            *steps,
            _format_similarity(row["null"]),
            _format_similarity(row["errors"]),
            weights,
            _format_similarity(min(row["shifted"].values())) if row["shifted"] else "-",
        )
    return table


def _format_similarity(value: float) -> str:
    """Format a similarity, which can be far below 0."""
    return "-" if value != value else "below -10" if value < -10 else f"{value:.3f}"


def load_verdict_rows(path: Path) -> list[dict[str, Any]]:
    """Read the verdicts of a run.

    Args:
        path: The directory of the run.

    Returns:
        One row per verdict.

    Raises:
        RunError: If the verdicts are missing, damaged, or lack what is printed.
    """
    from mesascope.checksums import VERDICTS_HINT, RunError, read_verdict_rows

    rows = read_verdict_rows(path)
    for row in rows:
        for key, types in _VERDICT_TYPES.items():
            if key not in row or not isinstance(row[key], types):
                raise RunError(
                    f"{path / 'verdicts.json'} must have a valid {key} in every verdict, but has {row.get(key)!r}; "
                    f"{VERDICTS_HINT}"
                )
    return rows


def format_verdict_cell(row: dict[str, Any] | None) -> str:
    """Format a verdict and its value for a table.

    Args:
        row: The verdict; None if there is none.

    Returns:
        The text of the cell, with markup.
    """
    if row is None:
        return "-"
    status = escape(row["status"])
    return status if row["value"] is None else f"{status} ({row['value']:.3g})"


def format_last_verdicts(last: dict[str, Any] | None) -> str:
    """Format the counts of the latest verdicts of a study.

    Args:
        last: The run, scale and counts; None if there are none.

    Returns:
        One line of text, with markup.
    """
    if last is None:
        return "[dim]no verdicts yet[/dim]"
    origin = escape(last["run"]) if last["run"] else f"published, {escape(last['scale'])} scale"
    counts = (f"[{STATUS_COLOURS.get(word, 'dim')}]{n} {escape(word)}[/]" for word, n in last["verdicts"].items())
    return f"{origin}: {', '.join(counts)}"


def format_minutes(minutes: float) -> str:
    """Format a duration, in minutes or hours.

    Args:
        minutes: The duration.

    Returns:
        The duration with its unit.
    """
    return f"{minutes:g} min" if minutes < 120 else f"{minutes / 60:.0f} h"


def split_names(text: str | None) -> list[str] | None:
    """Return the names in a comma-separated option.

    Args:
        text: The value of the option; None if it is not given.

    Returns:
        The names; None without the option.

    >>> split_names("norms, logit_lens")
    ['norms', 'logit_lens']
    """
    return [name.strip() for name in text.split(",") if name.strip()] if text else None
