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
from figures import pictures

from mesascope.studies import published, registry

PAGES = Path(__file__).parent / "studies"
PICTURES = PAGES / "figures"


def page(run: Path, record: dict, verdicts: list[dict]) -> str:
    """Return the page of a run as Markdown: description, verdicts and figures."""
    made = record["provenance"]
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
        f"(torch {made['torch']}, transformers {made['transformers']}, {made['processors']} processors).",
        "",
        "| verdict | claim | value [95 %] | control | per seed |",
        "|---|---|---|---|---|",
        *(row(one) for one in verdicts),
        "",
        *(
            f"- *{verdict['name']}*: {verdict['description']}. {verdict['source']}. {verdict['reason']}."
            for verdict in verdicts
        ),
        *(line for one in drawn(run, record["study"]) for line in one),
        "",
    ]
    return "\n".join(lines)


def drawn(run: Path, study: str) -> Iterator[list[str]]:
    """Return the figures of a run as Markdown: all curves of toy models, and those that the report does not fold."""
    simulations = [simulation.name for simulation in registry.load_study(study).simulations]
    for title, about, file in pictures(run, PICTURES, study, simulations):
        yield ["", f"## {title}", "", f"![{title}]({file.relative_to(PAGES)})", "", about]


def publish(record: dict, verdicts: list[dict]) -> None:
    """Write the verdicts of a run where `mesascope list` reads them."""
    statuses = {one["name"]: one["status"] for one in verdicts}
    studies = published.load_published()
    studies[record["study"]] = {"scale": record["scale"], "seeds": len(record["seeds"]), "verdicts": statuses}
    text = json.dumps(dict(sorted(studies.items())), indent=1, ensure_ascii=False)
    published.PUBLISHED.write_text(text + "\n", encoding="utf-8")


def row(verdict: dict) -> str:
    """Return a verdict as a row of a table."""
    low, high = verdict["interval"] or (None, None)
    value = "-" if verdict["value"] is None else f"{verdict['value']:.3g} [{low:.3g}, {high:.3g}]"
    control = "-" if verdict["control"] is None else f"{verdict['control']:.3g}: {verdict['control_description']}"
    seeds = ", ".join("-" if number is None else f"{number:.3g}" for number in verdict["per_seed"])
    return f"| **{verdict['status']}** | {verdict['statement']} | {value} | {control} | {seeds} |"


def released(run: Path, record: dict) -> str:
    """Return norms, lenses, spectra and inner objectives of a released model by depth, with controls, as Markdown."""
    made, text = record["provenance"], record["text"]
    norms, logit, affine = (found(run, name) for name in ("norms", "logit_lens", "affine_lens"))
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
        f"{text['tokens']:,} tokens of {text['source']}, `mesascope inspect MODEL` (torch {made['torch']}, "
        f"transformers {made['transformers']}). Attention sinks are excluded from means and variations; the first "
        "token, the largest sink, has its own column. Random weights: the same architecture, untrained.",
        "",
        *table("depth", norms["layer"].values.tolist(), columns),
        "",
        "By layer: gain of the linear modules, |W x|² of their inputs divided by that of randomly rotated inputs (mean "
        "over modules, with the upper edge of the null's band), and cosine of the updates of attention and MLP with "
        "the negative gradient of the loss (mean over both; controls: updates of other positions, random weights).",
        "",
        *table("layer", found(run, "input_spectra")["layer"].values.tolist(), layers(run)),
        "",
    ]
    return "\n".join(lines)


def layers(run: Path) -> dict[str, xr.DataArray]:
    """Return gains of the linear modules and cosines of the updates, by layer."""
    spectra, outer = found(run, "input_spectra"), found(run, "inner_outer")
    return {
        "gain": spectra["gain"].mean("map"),
        "band": spectra["gain_null_high"].mean("map"),
        "cosine": outer["cosine"].mean("sublayer"),
        "other positions": outer["cosine_null_other_positions"].mean("sublayer"),
        "random weights": outer["cosine_null_random_weights"].mean(("draw", "sublayer")),
    }


def table(first: str, places: list, columns: dict[str, xr.DataArray]) -> list[str]:
    """Return a table with one row per layer or depth."""
    rows = [
        f"| {place} | " + " | ".join(f"{float(column[k]):.3g}" for column in columns.values()) + " |"
        for k, place in enumerate(places)
    ]
    return [f"| {first} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|", *rows]


def found(run: Path, name: str) -> xr.Dataset:
    """Load the results of one analysis."""
    return xr.load_dataset(run / "results" / f"{name}.nc", engine="netcdf4")


def read(file: Path) -> Any:
    """Load a JSON file of a run."""
    return json.loads(file.read_text(encoding="utf-8"))


def main() -> None:
    """Write a page for every run given on the command line."""
    for run in map(Path, sys.argv[1:]):
        record = read(run / "run.json")
        if record["study"] == "inspect":
            (PAGES / "released.md").write_text(released(run, record), encoding="utf-8")
            continue
        verdicts = read(run / "verdicts.json")
        (PAGES / f"{record['study']}.md").write_text(page(run, record, verdicts), encoding="utf-8")
        publish(record, verdicts)


if __name__ == "__main__":
    main()
