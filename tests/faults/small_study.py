"""A study that trains in a second, for trials of faults; and the outputs of its run, to compare bit for bit."""

import json
from pathlib import Path
from typing import Any

import xarray as xr

from mesascope.studies.base import Study

STUDY = """
from dataclasses import replace
from mesascope import analyses
from mesascope.analyses.training.history_attention import history_attention
from mesascope.models.config import DecoderConfig
from mesascope.studies.base import SCALES, Citation, Claim, Condition, Quantity, ScaleConfig, Simulation, Study
from mesascope.studies.next_token_convergence.toy_model import NextTokenModel
from mesascope.tasks.seeded import SeededSequences
from mesascope.tasks.text import TextTask
from mesascope.train import SGD, TrainingConfig

TASK = SeededSequences(num_symbols=5, num_generators=3, prefix_length=1, length=6)
TEXT = TextTask(length=6, vocab_size=260, source="prose", max_characters=5_000)
SHAPE = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "max_position_embeddings": 6}
TRAINING = TrainingConfig(steps=3, batch_size=4, optimizer=SGD(lr=0.1, momentum=0.5), checkpoints=3, history=True)
TOY = NextTokenModel(vocabulary=5, length=3, sentences=8, unseen=30, steps=150, checkpoints=9)


def error(step):
    def read(results):
        return results["loss_vs_baselines"]["error"].isel(step=step, predictor=0, drop=True).mean("pos")
    return Quantity(description="error", read=read)


CLAIM = Claim(name="it learns", statement="It learns.", source="ours", value=error(-1), control=error(0),
              direction="below", scales=("smoke",))
STUDY = Study(
    name="fragile",
    title="A study for a test",
    description="For a test.",
    citation=Citation(key="k", authors="A", title="T", year=2024, venue="V", url="https://example.org"),
    conditions=(
        Condition(
            task=TASK,
            model=DecoderConfig(vocab_size=5, **SHAPE),
            scales={name: ScaleConfig(training=TRAINING, sequences=8, evaluation_sequences=8) for name in SCALES},
            analyses=(analyses.loss_vs_baselines, history_attention),
        ),
        Condition(
            name="text",
            title="real text",
            task=TEXT,
            model=DecoderConfig(vocab_size=260, **SHAPE),
            scales={name: ScaleConfig(training=replace(TRAINING, history=False), sequences=4) for name in SCALES},
            analyses=(analyses.loss_vs_baselines,),
        ),
    ),
    simulations=(Simulation(name="toy", title="A toy model", description="", scales=dict.fromkeys(SCALES, TOY)),),
    claims=(CLAIM,),
    seeds=dict.fromkeys(SCALES, 2),
    minutes=dict.fromkeys(SCALES, 1.0),
)
"""


def load_small_study() -> Study:
    """The study as a value."""
    names: dict[str, Any] = {}
    exec(STUDY, names)
    return names["STUDY"]


def same_json(first: Path, second: Path) -> bool:
    """Whether two files have the same values."""
    try:
        return json.loads(first.read_bytes()) == json.loads(second.read_bytes())
    except (ValueError, RecursionError):
        return False


def read_outputs(path: Path) -> dict[str, object]:
    """Return all numbers and attributes (but the date) of the results, bit for bit, the verdicts and the weights."""
    outputs: dict[str, object] = {}
    for file in sorted(path.glob("results/*.nc")):
        data = xr.load_dataset(file.read_bytes(), engine="netcdf4")
        outputs[file.name] = {name: value for name, value in data.attrs.items() if name != "started"}
        outputs |= {f"{file.name} {name}": describe_variable(one) for name, one in data.variables.items()}
    others = [path / "verdicts.json", *path.glob("models/**/step=*/model.safetensors")]
    return outputs | {str(file.relative_to(path)): file.read_bytes() for file in others if file.exists()}


def describe_variable(variable: xr.Variable) -> tuple[object, ...]:
    """Return dimensions, values (texts as they are, numbers bit for bit) and attributes."""
    values = variable.values
    bits = values.tolist() if values.dtype.kind in "OUST" else values.tobytes()
    return variable.dims, values.shape, bits, dict(variable.attrs)


def list_differences(path: Path, outputs: dict[str, object]) -> list[str]:
    """Return the names of the outputs that differ."""
    try:
        found = read_outputs(path)
    except (OSError, RuntimeError, ValueError) as error:
        return [f"unreadable: {error}"]
    return [name for name in {**outputs, **found} if found.get(name) != outputs.get(name)]
