"""Preprocess, then optimise: gradient descent on preprocessed inputs in sparse linear regression.

Chen, Zhao and Zou, How Transformers Utilize Multi-Head Attention in In-Context Learning? A Case Study on Sparse Linear
Regression (arXiv 2408.04532). The targets of n examples are a linear function, with few nonzero coefficients w, plus
noise. The paper's mechanism is an algorithm: multiply every coordinate of the inputs by its mean product with the
targets, which is large where w is nonzero, then run gradient descent, for which one head in each later layer suffices.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float

from mesascope.axes import to_data_array
from mesascope.store import do_nothing
from mesascope.studies.sparse_regression_heads.problems import (
    PROBLEM_SETTINGS,
    Coefficients,
    ProblemInputs,
    ProblemSetting,
    ProblemTargets,
    compute_mean_products,
)
from mesascope.studies.toy_model import Progress, ToyModel, count_steps, simulation_generator
from mesascope.tasks.algorithms import solve_lasso

DESCENT_METHODS = ["gradient descent", "preprocessed gradient descent"]
METHODS = [*DESCENT_METHODS, "ridge regression", "lasso"]
PENALTIES = tuple(10.0 ** np.linspace(-3, 1, 13))  # of ridge regression and lasso; ours


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
            ``best_risk`` (distribution, predictor), with the best number of steps or the best penalty of a setting, and
            ``best_at_edge``, which is 1 where that number or penalty is the last one tried; and ``plain_risk``,
            ``preprocessed_risk`` and their ratio ``risk_ratio`` (_steps, distribution).
        """
        measured = [
            self._measure_setting(setting, simulation_generator(seed, index), progress)
            for index, setting in enumerate(self.settings)
        ]
        coords = {"distribution": [setting.name for setting in self.settings]}
        curves = np.array([risks[: len(DESCENT_METHODS)] for risks in measured])
        return xr.Dataset(_label_best(measured, coords) | _label_descents(curves, coords))

    def _measure_setting(
        self, setting: ProblemSetting, generator: torch.Generator, progress: Progress
    ) -> list[Float[np.ndarray, "_"]]:
        """Return the risks of each method, by number of steps or by penalty."""
        x, y, coefficients = setting.sample_problems(self.problems, generator)
        scale = (x * y[..., None]).mean(1)
        plain = descent_risks(x, y, coefficients, torch.ones_like(scale), self.steps, progress)
        preprocessed = descent_risks(x, y, coefficients, scale, self.steps, progress)
        ridge = np.array([excess_risk(ridge_estimates(x, y, penalty), coefficients) for penalty in PENALTIES])
        estimates = solve_lasso(*compute_mean_products(x, y), y.square().mean(1), torch.tensor(PENALTIES))
        lasso = np.array([excess_risk(each, coefficients) for each in estimates])
        return [plain, preprocessed, ridge, lasso]


def _label_best(measured: list[list[Float[np.ndarray, "_"]]], coords: dict[str, list[str]]) -> dict[str, xr.DataArray]:
    coords = coords | {"predictor": METHODS}
    best = to_data_array(
        np.array([[risks.min() for risks in setting] for setting in measured]),
        "distribution",
        "predictor",
        units="squared coefficient",
        description="excess risk with the best number of steps or the best penalty",
        coords=coords,
    )
    at_edge = to_data_array(
        np.array([[_is_at_edge(risks, name) for risks, name in zip(each, METHODS, strict=True)] for each in measured]),
        "distribution",
        "predictor",
        units="1",
        description="1 if the best number of steps is the largest, or the best penalty the smallest or the largest",
        coords=coords,
    )
    return {"best_risk": best.assign_attrs(view="curves", scale="log"), "best_at_edge": at_edge}


def _is_at_edge(risks: Float[np.ndarray, "_"], method: str) -> int:
    best = int(risks.argmin())
    return int(best == len(risks) - 1 or (best == 0 and method not in DESCENT_METHODS))


def _label_descents(
    curves: Float[np.ndarray, "setting method step"], coords: dict[str, list[str]]
) -> dict[str, xr.DataArray]:
    plain, preprocessed, units = curves[:, 0], curves[:, 1], "squared coefficient"
    ratio_name = "ratio of preprocessed to plain gradient descent"
    return {
        "risk_ratio": _label_curves(preprocessed / plain, coords, ratio_name, "1"),
        "plain_risk": _label_curves(plain, coords, DESCENT_METHODS[0], units),
        "preprocessed_risk": _label_curves(preprocessed, coords, DESCENT_METHODS[1], units),
    }


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
    """Compute the excess risk of gradient descent on scaled inputs after 0 to ``steps`` steps, mean over problems.

    Args:
        x, y: examples.
        coefficients: true coefficients.
        scale: factor on each coordinate of the inputs.
        steps: number of steps.
        progress: receives (steps done, total steps, NaN).

    Returns:
        the excess risk by step.
    """
    weights_by_step = _iterate_descent(x * scale[:, None], y, steps, progress)
    return np.array([excess_risk(scale * weights, coefficients) for weights in weights_by_step])


def _iterate_descent(x: ProblemInputs, y: ProblemTargets, steps: int, progress: Progress) -> Iterator[Coefficients]:
    """Iterate over the coefficients before each step and after the last."""
    gram, moment = compute_mean_products(x, y)
    rate = 1 / torch.linalg.eigvalsh(gram)[:, -1:].clamp_min(torch.finfo(torch.float64).tiny)
    weights = torch.zeros_like(moment)
    for _ in count_steps(steps, progress):
        yield weights
        weights = weights + rate * (moment - torch.einsum("pfg,pg->pf", gram, weights))


def excess_risk(estimates: Coefficients, coefficients: Coefficients) -> float:
    """Return the mean squared distance of estimates from the true coefficients.

    Args:
        estimates: estimated coefficients.
        coefficients: true coefficients.
    """
    return (estimates - coefficients).square().sum(1).mean().item()


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
