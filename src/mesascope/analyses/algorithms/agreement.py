"""How alike a model and an algorithm are, where a prompt asks: in predictions, errors, and weights on what it shows."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from mesascope.activations import capture
from mesascope.analyses.algorithms.fit import Answers, Fitted, Weight
from mesascope.analyses.statistics import ridge_fit
from mesascope.analyses.stream.probes import depth_names, depths
from mesascope.tasks.base import Batch
from mesascope.tasks.icl.base import InContext
from mesascope.tasks.icl.context import Examples

Predictor = Callable[[Tensor], Tensor]
NUMBERS = 32_000_000  # of predictions at once


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """Sequences, and predictions where they ask, in float64.

    Attributes:
        batch: the sequences.
        shown: what they show, and where they ask.
        prediction: of a model, or read from one of its layers.
        targets: the answers.
        weight: how much each place counts.
    """

    batch: Batch
    shown: Examples
    prediction: Answers
    targets: Answers
    weight: Weight

    def read_as(self, prediction: Answers) -> "Asked":
        """The same sequences with other predictions."""
        return replace(self, prediction=prediction)

    def misses(self, other: Answers) -> Float[Tensor, " batch"]:
        """The weighted squared distance of the predictions from others, by sequence; infinite where those are no
        finite numbers.
        """
        found = ((other - self.prediction).square().sum(-1) * self.weight).sum(1)
        return torch.where(found.isfinite(), found, torch.inf)

    @property
    def spread(self) -> Float[Tensor, " batch"]:
        """The same from their own mean at each place."""
        share = self.weight / self.weight.sum(0, keepdim=True).clamp_min(1e-12)
        return self.misses((self.prediction * share[..., None]).sum(0, keepdim=True).expand_as(self.prediction))

    def similarity(self, other: Answers) -> float:
        """The share of the variance of the predictions that others explain; not a number where they do not vary."""
        spread = float(self.spread.sum())
        return 1 - float(self.misses(other).sum()) / spread if spread > 0 else float("nan")

    def errors(self, other: Answers) -> float:
        """The cosine between the errors of the predictions and those of others; 0 where one of them has none."""
        root = self.weight.sqrt()[..., None]
        ours, theirs = ((each - self.targets) * root for each in (self.prediction, other))
        return float(cosine_similarity(ours.flatten(), theirs.flatten(), dim=0, eps=1e-30))

    def loss(self, prediction: Answers) -> float:
        """The weighted mean squared error."""
        wrong = (prediction - self.targets).square().sum(-1)
        return float((wrong * self.weight).sum() / self.weight.sum())


def asked(model: PreTrainedModel | Predictor, task: InContext, batch: Batch) -> Asked:
    """What a model predicts where sequences ask.

    Raises:
        ValueError: it predicts something that is no finite number.
    """
    shown = task.examples(batch.inputs)
    places, chunks = list(shown.at), []
    with torch.no_grad():
        for start in range(0, len(batch), _rows(model, batch)):
            found = predicted(model, batch.inputs[start : start + _rows(model, batch)])
            chunks.append(task.answers(found[:, places]))
    prediction = torch.cat(chunks)
    if not prediction.isfinite().all():
        raise ValueError("a model must predict finite numbers to be compared, but some are not")
    return Asked(
        batch=batch,
        shown=shown,
        prediction=prediction,
        targets=task.wanted(batch)[:, places],
        weight=batch.weight[:, places].double(),
    )


def _rows(model: PreTrainedModel | Predictor, batch: Batch) -> int:
    """How many sequences run at once, so that the predictions of a large vocabulary find room."""
    vocabulary = getattr(model.config, "vocab_size", None) if isinstance(model, PreTrainedModel) else None
    return max(1, NUMBERS // (batch.inputs.shape[1] * vocabulary)) if vocabulary else len(batch)


def predicted(model: PreTrainedModel | Predictor, inputs: Tensor) -> Tensor:
    """The output (batch, pos, d_out) of a model, or of a function from inputs to predictions."""
    return model.eval()(inputs).logits if isinstance(model, PreTrainedModel) else model(inputs)


def read_at_every_depth(model: PreTrainedModel, task: InContext, batch: Batch) -> dict[tuple[str, str], Answers]:
    """By lens and depth, the answers that are read where sequences ask: by an affine map, fitted to the answers on the
    first half of them by ridge regression; and by the model's own norm and output map.
    """
    recorded = capture(model, batch, ["resid_pre", "resid_post"])
    places, cut = list(task.examples(batch.inputs).at), len(batch) // 2
    scored = batch.weight[:cut, places] > 0
    targets = task.wanted(batch)[:cut, places][scored]
    read = {}
    for name, stream in zip(depth_names(recorded.layers), depths(recorded), strict=True):
        weight, constant, _ = ridge_fit(stream[:cut, places][scored], targets)
        read["affine lens", name] = stream[:, places].double() @ weight + constant
        with torch.no_grad():
            read["own read-out", name] = task.answers(recorded.frame.readout(stream[:, places]))
    return read


def weights_alike(
    ours: Float[Tensor, "batch out pos d_in"], task: InContext, inputs: Float[Tensor, "batch pos d_in"], one: Fitted
) -> list[float]:
    """For every group of what prompts show, the mean over sequences of the cosine between the gradients of both last
    predictions by it (Akyürek et al. 2023); 0 where one of them does not depend on it.

    Args:
        ours: the gradients of the model's last prediction.
        task: says what prompts show.
        inputs: the prompts.
        one: the algorithm.
    """
    theirs = gradients(lambda x: one(task.examples(x))[:, -1], inputs)
    return [
        float(cosine_similarity(ours[:, :, group].flatten(1), theirs[:, :, group].flatten(1), eps=1e-30).mean())
        for group in task.shown(inputs).values()
    ]


def gradients(predict: Predictor, inputs: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch out pos d_in"]:
    """The gradient of every coordinate of a prediction (batch, out) by its inputs, in float64; sequences must not
    influence one another.
    """
    x = inputs.detach().clone().requires_grad_()
    with torch.enable_grad():
        columns = predict(x).unbind(-1)
        rows = [
            torch.autograd.grad(column.sum(), x, retain_graph=True, allow_unused=True, materialize_grads=True)[0]
            for column in columns
        ]
    return torch.stack(rows, dim=1).double()
