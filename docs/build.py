"""Write docs/studies/NAME.md from finished runs: ``python docs/build.py runs/affine-laptop ...`` (``make docs``).

The verdicts go into the package, too, where `mesascope list` finds them. A run of `mesascope inspect` becomes
docs/studies/released.md: what the measures of the studies say of a released model.
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
    """Question, setting, verdicts, figures and what is ours, as Markdown."""
    made = record["provenance"]
    paper = record["citation"]
    lines = [
        f"# {record['title']}",
        "",
        record["about"],
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
            f"- *{verdict['name']}*: {verdict['about']}. {verdict['source']}. {verdict['reason']}."
            for verdict in verdicts
        ),
        *(line for one in drawn(run, record["study"]) for line in one),
        "",
    ]
    return "\n".join(lines)


def drawn(run: Path, study: str) -> Iterator[list[str]]:
    """Its figures as Markdown: all curves of reduced models, and those that the report shows at once."""
    theories = [theory.name for theory in registry.load(study).theories]
    for title, about, file in pictures(run, PICTURES, study, theories):
        yield ["", f"## {title}", "", f"![{title}]({file.relative_to(PAGES)})", "", about]


def publish(record: dict, verdicts: list[dict]) -> None:
    """Put a run's verdicts where `mesascope list` finds them."""
    words = {one["name"]: one["word"] for one in verdicts}
    told = published.published()
    told[record["study"]] = {"scale": record["scale"], "seeds": len(record["seeds"]), "verdicts": words}
    text = json.dumps(dict(sorted(told.items())), indent=1, ensure_ascii=False)
    published.PUBLISHED.write_text(text + "\n", encoding="utf-8")


def row(verdict: dict) -> str:
    """A verdict as a line of a table."""
    low, high = verdict["interval"] or (None, None)
    value = "-" if verdict["value"] is None else f"{verdict['value']:.3g} [{low:.3g}, {high:.3g}]"
    control = "-" if verdict["control"] is None else f"{verdict['control']:.3g}: {verdict['control_about']}"
    seeds = ", ".join("-" if number is None else f"{number:.3g}" for number in verdict["per_seed"])
    return f"| **{verdict['word']}** | {verdict['sentence']} | {value} | {control} | {seeds} |"


def released(run: Path, record: dict) -> str:
    """Norms, read-outs, spectra and inner steps of a released model by depth, each beside its control, as Markdown."""
    made, text = record["provenance"], record["text"]
    norms, logit, affine = (found(run, name) for name in ("norms", "logit_lens", "affine_lens"))
    columns = {
        "mean norm": norms["mean"],
        "variation of norms": norms["variation"],
        "the same, random weights": norms["variation_random_weights"].mean("draw"),
        "first token's norm": norms["first_token"],
        "logit lens, nat": logit["loss"],
        "affine lens, nat": affine["loss"],
    }
    lines = [
        f"# The same measures on a released model: {record['title'].removeprefix('Inside ')}",
        "",
        f"{text['tokens']:,} tokens of {text['source']}, `mesascope inspect MODEL` (torch {made['torch']}, "
        f"transformers {made['transformers']}). Sinks are left out of means and variations; the first token, the "
        "largest of them, stands apart. Random weights: the same architecture, never trained.",
        "",
        *table("depth", norms["layer"].values.tolist(), columns),
        "",
        "By layer: how much longer the maps make what they read than the same vectors turned at random (|W x|², ratio; "
        "its upper band edge beside it, means over maps), and the cosine of what attention and MLP add with minus the "
        "gradient of the loss (means over both; beside it with updates of other positions, and with random weights).",
        "",
        *table("layer", found(run, "spectra")["layer"].values.tolist(), layers(run)),
        "",
    ]
    return "\n".join(lines)


def layers(run: Path) -> dict[str, xr.DataArray]:
    """What is known of each layer's maps and updates."""
    spectra, outer = found(run, "spectra"), found(run, "inner_outer")
    return {
        "gain": spectra["gain"].mean("map"),
        "band": spectra["gain_high"].mean("map"),
        "cosine": outer["cosine"].mean("sublayer"),
        "other positions": outer["cosine_elsewhere"].mean("sublayer"),
        "random weights": outer["cosine_random_weights"].mean(("draw", "sublayer")),
    }


def table(first: str, places: list, columns: dict[str, xr.DataArray]) -> list[str]:
    """A table with a row for every place along ``layer``."""
    rows = [
        f"| {place} | " + " | ".join(f"{float(column[k]):.3g}" for column in columns.values()) + " |"
        for k, place in enumerate(places)
    ]
    return [f"| {first} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|", *rows]


def found(run: Path, name: str) -> xr.Dataset:
    """The results of one instrument."""
    return xr.load_dataset(run / "results" / f"{name}.nc", engine="netcdf4")


def read(file: Path) -> Any:
    """What a run has written down as JSON."""
    return json.loads(file.read_text(encoding="utf-8"))


def main() -> None:
    """A page for every run that is named."""
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
