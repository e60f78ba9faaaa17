"""Synthetic inspection of a language model: 30 layers of 9 heads, eight sequences of 2,048 tokens."""

import json
from pathlib import Path

import numpy as np
import xarray as xr

LAYERS, HEADS, EIGEN = 30, 9, 96
MAPS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj"]
MAPS = [*MAPS, "mlp.down_proj"]
DEPTHS = ["embedding", *(f"after {k}" for k in range(LAYERS))]
SUBLAYERS = ["attention", "mlp"]
IDENTITY = "u is minus the gradient of L, so that L(x + u) = L(x) - |u|² for any weights at all"
WORDS = (
    "The first thing that a reader asks of a page is that it can be read .\nA compound statement contains other "
    "statements ; it affects or controls the execution of those others in some way , and in general it spans "
    "several lines .\nA function definition is an executable statement whose execution binds its name ."
)


def write(path: Path, sequences: int = 8, length: int = 2048, steps: int = 0, tokens: list[str] | None = None) -> Path:
    """Write an inspection, with ``steps`` checkpoints of training if positive."""
    draw = np.random.default_rng(2)
    (path / "results").mkdir(parents=True)
    (path / "run.json").write_text(json.dumps(facts(sequences, length)))
    (path / "model.json").write_text(json.dumps(model()))
    words = tokens or [w if k == 0 else f" {w}" for k, w in enumerate(WORDS.split(" "))]
    text = np.array([[words[(k + 7 * s) % len(words)] for k in range(length)] for s in range(sequences)], dtype=object)
    files = {
        "text": xr.Dataset({"token": named(text, "batch pos", "the tokens of the text", "text")}),
        "norms": norms(draw, sequences, length),
        "surprisal": surprisal(draw, sequences, length),
        "objective": objective(draw, steps),
        "identity": identity(draw),
        "spectra": spectra(draw),
        "heads": heads(draw),
        "attention_patterns": patterns(draw, text[0, :64].tolist()),
        "top_tokens": tops(draw, words),
    }
    for name, data in files.items():
        data.to_netcdf(path / f"results/{name}.nc", engine="netcdf4")
    return path


def facts(sequences: int, length: int) -> dict:
    return {
        "study": "inspect",
        "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "title": "Inside SmolLM2-135M-Instruct",
        "description": "A causal language model, opened on one text",
        "text": {"source": "Python's reference manual", "tokens": sequences * length, "sequences": sequences},
        "parameters": {"analyses": ["norms", "inner", "spectra", "heads"]},
        "device": "cpu",
        "started": "2026-11-21T04:10:00",
        "seconds": 212.5,
    }


def model() -> dict:
    return {
        "class": "LlamaForCausalLM",
        "parameters": 134_515_008,
        "layers": LAYERS,
        "heads": HEADS,
        "dtype": "float32",
        "attn_implementation": "sdpa",
        "rotary": True,
    }


def named(values, dims: str, about: str, units: str = "1", coords=None, **attrs) -> xr.DataArray:
    dims_ = dims.split()
    every = {d: list(range(n)) for d, n in zip(dims_, np.shape(values), strict=True)} | (coords or {})
    return xr.DataArray(values, dims=dims_, coords=every, attrs={"units": units, "description": about, **attrs})


def controlled(values: np.ndarray, levels: dict[str, tuple[float, float]], draw, dims: str, name: str, **look) -> dict:
    """Return a variable and three draws of each control, given by its relative mean and std."""
    found = {name: named(values, dims, look.pop("description"), **look)}
    kept = {k: v for k, v in look.items() if k in ("units", "coords")}
    for control, (share, spread) in levels.items():
        noise = 1 + spread * draw.standard_normal((3, *values.shape))
        short = f"{name}_{control.replace(' ', '_')}"
        about = f"the same with {control}"
        found[short] = named(share * values * noise, f"draw {dims}", about, **kept, control_of=name, control=control)
    return found


def norms(draw, sequences: int, length: int) -> xr.Dataset:
    size = np.exp(np.linspace(1, 6, LAYERS + 1))[:, None, None]
    size = size * np.exp(0.2 * draw.standard_normal((LAYERS + 1, sequences, length)))
    size[4:, :, 0] *= 60
    z_score = np.log(size / np.median(size, axis=2, keepdims=True))
    layer = {"layer": DEPTHS}
    return xr.Dataset(
        {
            "mean": named(size.mean((1, 2)), "layer", "mean norm", coords=layer, scale="log", headline=1),
            "norm": named(size, "layer batch pos", "norm of each token's vector", coords=layer, scale="log"),
            "robust_z_score": named(
                z_score,
                "layer batch pos",
                "norm from the median of the text",
                title="robust z-score",
                coords=layer,
                center=0,
                headline=1,
            ),
        },
        attrs={
            "title": "Norms of the residual stream",
            "analysis": "loss_vs_baselines",
            "description": "How long the vectors are",
        },
    )


def surprisal(draw, sequences: int, length: int) -> xr.Dataset:
    loss = draw.gamma(1.2, 2.0, (sequences, length))
    loss[:, -1] = np.nan
    sampled = np.full((LAYERS, sequences, length, 2), np.nan)
    sampled[:, :, ::16] = draw.normal(0.2, 0.3, (LAYERS, sequences, len(range(0, length, 16)), 2))
    return xr.Dataset(
        {
            "loss": named(loss, "batch pos", "surprisal of the next token", "nat"),
            "descent": named(
                sampled,
                "layer batch pos stat",
                "change of the inner objective, at every sixteenth token",
                coords={"stat": SUBLAYERS},
                center=0.0,
            ),
        },
        attrs={"title": "Prediction", "analysis": "clusters"},
    )


def objective(draw, steps: int) -> xr.Dataset:
    depth = np.linspace(0.2, 1, LAYERS)[:, None] * np.array([1.0, 0.6])
    values = depth * np.exp(0.25 * draw.standard_normal((LAYERS, 2)))
    dims, coords = "layer sublayer", {"sublayer": SUBLAYERS}
    if steps:
        growth = 1 / (1 + np.exp(-(np.linspace(-3, 6, steps)[:, None, None] - np.linspace(0, 3, LAYERS)[:, None])))
        values, dims = values * growth, f"step {dims}"
        coords = coords | {"step": [0, *(10 * 2**k for k in range(1, steps))]}
    levels = {"random weights": (0.12, 0.4), "keys shuffled": (0.55, 0.12), "positions shuffled": (0.75, 0.08)}
    look = {"coords": coords, "units": "nat"}
    found = controlled(values, levels, draw, dims, "decrease", description="decrease of L", headline=1, **look)
    cosine = np.tanh(values)
    found |= controlled(cosine, levels, draw, dims, "cosine", description="cosine of step and gradient", coords=coords)
    if not steps:  # keys are shuffled in attention only
        found["decrease_keys_shuffled"][..., 1] = np.nan
    return xr.Dataset(
        found,
        attrs={
            "title": "Inner objective: clustering",
            "analysis": "probe_and_logit_lens",
            "description": "What layers descend",
        },
    )


def identity(draw) -> xr.Dataset:
    values = np.abs(draw.normal(1, 0.3, (LAYERS, 2)))
    values[:, 1] = np.nan
    look = {"description": "decrease of the linear objective", "coords": {"sublayer": SUBLAYERS}, "tautology": IDENTITY}
    found = controlled(values, {"random weights": (1.0, 0.1)}, draw, "layer sublayer", "decrease", **look)
    return xr.Dataset(found, attrs={"title": "Inner objective: linear", "analysis": "affine_lens"})


def spectra(draw) -> xr.Dataset:
    place = np.arange(1, EIGEN + 1)
    slope = draw.uniform(0.5, 1.5, (LAYERS, len(MAPS), 1))
    energy = place**-slope
    share = energy / energy.sum(-1, keepdims=True)
    rank = np.exp(-(share * np.log(share)).sum(-1))
    maps = {"map": MAPS}
    found = {"energy": named(energy, "layer map eigen", "squared singular values", coords=maps, scale="log")}
    levels = {"random weights": (1.3, 0.02)}
    found |= controlled(
        rank, levels, draw, "layer map", "effective_rank", description="how many directions", coords=maps, headline=1
    )
    return xr.Dataset(found, attrs={"title": "Spectra of the weights", "analysis": "direct_attribution"})


def heads(draw) -> xr.Dataset:
    roles = ["previous token", "induction", "duplicate token", "uniform"]
    score = draw.random((LAYERS, HEADS, 4)) ** 6
    gain = draw.standard_normal((LAYERS, HEADS))
    levels = {"keys shuffled": (0.2, 0.3), "no repetition": (0.4, 0.2)}
    stats = {"coords": {"stat": roles}}
    about = "attention where tokens come twice"
    found = controlled(score, levels, draw, "layer head stat", "score", description=about, headline=1, **stats)
    found["copying"] = named(gain, "layer head", "whether it copies", center=0)
    words = [[", ".join(r for r, s in zip(roles, at, strict=True) if s > 0.3) for at in row] for row in score]
    found["role"] = named(np.array(words, dtype=object), "layer head", "the roles of each head", "text")
    return xr.Dataset(found, attrs={"title": "What heads do where tokens repeat", "analysis": "repeated_token_heads"})


def patterns(draw, tokens: list[str]) -> xr.Dataset:
    n = len(tokens)
    score = 3 * draw.standard_normal((LAYERS, HEADS, n, n))
    score[:, :, :, 0] += 4 * draw.random((LAYERS, HEADS, 1))
    score = np.where(np.tril(np.ones((n, n), bool)), score, -np.inf)
    weight = np.exp(score - score.max(-1, keepdims=True))
    token = named(np.array(tokens, dtype=object), "pos", "the excerpt", "text")
    pattern = named(
        (weight / weight.sum(-1, keepdims=True)).astype("float32"), "layer head query key", "attention on the excerpt"
    )
    return xr.Dataset(
        {"pattern": pattern, "token": token}, attrs={"title": "Attention on an excerpt", "analysis": "value_copying"}
    )


def tops(draw, words: list[str]) -> xr.Dataset:
    shape = (LAYERS, HEADS, 5)
    logit = -np.sort(-draw.gamma(2, 1.5, shape), axis=-1)
    chosen = np.array(words, dtype=object)[draw.integers(0, len(words), shape)]
    return xr.Dataset(
        {
            "top_token": named(chosen, "layer head rank", "what is raised most", "text"),
            "top_logit": named(logit, "layer head rank", "by how much", "logit"),
            "top_position": named(draw.integers(0, 64, shape), "layer head rank", "where", "position"),
        },
        attrs={"title": "Tokens that heads raise most", "analysis": "top_tokens"},
    )


def hostile(path: Path, evil: str) -> Path:
    """Write an inspection in which every external string contains markup."""
    strange = [evil, "<b>", "\u202eabc", "\x07", "\n\n", "\t", "", " ", "&amp;", "𝔘", "%{x}", "`${1}`", "\u2028"]
    write(path, sequences=2, length=40, steps=3, tokens=strange)
    about = json.loads((path / "run.json").read_text())
    about |= {"title": evil, "model": evil, "text": {"source": evil, "tokens": evil}, "device": evil}
    (path / "run.json").write_text(json.dumps(about))
    (path / "model.json").write_text(json.dumps({"class": evil, "attn_implementation": evil, evil: evil}))
    for file in (path / "results").glob("*.nc"):
        data = xr.load_dataset(file, engine="netcdf4")
        for name in [c for c in data.coords if data[c].dtype.kind in "OUT"]:
            data = data.assign_coords({name: [f"{v}{evil}" for v in data[name].values]})
        for one in [data, *[data[v] for v in data.data_vars]]:
            kept = ("analysis", "scale", "control_of", "headline", "center")
            one.attrs = {k: v if k in kept else evil for k, v in one.attrs.items()} | {"tautology": evil}
        if "role" in data:
            data["role"][:] = evil
        data.to_netcdf(file, engine="netcdf4")
    return path
