"""Base class of in-context learning tasks, whose prompts can be predicted by algorithms."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mesascope.tasks.algorithms import Algorithm
from mesascope.tasks.base import Batch, Task
from mesascope.tasks.icl.context import ContextExamples

Inputs = Float[Tensor, "batch pos d_in"] | Int[Tensor, "batch pos"]


class InContextTask(Task):
    """A task in which every sequence has its own rule, given by input-target pairs in the context."""

    @abstractmethod
    def extract_examples(self, inputs: Inputs) -> ContextExamples:
        """Extract the in-context examples and the queries of a batch of sequences.

        Args:
            inputs: model inputs.

        Returns:
            The context pairs before every query, the query inputs and their positions.
        """

    @abstractmethod
    def candidate_algorithms(self) -> Sequence[Algorithm]:
        """Return the candidate algorithms a model may implement; their names are unique."""

    @abstractmethod
    def distribution_shifts(self) -> Mapping[str, "InContextTask"]:
        """Return versions of this task with shifted input distributions.

        Returns:
            Tasks by the name of the distribution; input-target pairs have the same meaning in all of them.
        """

    def separating_distributions(self) -> Mapping[str, "InContextTask"]:
        """Return versions of this task on whose inputs candidate algorithms with equal predictions differ.

        They are used to break ties only; none by default.

        Returns:
            Tasks by the name of the distribution; input-target pairs have the same meaning in all of them.
        """
        return {}

    def reference_predictions(self, context: ContextExamples) -> Float[Tensor, "batch query out"] | None:
        """Return predictions from which the distance of the model's predictions is a scale of errors.

        A recurrence returns the last term: where it converges, the terms are nearly equal, and the variance of the
        predictions over sequences is too large a scale.

        Args:
            context: in-context examples and queries.

        Returns:
            The predictions; None by default, for the variance of the predictions.
        """
        return None

    def convert_predictions(self, prediction: Float[Tensor, "batch query d_out"]) -> Float[Tensor, "batch query out"]:
        """Convert model outputs to the space in which algorithms predict; the identity by default.

        Args:
            prediction: model output at the query positions.

        Returns:
            The converted predictions, in float64.
        """
        return prediction.double()

    def convert_targets(self, batch: Batch) -> Float[Tensor, "batch pos out"]:
        """Convert targets to the space in which algorithms predict; the identity by default.

        Args:
            batch: sequences with targets.

        Returns:
            The converted targets, in float64.
        """
        return batch.targets.double()

    def gradient_masks(self, inputs: Inputs) -> Mapping[str, Bool[Tensor, "pos d_in"]]:
        """Return the groups of input coordinates with respect to which predictions are differentiated.

        Args:
            inputs: model inputs.

        Returns:
            Masks over (pos, d_in) by the name of the group; a single group of all coordinates by default.
        """
        return {"inputs": torch.ones(inputs.shape[1:], dtype=torch.bool, device=inputs.device)}

    def run_algorithm(self, algorithm: Algorithm, batch: Batch, iteration: int = 1, **hyperparameters: float) -> Tensor:
        """Run an algorithm on the context of every query of a batch.

        Args:
            algorithm: the predictor.
            batch: sequences with queries.
            iteration: the iteration whose prediction is returned.
            **hyperparameters: hyperparameters of the algorithm, by name.

        Returns:
            Predictions, (batch, pos, d_out) like a model output; 0 at positions without a query.
        """
        context = self.extract_examples(batch.inputs)
        predictions = algorithm.predict(context, (iteration,), **hyperparameters)[0]
        return context.scatter_to_positions(predictions, batch.inputs.shape[1]).to(batch.inputs.dtype)
