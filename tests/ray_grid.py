"""Grid of small trainings on Ray: the study, its driver, and nodes that other processes can start and remove.

``python ray_grid.py FOLDER EXECUTOR`` runs the grid, and writes how it went to ``FOLDER/seconds.json``.
"""

import json
import sys
import time
from pathlib import Path

STUDY = """
from dataclasses import replace
from mesascope import analyses
from mesascope.models.config import DecoderConfig
from mesascope.studies.base import SCALES, Citation, Claim, Condition, Quantity, ScaleConfig, Study
from mesascope.tasks.seeded import SeededSequences
from mesascope.train import SGD, TrainingConfig

TASK = SeededSequences(num_symbols=5, num_generators=3, prefix_length=1, length=6)
MODEL = DecoderConfig(vocab_size=5, num_hidden_layers=1, hidden_size=8, num_attention_heads=2,
                      max_position_embeddings=6)
TRAINING = TrainingConfig(steps=STEPS, batch_size=4, optimizer=SGD(lr=0.1, momentum=0.5), checkpoints=CHECKPOINTS)


def error(step):
    def read(results):
        return results["loss_vs_baselines"]["error"].isel(step=step, predictor=0, drop=True).mean("pos")
    return Quantity(description="error", read=read)


CLAIM = Claim(name="it learns", statement="It learns.", source="ours", value=error(-1), control=error(0),
              direction="below", scales=("smoke",))
STUDY = Study(
    name="grid",
    title="A grid for a test",
    description="For a test.",
    citation=Citation(key="k", authors="A", title="T", year=2024, venue="V", url="https://example.org"),
    conditions=(
        Condition(
            task=TASK,
            model=MODEL,
            scales={name: ScaleConfig(training=TRAINING, sequences=8) for name in SCALES},
            analyses=(analyses.loss_vs_baselines,),
        ),
    ),
    claims=(CLAIM,),
    seeds=dict.fromkeys(SCALES, 24),
    minutes=dict.fromkeys(SCALES, 1.0),
)
"""


def write_study(file: Path, steps: int = 1500, checkpoints: int = 8) -> Path:
    """Write the study of the grid, whose jobs train for about a second."""
    file.write_text(STUDY.replace("STEPS", str(steps)).replace("CHECKPOINTS", str(checkpoints)), encoding="utf-8")
    return file


class Log:
    """A progress callback that writes what it receives to a file, one JSON value per line, for the parent to follow."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("a", encoding="utf-8")

    def _write(self, *values: object) -> None:
        self._file.write(json.dumps([time.time(), *values]) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def start_stage(self, name: str, parts: object) -> None:
        self._write("stage", name)

    def update_part(self, index: int, done: int, total: int, loss: float) -> None:
        self._write("progress", index, done, total)

    def log_message(self, line: str) -> None:
        self._write("log", line)

    def change_state(self, index: int, state: str) -> None:
        self._write("state", index, state)


def main(folder: Path, executor: str, seeds: int) -> None:
    from mesascope.executors import create_executor
    from mesascope.runner import run_study

    run_study(
        str(folder.parent / "grid.py"),
        scale="smoke",
        seeds=seeds,
        path=folder,
        device="cpu",
        executor=create_executor(executor),
        progress=Log(folder.with_suffix(".log")),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
