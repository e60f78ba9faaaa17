"""Write docs/studies/NAME.md from finished runs: ``python docs/build.py runs/affine-laptop ...`` (``make docs``).

The verdicts are also written into the package, where `mesascope list` reads them. A run of `mesascope inspect` becomes
docs/studies/released.md: the analyses of the studies on a released model.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from figures import draw_figures
from released import format_released_page

from mesascope.formulas import escape_dollars, render_markdown, render_plain
from mesascope.report.panels.cells import describe_factors, list_varied_factors
from mesascope.store import Run, remove_drafts, verify_run, write_atomically
from mesascope.studies import published, registry
from mesascope.studies.cells import JudgedCell, load_cells, tabulate_claims

PAGES = Path(__file__).parent / "studies"
FIGURES = PAGES / "figures"
README = Path(__file__).parents[1] / "README.md"
SCALE = "laptop"  # of `make docs`; the page of a run at another scale has that scale in its name
BEGIN, END = "<!-- verdicts: begin -->", "<!-- verdicts: end -->"
REFUTED = ("contradicted", "no effect")
RELATED_PAGES = {"meta-learning": ["[A released model](released.md) has the statements on pre-trained models."]}
KINDS = {
    "replication": "",
    "simulation": "## Simulations\n\nClaims about toy models; their seeds are draws of one deterministic process.",
    "check": "## Sanity checks\n\nThese hold by construction, or their control could not come out the other way.",
}


def name_page(record: Mapping[str, Any]) -> str:
    """Return the name of the page of a run; that of the scale of ``make docs`` has the name of the study."""
    return record["study"] if record["scale"] == SCALE else f"{record['study']}-{record['scale']}"


def format_study_page(run: Path, record: dict, verdicts: list[dict]) -> str:
    """Return the page of a run as Markdown: description, verdicts and figures."""
    provenance, paper, cells = record["provenance"], record["citation"], load_cells(run)
    entry = published.load_published().get(record["study"], {})
    further = entry.get("further_scales", {}) if record["scale"] == SCALE else {}
    lines = [
        f"# {format_text(record['title'])}",
        "",
        format_text(record["description"]),
        "",
        f"{paper['authors']} ({paper['year']}). [{paper['title']}]({paper['url']}).",
        "",
        f"Run at {record['scale']} scale with {len(record['seeds'])} seeds: "
        f"`mesascope run {record['study']} --scale {record['scale']}` "
        f"(torch {provenance['torch']}, transformers {provenance['transformers']}, "
        f"{provenance['processors']} processors).",
        *RELATED_PAGES.get(record["study"], ()),
        *(f"Also run at [{scale} scale]({record['study']}-{scale}.md)." for scale in further),
        "",
        *format_cell_map(cells, record),
        *(line for kind, heading in KINDS.items() for line in format_claims(heading, select_kind(verdicts, kind))),
        *format_further_cells(cells),
        *(line for section in format_figures(run, record) for line in section),
        "",
    ]
    return "\n".join(lines)


def format_cell_map(cells: list[JudgedCell], record: dict) -> list[str]:
    """Return the status of every claim in all cells as lines of Markdown; none for a run of one cell."""
    if len(cells) < 2:
        return []
    varied = list_varied_factors(cells)
    names = [", ".join(f"{factor} {cell.levels[factor]}" for factor in varied) for cell in cells]
    rows = []
    for claim in tabulate_claims(cells):
        if claim.kind != "check":
            statuses = " | ".join(claim.statuses.get(cell.name, "-") for cell in cells)
            rows.append(f"| {format_text(claim.statement)} | {claim.support} | {statuses} |")
    return [
        "## Verdicts by setting",
        "",
        "The paper leaves these choices open; every claim is judged in each cell on its own.",
        "",
        f"| claim | supported | {' | '.join(names)} |",
        "|---" * (len(cells) + 2) + "|",
        *rows,
        "",
        *(f"- *{name}*: {format_text(words)}." for name, words in describe_factors(record, varied)),
        "",
        f"## Verdicts: {names[0]}",
        "",
    ]


def format_further_cells(cells: list[JudgedCell]) -> list[str]:
    """Return the verdicts in the cells other than the study's own setting as lines of Markdown."""
    varied = list_varied_factors(cells) if cells else []
    lines = []
    for cell in cells[1:]:
        name = ", ".join(f"{factor} {cell.levels[factor]}" for factor in varied)
        lines += format_claims(f"## Verdicts: {name}", cell.verdicts)
    return lines


def select_kind(verdicts: list[dict], kind: str) -> list[dict]:
    """Return the verdicts on claims of one kind."""
    return [verdict for verdict in verdicts if verdict["kind"] == kind]


def format_claims(heading: str, verdicts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a table of verdicts, and what decided each of them, as lines of Markdown; none without verdicts."""
    if not verdicts:
        return []
    level = f"{verdicts[0]['level']:.0%}".replace("%", " %")
    details = [
        format_text(f"- *{verdict['name']}*: {verdict['description']}. {verdict['source']}. {verdict['reason']}.")
        for verdict in verdicts
    ]
    head = [f"| verdict | claim | value [{level}] | control | per seed |", "|---|---|---|---|---|"]
    return [*heading.splitlines(), "", *head, *map(format_verdict_row, verdicts), "", *details, ""]


def format_figures(run: Path, record: Mapping[str, Any]) -> Iterator[list[str]]:
    """Return the figures of a run as Markdown: all curves of toy models, and those that the report does not fold."""
    simulations = [simulation.name for simulation in registry.load_study(record["study"]).simulations]
    for title, about, file in draw_figures(run, FIGURES, name_page(record), simulations):
        image = f"![{render_plain(title)}]({file.relative_to(PAGES)})"
        yield ["", f"## {format_text(title)}", "", image, "", format_text(about)]


def publish_verdicts(run: Path, record: dict) -> None:
    """Write the verdicts of a run where `mesascope list` reads them; other scales stand beside that of `make docs`."""
    own, *further = load_cells(run)
    cells = {cell.name: collect_statuses(cell) for cell in further}
    entry = {"scale": record["scale"]} | collect_statuses(own) | ({"cell": own.name, "cells": cells} if cells else {})
    studies = published.load_published()
    present = studies.get(record["study"], {})
    scales = present.get("further_scales", {})
    if record["scale"] == SCALE:
        studies[record["study"]] = entry | ({"further_scales": scales} if scales else {})
    else:
        studies[record["study"]] = present | {"further_scales": scales | {record["scale"]: entry}}
    text = json.dumps(dict(sorted(studies.items())), indent=1, ensure_ascii=False)
    write_atomically(published.PUBLISHED, text + "\n")


def collect_statuses(cell: JudgedCell) -> dict[str, Any]:
    """Return the number of seeds of a cell, and the statuses of its claims and of simulations and checks, by name."""
    statuses = {one["name"]: one["status"] for one in cell.verdicts if one["kind"] == "replication"}
    others = {one["name"]: one["status"] for one in cell.verdicts if one["name"] not in statuses}
    return {"seeds": cell.seeds, "verdicts": statuses, "others": others}


def format_readme_table() -> list[str]:
    """Return the claims that papers make, by study and verdict, as lines of Markdown."""
    entries = published.load_published()
    rows = []
    for name in (entry.name for entry in registry.list_studies() if entry.name in entries):
        for entry in (entries[name], *entries[name].get("further_scales", {}).values()):
            cells = [entry, *entry.get("cells", {}).values()]
            columns = group_claims(name, cells)
            if any(columns.values()):
                size = f"{len(cells)} x {cells[0]['seeds']}" if len(cells) > 1 else str(cells[0]["seeds"])
                page = name_page({"study": name, "scale": entry["scale"]})
                rows.append(f"| [`{page}`](docs/studies/{page}.md) | {size} | {' | '.join(columns.values())} |")
    return ["| study | seeds | holds | does not hold | undecided |", "|---|---|---|---|---|", *rows]


def group_claims(study: str, cells: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the claims of a study's paper: those that hold in all cells, those that do in none, and all others."""
    groups: dict[str, list[str]] = {"holds": [], "does not hold": [], "undecided": []}
    for claim in registry.load_study(study).claims:
        statuses = [cell["verdicts"][claim.name] for cell in cells if claim.by_paper and claim.name in cell["verdicts"]]
        if not statuses:
            continue
        supported, words = statuses.count("supported"), ", ".join(dict.fromkeys(statuses))
        if supported == len(statuses):
            groups["holds"].append(claim.name)
        elif all(status in REFUTED for status in statuses):
            groups["does not hold"].append(f"{claim.name} ({words})")
        else:
            note = f"supported in {supported} of {len(statuses)} cells" if supported else words
            groups["undecided"].append(f"{claim.name} ({note})")
    return {group: "; ".join(names) for group, names in groups.items()}


def write_readme_table() -> None:
    """Write the table of claims into the README."""
    text = README.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    write_atomically(README, "\n".join([before + BEGIN, *format_readme_table(), END + after]))


def format_verdict_row(verdict: Mapping[str, Any]) -> str:
    """Return a verdict as a row of a table."""
    interval = " [{:.3g}, {:.3g}]".format(*verdict["interval"]) if verdict["interval"] else ""
    value = "-" if verdict["value"] is None else f"{verdict['value']:.3g}{interval}"
    control = "-" if verdict["control"] is None else f"{verdict['control']:.3g}: {verdict['control_description']}"
    statement, control = format_text(verdict["statement"]), format_text(control)
    seeds = ", ".join("-" if number is None else f"{number:.3g}" for number in verdict["per_seed"])
    return f"| **{verdict['status']}** | {statement} | {value} | {control} | {seeds} |"


def format_text(text: str) -> str:
    """Return a text with formulas as Markdown, which may stand in a table."""
    return render_markdown(text, escape_dollars)


def load_json(file: Path) -> Any:
    """Load a JSON file of a run, verified."""
    run = Run.open(file.parent)
    return run.record if file.stem == "run" else run.read_json(file.stem)


def refuse_damaged(run: Path) -> None:
    """Exit with one line if a file of a run is damaged; a run of an earlier version has no checksums and says so."""
    if not Run.open(run).has_checksums:
        sys.stderr.write(f"{run} was written by an earlier version without checksums: nothing in it can be verified\n")
    elif problems := verify_run(run).problems:
        sys.exit(f"{run} must not be published: {problems[0]}")


def main() -> None:
    """Write a page for every run given on the command line; every file is whole if this is stopped."""
    for folder in (PAGES, FIGURES, README.parent, published.PUBLISHED.parent):
        remove_drafts(folder)
    for run in map(Path, sys.argv[1:]):
        refuse_damaged(run)
        record = load_json(run / "run.json")
        if record["study"] == "inspect":
            write_atomically(PAGES / "released.md", format_released_page(run, record))
            continue
        verdicts = load_json(run / "verdicts.json")
        publish_verdicts(run, record)
        write_atomically(PAGES / f"{name_page(record)}.md", format_study_page(run, record, verdicts))
    write_readme_table()


if __name__ == "__main__":
    main()
