"""A training that is easy to kill: it saves after every step, and tells how far it is."""

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from mesascope.executors import ProcessExecutor
from mesascope.models.config import DecoderConfig
from mesascope.store import Run, do_nothing
from mesascope.tasks.affine import Affine
from mesascope.tasks.base import Batch, Task
from mesascope.train import AdamW, TrainingConfig, train_model

TASK = Affine(length=6)
MODEL = DecoderConfig(d_in=1, d_out=1, num_hidden_layers=1, hidden_size=8, num_attention_heads=2, norm="layer")
TRAINING = TrainingConfig(steps=120, batch_size=8, optimizer=AdamW(lr=1e-2), warmup=12, checkpoints=5, history=True)
WHAT = {"study": "trainee", "scale": "smoke", "parameters": {}}


class Blind(Task):
    """The affine task, whose predictors nobody knows; its loss is the test's."""

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        return TASK.sample(n, generator)

    def baselines(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        return {}


def train(path: Path, seed: int, **options) -> Path:
    return train_model(TASK, MODEL, TRAINING, seed, Run.create(path, WHAT), **options)


def job(
    work: tuple[Path, int], progress: Callable[..., None] = do_nothing, say: Callable[[str], None] = do_nothing
) -> Path:
    return train(*work, progress=progress, log=say, save_every=0.0)


def tell(*news: object) -> None:
    sys.stdout.write(f"{' '.join(map(str, news))}\n")
    sys.stdout.flush()


def train_and_be_killed(path: Path) -> None:
    """Train in a process of its own and kill it at a random moment; tell how it ended and how far it was."""
    heard, told = os.pipe()
    child = os.fork()
    if child == 0:
        job((path, 0), lambda *_: do_nothing(os.write(told, b".")))
        os._exit(0)
    os.read(heard, 1)
    time.sleep(random.uniform(0.02, 0.15))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    tell(os.waitstatus_to_exitcode(status), len(Run.open(path).read_log(0)["step"]))


if __name__ == "__main__":
    place = Path(sys.argv[2])
    if sys.argv[1] == "alone":
        for _ in range(3):
            train_and_be_killed(place)
    else:
        ProcessExecutor().map_jobs(job, [(place, 0), (place, 1)], tell)
