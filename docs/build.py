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

from mesascope.studies import published, registry

PAGES = Path(__file__).parent / "studies"
FIGURES = PAGES / "figures"
KINDS = {
    "replication": "",
    "simulation": "## Simulations\n\nClaims about toy models; their seeds are draws of one deterministic process.",
    "check": "## Sanity checks\n\nThese hold by construction, or their control could not come out the other way.",
}


def format_study_page(run: Path, record: dict, verdicts: list[dict]) -> str:
    """Return the page of a run as Markdown: description, verdicts and figures."""
    provenance = record["provenance"]
    paper = record["citation"]
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
        *(line for kind, heading in KINDS.items() for line in format_claims(heading, select_kind(verdicts, kind))),
        *(line for section in format_figures(run, record["study"]) for line in section),
        "",
    ]
    return "\n".join(lines)


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


def publish_verdicts(record: dict, verdicts: list[dict]) -> None:
    """Write the verdicts of a run where `mesascope list` reads them."""
    statuses = {verdict["name"]: verdict["status"] for verdict in select_kind(verdicts, "replication")}
    others = {verdict["name"]: verdict["status"] for verdict in verdicts if verdict["name"] not in statuses}
    studies = published.load_published()
    entry = {"scale": record["scale"], "seeds": len(record["seeds"]), "verdicts": statuses, "others": others}
    studies[record["study"]] = entry
    text = json.dumps(dict(sorted(studies.items())), indent=1, ensure_ascii=False)
    published.PUBLISHED.write_text(text + "\n", encoding="utf-8")


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
        publish_verdicts(record, verdicts)


if __name__ == "__main__":
    main()
