"""Synthetic run directories: a study with three seeds, and an inspected language model."""

import csv
import json
from pathlib import Path

import numpy as np
import xarray as xr

STEPS = [0, 1, 3, 10, 30, 100, 300, 600, 1000, 2000, 4000, 6000]
PREDICTORS = ["model", "copy", "linear", "ridge", "closed_form", "least_squares", "gradient_descent_8", "newton_3"]
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>%{x}"


def write_study(path: Path, title: str = "Affine recurrences: which algorithm runs inside?") -> Path:
    """Write a study run with plausible numbers, the same at every call."""
    draw = np.random.default_rng(0)
    (path / "results").mkdir(parents=True)
    (path / "run.json").write_text(json.dumps(study_facts(title)))
    (path / "verdicts.json").write_text(json.dumps(verdicts()))
    for seed in range(3):
        write_log(path / f"models/seed={seed}/log.csv", draw, 6000)
    for name, data in study_results(draw).items():
        data.to_netcdf(path / f"results/{name}.nc", engine="netcdf4")
    return path


def write_comparison(path: Path) -> Path:
    """Write a study run that was judged in two cells, with a ranking of algorithms in each."""
    from report.test_ranking import found

    for cell, folder in (("", path), ("heads=1", path / "cells" / "heads=1")):
        write_study(folder)
        found().assign_attrs(title="Nearest algorithm").to_netcdf(
            folder / "results/which_algorithm.nc", engine="netcdf4"
        )
        factors = {"heads": {"description": "heads per layer", "levels": {"4": "4 heads", "1": "1 head"}}}
        facts = study_facts("Affine recurrences") | {"factors": factors} | ({"cell": cell} if cell else {})
        (folder / "run.json").write_text(json.dumps(facts))
    return path


def study_facts(title: str) -> dict:
    return {
        "study": "affine",
        "title": title,
        "scale": "laptop",
        "seeds": [0, 1, 2],
        "citation": {
            "key": "bhargav2024",
            "authors": "Bhargav, Gu",
            "title": "Interpreting Affine Recurrence Learning in GPT-style Transformers",
            "year": 2024,
            "venue": "arXiv 2410.17438",
            "url": "https://arxiv.org/abs/2410.17438",
            "bibtex": "@misc{bhargav2024,\n  title = {Interpreting Affine Recurrence Learning},\n  year = {2024}\n}",
        },
        "description": "A three-layer transformer learns to continue x[n+1] = a x[n] + b, and is opened. "
        "The setting is re-run; sizes are ours",
        "parameters": {
            "task": {"name": "Affine", "a": {"low": -1.5, "high": 1.5}, "length": 20, "noise": 0.0},
            "model": {"layers": 3, "heads": 4, "d_model": 64, "mlp": False, "norm": "layer", "d_in": 1},
            "training": {
                "steps": 6000,
                "batch": 128,
                "optimiser": {"name": "AdamW", "rate": 2e-3, "betas": [0.9, 0.95]},
            },
        },
        "versions": {"mesascope": "0.1.0", "torch": "2.13.0", "transformers": "5.23", "numpy": "2.4"},
        "revision": "345a8ad",
        "platform": "Linux-6.1-x86_64",
        "threads": 2,
        "started": "2026-11-21T04:10:00",
        "seconds": {"train": 512.3, "capture": 21.0, "measure": 14.2, "judge": 0.4},
        "notes": ["Seed 2 was resumed from step 4000 after an interruption."],
    }


def verdicts() -> list[dict]:
    common = {"source": "abstract, arXiv 2410.17438", "level": 0.95, "unit": "1"}
    return [
        common
        | {
            "name": "learns_in_context",
            "statement": "From the fourth term on, the model's error is at most 5 % of that of copying the last term",
            "status": "supported",
            "reason": "The whole interval lies below the bound, and the control does not.",
            "value": 0.0127,
            "interval": [0.009, 0.017],
            "control": 0.81,
            "control_description": "positions 1 and 2, where a and b are not identified",
            "difference": [-0.82, -0.76],
            "threshold": 0.05,
            "direction": "below",
            "per_seed": [0.009, 0.0121, 0.017],
            "control_per_seed": [0.79, 0.83, 0.81],
        },
        common
        | {
            "name": "layer_0_copies",
            "statement": "A first estimate of the target is formed by copying in layer 0",
            "status": "inconclusive",
            "reason": "The interval of the difference from the control contains zero.",
            "value": 0.62,
            "interval": [0.31, 0.93],
            "control": 0.48,
            "control_description": "the same readout in an untrained model",
            "difference": [-0.12, 0.4],
            "threshold": None,
            "direction": "above",
            "per_seed": [0.31, 0.62, 0.93],
            "control_per_seed": [0.5, 0.46, 0.48],
        },
        common
        | {
            "name": "negative_heads_last",
            "statement": "Negative similarity heads in layer 2 refine the estimate: their scores fall with similarity",
            "status": "contradicted",
            "reason": "Every head in layer 2 scores higher the more similar the values are.",
            "value": 0.34,
            "interval": [0.22, 0.47],
            "control": None,
            "difference": None,
            "threshold": 0.0,
            "direction": "below",
            "per_seed": [0.22, 0.34, 0.47],
        },
        common
        | {
            "name": "length_generalisation",
            "statement": "The error does not grow beyond the length seen in training",
            "status": "not tested at this scale",
            "reason": "Sequences of 60 terms are drawn at the paper's scale only.",
            "value": None,
            "interval": None,
            "control": None,
            "threshold": None,
            "direction": "below",
            "per_seed": [],
        },
    ]


def write_log(file: Path, draw: np.random.Generator, rows: int) -> None:
    file.parent.mkdir(parents=True)
    step = np.arange(1, rows + 1)
    loss = (0.9 / (1 + (step / 300) ** 1.3) + 0.004) * np.exp(0.25 * draw.standard_normal(rows))
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["step", "loss", "learning_rate", "gradient_norm", "seconds"])
        for s, value in zip(step, loss, strict=True):
            rate = 2e-3 * min(1, s / 200) * 0.5 * (1 + np.cos(np.pi * s / rows))
            writer.writerow([s, value, rate, 2.0 * value**0.5 * (1 + 0.3 * draw.random()), s * 0.08])


def array(values, dims: str, about: str, units: str = "1", coords=None, **attrs) -> xr.DataArray:
    known = {"seed": [0, 1, 2], "step": STEPS, "predictor": PREDICTORS}
    names = dims.split()
    every = {d: known.get(d, list(range(n))) for d, n in zip(names, np.shape(values), strict=True)}
    return xr.DataArray(
        values, dims=names, coords=every | (coords or {}), attrs={"units": units, "description": about, **attrs}
    )


def study_results(draw: np.random.Generator) -> dict[str, xr.Dataset]:
    growth = 1 - np.exp(-np.array(STEPS) / 400)
    return {
        "loss_vs_baselines": behaviour(draw, growth),
        "heads": heads(draw, growth),
        "attention_patterns": patterns(draw),
        "layers": layers(draw, growth),
        "attribution": attribution(draw),
        "odd": odd(draw),
    }


def behaviour(draw: np.random.Generator, growth: np.ndarray) -> xr.Dataset:
    pos = np.arange(20)
    levels = np.array([0.02, 0.5, 0.3, 0.05, 1e-14, 1e-14, 0.1, 0.01])
    final = np.where(pos > 2, levels[:, None], 1.0) / (1 + 0.05 * pos)
    error = np.broadcast_to(final, (3, len(STEPS), 8, 20)).copy()
    error *= np.exp(0.15 * draw.standard_normal((3, 1, 1, 20)))
    error[:, :, 0] = 1.2 - (1.2 - error[:, :, 0]) * growth[None, :, None]
    outer = np.stack([0.9 - 0.85 * growth, 1.0 - 0.6 * growth, 0.95 - 0.1 * growth])[None] + 0.01 * draw.random(
        (3, 3, 1)
    )
    control = 0.95 + 0.03 * draw.random((3, len(STEPS)))
    return xr.Dataset(
        {
            "error": array(
                error, "seed step predictor pos", "mean squared error", "squared value", scale="log", headline=1
            ),
            "share_of_copy": array(
                outer[:, 0], "seed step", "error divided by the error of copying the last term", headline=1
            ),
            "shuffled": array(control, "seed step", "the same with terms shuffled", control_of="share_of_copy"),
            "by_quantity": array(
                np.moveaxis(outer, 1, 2),
                "seed step stat",
                "three ways to look at it",
                coords={"stat": ["relative error", "slope", "intercept"]},
            ),
        },
        attrs={
            "title": "Error against known predictors",
            "analysis": "loss_vs_baselines",
            "description": "The model and every oracle",
        },
    )


def heads(draw: np.random.Generator, growth: np.ndarray) -> xr.Dataset:
    role = draw.uniform(-0.8, 0.8, (3, 1, 3, 4)) * growth[None, :, None, None]
    stats = np.abs(draw.normal(0.3, 0.2, (3, 3, 4, 2)))
    return xr.Dataset(
        {
            "similarity": array(role, "seed step layer head", "rank correlation of score and similarity", center=0.0),
            "permuted": array(
                0.05 * draw.standard_normal((3, 3, 4)), "seed layer head", "keys permuted", control_of="similarity"
            ),
            "worth": array(
                stats,
                "seed layer head stat",
                "increase of the error",
                "squared value",
                coords={"stat": ["mean ablation", "resample ablation"]},
            ),
        },
        attrs={
            "title": "Head roles",
            "analysis": "probe_and_logit_lens",
            "description": "What each head attends to and what it is worth.",
        },
    )


def patterns(draw: np.random.Generator) -> xr.Dataset:
    score = 2 * draw.standard_normal((3, 3, 4, 4, 20, 20))
    score = np.where(np.tril(np.ones((20, 20), bool)), score, -np.inf)
    score = np.exp(score - score.max(-1, keepdims=True))
    return xr.Dataset(
        {
            "pattern": array(
                score / score.sum(-1, keepdims=True), "seed layer head batch query key", "attention weights"
            ),
            "value": array(draw.standard_normal((4, 20)).round(3), "batch pos", "the terms", "1"),
        },
        attrs={
            "title": "Attention patterns",
            "analysis": "direct_attribution",
            "description": "Where each head looks.",
        },
    )


def layers(draw: np.random.Generator, growth: np.ndarray) -> xr.Dataset:
    depth = np.array([1.0, 0.6, 0.2, 0.03])
    lens = 1 - (1 - depth[None, None]) * growth[None, :, None] * (1 + 0.05 * draw.standard_normal((3, 1, 4)))
    stats = np.stack([lens, 400 * (1.2 - lens)], -1)
    names = {"layer": ["embedding", "0", "1", "2"]}
    return xr.Dataset(
        {
            "readout": array(
                lens, "seed step layer", "error of the readout after each layer", "squared value", coords=names
            ),
            "untrained_keys": array(
                0.9 + 0.05 * draw.random((3, 4)), "seed layer", "keys shuffled", coords=names, control_of="readout"
            ),
            "moments": array(stats, "seed step layer stat", "mean and norm", coords=names | {"stat": ["mean", "norm"]}),
            "where": array(
                draw.random((3, len(STEPS), 4, 20)), "seed step layer pos", "readout at each position", coords=names
            ),
        },
        attrs={
            "title": "Read-out through the layers",
            "analysis": "positional_attention",
            "description": "What each layer would predict.",
        },
    )


def attribution(draw: np.random.Generator) -> xr.Dataset:
    parts = ["embedding", *[f"layer {k}, head {h}" for k in range(3) for h in range(4)], "bias"]
    fraction = draw.normal(0, 0.3, (3, 14))
    return xr.Dataset(
        {
            "fraction": array(fraction, "seed component", "contribution to the output", coords={"component": parts}),
            "none": array(
                0.02 * draw.standard_normal((3, 14)),
                "seed component",
                "untrained",
                coords={"component": parts},
                control_of="fraction",
            ),
            "final": array(draw.random((3, 8)) ** 6, "seed predictor", "error at the last position", scale="log"),
        },
        attrs={"title": "Direct attribution", "analysis": "value_copying", "citation": "Elhage et al. 2021"},
    )


def odd(draw: np.random.Generator) -> xr.Dataset:
    return xr.Dataset(
        {
            "weird": array(draw.random((3, 2, 3, 4, 5, 6)), "seed _a _b _c _d _e", "five axes of a stranger"),
            "single": array(draw.random(3), "seed", "one number"),
            "words": array(np.array(["yes", "no"], dtype=object), "_a", "not numbers"),
        },
        attrs={"title": "Odds and ends", "analysis": "attention_patterns"},
    )


CIRCUIT_EDGES = {  # sender and receiver to score; two key-value heads for four heads in layer 1
    ("embedding", "L0.H3.v"): -8.0,
    ("L0.H3", "L1.H1.k"): -7.5,
    ("L1.H2", "output"): 6.0,
    ("embedding", "L1.H1.v"): -5.0,
    ("L0.MLP", "L1.MLP"): 3.0,
    ("L1.MLP", "output"): -2.0,
    ("embedding", "L0.MLP"): 1.5,
    ("L0.H0", "L1.H0.q"): -1.0,
}
CIRCUIT_SIZE = 4


def write_circuit(path: Path) -> Path:
    """Write a run with a circuit of four of sixty edges, of a model of two layers of four heads."""
    (path / "results").mkdir(parents=True)
    facts = {"study": "circuit", "title": "A circuit", "description": "Edges of a model", "parameters": {}}
    (path / "run.json").write_text(json.dumps(facts))
    senders = ["embedding", "L0.H0", "L0.H1", "L0.H2", "L0.H3", "L0.MLP"]
    receivers = [f"L1.H{head}.{letter}" for letter, heads in (("q", 4), ("k", 2), ("v", 2)) for head in range(heads)]
    others = [(sender, receiver) for sender in senders for receiver in (*receivers, "L1.MLP", "output")]
    edges = [*CIRCUIT_EDGES, *(edge for edge in others if edge not in CIRCUIT_EDGES)][:60]
    score = np.array([*CIRCUIT_EDGES.values(), *np.geomspace(0.5, 0.01, len(edges) - len(CIRCUIT_EDGES))])
    measured = np.where(np.arange(len(score)) < CIRCUIT_SIZE, -1.1 * score, np.nan)
    by_layer = {"heads_by_layer": "4,4", "kv_heads_by_layer": "4,2", "mlps_by_layer": "1,1"}
    columns = {
        "score": array(
            score, "rank", "estimated change", "logit", view="graph", circuit_size=CIRCUIT_SIZE, headline=1, **by_layer
        ),
        "low": array(score - 0.25, "rank", "lower end of the interval", "logit"),
        "high": array(score + 0.25, "rank", "upper end of the interval", "logit"),
        "inclusion": array(np.linspace(1, 0.2, len(score)), "rank", "fraction of resampled circuits"),
        "effect": array(measured, "rank", "measured change", "logit"),
    }
    for index, axis in enumerate(("sender", "receiver")):
        columns[f"{axis}_name"] = array([edge[index] for edge in edges], "rank", f"the {axis}", "text")
    attrs = {"title": "Circuit", "description": "The edges with the largest scores", "analysis": "circuit"}
    xr.Dataset(columns, attrs=attrs).to_netcdf(path / "results/circuit.nc", engine="netcdf4")
    return path


def write_inspection(path: Path, tokens: list[str] | None = None) -> Path:
    draw = np.random.default_rng(1)
    (path / "results").mkdir(parents=True)
    facts = {
        "study": "inspect",
        "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "title": "SmolLM2-135M-Instruct, opened",
        "description": "Norms, attention and readout of a released language model on a page of prose",
        "text": {"source": "the Zen of Python", "tokens": 48},
        "parameters": {"model": {"layers": 30, "heads": 9, "d_model": 576}},
        "versions": {"mesascope": "0.1.0"},
        "revision": None,
        "started": "2026-11-21T04:10:00",
        "seconds": 12.5,
    }
    (path / "run.json").write_text(json.dumps(facts))
    words = "Beautiful is better than ugly.\nExplicit is better than implicit.\nSimple is better than complex.\nFlat is"
    tokens = tokens or [w if k == 0 else f" {w}" for k, w in enumerate(words.split(" "))] * 3
    for name, data in inspection_results(draw, tokens[:48]).items():
        data.to_netcdf(path / f"results/{name}.nc", engine="netcdf4")
    return path


def inspection_results(draw: np.random.Generator, tokens: list[str]) -> dict[str, xr.Dataset]:
    n = len(tokens)
    depth = np.exp(np.linspace(1, 6, 31))[:, None] * np.exp(0.2 * draw.standard_normal((31, n)))
    depth[4:, 0] *= 30
    score = np.where(np.tril(np.ones((n, n), bool)), 2 * draw.standard_normal((30, 9, 1, n, n)), -np.inf)
    score = np.exp(score - score.max(-1, keepdims=True))
    layer = {"layer": ["embedding", *map(str, range(30))]}
    token = array(np.array([tokens], dtype=object), "batch pos", "the text")
    return {
        "norms": xr.Dataset(
            {
                "norm": array(depth, "layer pos", "norm of each token's vector", scale="log", coords=layer),
                "norm_in_text": array(
                    depth[:, None], "layer batch pos", "the same in the text", scale="log", coords=layer
                ),
                "mean": array(
                    depth[:, 1:].mean(1), "layer", "mean norm, sinks apart", scale="log", coords=layer, headline=1
                ),
                "token": token,
            },
            attrs={"title": "Token norms", "analysis": "norms", "description": "Length of every token's vector."},
        ),
        "lens": xr.Dataset(
            {
                "loss": array(
                    np.linspace(10.5, 3.2, 31) + draw.random(31), "layer", "loss of the readout", "nat", coords=layer
                )
            },
            attrs={"title": "Logit lens", "analysis": "probe_and_logit_lens"},
        ),
        "heads": xr.Dataset(
            {"induction": array(draw.random((30, 9)) ** 4, "layer head", "induction score")},
            attrs={"title": "Head roles", "analysis": "preprocessing"},
        ),
        "attention": xr.Dataset(
            {
                "pattern": array(
                    score / score.sum(-1, keepdims=True), "layer head batch query key", "attention weights"
                ),
                "token": token,
            },
            attrs={"title": "Attention", "analysis": "direct_attribution"},
        ),
    }


def hostile(path: Path) -> Path:
    """Write a study run in which every external string contains markup."""
    write_study(path, title=HOSTILE)
    facts = json.loads((path / "run.json").read_text())
    facts = {k: _poisoned(v) if k != "seeds" else v for k, v in facts.items()}
    facts["citation"]["url"] = "javascript:alert(3)"
    (path / "run.json").write_text(json.dumps(facts))
    poisoned = [
        _poisoned(one) | {"status": word} for one, word in zip(verdicts(), [HOSTILE, *["supported"] * 3], strict=True)
    ]
    (path / "verdicts.json").write_text(json.dumps(poisoned))
    for file in (path / "results").glob("*.nc"):
        data = xr.load_dataset(file, engine="netcdf4")
        for name in list(data.coords):
            if data[name].dtype.kind in "OUT":
                labels = [f"{v}{HOSTILE}" if v != "model" else v for v in data[name].values]
                data = data.assign_coords({name: labels})
        for one in [data, *[data[v] for v in data.data_vars]]:
            kept = ("analysis", "scale", "control_of", "headline", "center")
            one.attrs = {k: v if k in kept else HOSTILE for k, v in one.attrs.items()}
        data.to_netcdf(file, engine="netcdf4")
    tokens = np.array([[HOSTILE, "<b>", "${x}", "%{x}"]], dtype=object)
    text = {"token": array(tokens, "batch pos", HOSTILE), "norm": array(np.ones((2, 1, 4)), "layer batch pos", HOSTILE)}
    text["pattern"] = array(np.ones((1, 1, 1, 4, 4)), "layer head batch query key", HOSTILE)
    xr.Dataset(text, attrs={"title": HOSTILE}).to_netcdf(path / "results/text.nc", engine="netcdf4")
    (path / "results/broken<b>.nc").write_bytes(b"not netcdf <script>alert(4)</script>")
    return path


RECURRENCE = "$x_{n+1} = a x_n + b$"
FORMULAS = {  # by the field of a verdict
    "statement": r"With $e_n = \lVert \hat{x}_n - x_n \rVert^2$, the error falls: $e_n < 0.05 \, e_1$ for $n \geq 4$",
    "reason": r"lower than the control ($\hat{x}_{n+1} = x_n$), for \$5 an hour",
    "source": r"abstract; $\alpha$ is ours",
    "description": r"error divided by that of copying, $\frac{e_n}{\lVert x_n - x_{n-1} \rVert^2}$",
    "control_description": r"positions $1$ and $2$, where $a, b \in \mathbb{R}$ are not identified",
}
LONG = (
    r"$E(\mathbf{z}) = -\frac{1}{\beta} \log \sum_i \exp(\beta \langle W_Q \mathbf{z}, \mathbf{k}_i \rangle) + "
    r"\frac12 \lVert \mathbf{z} \rVert^2 + \gamma_1 + \gamma_2 + \gamma_3 + \gamma_4$"
)
GRADIENT = (
    r"$\mathbf{u}_t = -\nabla_{\mathbf{z}} L_t$ with $L_t(\mathbf{z}) = -\langle \mathbf{z}, \mathbf{u}_t \rangle$"
)


def write_formulas(path: Path) -> Path:
    """Write the study with formulas in its texts: those of run.json, of the first verdict and of the results."""
    write_study(path, title=f"Recurrences {RECURRENCE}")
    facts = json.loads((path / "run.json").read_text())
    facts["parameters"]["training"]["title"] = rf"with {RECURRENCE}"  # as conditions have
    facts["description"] = rf"Sequences {RECURRENCE} at \$0; least squares is $(X^\top X)^{{-1}} X^\top \mathbf{{y}}$"
    facts["description"] += f"; the energy is {LONG}"
    (path / "run.json").write_text(json.dumps(facts))
    first, *others = verdicts()
    (path / "verdicts.json").write_text(json.dumps([first | FORMULAS, *others]))
    data = xr.load_dataset(path / "results/layers.nc")
    data.attrs |= {"title": "Gradients $-\\nabla L$", "description": GRADIENT}
    name = next(iter(data.data_vars))
    data[name].attrs |= {"title": "cosine with $\\nabla L$", "description": GRADIENT, "tautology": GRADIENT}
    data.to_netcdf(path / "results/layers.nc", engine="netcdf4")
    return path


def _poisoned(value):
    if isinstance(value, dict):
        return {f"{k}{HOSTILE}" if k in ("name", "d_model", "torch") else k: _poisoned(v) for k, v in value.items()}
    return f"{value}{HOSTILE}" if isinstance(value, str) else value
