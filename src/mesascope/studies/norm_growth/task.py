"""Shuffled-target control: the sequences of another task with permuted targets."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.tasks.base import Batch, Task


@final
@dataclass(frozen=True, kw_only=True)
class ShuffledTargets(Task):
    """Another task with its targets permuted at random over all positions of a batch.

    The marginal distribution of the targets is unchanged, but inputs and targets are independent. The task is a control
    for effects of training that do not depend on learning. Latents are those of the sequences.

    Attributes:
        task: source of the sequences.
    """

    task: Task

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """Draw ``n`` sequences, then a permutation of their targets."""
        return _shuffle_targets(self.task.sample(n, generator), generator)

    def sample_unprepared(self, n: int, generator: torch.Generator) -> Batch:
        """Draw sequences of the unprepared other task, then a permutation of their targets."""
        return _shuffle_targets(self.task.sample_unprepared(n, generator), generator)

    def loss(self, prediction: Float[Tensor, "batch pos d_out"], batch: Batch) -> Float[Tensor, "batch pos"]:
        """Compute the loss of the other task."""
        return self.task.loss(prediction, batch)

    def baselines(self, batch: Batch) -> Mapping[str, Float[Tensor, "batch pos d_out"]]:
        """Compute the baselines of the other task, which predict the targets before the permutation."""
        return self.task.baselines(batch)

    def validation_task(self) -> "ShuffledTargets":
        """Return the validation task of the other task, with shuffled targets."""
        return replace(self, task=self.task.validation_task())

    @property
    def token_digest(self) -> str:
        """The digest of the other task."""
        return self.task.token_digest

    def decode_token(self, token: int) -> str | None:
        """Decode a token as the other task does."""
        return self.task.decode_token(token)

    def prepare(self, cache_dir: Path, log: Callable[[str], None]) -> "ShuffledTargets":
        """Prepare the other task."""
        return replace(self, task=self.task.prepare(cache_dir, log))


def _shuffle_targets(batch: Batch, generator: torch.Generator) -> Batch:
    order = torch.randperm(batch.weight.numel(), generator=generator)
    targets = batch.targets.flatten(0, 1)[order].unflatten(0, batch.weight.shape)
    return replace(batch, targets=targets)
