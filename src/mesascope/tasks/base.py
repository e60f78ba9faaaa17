"""Tasks and batches: data-generating processes and their baseline predictors."""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from mesascope.argument_types import validate_type
from mesascope.summaries import Summarised, Summary, describe_tensor

MAX_SEQUENCES = 2**31 - 1  # of one batch


@dataclass(frozen=True, kw_only=True, repr=False)
class Batch(Summarised):
    """Sequences with the prediction target of every position.

    Attributes:
        inputs: model inputs, either tokens or vectors.
        targets: the target at each position, to be predicted from the inputs up to and including that position.
        weight: weight of each position in the loss; 0 where the position is not scored.
        latents: ground truth of each sequence, by name; the first axis is ``batch``.
    """

    inputs: Int[Tensor, "batch pos"] | Float[Tensor, "batch pos d_in"]
    targets: Int[Tensor, "batch pos"] | Float[Tensor, "batch pos d_out"]
    weight: Float[Tensor, "batch pos"]
    latents: Mapping[str, Shaped[Tensor, "batch *rest"]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of sequences."""
        return self.inputs.shape[0]

    @property
    def categorical_latents(self) -> dict[str, Int[Tensor, "batch pos"]]:
        """The integer latents that have one value per position, such as class labels, by name."""
        return {
            name: value
            for name, value in self.latents.items()
            if value.shape == self.weight.shape and not value.is_floating_point() and value.dtype != torch.bool
        }

    def __getitem__(self, rows: slice) -> "Batch":
        """Return the selected sequences with their targets, weights and latents."""
        return Batch(
            inputs=self.inputs[rows],
            targets=self.targets[rows],
            weight=self.weight[rows],
            latents={name: value[rows] for name, value in self.latents.items()},
        )

    def summarise(self) -> Summary:
        """Return shape, dtype and memory of every tensor."""
        vectors = ("batch", "pos", "d_in"), ("batch", "pos", "d_out")
        tensors = [
            ("inputs", self.inputs, vectors[0][: self.inputs.ndim]),
            ("targets", self.targets, vectors[1][: self.targets.ndim]),
            ("weight", self.weight, ("batch", "pos")),
            *(
                (f"latents[{name!r}]", value, ("batch", *[""] * (value.ndim - 1)))
                for name, value in self.latents.items()
            ),
        ]
        return Summary(
            title=f"Batch of {len(self)} sequences",
            header=("name", "axes", "dtype", "memory"),
            rows=[describe_tensor(*each) for each in tensors],
        )

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Batch":
        """Return the batch on another device.

        Args:
            device: target device.
            dtype: floating-point type of the real-valued tensors; unchanged if ``None``.

        Returns:
            A new batch; integer and boolean tensors keep their type.
        """

        def cast_tensor(x: Tensor) -> Tensor:
            return x.to(device, dtype if x.is_floating_point() else None)

        return replace(
            self,
            inputs=cast_tensor(self.inputs),
            targets=cast_tensor(self.targets),
            weight=cast_tensor(self.weight),
            latents={name: cast_tensor(value) for name, value in self.latents.items()},
        )


class Task(ABC):
    """A data-generating process with exact baselines.

    Subclasses are frozen dataclasses whose fields define the task completely. To add a task, implement `sample`, `loss`
    and `baselines`, and run `mesascope.testing.check_task` on it. The number of sequences and the generator are
    validated before `sample` is called.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        """Validate the arguments of `sample`."""
        super().__init_subclass__(**options)
        if "sample" in cls.__dict__:
            setattr(cls, "sample", _validate_sampling(cls.sample))  # noqa: B010  pyright does not allow an assignment

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """Draw ``n`` sequences.

        Args:
            n: number of sequences.
            generator: source of randomness; the same state gives the same sequences.

        Returns:
            The batch of sequences.
        """

    @abstractmethod
    def loss(self, prediction: Float[Tensor, "batch pos d_out"], batch: Batch) -> Float[Tensor, "batch pos"]:
        """Compute the loss of a prediction at every position.

        Args:
            prediction: model output.
            batch: the sequences that were predicted.

        Returns:
            The unweighted loss, (batch, pos); 0 for a perfect prediction.
        """

    @abstractmethod
    def baselines(self, batch: Batch) -> Mapping[str, Float[Tensor, "batch pos d_out"]]:
        """Compute the baseline predictions for a batch.

        Args:
            batch: the sequences to predict.

        Returns:
            Predictions by the name of the baseline; at position ``t`` a baseline uses the inputs 0..t only.
        """

    def validation_task(self) -> "Task":
        """Return the task that validation sequences are drawn from; the task itself if every sequence is fresh."""
        return self

    @property
    def token_digest(self) -> str:
        """A hash of the data that sequences are cut from; empty if the fields define the data completely."""
        return ""

    def decode_token(self, token: int) -> str | None:
        """Decode a token to text.

        Args:
            token: token index.

        Returns:
            The text of the token, or ``None`` if tokens have no text.
        """
        return None

    def prepare(self, cache_dir: Path, log: Callable[[str], None]) -> "Task":
        """Download and cache everything the task needs, before training starts.

        Args:
            cache_dir: cache directory; a task prepared from the same directory samples the same sequences.
            log: receives one line for each notice that users should see, such as the use of a fallback source.

        Returns:
            The task, ready to sample.
        """
        return self

    def sample_unprepared(self, n: int, generator: torch.Generator) -> Batch:
        """Draw sequences of the shape and range of those of `sample`, before `prepare` was called.

        A run checks with them that a model fits the task, before it writes anything. By default they are those of
        `sample`. Override it in a task with `prepare`, which else is checked only when training begins.

        Args:
            n: number of sequences.
            generator: source of randomness.

        Returns:
            The batch of sequences.

        Raises:
            NotImplementedError: the task has `prepare`, but not this method.
        """
        if type(self).prepare is not Task.prepare:
            raise NotImplementedError(f"{type(self).__name__} must be prepared before it is sampled")
        return self.sample(n, generator)


def seed_by_batch(batch: Batch) -> torch.Generator:
    """Return a generator whose seed follows from the inputs of a batch.

    Analyses draw further sequences with it. Every training replicate has its own held-out batch, and so its own further
    sequences.

    Args:
        batch: the batch.
    """
    return torch.Generator().manual_seed(zlib.crc32(batch.inputs.cpu().contiguous().numpy().tobytes()))


def training_loss(
    task: Task,
    prediction: Float[Tensor, "batch pos d_out"],
    batch: Batch,
    total_weight: Float[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    """Compute the training loss: the weighted mean of the task's loss over scored positions.

    Args:
        task: defines the loss.
        prediction: model output.
        batch: the sequences that were predicted.
        total_weight: the sum of all weights of a larger batch, of which these sequences are a part; the sum over all
            parts is then the loss of the larger batch. By default the sum of the weights of these sequences.

    Returns:
        sum(loss * weight) / total_weight, a scalar.
    """
    total_weight = batch.weight.sum() if total_weight is None else total_weight
    return (task.loss(prediction, batch) * batch.weight).sum() / total_weight


def _validate_sampling(sample: Callable[..., Batch]) -> Callable[..., Batch]:
    """Return a method `sample` that validates its arguments first."""

    @wraps(sample)
    def sample_validated(self: Task, n: int, generator: torch.Generator) -> Batch:
        validate_type("n", n, int)
        validate_type("generator", generator, torch.Generator)
        if not 0 <= n <= MAX_SEQUENCES:
            raise ValueError(f"n must be from 0 to {MAX_SEQUENCES}, but got {n}")
        return sample(self, n, generator)

    return sample_validated
