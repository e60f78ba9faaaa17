"""The sequences of another task with nothing to learn about them: targets that belong to other places."""

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
class Shuffled(Task):
    """Another task whose targets are exchanged at random among all places of the sequences drawn together.

    How often each target occurs stays as it was, and nothing else can be told of them: a control for what a model does
    because it learns, and not because it is trained. Latents are those of the sequences.

    Attributes:
        task: where sequences come from.
    """

    task: Task

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """Draw ``n`` sequences, then an order of all their targets."""
        batch = self.task.sample(n, generator)
        places = batch.weight.numel()
        order = torch.randperm(places, generator=generator)
        targets = batch.targets.flatten(0, 1)[order].unflatten(0, batch.weight.shape)
        return replace(batch, targets=targets)

    def loss(self, prediction: Float[Tensor, "batch pos d_out"], batch: Batch) -> Float[Tensor, "batch pos"]:
        """That of the other task."""
        return self.task.loss(prediction, batch)

    def oracles(self, batch: Batch) -> Mapping[str, Float[Tensor, "batch pos d_out"]]:
        """Those of the other task, which are right about other targets."""
        return self.task.oracles(batch)

    def validation(self) -> "Shuffled":
        """The same of what the other task holds out."""
        return replace(self, task=self.task.validation())

    @property
    def digest(self) -> str:
        """That of the other task."""
        return self.task.digest

    def spell(self, token: int) -> str | None:
        """As the other task spells it."""
        return self.task.spell(token)

    def prepared(self, folder: Path, say: Callable[[str], None]) -> "Shuffled":
        """The same with the other task prepared."""
        return replace(self, task=self.task.prepared(folder, say))
