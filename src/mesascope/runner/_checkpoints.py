"""The checkpoints of one seed, to which analyses are applied."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import xarray as xr
from torch import Tensor

from mesascope.analyses import Analysis, CheckpointSeries, run_analyses
from mesascope.analyses.training.history_attention import TrainingHistory
from mesascope.models.load import load_checkpoint
from mesascope.models.transformer import Decoder
from mesascope.store import HistoryReader, Run
from mesascope.tasks.base import Batch, Task
from mesascope.train import TrainingConfig, sample_batches


@dataclass(frozen=True, kw_only=True)
class SeedCheckpoints:
    """The checkpoints of one seed, to which analyses are applied.

    Attributes:
        task: The task.
        training: The training configuration.
        run: The run, with access to the models of the condition.
        seed: The training replicate.
        batch: The analysed sequences, on the device.
        device: The device to compute on.
    """

    task: Task
    training: TrainingConfig
    run: Run
    seed: int
    batch: Batch
    device: str

    def analyse(self, step: int, analyses: Sequence[Analysis]) -> dict[str, xr.Dataset]:
        """Run analyses on one checkpoint; those of captures share one forward pass.

        Args:
            step: The step of the checkpoint.
            analyses: The analyses.

        Returns:
            The result of each analysis, by name.
        """
        if not analyses:
            return {}
        model, of_captures = self._load(step), [one for one in analyses if one.input == "capture"]
        results = run_analyses(model, self.batch, of_captures, baselines=self._baselines) if of_captures else {}
        history = self._history(step) if any(one.input == "history" for one in analyses) else None
        for one in analyses:
            if one.input == "model":
                results[one.name] = one(model, self.task, self.batch)
            elif one.input == "history":
                results[one.name] = one(history, model, self.batch)
        return results

    @property
    def series(self) -> CheckpointSeries:
        """The series of all checkpoints, each loaded on demand."""
        return CheckpointSeries(steps=self.training.checkpoint_steps, load=self._load)

    @cached_property
    def _baselines(self) -> Mapping[str, Tensor]:
        """Predictions of the task's baselines on these sequences; the same for all checkpoints."""
        return self.task.baselines(self.batch)

    def _load(self, step: int) -> Decoder:
        return load_checkpoint(self.run.verified_checkpoint(self.seed, step), device=self.device)

    def _history(self, step: int) -> TrainingHistory:
        history = HistoryReader(self.run.seed_path(self.seed) / "history", step)
        replay = partial(sample_batches, self.task, self.training, self.seed)
        return TrainingHistory(history=history, initial=self._load(0), replay=replay)
