"""Public functions with valid arguments, and odd values to put in their place."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import mesascope
from mesascope import analyses, interventions
from mesascope.activations import Reduction
from mesascope.models.transformer import Decoder, DecoderConfig
from mesascope.ridge import fit_ridge
from mesascope.store import Run, verify_run
from mesascope.tasks.affine import Affine
from mesascope.tasks.chains import MarkovChains
from mesascope.tasks.distributions import Normal, Uniform
from mesascope.tasks.regression import Regression
from mesascope.train import SGD, AdamW, TrainingConfig, train_model

SHAPE = {"num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2, "max_position_embeddings": 12}
MAX_COUNT = 3
REPETITIONS = {"draws", "random_draws", "control_draws", "shuffles", "starts", "steps", "seeds"}
NAN, INFINITY = float("nan"), float("inf")
ODD_VALUES: Mapping[str, Callable[[], Any]] = {
    **{
        repr(value): lambda value=value: value
        for value in (None, "text", "", -1, 0, 10**9, 10**30, 1.5, NAN, INFINITY, True)
    },
    **{
        repr(value): lambda value=value: value
        for value in ([], {}, (), b"x", [None], ["text"], [-99], [10**9], {"a": 1})
    },
    "object": object,
    "module": lambda: nn.Linear(2, 2),
    "model without weights": lambda: Decoder(DecoderConfig(vocab_size=12, **SHAPE)).to("meta"),
    "NaN": lambda: torch.full((2, 6, 1), NAN),
    "infinity": lambda: torch.full((2, 6, 1), INFINITY),
    "no sequences": lambda: torch.zeros(0, 6, 1),
    "no positions": lambda: torch.zeros(2, 0, 1),
    "no tokens": lambda: torch.zeros(0, 6, dtype=torch.long),
    "meta": lambda: torch.zeros(2, 6, 1, device="meta"),
    "meta tokens": lambda: torch.zeros(2, 6, dtype=torch.long, device="meta"),
    "tokens": lambda: torch.arange(12).reshape(2, 6),
    "negative tokens": lambda: torch.full((2, 6), -1),
    "huge tokens": lambda: torch.full((2, 6), 10**9),
    "too long": lambda: torch.zeros(1, 50, dtype=torch.long),
    "scalar": lambda: torch.tensor(1.0),
    "vector": lambda: torch.ones(3),
    "four axes": lambda: torch.ones(2, 3, 4, 5),
    "half": lambda: torch.ones(2, 6, 1, dtype=torch.float16),
    "double": lambda: torch.ones(2, 6, 1, dtype=torch.float64),
    "complex": lambda: torch.ones(2, 6, 1, dtype=torch.complex64),
    "boolean": lambda: torch.ones(2, 6, dtype=torch.bool),
    "sparse": lambda: torch.ones(2, 6).to_sparse(),
    "objects": lambda: np.array([object()]),
    "array": lambda: np.ones((2, 6, 1)),
    "texts": lambda: np.array([["a", "b"]]),
}


@dataclass(frozen=True, kw_only=True)
class Target:
    """A function and valid arguments of it; some are replaced by odd values.

    Attributes:
        function: Called with keyword arguments.
        arguments: Valid values.
        fixed: Names of arguments that are never replaced.
        models: Names of the arguments that are models, which a call must leave as they were.
    """

    function: Callable[..., Any]
    arguments: Mapping[str, Any]
    fixed: frozenset[str] = frozenset()
    models: frozenset[str] = frozenset({"model"})


@cache
def build_targets(folder: Path) -> Mapping[str, Target]:
    """Return the public functions by name; what they write is below a folder."""
    torch.manual_seed(0)
    vectors = Decoder(DecoderConfig(d_in=1, d_out=1, **SHAPE))
    tokens, words = build_token_model()
    batch = Affine(length=6).sample(4, torch.Generator().manual_seed(0))
    batch = replace(batch, latents={"label": torch.arange(4)[:, None].expand(4, 6) % 2})
    return {
        **_build_captures(vectors, tokens, batch, words),
        **_build_interventions(tokens, words),
        **_build_constructors(),
        **_build_others(folder, vectors, batch),
    }


@cache
def build_token_model() -> tuple[Decoder, torch.Tensor]:
    """Return a model of tokens, and two sequences."""
    torch.manual_seed(0)
    return Decoder(DecoderConfig(vocab_size=12, **SHAPE)), torch.arange(12).reshape(2, 6)


def _build_captures(vectors: Decoder, tokens: Decoder, batch: Any, words: torch.Tensor) -> dict[str, Target]:
    options = {"layers": [0], "queries": [1], "batch_size": 2, "attention_mask": None, "edits": (), "reduce": None}
    targets = {
        "capture of vectors": Target(
            function=mesascope.capture, arguments={"model": vectors, "inputs": batch, "sites": ["z"], **options}
        ),
        "capture of tokens": Target(
            function=mesascope.capture, arguments={"model": tokens, "inputs": words, "sites": ["logits"], **options}
        ),
        "run_analyses": Target(
            function=analyses.run_analyses,
            arguments={"model": vectors, "inputs": batch, "analyses": [analyses.norms], "baselines": None}
            | {"batch_size": None, "queries": None, "layers": None},
        ),
    }
    baselines = Affine(length=6).baselines(batch)
    several = (
        *(analyses.norms, analyses.similarity, analyses.loss_vs_baselines, analyses.clusters, analyses.value_copying),
        *(analyses.direct_attribution, analyses.attn_out_probe, analyses.probe_and_logit_lens, analyses.projections),
        analyses.error_by_output,
    )
    for one in several:
        targets |= build_analysis(one, vectors, batch, baselines)
    return targets


def build_analysis(one: analyses.Analysis, model: Decoder, inputs: Any, baselines: Any) -> dict[str, Target]:
    """Return an analysis of a model, and of a capture with its options; counts are kept small."""
    acts = mesascope.capture(model, inputs, sorted(one.sites), reduce=one.reductions, baselines=baselines)
    parameters = inspect.signature(one.compute).parameters.values()
    options = {each.name: each.default for each in parameters if each.default is not each.empty}

    def compute(acts: Any, **options: Any) -> Any:
        return one(acts, **{name: limit_count(name, value) for name, value in options.items()})

    return {
        one.name: Target(
            function=lambda model, inputs: analyses.run_analyses(model, inputs, [one], baselines=baselines),
            arguments={"model": model, "inputs": inputs},
        ),
        f"{one.name} of a capture": Target(
            function=compute,
            arguments={"acts": acts, **{name: limit_count(name, value) for name, value in options.items()}},
        ),
    }


def limit_counts(function: Callable[..., Any]) -> Callable[..., Any]:
    """Call a function with large numbers of repetitions replaced by smaller ones."""

    def call(**arguments: Any) -> Any:
        return function(**{name: limit_count(name, value) for name, value in arguments.items()})

    return call


def limit_count(name: str, value: Any) -> Any:
    """Return a smaller number of repetitions: large ones are valid, and take long."""
    return min(value, MAX_COUNT) if name in REPETITIONS and type(value) is int else value


def _build_interventions(tokens: Decoder, words: torch.Tensor) -> dict[str, Target]:
    shared = {"model": tokens, "inputs": words, "metric": "loss"}
    edit = interventions.zero("z")
    return {
        "sweep": Target(
            function=interventions.sweep, arguments={**shared, "edit": edit, "axes": ("layer",), "max_positions": 4096}
        ),
        "patch": Target(
            function=interventions.patch,
            arguments={**shared, "metric": interventions.logit_difference(1, 2), "source": words.flip(1)}
            | {"site": "resid_pre", "axes": ("layer",), "where": None},
        ),
        "zero": Target(function=interventions.zero, arguments={"site": "z", "where": {"layer": 0}}),
        "scale": Target(function=interventions.scale, arguments={"site": "z", "factor": 2.0, "where": None}),
        "steer": Target(
            function=interventions.steer,
            arguments={"site": "resid_pre", "direction": [1.0] * 8, "coefficient": 1.0, "where": None},
        ),
        "Edit": Target(function=mesascope.Edit, arguments={"site": "z", "where": {"layer": 0}, "fn": torch.zeros_like}),
        "Reduction": Target(function=Reduction, arguments={"site": "z", "fn": torch.abs, "axes": ("batch", "pos")}),
    }


def _build_constructors() -> dict[str, Target]:
    training = {"steps": 3, "batch_size": 2, "optimizer": AdamW(lr=0.1), "warmup": 0, "clip": 1.0, "checkpoints": 2}
    training |= {"spacing": "log", "threads": 1, "dtype": "float32", "history": False}
    return {
        "TrainingConfig": Target(function=TrainingConfig, arguments=training),
        "AdamW": Target(function=AdamW, arguments={"lr": 0.1, "weight_decay": 0.0}),
        "SGD": Target(function=SGD, arguments={"lr": 0.1, "momentum": 0.5}),
        "DecoderConfig": Target(function=DecoderConfig, arguments={"vocab_size": 12, **SHAPE, "norm": "none"}),
        "Affine": Target(function=Affine, arguments={"length": 6}),
        "Regression": Target(function=Regression, arguments={"dim": 2, "num_examples": 4, "scale": 1.0, "noise": 0.0}),
        "MarkovChains": Target(
            function=MarkovChains, arguments={"length": 6, "num_symbols": 5, "concentration": 0.3, "scored_from": 0}
        ),
        "Uniform": Target(function=Uniform, arguments={"low": 0.0, "high": 1.0}),
        "Normal": Target(function=Normal, arguments={"std": 1.0}),
    }


def _build_others(folder: Path, vectors: Decoder, batch: Any) -> dict[str, Target]:
    def train(**changed: Any) -> None:
        run = Run.create(folder / f"run-{len(list(folder.iterdir()))}", {"a": 1})
        train_model(run=run, **changed)

    whole = Run.create(folder / "whole", {"a": 1}).path
    training = {"task": Affine(length=6), "config": DecoderConfig(d_in=1, d_out=1, **SHAPE), "seed": 0, "device": "cpu"}
    return {
        "fit_ridge": Target(function=fit_ridge, arguments={"x": torch.randn(9, 3), "y": torch.randn(9, 2)}),
        "Task.sample": Target(
            function=lambda n, generator: Affine(length=6).sample(n, generator),
            arguments={"n": 2, "generator": torch.Generator()},
        ),
        "train_model": Target(
            function=train, arguments={**training, "training": TrainingConfig(steps=1, batch_size=2, checkpoints=2)}
        ),
        "verify_run": Target(function=verify_run, arguments={"path": whole}),
        "Run.open": Target(function=Run.open, arguments={"path": whole}),
    }
