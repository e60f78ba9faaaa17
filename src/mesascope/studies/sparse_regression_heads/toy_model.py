"""Preprocess, then optimise: gradient descent on preprocessed inputs in sparse linear regression.

Chen, Zhao and Zou, How Transformers Utilize Multi-Head Attention in In-Context Learning? A Case Study on Sparse Linear
Regression (arXiv 2408.04532). The targets of n examples are a linear function, with few nonzero coefficients w, plus
noise. The paper's mechanism is an algorithm: multiply every coordinate of the inputs by its mean product with the
targets, which is large where w is nonzero, then run gradient descent, for which one head in each later layer suffices.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mesascope.axes import to_data_array
from mesascope.store import do_nothing
from mesascope.studies.toy_model import Progress, ToyModel, count_steps, simulation_generator

ProblemInputs = Float[Tensor, "problem example feature"]
ProblemTargets = Float[Tensor, "problem example"]
Coefficients = Float[Tensor, "problem feature"]
GramMatrix = Float[Tensor, "problem feature feature"]

DESCENT_METHODS = ["gradient descent", "preprocessed gradient descent"]
METHODS = [*DESCENT_METHODS, "ridge regression", "lasso"]
PENALTIES = tuple(10.0 ** np.linspace(-3, 1, 13))  # of ridge regression and lasso; ours
MAX_LASSO_STEPS = 5_000
GAP_CHECK_INTERVAL = 10  # proximal steps between two computations of the duality gap
GAP_TOLERANCE = 1e-5  # as a fraction of the loss of zero coefficients


@dataclass(frozen=True, kw_only=True)
class ProblemSetting:
    """Sizes of a sparse regression problem.

    Attributes:
        features: number of coordinates.
        nonzero: number of nonzero coefficients.
        examples: number of examples.
        noise: standard deviation of the noise of the targets.
    """

    features: int = 16
    nonzero: int = 4
    examples: int = 20
    noise: float = 0.5

    def __post_init__(self) -> None:
        """Validate the sizes."""
        if not 1 <= self.nonzero <= self.features or self.examples < 1 or self.noise < 0:
            raise ValueError(
                "nonzero must lie between 1 and features, examples be 1 or more and noise 0 or more, but got "
                f"{self.nonzero}, {self.features}, {self.examples} and {self.noise}"
            )

    @property
    def name(self) -> str:
        """A label with all sizes: nonzero coefficients, features, examples n and noise σ."""
        return f"{self.nonzero} of {self.features}, n = {self.examples}, σ = {self.noise:g}"

    def sample_problems(
        self, count: int, generator: torch.Generator
    ) -> tuple[ProblemInputs, ProblemTargets, Coefficients]:
        """Sample problems with standard normal inputs and nonzero coefficients.

        Args:
            count: number of problems.
            generator: source of randomness.

        Returns:
            inputs, targets and coefficients.
        """
        x = torch.randn(count, self.examples, self.features, generator=generator, dtype=torch.float64)
        coefficients = torch.randn(count, self.features, generator=generator, dtype=torch.float64)
        rank = torch.rand(count, self.features, generator=generator).argsort(1).argsort(1)
        coefficients = coefficients * (rank < self.nonzero)
        noise = self.noise * torch.randn(count, self.examples, generator=generator, dtype=torch.float64)
        return x, torch.einsum("pef,pf->pe", x, coefficients) + noise, coefficients


PROBLEM_SETTINGS = (
    ProblemSetting(),
    ProblemSetting(examples=10, noise=0.0),
    ProblemSetting(features=64, examples=40, noise=0.1),
    ProblemSetting(examples=40),
    ProblemSetting(noise=0.0),  # more examples than features and no noise: preprocessing increases the risk
)


@final
@dataclass(frozen=True, kw_only=True)
class SparseDescent(ToyModel):
    """Gradient descent on the squared error of the examples, with raw and with preprocessed inputs.

    Descent starts at 0; the step size of each problem is one over the largest curvature. Baselines: ridge regression
    and the lasso, each with its best penalty. The excess risk is the squared distance from the true coefficients, since
    inputs are standard normal.

    Attributes:
        settings: sizes of the problems.
        steps: number of steps of gradient descent.
        problems: number of problems of each setting.
    """

    settings: tuple[ProblemSetting, ...] = PROBLEM_SETTINGS
    steps: int = 400
    problems: int = 1_000

    def simulate(self, seed: int, progress: Progress = do_nothing) -> xr.Dataset:
        """Compute the excess risk, mean over problems, along gradient descent and of the baselines.

        Args:
            seed: of the problems.
            progress: receives (steps done, total steps, NaN).

        Returns:
            ``best_risk`` (distribution, predictor), with the best number of steps or the best penalty of a setting; and
            ``plain_risk``, ``preprocessed_risk`` and their ratio ``risk_ratio`` (_steps, distribution).
        """
        curves_by_setting, best_risks = [], []
        for index, setting in enumerate(self.settings):
            x, y, coefficients = setting.sample_problems(self.problems, simulation_generator(seed, index))
            scale = (x * y[..., None]).mean(1)
            plain = descent_risks(x, y, coefficients, torch.ones_like(scale), self.steps, progress)
            preprocessed = descent_risks(x, y, coefficients, scale, self.steps, progress)
            curves_by_setting.append(np.stack([plain, preprocessed]))
            ridge_risk = min(excess_risk(ridge_estimates(x, y, penalty), coefficients) for penalty in PENALTIES)
            best_risks.append([*curves_by_setting[-1].min(-1), ridge_risk, _best_lasso_risk(x, y, coefficients)])
        coords = {"distribution": [setting.name for setting in self.settings]}
        best = to_data_array(
            np.array(best_risks),
            "distribution",
            "predictor",
            units="squared coefficient",
            description="excess risk with the best number of steps or the best penalty",
            coords=coords | {"predictor": METHODS},
        )
        curves = np.stack(curves_by_setting)
        ratio_name = "ratio of preprocessed to plain gradient descent"
        return xr.Dataset(
            {
                "best_risk": best.assign_attrs(view="curves", scale="log"),
                "risk_ratio": _label_curves(curves[:, 1] / curves[:, 0], coords, ratio_name, "1"),
                "plain_risk": _label_curves(curves[:, 0], coords, DESCENT_METHODS[0], "squared coefficient"),
                "preprocessed_risk": _label_curves(curves[:, 1], coords, DESCENT_METHODS[1], "squared coefficient"),
            }
        )


def _label_curves(values: np.ndarray, coords: dict[str, list[str]], label: str, units: str) -> xr.DataArray:
    description = f"excess risk by number of steps, mean over problems: {label}"
    curves = to_data_array(values.T, "_steps", "distribution", units=units, description=description, coords=coords)
    return curves.assign_attrs(view="curves", scale="log")


def descent_risks(
    x: ProblemInputs,
    y: ProblemTargets,
    coefficients: Coefficients,
    scale: Coefficients,
    steps: int,
    progress: Progress = do_nothing,
) -> Float[np.ndarray, " step"]:
    """Compute the excess risk of gradient descent on scaled inputs, before each step and after the last.

    Args:
        x, y: examples.
        coefficients: true coefficients.
        scale: factor on each coordinate of the inputs.
        steps: number of steps.
        progress: receives (steps done, total steps, NaN).

    Returns:
        the risks of 0 to ``steps`` steps, mean over problems.
    """
    scaled = x * scale[:, None]
    gram, moment = scaled.mT @ scaled / x.shape[1], torch.einsum("pef,pe->pf", scaled, y) / x.shape[1]
    rate = 1 / torch.linalg.eigvalsh(gram)[:, -1:].clamp_min(torch.finfo(torch.float64).tiny)
    weights, risks = torch.zeros_like(coefficients), []
    for _ in count_steps(steps, progress):
        risks.append(excess_risk(scale * weights, coefficients))
        weights = weights + rate * (moment - torch.einsum("pfg,pg->pf", gram, weights))
    return np.array(risks)


def excess_risk(estimates: Coefficients, coefficients: Coefficients) -> float:
    """Return the mean squared distance of estimates from the true coefficients.

    Args:
        estimates: estimated coefficients.
        coefficients: true coefficients.
    """
    return (estimates - coefficients).square().sum(1).mean().item()


def _best_lasso_risk(x: ProblemInputs, y: ProblemTargets, coefficients: Coefficients) -> float:
    """Return the smallest risk over penalties; each lasso starts at the solution of the next larger penalty."""
    estimates, risks = None, []
    for penalty in sorted(PENALTIES, reverse=True):
        estimates = lasso_estimates(x, y, penalty, estimates)
        risks.append(excess_risk(estimates, coefficients))
    return min(risks)


def ridge_estimates(x: ProblemInputs, y: ProblemTargets, penalty: float) -> Coefficients:
    """Compute the coefficients that minimise the mean squared error plus ``penalty`` times their squared norm.

    Args:
        x, y: examples.
        penalty: 0 or more.

    Returns:
        the coefficients.
    """
    eye = torch.eye(x.shape[2], dtype=x.dtype)
    moment = torch.einsum("pef,pe->pf", x, y)
    return torch.linalg.solve(x.mT @ x + penalty * x.shape[1] * eye, moment)


def lasso_estimates(
    x: ProblemInputs, y: ProblemTargets, penalty: float, initial: Coefficients | None = None
) -> Coefficients:
    """Compute the coefficients that minimise half the mean squared error plus ``penalty`` times their L1 norm.

    Accelerated proximal gradient (FISTA; Beck and Teboulle 2009) with adaptive restart (O'Donoghue and Candès 2015). A
    problem is solved when its duality gap, an upper bound on the distance from the minimum, is below
    :data:`GAP_TOLERANCE` times the loss of zero coefficients.

    Args:
        x, y: examples.
        penalty: above 0.
        initial: initial coefficients, such as those for a larger penalty; 0 by default.

    Returns:
        the coefficients.

    Raises:
        ValueError: the penalty is not above 0, or a problem is not solved in :data:`MAX_LASSO_STEPS` steps.
    """
    if penalty <= 0:
        raise ValueError(f"penalty must be above 0, but got {penalty}; use least squares for no penalty")
    gram, moment = x.mT @ x / x.shape[1], torch.einsum("pef,pe->pf", x, y) / x.shape[1]
    mean_square = y.square().mean(1)
    rate = 1 / torch.linalg.eigvalsh(gram)[:, -1:]
    solution = torch.zeros_like(moment) if initial is None else initial.clone()
    unsolved = torch.arange(len(x))
    weights, extrapolated = solution.clone(), solution.clone()
    momentum = torch.ones(len(x), 1, dtype=x.dtype)
    for step in range(MAX_LASSO_STEPS + 1):
        if step % GAP_CHECK_INTERVAL == 0:
            is_open = duality_gap(gram, moment, mean_square, weights, penalty) > GAP_TOLERANCE * mean_square
            solution[unsolved] = weights
            if not is_open.any():
                return solution
            unsolved, gram, moment, mean_square, rate = (
                values[is_open] for values in (unsolved, gram, moment, mean_square, rate)
            )
            weights, extrapolated, momentum = weights[is_open], extrapolated[is_open], momentum[is_open]
        descended = extrapolated + rate * (moment - _multiply_vectors(gram, extrapolated))
        new = descended.sign() * (descended.abs() - rate * penalty).clamp_min(0)
        overshoots = ((extrapolated - new) * (new - weights)).sum(1, keepdim=True) > 0
        momentum = torch.where(overshoots, 1.0, momentum)
        next_momentum = (1 + (1 + 4 * momentum**2).sqrt()) / 2
        extrapolated = new + (momentum - 1) / next_momentum * (new - weights)
        weights, momentum = new, next_momentum
    raise ValueError(
        f"the lasso must converge in {MAX_LASSO_STEPS} steps, but {len(unsolved)} of {len(x)} problems did not; use a "
        "larger penalty"
    )


def duality_gap(
    gram: GramMatrix,
    moment: Coefficients,
    mean_square: Float[Tensor, " problem"],
    weights: Coefficients,
    penalty: float,
) -> Float[Tensor, " problem"]:
    """Compute the duality gap of a lasso, an upper bound on its loss minus the minimum.

    The dual variable is the residual, scaled down until its mean product with no coordinate exceeds the penalty.

    Args:
        gram: mean products of the coordinates of the inputs.
        moment: mean products of inputs and targets.
        mean_square: mean squared targets.
        weights: coefficients.
        penalty: factor on their L1 norm.

    Returns:
        the gap of each problem.
    """
    product = _multiply_vectors(gram, weights)
    residual = mean_square - ((2 * moment - product) * weights).sum(1)
    projection = mean_square - (moment * weights).sum(1)
    shrinkage = (penalty / (moment - product).abs().amax(1).clamp_min(penalty)).clamp_max(1)
    dual = shrinkage * projection - shrinkage.square() * residual / 2
    return residual / 2 + penalty * weights.abs().sum(1) - dual


def _multiply_vectors(gram: GramMatrix, vectors: Coefficients) -> Coefficients:
    return (gram @ vectors[..., None])[..., 0]
