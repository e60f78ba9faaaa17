"""Write docs/studies/NAME.md from finished runs: ``python docs/build.py runs/affine-laptop ...`` (``make docs``).

The verdicts are also written into the package, where `mesascope list` reads them. A run of `mesascope inspect` becomes
docs/studies/released.md: the analyses of the studies on a released model.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xarray as xr
from figures import draw_figures

from mesascope.report.panels.cells import describe_factors, list_varied_factors
from mesascope.studies import published, registry
from mesascope.studies.cells import JudgedCell, load_cells, tabulate_claims

PAGES = Path(__file__).parent / "studies"
FIGURES = PAGES / "figures"
KINDS = {
    "replication": "",
    "simulation": "## Simulations\n\nClaims about toy models; their seeds are draws of one deterministic process.",
    "check": "## Sanity checks\n\nThese hold by construction, or their control could not come out the other way.",
}


def format_study_page(run: Path, record: dict, verdicts: list[dict]) -> str:
    """Return the page of a run as Markdown: description, verdicts and figures."""
    provenance, paper, cells = record["provenance"], record["citation"], load_cells(run)
    lines = [
        f"# {record['title']}",
        "",
        record["description"],
        "",
        f"{paper['authors']} ({paper['year']}). [{paper['title']}]({paper['url']}).",
        "",
        f"Run at {record['scale']} scale with {len(record['seeds'])} seeds: "
        f"`mesascope run {record['study']} --scale {record['scale']}` "
        f"(torch {provenance['torch']}, transformers {provenance['transformers']}, "
        f"{provenance['processors']} processors).",
        "",
        *format_cell_map(cells, record),
        *(line for kind, heading in KINDS.items() for line in format_claims(heading, select_kind(verdicts, kind))),
        *format_further_cells(cells),
        *(line for section in format_figures(run, record["study"]) for line in section),
        "",
    ]
    return "\n".join(lines)


def format_cell_map(cells: list[JudgedCell], record: dict) -> list[str]:
    """Return the status of every claim in all cells as lines of Markdown; none for a run of one cell."""
    if len(cells) < 2:
        return []
    varied = list_varied_factors(cells)
    names = [", ".join(f"{factor} {cell.levels[factor]}" for factor in varied) for cell in cells]
    rows = [
        f"| {claim.statement} | {claim.share} | {' | '.join(claim.statuses.get(cell.name, '-') for cell in cells)} |"
        for claim in tabulate_claims(cells)
        if claim.kind != "check"
    ]
    return [
        "## Verdicts by setting",
        "",
        "The paper leaves these choices open; every claim is judged in each cell on its own.",
        "",
        f"| claim | supported | {' | '.join(names)} |",
        "|---" * (len(cells) + 2) + "|",
        *rows,
        "",
        *(f"- *{name}*: {words}." for name, words in describe_factors(record, varied)),
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
        lines += format_claims(f"## Verdicts: {name}", [one for one in cell.verdicts if one["kind"] != "check"])
    return lines


def select_kind(verdicts: list[dict], kind: str) -> list[dict]:
    """Return the verdicts on claims of one kind."""
    return [verdict for verdict in verdicts if verdict["kind"] == kind]


def format_claims(heading: str, verdicts: list[dict]) -> list[str]:
    """Return a table of verdicts, and what decided each of them, as lines of Markdown; none without verdicts."""
    if not verdicts:
        return []
    level = f"{verdicts[0]['level']:.0%}".replace("%", " %")
    details = [
        f"- *{verdict['name']}*: {verdict['description']}. {verdict['source']}. {verdict['reason']}."
        for verdict in verdicts
    ]
    head = [f"| verdict | claim | value [{level}] | control | per seed |", "|---|---|---|---|---|"]
    return [*heading.splitlines(), "", *head, *map(format_verdict_row, verdicts), "", *details, ""]


def format_figures(run: Path, study: str) -> Iterator[list[str]]:
    """Return the figures of a run as Markdown: all curves of toy models, and those that the report does not fold."""
    simulations = [simulation.name for simulation in registry.load_study(study).simulations]
    for title, about, file in draw_figures(run, FIGURES, study, simulations):
        yield ["", f"## {title}", "", f"![{title}]({file.relative_to(PAGES)})", "", about]


def publish_verdicts(run: Path, record: dict) -> None:
    """Write the verdicts of a run where `mesascope list` reads them."""
    own, *further = load_cells(run)
    cells = {cell.name: collect_statuses(cell) for cell in further}
    studies = published.load_published()
    studies[record["study"]] = (
        {"scale": record["scale"]} | collect_statuses(own) | ({"cell": own.name, "cells": cells} if cells else {})
    )
    text = json.dumps(dict(sorted(studies.items())), indent=1, ensure_ascii=False)
    published.PUBLISHED.write_text(text + "\n", encoding="utf-8")


def collect_statuses(cell: JudgedCell) -> dict[str, Any]:
    """Return the number of seeds of a cell, and the statuses of its claims and of simulations and checks, by name."""
    statuses = {one["name"]: one["status"] for one in cell.verdicts if one["kind"] == "replication"}
    others = {one["name"]: one["status"] for one in cell.verdicts if one["name"] not in statuses}
    return {"seeds": cell.seeds, "verdicts": statuses, "others": others}


def format_verdict_row(verdict: dict) -> str:
    """Return a verdict as a row of a table."""
    interval = " [{:.3g}, {:.3g}]".format(*verdict["interval"]) if verdict["interval"] else ""
    value = "-" if verdict["value"] is None else f"{verdict['value']:.3g}{interval}"
    control = "-" if verdict["control"] is None else f"{verdict['control']:.3g}: {verdict['control_description']}"
    seeds = ", ".join("-" if number is None else f"{number:.3g}" for number in verdict["per_seed"])
    return f"| **{verdict['status']}** | {verdict['statement']} | {value} | {control} | {seeds} |"


def format_released_page(run: Path, record: dict) -> str:
    """Return norms, lenses, spectra and inner objectives of a released model by depth, with controls, as Markdown."""
    provenance, text = record["provenance"], record["text"]
    norms, logit, affine = (load_results(run, name) for name in ("norms", "logit_lens", "affine_lens"))
    columns = {
        "mean norm": norms["mean"],
        "variation of norms": norms["variation"],
        "the same, random weights": norms["variation_null_random_weights"].mean("draw"),
        "first token's norm": norms["first_token"],
        "logit lens, nat": logit["loss"],
        "affine lens, nat": affine["loss"],
    }
    lines = [
        f"# The same analyses on a released model: {record['title'].removeprefix('Inside ')}",
        "",
        f"{text['tokens']:,} tokens of {text['source']}, `mesascope inspect MODEL` (torch {provenance['torch']}, "
        f"transformers {provenance['transformers']}). Attention sinks are excluded from means and variations; the "
        "first token, the largest sink, has its own column. Random weights: the same architecture, untrained.",
        "",
        *format_table("depth", norms["layer"].values.tolist(), columns),
        "",
        "By layer: gain of the linear modules, |W x|² of their inputs divided by that of randomly rotated inputs (mean "
        "over modules, with the upper edge of the null's band), and cosine of the updates of attention and MLP with "
        "the negative gradient of the loss (mean over both; controls: updates of other positions, random weights).",
        "",
        *format_table("layer", load_results(run, "input_spectra")["layer"].values.tolist(), collect_layer_columns(run)),
        "",
    ]
    return "\n".join(lines)


def collect_layer_columns(run: Path) -> dict[str, xr.DataArray]:
    """Return gains of the linear modules and cosines of the updates, by layer."""
    spectra, outer = load_results(run, "input_spectra"), load_results(run, "inner_outer")
    return {
        "gain": spectra["gain"].mean("map"),
        "band": spectra["gain_null_high"].mean("map"),
        "cosine": outer["cosine"].mean("sublayer"),
        "other positions": outer["cosine_null_other_positions"].mean("sublayer"),
        "random weights": outer["cosine_null_random_weights"].mean(("draw", "sublayer")),
    }


def format_table(first: str, labels: list, columns: dict[str, xr.DataArray]) -> list[str]:
    """Return a table with one row per layer or depth."""
    rows = [
        f"| {label} | " + " | ".join(f"{float(column[k]):.3g}" for column in columns.values()) + " |"
        for k, label in enumerate(labels)
    ]
    return [f"| {first} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|", *rows]


def load_results(run: Path, name: str) -> xr.Dataset:
    """Load the results of one analysis."""
    return xr.load_dataset(run / "results" / f"{name}.nc", engine="netcdf4")


def load_json(file: Path) -> Any:
    """Load a JSON file of a run."""
    return json.loads(file.read_text(encoding="utf-8"))


def main() -> None:
    """Write a page for every run given on the command line."""
    for run in map(Path, sys.argv[1:]):
        record = load_json(run / "run.json")
        if record["study"] == "inspect":
            (PAGES / "released.md").write_text(format_released_page(run, record), encoding="utf-8")
            continue
        verdicts = load_json(run / "verdicts.json")
        (PAGES / f"{record['study']}.md").write_text(format_study_page(run, record, verdicts), encoding="utf-8")
        publish_verdicts(run, record)


if __name__ == "__main__":
    main()
