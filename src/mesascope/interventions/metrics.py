"""Metrics of interventions: one number per sequence, computed from the output of the model."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mesascope.activations.gradients import loss_targets, position_losses
from mesascope.activations.padding.masks import (
    average_over_positions,
    select_last_position,
    validate_accepts_mask,
)
from mesascope.argument_types import CODE_ERRORS, describe_value, summarize_error, validate_arguments
from mesascope.tasks.base import Batch, Task

OutputValues = Float[Tensor, "batch predicted d_out"]
AnswerTokens = Tensor | int  # token ids (batch), or one for all
AttentionMask = Int[Tensor, "batch pos"]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A function from the output of a model to one number per sequence.

    Attributes:
        name: name of the metric.
        units: units of the number.
        description: description in one sentence.
        fn: maps outputs (batch, pos, d_out) to (batch). The last position of the output is always the last of the
            sequence. With padding, a parameter ``attention_mask=None`` receives (batch, pos), 1 where an input is not
            padding; without it, a metric of several positions refuses padded sequences.
        last_position_only: the metric uses the last position only, so that other positions need not be computed; with
            padding, ``fn`` receives the last position of each sequence that is not padding, (batch, 1, d_out).
        output_kind: ``tokens`` or ``vectors``, if the metric is only defined for one of them.
    """

    name: str
    units: str
    description: str
    fn: Callable[..., Tensor]
    last_position_only: bool = False
    output_kind: str = ""

    def __call__(self, output: OutputValues, attention_mask: AttentionMask | None = None) -> Float[Tensor, " batch"]:
        """Compute the metric, at least in single precision.

        Args:
            output: outputs of the model.
            attention_mask: 1 where an input is not padding; ``None`` without padding.

        Returns:
            One number per sequence, in double precision.

        Raises:
            ValueError: If the function fails, does not return one number per sequence, or would take padding for
                inputs.
        """
        values = self._compute(output if output.dtype == torch.float64 else output.float(), attention_mask)
        if not isinstance(values, Tensor) or values.shape != output.shape[:1]:
            given = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else describe_value(values)
            raise ValueError(
                f"a metric must return one number for each of {len(output)} sequences, but {self.name} returned {given}"
            )
        return values.double()

    def _compute(self, output: OutputValues, mask: AttentionMask | None) -> object:
        if mask is None:
            return self._call(output)
        if self.last_position_only:
            return self._call(select_last_position(output, mask))
        validate_accepts_mask(self.fn, f"the metric {self.name}", mask)
        return self._call(output, attention_mask=mask)

    def _call(self, output: OutputValues, **mask: AttentionMask) -> object:
        """Call the function; an error of its own code is the cause of the error that is raised."""
        try:
            return self.fn(output, **mask)
        except torch.OutOfMemoryError:
            raise
        except CODE_ERRORS as error:
            raise ValueError(
                f"a metric must accept outputs of shape {tuple(output.shape)}, but {self.name} raised "
                f"{summarize_error(error)}"
            ) from error


@validate_arguments
def logit_difference(correct: AnswerTokens, incorrect: AnswerTokens) -> Metric:
    """Build the logit difference at the last position: logit of the correct token minus logit of the incorrect one.

    With padding, it is the last position of each sequence that is not padding.

    Args:
        correct: token id per sequence, or one for all.
        incorrect: token id per sequence, or one for all.

    Returns:
        The metric: one number per sequence.
    """

    def compute_difference(prediction: OutputValues) -> Tensor:
        return _select_answer(prediction[:, -1], correct) - _select_answer(prediction[:, -1], incorrect)

    about = "logit of the correct token minus logit of the incorrect one, at the last position"
    return Metric(
        name="logit_difference",
        units="logit",
        description=about,
        fn=compute_difference,
        last_position_only=True,
        output_kind="tokens",
    )


@validate_arguments
def log_probability(answer: AnswerTokens) -> Metric:
    """Build the log probability of a token at the last position that is no padding.

    Args:
        answer: token id per sequence, or one for all.

    Returns:
        The metric.
    """

    def compute_log_probability(prediction: OutputValues) -> Tensor:
        return _select_answer(prediction[:, -1].log_softmax(-1), answer)

    about = "log probability of the answer at the last position"
    return Metric(
        name="log_probability",
        units="nat",
        description=about,
        fn=compute_log_probability,
        last_position_only=True,
        output_kind="tokens",
    )


@validate_arguments
def loss(inputs: Tensor | Batch) -> Metric:
    """Build the mean loss per sequence: cross-entropy of the next token, or of the batch's targets with its weights.

    Padding has weight 0: the mean is over the positions of a sequence that are not padding.

    Args:
        inputs: tokens, or a batch of a task; what the model is run on.

    Returns:
        The metric: one number per sequence.

    Raises:
        ValueError: If there are no targets, or a sequence has no position of nonzero weight.
    """
    batch, model_inputs = (inputs, inputs.inputs) if isinstance(inputs, Batch) else (None, inputs)
    model_inputs = model_inputs if model_inputs.is_floating_point() else model_inputs.long()
    if batch is None and (model_inputs.is_floating_point() or model_inputs.shape[1] < 2):
        raise ValueError(
            "loss needs targets, but got only inputs; vectors and sequences of one token must be passed as a Batch"
        )
    if batch is not None and not (batch.weight.sum(1) > 0).all():
        raise ValueError(
            "loss needs a position of nonzero weight in every sequence, but one has none; remove that sequence"
        )

    def compute_loss(prediction: OutputValues, attention_mask: AttentionMask | None = None) -> Tensor:
        mask = None if attention_mask is None else attention_mask.to(prediction.device)
        targets, weight = loss_targets(
            prediction, model_inputs.to(prediction.device), mask, batch and batch.to(prediction.device)
        )
        if mask is not None and not (weight.sum(1) > 0).all():
            row = int((weight.sum(1) > 0).int().argmin())
            raise ValueError(
                f"loss needs a target that is not padding in every sequence, but sequence {row} has none; leave it out"
            )
        return (position_losses(prediction, targets) * weight).sum(1) / weight.sum(1)

    tokens = not (batch.targets if batch is not None else model_inputs).is_floating_point()
    about = "mean loss over the positions of a sequence that have nonzero weight"
    return Metric(name="loss", units="nat" if tokens else "squared value", description=about, fn=compute_loss)


@validate_arguments
def task_loss(task: Task, batch: Batch, first_position: int = 0) -> Metric:
    """Build the mean of the task's loss over positions, per sequence; positions are not weighted.

    Args:
        task: task that defines the loss.
        batch: the sequences that the model is run on.
        first_position: earlier positions are excluded.

    Returns:
        The metric: one number per sequence.

    Raises:
        ValueError: If no position is left.

    >>> from mesascope.tasks.affine import Affine
    >>> task = Affine(length=6)
    >>> batch = task.sample(4, torch.Generator().manual_seed(0))
    >>> task_loss(task, batch, first_position=2)(batch.targets).tolist()
    [0.0, 0.0, 0.0, 0.0]
    """
    length = batch.inputs.shape[1]
    if not 0 <= first_position < length:
        raise ValueError(f"first_position must be in 0..{length - 1}, but got {first_position}")

    def compute_task_loss(prediction: OutputValues) -> Tensor:
        return task.loss(prediction, batch)[:, first_position:].double().mean(1)

    about = f"mean loss over positions {first_position} and later of a sequence"
    return Metric(name="loss", units="units of the loss", description=about, fn=compute_task_loss)


@validate_arguments
def kl_divergence(intact: OutputValues) -> Metric:
    """Build the mean over positions of KL(unedited || edited), for tokens.

    Args:
        intact: outputs of the unedited model.

    Returns:
        The metric.
    """
    unedited_log_probs = (intact if intact.dtype == torch.float64 else intact.float()).log_softmax(-1)

    def compute_divergence(prediction: OutputValues, attention_mask: AttentionMask | None = None) -> Tensor:
        after = prediction.log_softmax(-1)
        divergence = (unedited_log_probs.exp() * (unedited_log_probs - after)).sum(-1)
        return average_over_positions(divergence, attention_mask)

    about = "KL divergence of the edited from the unedited output, mean over positions"
    return Metric(name="kl_divergence", units="nat", description=about, fn=compute_divergence, output_kind="tokens")


@validate_arguments
def squared_distance(intact: OutputValues) -> Metric:
    """Build the mean over positions of the squared distance from the unedited output, for vectors.

    Args:
        intact: outputs of the unedited model.

    Returns:
        The metric.
    """

    def compute_distance(prediction: OutputValues, attention_mask: AttentionMask | None = None) -> Tensor:
        return average_over_positions((prediction - intact.to(prediction)).square().sum(-1), attention_mask)

    about = "squared distance of the edited from the unedited output, mean over positions"
    return Metric(name="squared_distance", units="squared value", description=about, fn=compute_distance)


def _select_answer(values: Float[Tensor, "batch d_out"], tokens: AnswerTokens) -> Float[Tensor, " batch"]:
    """Return each sequence's value at its token.

    Raises:
        ValueError: If the number of tokens is wrong, or one is not in the vocabulary.
    """
    index = torch.as_tensor(tokens, device=values.device).reshape(-1)
    if index.is_floating_point():
        raise ValueError(f"answers must be integer token ids, but got {index.dtype}")
    index = index.long()
    if len(index) not in (1, len(values)):
        raise ValueError(
            f"answers must be one token id, or one for each of {len(values)} sequences, but got {len(index)}"
        )
    if bool((index < 0).any()) or bool((index >= values.shape[1]).any()):
        raise ValueError(f"answers must be token ids from 0 to {values.shape[1] - 1}, but got {index.tolist()[:8]}")
    return values.gather(1, index.expand(len(values))[:, None])[:, 0]
