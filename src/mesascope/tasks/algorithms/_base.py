"""The type of an algorithm, and the types of what it takes and returns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from jaxtyping import Float
from torch import Tensor

Trajectory = Float[Tensor, "iteration *value batch query out"]
Hyperparameter = float | Float[Tensor, "value 1 1 1 1"]  # one value, or several that are evaluated in one batch
Bounds = tuple[float, float]
StepScaling = Literal["mean", "curvature"]
IterationGrid = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Algorithm:
    """A predictor with known steps.

    Attributes:
        name: name of the algorithm.
        predict: maps the context, the iterations to return and the hyperparameters (by name) to predictions.
        iteration_grid: iterations that are evaluated, in increasing order; (1,) if the algorithm is not iterative.
        iteration_unit: name of one iteration, such as "step"; empty if the algorithm is not iterative.
        hyperparameter_bounds: lower and upper bound of each hyperparameter that is fitted; bounds are positive.
    """

    name: str
    predict: Callable[..., Trajectory]
    iteration_grid: IterationGrid = (1,)
    iteration_unit: str = ""
    hyperparameter_bounds: Mapping[str, Bounds] = field(default_factory=dict)

    def display_name(self, iteration: int) -> str:
        """Return the display name at an iteration.

        Args:
            iteration: number of iterations.

        Returns:
            The name, preceded by the number of iterations if the algorithm is iterative.

        >>> from mesascope.tasks.algorithms import gradient_descent, least_squares
        >>> gradient_descent().display_name(1), least_squares().display_name(1)
        ('1 step of gradient descent', 'least squares')
        """
        if not self.iteration_unit:
            return self.name
        return f"{iteration} {self.iteration_unit}{'s' if iteration > 1 else ''} of {self.name}"
