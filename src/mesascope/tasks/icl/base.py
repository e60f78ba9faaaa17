"""What a task is that is learned in context: a prompt shows pairs, and algorithms predict from them."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mesascope.tasks.algorithms import Algorithm
from mesascope.tasks.base import Batch, Task
from mesascope.tasks.icl.context import Examples

Inputs = Float[Tensor, "batch pos d_in"] | Int[Tensor, "batch pos"]


class InContext(Task):
    """A task whose every sequence has a rule of its own, told by pairs of an input and its answer."""

    @abstractmethod
    def examples(self, inputs: Inputs) -> Examples:
        """The pairs that sequences show, and what is asked of them and where."""

    @abstractmethod
    def algorithms(self) -> Sequence[Algorithm]:
        """What a model may have learned, by different names."""

    @abstractmethod
    def shifts(self) -> Mapping[str, "InContext"]:
        """The same task with sequences from other distributions, by what is different; the pairs mean the same."""

    def answers(self, prediction: Float[Tensor, "batch place d_out"]) -> Float[Tensor, "batch place out"]:
        """What a model predicts, in the form of answers; here as it is."""
        return prediction.double()

    def wanted(self, batch: Batch) -> Float[Tensor, "batch pos out"]:
        """The targets, in the form of answers; here as they are."""
        return batch.targets.double()

    def shown(self, inputs: Inputs) -> Mapping[str, Bool[Tensor, "pos d_in"]]:
        """Groups of the inputs' numbers by which predictions may be differentiated, by name; here all of them."""
        return {"inputs": torch.ones(inputs.shape[1:], dtype=torch.bool, device=inputs.device)}

    def predicted(self, algorithm: Algorithm, batch: Batch, iteration: int = 1, **parameters: float) -> Tensor:
        """What an algorithm predicts, (batch, pos, d_out) like a model; 0 where nothing is asked."""
        shown = self.examples(batch.inputs)
        answers = algorithm.predict(shown, (iteration,), **parameters)[0]
        return shown.spread(answers, batch.inputs.shape[1]).to(batch.inputs.dtype)
