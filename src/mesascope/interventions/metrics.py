"""What an intervention is judged by: one number for each sequence, from what the model predicts."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.activations.gradients import losses, scored
from mesascope.tasks.base import Batch, Task

Prediction = Float[Tensor, "batch predicted d_out"]
Answer = Tensor | int  # tokens: (batch), or one


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number for each sequence.

    Attributes:
        name: what it is called.
        units: of the number.
        about: one sentence.
        fn: gets predictions (batch, pos, d_out), the last position last; returns (batch).
        last: it looks at the last position alone, so that no other prediction is made where the class can leave it.
        of: ``tokens`` or ``vectors``, where it has no meaning for the other.
    """

    name: str
    units: str
    about: str
    fn: Callable[[Prediction], Tensor]
    last: bool = False
    of: str = ""

    def __call__(self, prediction: Prediction) -> Float[Tensor, " batch"]:
        """The numbers, from predictions in single precision at least.

        Raises:
            ValueError: the function gives something else than a number for each sequence.
        """
        found = self.fn(prediction if prediction.dtype == torch.float64 else prediction.float())
        if found.shape != prediction.shape[:1]:
            raise ValueError(
                f"a metric must give one number for each of {len(prediction)} sequences, but {self.name} gave shape "
                f"{tuple(found.shape)}"
            )
        return found.double()


def logit_difference(right: Answer, wrong: Answer) -> Metric:
    """How much higher the logit of the right token is than that of the wrong one, at the last position.

    Args:
        right, wrong: a token for each sequence, or one for all.
    """

    def fn(prediction: Prediction) -> Tensor:
        return _at(prediction[:, -1], right) - _at(prediction[:, -1], wrong)

    about = "logit of the right token minus that of the wrong one, at the last position"
    return Metric(name="logit_difference", units="logit", about=about, fn=fn, last=True, of="tokens")


def log_probability(answer: Answer) -> Metric:
    """The logarithm of the probability of a token at the last position.

    Args:
        answer: a token for each sequence, or one for all.
    """

    def fn(prediction: Prediction) -> Tensor:
        return _at(prediction[:, -1].log_softmax(-1), answer)

    about = "log probability of the answer at the last position"
    return Metric(name="log_probability", units="nat", about=about, fn=fn, last=True, of="tokens")


def loss(inputs: Tensor | Batch) -> Metric:
    """Each sequence's mean loss: cross-entropy of the next token, or of the batch's targets, by the batch's weights.

    Args:
        inputs: what the model reads.
    """
    batch, read = (inputs, inputs.inputs) if isinstance(inputs, Batch) else (None, inputs)
    if batch is None and (read.is_floating_point() or read.shape[1] < 2):
        raise ValueError(
            "a loss needs targets: vectors and sequences of one token must come as a Batch, but got inputs alone"
        )
    if batch is not None and not (batch.weight.sum(1) > 0).all():
        raise ValueError("a loss needs scored positions, but a sequence has none; leave it out")

    def fn(prediction: Prediction) -> Tensor:
        targets, weight = scored(prediction, read.to(prediction.device), None, batch and batch.to(prediction.device))
        return (losses(prediction, targets) * weight).sum(1) / weight.sum(1)

    tokens = not (batch.targets if batch is not None else read).is_floating_point()
    about = "mean loss over the scored positions of a sequence"
    return Metric(name="loss", units="nat" if tokens else "squared value", about=about, fn=fn)


def task_loss(task: Task, batch: Batch, first: int = 0) -> Metric:
    """Each sequence's mean loss over positions from ``first`` on, as its task has it; positions are not weighted.

    Args:
        task: whose loss is meant.
        batch: the sequences that are run.
        first: positions before this one are left out.

    Raises:
        ValueError: no position is left.

    >>> from mesascope.tasks.affine import Affine
    >>> task = Affine(length=6)
    >>> batch = task.sample(4, torch.Generator().manual_seed(0))
    >>> task_loss(task, batch, first=2)(batch.targets).tolist()
    [0.0, 0.0, 0.0, 0.0]
    """
    length = batch.inputs.shape[1]
    if not 0 <= first < length:
        raise ValueError(f"first must lie in 0..{length - 1}, a position of the sequences, but got {first}")

    def fn(prediction: Prediction) -> Tensor:
        return task.loss(prediction, batch)[:, first:].double().mean(1)

    about = f"mean loss over positions {first} and later of a sequence"
    return Metric(name="loss", units="units of the loss", about=about, fn=fn)


def divergence(intact: Prediction) -> Metric:
    """How far the predictions move: the mean over positions of KL(intact, edited) for tokens.

    Args:
        intact: the predictions that nothing was done to.
    """
    before = (intact if intact.dtype == torch.float64 else intact.float()).log_softmax(-1)

    def fn(prediction: Prediction) -> Tensor:
        after = prediction.log_softmax(-1)
        return (before.exp() * (before - after)).sum(-1).mean(1)

    about = "KL divergence of the edited from the intact prediction, mean over positions"
    return Metric(name="divergence", units="nat", about=about, fn=fn, of="tokens")


def distance(intact: Prediction) -> Metric:
    """How far predicted vectors move: the mean over positions of the squared distance.

    Args:
        intact: the predictions that nothing was done to.
    """

    def fn(prediction: Prediction) -> Tensor:
        return (prediction - intact.to(prediction)).square().sum(-1).mean(1)

    about = "squared distance of the edited from the intact prediction, mean over positions"
    return Metric(name="distance", units="squared value", about=about, fn=fn)


def _at(values: Float[Tensor, "batch d_out"], tokens: Answer) -> Float[Tensor, " batch"]:
    """Each sequence's value at its token.

    Raises:
        ValueError: there are not as many tokens as sequences, or one is not in the vocabulary.
    """
    index = torch.as_tensor(tokens, device=values.device).reshape(-1)
    if index.is_floating_point():
        raise ValueError(f"answers must be numbers of tokens, but got {index.dtype}")
    if len(index) not in (1, len(values)):
        raise ValueError(f"answers must be one token, or one for each of {len(values)} sequences, but got {len(index)}")
    if bool((index < 0).any()) or bool((index >= values.shape[1]).any()):
        raise ValueError(f"answers must be tokens from 0 to {values.shape[1] - 1}, but got {index.tolist()[:8]}")
    return values.gather(1, index.expand(len(values))[:, None])[:, 0]
