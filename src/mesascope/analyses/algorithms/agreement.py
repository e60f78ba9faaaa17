"""Agreement of a model with an algorithm at the queries: in predictions, errors and weights on the context."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from mesascope.activations import capture
from mesascope.analyses.algorithms.fit import Answers, FittedAlgorithm, Weight
from mesascope.analyses.stream.probes import depth_names, stream_by_depth
from mesascope.ridge import fit_ridge
from mesascope.tasks.base import Batch
from mesascope.tasks.icl.base import InContextTask
from mesascope.tasks.icl.context import ContextExamples

Predictor = Callable[[Tensor], Tensor]
STEP_STAT = "predictions, relative to steps"  # from the last term to the predicted one
MAX_LOGITS = 32_000_000  # maximum size of the predictions of one forward pass


@dataclass(frozen=True, kw_only=True, eq=False)
class PredictionsAtQueries:
    """Sequences and predictions at their queries, in float64.

    Attributes:
        batch: the sequences.
        context: in-context examples and queries of the sequences.
        prediction: predictions of a model, or of a readout of one of its layers.
        targets: targets of the queries.
        weight: weight of each query.
    """

    batch: Batch
    context: ContextExamples
    prediction: Answers
    targets: Answers
    weight: Weight

    def with_prediction(self, prediction: Answers) -> "PredictionsAtQueries":
        """Return the same sequences with other predictions.

        Args:
            prediction: the other predictions.

        Returns:
            a copy with these predictions.
        """
        return replace(self, prediction=prediction)

    def squared_error(self, other: Answers) -> Float[Tensor, " batch"]:
        """Compute the weighted squared distance of the predictions from others.

        Args:
            other: the other predictions.

        Returns:
            the distance for each sequence, infinite where the others are not finite.
        """
        error = ((other - self.prediction).square().sum(-1) * self.weight).sum(1)
        return torch.where(error.isfinite(), error, torch.inf)

    @property
    def total_variance(self) -> Float[Tensor, " batch"]:
        """The weighted squared distance of the predictions from their mean over sequences at each query."""
        fraction = self.weight / self.weight.sum(0, keepdim=True).clamp_min(1e-12)
        return self.squared_error(
            (self.prediction * fraction[..., None]).sum(0, keepdim=True).expand_as(self.prediction)
        )

    def similarity(self, other: Answers) -> float:
        """Compute the fraction of the variance of the predictions that others explain.

        Args:
            other: the other predictions.

        Returns:
            1 for equal predictions, 0 for predictions as distant as the mean; NaN if the predictions do not vary.
        """
        variance = float(self.total_variance.sum())
        return 1 - float(self.squared_error(other).sum()) / variance if variance > 0 else float("nan")

    def relative_similarity(self, other: Answers, reference: Answers) -> float:
        """Compute the fraction of the squared distance of the predictions from a reference that others explain.

        Args:
            other: the other predictions.
            reference: the reference, such as a copy of the last term.

        Returns:
            1 for equal predictions, 0 for predictions as distant as the reference; NaN if the predictions are the
            reference.
        """
        distance = float(self.squared_error(reference).sum())
        return 1 - float(self.squared_error(other).sum()) / distance if distance > 0 else float("nan")

    def error_cosine(self, other: Answers) -> float:
        """Compute the cosine between the errors of the predictions and those of others (Fu et al. 2024).

        Args:
            other: the other predictions.

        Returns:
            the cosine; 0 if either has no error.
        """
        sqrt_weight = self.weight.sqrt()[..., None]
        ours, theirs = ((each - self.targets) * sqrt_weight for each in (self.prediction, other))
        return float(cosine_similarity(ours.flatten(), theirs.flatten(), dim=0, eps=1e-30))

    def mean_squared_error(self, prediction: Answers) -> float:
        """Compute the weighted mean squared error of predictions.

        Args:
            prediction: predictions at the queries.

        Returns:
            the error.
        """
        squared_error = (prediction - self.targets).square().sum(-1)
        return float((squared_error * self.weight).sum() / self.weight.sum())


def predict_at_queries(model: PreTrainedModel | Predictor, task: InContextTask, batch: Batch) -> PredictionsAtQueries:
    """Compute the predictions of a model at the queries.

    Args:
        model: a model of this package, or a function from inputs to predictions.
        task: task of the sequences.
        batch: the sequences.

    Returns:
        the sequences with the predictions of the model.

    Raises:
        ValueError: a prediction is not finite.
    """
    context = task.extract_examples(batch.inputs)
    positions, chunks = list(context.positions), []
    with torch.no_grad():
        for start in range(0, len(batch), _sequences_per_pass(model, batch)):
            output = run_predictor(model, batch.inputs[start : start + _sequences_per_pass(model, batch)])
            chunks.append(task.convert_predictions(output[:, positions]))
    prediction = torch.cat(chunks)
    if not prediction.isfinite().all():
        raise ValueError("a model must predict finite numbers, but some are not; check its inputs and its training")
    return PredictionsAtQueries(
        batch=batch,
        context=context,
        prediction=prediction,
        targets=task.convert_targets(batch)[:, positions],
        weight=batch.weight[:, positions].double(),
    )


def _sequences_per_pass(model: PreTrainedModel | Predictor, batch: Batch) -> int:
    # logits of a large vocabulary are computed a few sequences at a time
    vocabulary = getattr(model.config, "vocab_size", None) if isinstance(model, PreTrainedModel) else None
    return max(1, MAX_LOGITS // (batch.inputs.shape[1] * vocabulary)) if vocabulary else len(batch)


def run_predictor(model: PreTrainedModel | Predictor, inputs: Tensor) -> Tensor:
    """Return the output of a model, or of a function from inputs to predictions.

    Args:
        model: the model or function.
        inputs: inputs of the sequences.

    Returns:
        predictions with the axes batch, pos and d_out.
    """
    return model.eval()(inputs).logits if isinstance(model, PreTrainedModel) else model(inputs)


def read_answers_by_depth(model: PreTrainedModel, task: InContextTask, batch: Batch) -> dict[tuple[str, str], Answers]:
    """Read answers at the queries from the residual stream, by lens and depth.

    ``affine lens`` is a linear probe, fitted to the answers on the first half of the sequences by ridge regression;
    ``logit lens`` is the model's final norm and unembedding.

    Args:
        model: a model that capture supports.
        task: task of the sequences.
        batch: the sequences.

    Returns:
        the answers by lens and depth.
    """
    acts = capture(model, batch, ["resid_pre", "resid_post"]).unrolled()
    positions, cut = list(task.extract_examples(batch.inputs).positions), len(batch) // 2
    scored = batch.weight[:cut, positions] > 0
    targets = task.convert_targets(batch)[:cut, positions][scored]
    answers = {}
    for name, stream in zip(depth_names(acts.layers), stream_by_depth(acts), strict=True):
        probe = fit_ridge(stream[:cut, positions][scored], targets)
        answers["affine lens", name] = probe.predict(stream[:, positions])
        with torch.no_grad():
            answers["logit lens", name] = task.convert_predictions(acts.readout.compute_output(stream[:, positions]))
    return answers


def compare_context_weights(
    model_gradients: Float[Tensor, "batch out pos d_in"],
    task: InContextTask,
    inputs: Float[Tensor, "batch pos d_in"],
    fitted: FittedAlgorithm,
) -> Float[Tensor, "group batch"]:
    """Compute the cosine between the gradients of both last predictions by the context (Akyürek et al. 2023).

    Args:
        model_gradients: gradients of the model's last prediction by the inputs.
        task: task of the prompts; it groups the inputs of the context.
        inputs: the prompts.
        fitted: the algorithm.

    Returns:
        the cosine for every group of inputs and every sequence, 0 where a prediction does not depend on the group.
    """
    algorithm_gradients = compute_input_gradients(lambda x: fitted(task.extract_examples(x))[:, -1], inputs)
    cosines = [
        cosine_similarity(
            model_gradients[:, :, group].flatten(1), algorithm_gradients[:, :, group].flatten(1), eps=1e-30
        )
        for group in task.gradient_masks(inputs).values()
    ]
    return torch.stack(cosines)


def compute_input_gradients(
    predict: Predictor, inputs: Float[Tensor, "batch pos d_in"]
) -> Float[Tensor, "batch out pos d_in"]:
    """Compute the gradient of every coordinate of a prediction by its inputs, in float64.

    Args:
        predict: maps inputs to predictions with the axes batch and out; sequences must be independent.
        inputs: inputs of the sequences.

    Returns:
        the gradients.
    """
    x = inputs.detach().clone().requires_grad_()
    with torch.enable_grad():
        columns = predict(x).unbind(-1)
        rows = [
            torch.autograd.grad(column.sum(), x, retain_graph=True, allow_unused=True, materialize_grads=True)[0]
            for column in columns
        ]
    return torch.stack(rows, dim=1).double()
