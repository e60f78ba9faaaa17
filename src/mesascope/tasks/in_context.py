"""What a task is that is learned in context: a prompt shows pairs, and algorithms predict from them."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mesascope.tasks.algorithms import Algorithm
from mesascope.tasks.base import Batch, Task
from mesascope.tasks.examples import Examples


class InContext(Task):
    """A task whose every sequence has a rule of its own, told by pairs of an input and its answer."""

    @abstractmethod
    def examples(self, inputs: Float[Tensor, "batch pos d_in"]) -> Examples:
        """The pairs that sequences show, and what is asked of them and where."""

    @abstractmethod
    def algorithms(self) -> Sequence[Algorithm]:
        """What a model may have learned, by different names."""

    @abstractmethod
    def shifts(self) -> Mapping[str, "InContext"]:
        """The same task with sequences from other distributions, by what is different; the pairs mean the same."""

    def shown(self, inputs: Float[Tensor, "batch pos d_in"]) -> Mapping[str, Bool[Tensor, "pos d_in"]]:
        """Groups of the inputs' numbers by which predictions may be differentiated, by name; here all of them."""
        return {"inputs": torch.ones(inputs.shape[1:], dtype=torch.bool, device=inputs.device)}

    def predicted(self, algorithm: Algorithm, batch: Batch, iteration: int = 1, **parameters: float) -> Tensor:
        """What an algorithm predicts, (batch, pos, d_out) like a model; 0 where nothing is asked."""
        shown = self.examples(batch.inputs)
        path = algorithm.predict(shown, **parameters)
        return shown.spread(path[iteration - algorithm.first], batch.inputs.shape[1]).to(batch.inputs.dtype)
