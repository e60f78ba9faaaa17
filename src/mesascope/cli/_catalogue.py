"""Commands about studies: list, show, cite."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from mesascope.cli._app import STATUS_COLOURS, AsJson, StudyName, app, out
from mesascope.cli._output import (
    format_last_verdicts,
    format_minutes,
    format_text,
    print_indented,
    print_titles,
)

if TYPE_CHECKING:
    from mesascope.studies.summary import ConditionSummary, StudySummary


@app.command("list")
def list_command(
    folder: Annotated[Path, typer.Argument(help="Folder that contains runs.")] = Path("runs"), as_json: AsJson = False
) -> None:
    """List all studies with their paper, cost and latest verdicts, and all tasks."""
    from mesascope.studies import published, registry

    studies, tasks, last = registry.list_studies(), registry.list_tasks(), published.load_latest_verdicts(folder)
    if as_json:
        study_rows = [{"paper": e.paper, "minutes": dict(e.minutes), "last": last.get(e.name)} for e in studies]
        rows = [{"kind": e.kind, "name": e.name, "title": e.title} for e in (*studies, *tasks)]
        extended = [row | more for row, more in zip(rows, study_rows + [{}] * len(tasks), strict=True)]
        installed = [{"kind": "study", "name": each.name, "title": ""} for each in registry.list_installed_studies()]
        print(json.dumps([*extended, *installed], indent=2))
        return
    out.print("[bold]Studies[/bold] (mesascope run NAME; times on two CPU cores)")
    for entry in studies:
        _print_study(entry, last.get(entry.name))
    for point in registry.list_installed_studies():
        package = point.dist.name if point.dist else point.value
        out.print(f"  [bold]{escape(point.name)}[/bold]  of the package {escape(package)}", soft_wrap=True)
    out.print("[bold]Tasks[/bold] (mesascope.tasks)")
    print_titles({entry.name: entry.title for entry in tasks})


def _print_study(entry: Any, last: dict[str, Any] | None) -> None:
    costs = ", ".join(f"{scale} {format_minutes(minutes)}" for scale, minutes in entry.minutes.items())
    out.print(f"  [bold]{entry.name}[/bold]  {format_text(entry.title)}", soft_wrap=True)
    out.print(f"      {escape(entry.paper)}; {costs}", soft_wrap=True)
    out.print(f"      {format_last_verdicts(last)}", soft_wrap=True)


@app.command("show")
def show_command(study: StudyName) -> None:
    """Show the scales, conditions, analyses and claims of a study, with the published verdicts."""
    from mesascope.studies.registry import load_summary

    summary = load_summary(study)
    paper = summary.citation
    out.print(f"[bold]{format_text(summary.title)}[/bold]\n{format_text(summary.description)}\n")
    out.print(f"Paper: {escape(paper.authors)} ({paper.year}). {escape(paper.title)}.")
    out.print(f"       {paper.url}\n\n[bold]Scales[/bold]")
    _print_scales(summary)
    _print_factors(summary)
    for condition in summary.conditions:
        _print_analyses(condition)
    _print_claims(study, summary)


def _print_scales(summary: "StudySummary") -> None:
    for scale in summary.scales:
        steps = f"{scale.steps:,} steps".replace(",", " ")
        out.print(f"  {scale.name:<7} {scale.seeds} seeds, {steps}, about {scale.minutes:g} min on two CPU cores")
    for simulation in summary.simulations:
        out.print(f"\n[bold]{format_text(simulation.title)}[/bold]")
        print_indented(format_text(simulation.description), indent=2)


def _print_factors(summary: "StudySummary") -> None:
    if summary.factors:
        out.print("\n[bold]Factors[/bold] (mesascope run NAME --vary FACTOR=LEVEL,...)")
    for factor in summary.factors:
        print_indented(f"{escape(factor.name)}: {format_text(factor.description)}", indent=2)
        for position, (level, words) in enumerate(factor.levels.items()):
            scales = [scale for scale, run_levels in factor.grid.items() if level in run_levels]
            default = (
                "setting of the study" if position == 0 else f"by default at {', '.join(scales)}" if scales else ""
            )
            suffix = f" [dim]({default})[/dim]" if default else ""
            print_indented(f"{escape(level)}: {format_text(words)}{suffix}", indent=4)


def _print_analyses(condition: "ConditionSummary") -> None:
    out.print(f"\n[bold]Analyses{format_text(f': {condition.title}') if condition.title else ''}[/bold]")
    print_titles(condition.analyses)


def _print_claims(study: str, summary: "StudySummary") -> None:
    from mesascope.studies.published import load_published

    results = load_published().get(study, {"scale": ""})
    cells = [
        one["verdicts"] | one.get("others", {}) for one in (results, *results.get("cells", {}).values()) if len(one) > 1
    ]
    where = f" in {len(cells)} cells" if len(cells) > 1 else ""
    heading = f" and published verdicts at {results['scale']} scale{where}" if cells else ""
    out.print(f"\n[bold]Claims[/bold]{heading}")
    for claim in summary.claims:
        verdict = _format_statuses([cell[claim.name] for cell in cells if claim.name in cell])
        print_indented(f"{verdict}{format_text(claim.statement)}", indent=2)
        print_indented(f"[dim]{format_text(claim.source)}[/dim]", indent=4)


def _format_statuses(statuses: list[str]) -> str:
    """Return the verdict on a claim; for several cells, how many have which."""
    several = len(statuses) > 1
    words = ", ".join(
        f"[{STATUS_COLOURS.get(status, 'dim')}]{status}{f' {statuses.count(status)}' if several else ''}[/]"
        for status in dict.fromkeys(statuses)
    )
    return f"{words}: " if words else ""


@app.command("cite")
def cite_command(study: StudyName) -> None:
    """Print the BibTeX entry of the paper that a study replicates."""
    from mesascope.studies.registry import load_summary

    print(load_summary(study).citation.bibtex)
