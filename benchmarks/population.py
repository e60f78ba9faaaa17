"""What training seeds as one program gains over training them one after another, on a GPU.

    python benchmarks/population.py [--device cuda|cpu]

The updates of training itself, with fresh data at every step and nothing written to disk: 64 seeds at once, then each
by itself. On a processor, with fewer seeds and steps, it says only what the vectorised program costs there: studies
train their seeds in processes of their own then.
"""

import argparse
import sys
import time
from collections.abc import Callable

import torch
from measuring import keep

from mesascope.models.config import DecoderConfig
from mesascope.tasks.affine import Affine
from mesascope.train import AdamW, TrainingConfig, limit_threads, sample_batches
from mesascope.train._checkpoints import initialise_training
from mesascope.train._step import run_training_step
from mesascope.train.population import DecoderPopulation, concatenate_batches, update_population

TASK = Affine(length=20)
MODEL = DecoderConfig(d_in=1, d_out=1, num_hidden_layers=3, num_attention_heads=4, hidden_size=64, norm="layer")
SIZES = {"cuda": (64, 300), "cpu": (8, 20)}  # seeds, steps
WARM = 5  # steps that are not counted

Step = Callable[[], object]


def together(training: TrainingConfig, seeds: range, device: str) -> Step:
    """One step of all seeds."""
    begun = [initialise_training(MODEL, training, seed, None, "cpu")[:2] for seed in seeds]
    members = DecoderPopulation.stack_decoders(training, seeds, begun, device)
    streams = enumerate(zip(*(sample_batches(TASK, training, seed) for seed in seeds), strict=True))

    def step() -> None:
        number, own = next(streams)
        update_population(members, TASK, concatenate_batches(own).to(device, torch.float32), training, number, 0)

    return step


def alone(training: TrainingConfig, seed: int, device: str) -> Step:
    """One step of one seed."""
    model, optimizer, _ = initialise_training(MODEL, training, seed, None, device)
    stream = enumerate(sample_batches(TASK, training, seed))

    def step() -> None:
        number, batch = next(stream)
        run_training_step(model, optimizer, TASK, batch.to(device, torch.float32), training, number, f"seed {seed}")

    return step


def seconds(step: Step, steps: int, device: str) -> float:
    """What so many steps take, once the first few are taken."""
    for _ in range(WARM):
        step()
    settle(device)
    began = time.perf_counter()
    for _ in range(steps):
        step()
    settle(device)
    return time.perf_counter() - began


def settle(device: str) -> None:
    """Wait until the device has done what it was asked to."""
    if device == "cuda":
        torch.cuda.synchronize()


def main(device: str) -> None:
    """Measure, print, and keep the numbers."""
    seeds, steps = SIZES[device]
    training = TrainingConfig(steps=steps + WARM, batch_size=64, optimizer=AdamW(lr=1e-3))
    with limit_threads(training.threads):
        at_once = seconds(together(training, range(seeds), device), steps, device)
        in_turn = sum(seconds(alone(training, seed, device), steps, device) for seed in range(seeds))
    called = torch.cuda.get_device_name() if device == "cuda" else "processor, one thread"
    print(f"{called}: {seeds} seeds, {steps} steps of each")
    for name, took in (("at once", at_once), ("one after another", in_turn)):
        print(f"{name:20s} {took:8.2f} s, {seeds * steps / took:10.0f} steps of one seed a second")
    print(f"at once is {in_turn / at_once:.2f} times as fast")
    told = {"device": called, "seeds": seeds, "steps": steps, "at once": at_once, "one after another": in_turn}
    keep("population", {**told, "ratio": in_turn / at_once})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", choices=list(SIZES), default="cuda")
    asked = parser.parse_args().device
    if asked == "cuda" and not torch.cuda.is_available():
        print("this benchmark needs a CUDA device, but torch finds none; give --device cpu", file=sys.stderr)
        sys.exit(2)
    main(asked)
