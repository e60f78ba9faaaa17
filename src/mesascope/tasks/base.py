"""What a task is: a process that makes sequences, and predictors that are known to be right."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Sequences with what is to be predicted at every position.

    Attributes:
        inputs: what the model reads: tokens, or vectors.
        targets: what it shall predict at each position, from this and all earlier inputs.
        weight: how much a position counts in the loss; 0 where it is not scored.
        latents: the ground truth behind each sequence, by name; the first axis is ``batch``.
    """

    inputs: Int[Tensor, "batch pos"] | Float[Tensor, "batch pos d_in"]
    targets: Int[Tensor, "batch pos"] | Float[Tensor, "batch pos d_out"]
    weight: Float[Tensor, "batch pos"]
    latents: Mapping[str, Shaped[Tensor, "batch *rest"]] = field(default_factory=dict)

    def __len__(self) -> int:
        """The number of sequences."""
        return self.inputs.shape[0]

    @property
    def labels(self) -> dict[str, Int[Tensor, "batch pos"]]:
        """The latents that are whole numbers at every position: what positions can be sorted by."""
        return {
            name: value
            for name, value in self.latents.items()
            if value.shape == self.weight.shape and not value.is_floating_point() and value.dtype != torch.bool
        }

    def __getitem__(self, rows: slice) -> "Batch":
        """Some of the sequences, with everything that belongs to them."""
        return Batch(
            inputs=self.inputs[rows],
            targets=self.targets[rows],
            weight=self.weight[rows],
            latents={name: value[rows] for name, value in self.latents.items()},
        )

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Batch":
        """The same batch on another device, its real numbers in another type if one is given."""

        def moved(x: Tensor) -> Tensor:
            return x.to(device, dtype if x.is_floating_point() else None)

        return replace(
            self,
            inputs=moved(self.inputs),
            targets=moved(self.targets),
            weight=moved(self.weight),
            latents={name: moved(value) for name, value in self.latents.items()},
        )


class Task(ABC):
    """A data-generating process with exact oracles. Subclasses are frozen dataclasses: their fields are the task.

    To add one, write `sample`, `loss` and `oracles`, and let `mesascope.testing.check_task` judge it.
    """

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """Draw ``n`` sequences; the same generator state gives the same sequences."""

    @abstractmethod
    def loss(self, prediction: Float[Tensor, "batch pos d_out"], batch: Batch) -> Float[Tensor, "batch pos"]:
        """The error of a prediction at every position, not yet weighted; 0 where it is perfect."""

    @abstractmethod
    def oracles(self, batch: Batch) -> Mapping[str, Float[Tensor, "batch pos d_out"]]:
        """Predictors that see the same prompt, by name; position ``t`` uses inputs 0..t only."""

    def validation(self) -> "Task":
        """Where the sequences that are opened come from: itself, where every sequence is fresh."""
        return self

    @property
    def digest(self) -> str:
        """What differs where the data that sequences are cut from differ; empty where the fields say it all."""
        return ""

    def spell(self, token: int) -> str | None:
        """A token as text; nothing where it is but a number."""
        return None

    def prepared(self, folder: Path, say: Callable[[str], None]) -> "Task":
        """The same task with all it needs at hand, before anything is trained.

        Args:
            folder: where it may keep files; a task prepared from the same folder again samples the same sequences.
            say: hears one line for anything a reader should know, such as what stands in for what is missing.
        """
        return self


def training_loss(task: Task, prediction: Float[Tensor, "batch pos d_out"], batch: Batch) -> Float[Tensor, ""]:
    """The weighted mean of the task's loss over scored positions: what training minimises."""
    return (task.loss(prediction, batch) * batch.weight).sum() / batch.weight.sum()
