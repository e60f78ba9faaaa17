"""The page of a released model: what holds of the statements of Wu & Varshney, by layer, with controls."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from mesascope.store import Run
from mesascope.studies.meta_learning.optimisation_claims import COSINE_MARGIN

CONTROLS = ("keys shuffled", "other positions", "random weights")
STATEMENTS = {  # by sublayer and result
    ("attention", "inner_fast_weight"): "attention descends the fast weight objective of its keys and values",
    ("attention", "inner_outer"): "attention updates descend the training loss",
    ("mlp", "inner_outer"): "MLP updates descend the training loss",
    ("attention", "inner_readout"): "attention updates descend the loss of the logit lens",
    ("mlp", "inner_readout"): "MLP updates descend the loss of the logit lens",
}
LENSES = {"logit lens": "logit_lens", "affine lens": "affine_lens"}


def format_released_page(run: Path, record: Mapping[str, Any]) -> str:
    """Return statements, norms, lenses, spectra and inner objectives of a released model as Markdown."""
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
        *format_statements(run),
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


def format_statements(run: Path) -> list[str]:
    """Return how many layers of the model the statements of the meta-learning study hold in, as lines of Markdown."""
    rows = [*compare_cosines(run), *compare_depths(run)]
    return [
        "Wu & Varshney (2024) support the inner optimisation with pre-trained models and real text. The statements of "
        "[the study](meta-learning.md), in the layers of this model. It is one model, without an interval over seeds. "
        f"A cosine counts where it exceeds 0 and all of its controls by {COSINE_MARGIN:g}.",
        "",
        "| statement | layers | mean | controls |",
        "|---|---|---|---|",
        *rows,
    ]


def compare_cosines(run: Path) -> Iterator[str]:
    """Yield a row for each objective that updates are said to descend: in how many layers they do."""
    for (sublayer, name), statement in STATEMENTS.items():
        found = load_results(run, name).sel(sublayer=sublayer)
        controls = select_controls(found)
        highest = np.maximum.reduce([np.zeros(found.sizes["layer"]), *(one.values for one in controls.values())])
        count = int((found["cosine"].values - highest > COSINE_MARGIN).sum())
        means = ", ".join(f"{label} {float(one.mean()):.2g}" for label, one in controls.items())
        yield f"| {statement} | {count} of {len(highest)} | {float(found['cosine'].mean()):.2g} | {means} |"


def select_controls(found: xr.Dataset) -> dict[str, xr.DataArray]:
    """Return the controls of the cosine that the study uses, the highest over draws, by name."""
    controls = {
        str(one.attrs["control"]): one.max("draw") if "draw" in one.dims else one
        for one in found.data_vars.values()
        if one.attrs.get("control_of") == "cosine" and one.attrs["control"] in CONTROLS
    }
    return {name: one for name, one in controls.items() if bool(one.notnull().any())}  # an MLP has no keys to shuffle


def compare_depths(run: Path) -> Iterator[str]:
    """Yield a row for what is said to fall from layer to layer: in how many layers it does."""
    norms = load_results(run, "norms")
    fallen = {
        f"the loss of the {lens} falls (nat)": (load_results(run, name), "loss") for lens, name in LENSES.items()
    } | {"the variation of token norms falls": (norms, "variation")}
    for statement, (found, name) in fallen.items():
        change = found[name].diff("layer")
        control = found[f"{name}_null_random_weights"].mean("draw").diff("layer")
        yield (
            f"| {statement} | {int((change < 0).sum())} of {change.size} | {float(change.mean()):.2g} per layer | "
            f"random weights {int((control < 0).sum())} of {control.size}, {float(control.mean()):.2g} |"
        )


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


def format_table(first: str, labels: Sequence[Any], columns: Mapping[str, xr.DataArray]) -> list[str]:
    """Return a table with one row per layer or depth."""
    rows = [
        f"| {label} | " + " | ".join(f"{float(column[k]):.3g}" for column in columns.values()) + " |"
        for k, label in enumerate(labels)
    ]
    return [f"| {first} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|", *rows]


def load_results(run: Path, name: str) -> xr.Dataset:
    """Load the results of one analysis, verified."""
    return Run.open(run).read_results(name)
