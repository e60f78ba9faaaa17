"""The checkpoints of one seed, to which analyses are applied."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import xarray as xr
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations import capture
from mesascope.analyses import Analysis, CheckpointSeries
from mesascope.analyses.base import capture_for_analyses
from mesascope.analyses.sequence_losses import SequenceLosses, concatenate_losses, measure_losses
from mesascope.analyses.training.history_attention import TrainingHistory
from mesascope.models.load import load_checkpoint, make_untrained_factory
from mesascope.models.transformer import Decoder
from mesascope.store import Run
from mesascope.tasks.base import Batch, Task
from mesascope.train import TrainingConfig, derive_untrained_seed, sample_batches


@dataclass(frozen=True, kw_only=True)
class SeedCheckpoints:
    """The checkpoints of one seed, to which analyses are applied.

    Attributes:
        task: The task.
        steps: The training steps of all checkpoints, in order.
        seed: The training replicate.
        evaluation_batches: The held-out sequences in chunks, on the device; the first chunk is analysed.
        load: Loads the model of a step.
        open_history: Opens the training history up to a step.
    """

    task: Task
    steps: tuple[int, ...]
    seed: int
    evaluation_batches: tuple[Batch, ...]
    load: Callable[[int], Decoder]
    open_history: Callable[[int], TrainingHistory]

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
        model = self.load(step)
        results, output = self._analyse_model(model, analyses)
        history = self.open_history(step) if any(one.input == "history" for one in analyses) else None
        losses = self._evaluate(model, output) if any(one.evaluation for one in analyses) else None
        for one in analyses:
            if one.evaluation:
                results[one.name] = one(losses)
            elif one.input == "history":
                results[one.name] = one(history, model, self.batch)
        return results

    def analyse_untrained(self, analyses: Sequence[Analysis]) -> dict[str, list[xr.Dataset]]:
        """Run analyses on further untrained models of the same shape, with other initial weights.

        Args:
            analyses: The analyses, of which those with ``untrained_draws`` are run.

        Returns:
            The results of each draw, by the name of the analysis.
        """
        results: dict[str, list[xr.Dataset]] = {one.name: [] for one in analyses if one.untrained_draws}
        if not results:
            return {}
        build_untrained = make_untrained_factory(self.load(0))
        for draw in range(max(one.untrained_draws for one in analyses)):
            due = [one for one in analyses if draw < one.untrained_draws]
            model = build_untrained(derive_untrained_seed(self.seed, draw))
            for name, dataset in self._analyse_model(model, due)[0].items():
                results[name].append(dataset)
        return results

    @property
    def batch(self) -> Batch:
        """The analysed sequences."""
        return self.evaluation_batches[0]

    @property
    def series(self) -> CheckpointSeries:
        """The series of all checkpoints, each loaded on demand."""
        return CheckpointSeries(steps=self.steps, load=self.load)

    @cached_property
    def _baselines(self) -> Mapping[str, Tensor]:
        """Predictions of the task's baselines on the analysed sequences; the same for all checkpoints."""
        return self.task.baselines(self.batch)

    @cached_property
    def _baseline_losses(self) -> SequenceLosses:
        """Losses of the task's baselines on all held-out sequences; the same for all checkpoints."""
        analysed = measure_losses(self._baselines, self.batch)
        others = [measure_losses(self.task.baselines(batch), batch) for batch in self.evaluation_batches[1:]]
        return concatenate_losses([analysed, *others])

    def _evaluate(self, model: Decoder, output: Tensor | None) -> SequenceLosses:
        """Return the losses of the model and of the baselines on all held-out sequences.

        Args:
            model: The model.
            output: Its output on the analysed sequences; computed if it is None.

        Returns:
            The losses.
        """
        first, *others = self.evaluation_batches
        output = capture(model, first, ["output"])["output"] if output is None else output
        chunks = [measure_losses({"model": output}, first)]
        chunks += [measure_losses({"model": capture(model, batch, ["output"])["output"]}, batch) for batch in others]
        return concatenate_losses(chunks).with_predictors(self._baseline_losses)

    def _analyse_model(
        self, model: PreTrainedModel, analyses: Sequence[Analysis]
    ) -> tuple[dict[str, xr.Dataset], Tensor | None]:
        """Run those of the analyses that need a model and the analysed sequences only.

        Args:
            model: The model.
            analyses: The analyses, of which others are left out.

        Returns:
            The results by name; and the output of the model, if an analysis needs it.
        """
        results, output = {}, None
        of_captures = [one for one in analyses if one.input == "capture" and not one.evaluation]
        if of_captures:
            acts = capture_for_analyses(model, self.batch, of_captures, baselines=self._baselines)
            results = {one.name: one(acts) for one in of_captures}
            output = acts.sites.get("output")
            del acts  # its memory is needed by analyses of models
        results |= {one.name: one(model, self.task, self.batch) for one in analyses if one.input == "model"}
        return results, output


def open_checkpoints(
    task: Task, training: TrainingConfig, run: Run, seed: int, evaluation_batches: tuple[Batch, ...], device: str
) -> SeedCheckpoints:
    """Open the checkpoints that a run holds of one seed.

    Args:
        task: The task.
        training: The training configuration.
        run: The run, with access to the models of the condition.
        seed: The training replicate.
        evaluation_batches: The held-out sequences in chunks, on the device; the first chunk is analysed.
        device: The device to compute on.

    Returns:
        The checkpoints, which are loaded on demand.
    """

    def load(step: int) -> Decoder:
        return load_checkpoint(run.verified_checkpoint(seed, step), device=device)

    def open_history(step: int) -> TrainingHistory:
        replay = partial(sample_batches, task, training, seed)
        return TrainingHistory(history=run.open_history(seed, step), initial=load(0), replay=replay)

    return SeedCheckpoints(
        task=task,
        steps=training.checkpoint_steps,
        seed=seed,
        evaluation_batches=evaluation_batches,
        load=load,
        open_history=open_history,
    )
