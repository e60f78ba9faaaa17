"""Toy model of parameter norm growth: a vector with random updates of known size.

Merrill, Ramanujan, Goldberg, Schwartz and Smith, Effects of Parameter Norm Growth During Transformer Training
(arXiv 2010.09697), derive that the norm grows as the square root of time if updates are orthogonal to the parameters
and their size is proportional to the norm and to a learning rate of 1 / sqrt(t). In detail: with
|delta|^2 = c eta^2 |theta|^2 each step multiplies |theta|^2 by 1 + c eta^2, so with eta = 1 / sqrt(t) the norm grows as
t^(c / 2). This is the square root for c = 1 only, and the exponent depends on the schedule.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mesascope.axes import to_data_array
from mesascope.store import do_nothing
from mesascope.studies.toy_model import Progress, ToyModel, count_steps, fit_exponent, fit_line, simulation_generator

SCHEDULES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "constant": np.ones_like,
    "1/√t": lambda t: t**-0.5,
    "linear decay": lambda t: 1 - (t - 1) / len(t),
}
PAPER_SCHEDULE = "1/√t"  # of the paper's derivation
PROPORTIONAL, CONSTANT_SIZE, ALIGNED = "proportional to the norm", "constant size", "along the vector"
FITTED_CURVES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {"√t": np.sqrt, "t": lambda t: t}
EARLY_FRACTION = 0.1  # of the steps, excluded from the fits of exponents; ours


@dataclass(frozen=True, kw_only=True)
class UpdateRule:
    """Size and direction of the updates of a vector.

    Attributes:
        kind: :data:`PROPORTIONAL` or :data:`CONSTANT_SIZE` for random directions, :data:`ALIGNED` for updates along the
            vector that are proportional to its norm.
        schedule: name of the learning-rate schedule, one of :data:`SCHEDULES`.
        c: squared size of an update over the squares of learning rate and norm.
    """

    kind: str = PROPORTIONAL
    schedule: str = PAPER_SCHEDULE
    c: float = 1.0


@final
@dataclass(frozen=True, kw_only=True)
class NormGrowth(ToyModel):
    """A vector theta with an update of size sqrt(c) eta(t) |theta| at every step t, in a new random direction.

    Two controls: updates along the vector itself (aligned), and updates without the factor |theta| (a random walk). The
    learning rates of all schedules have the same sum of squares as 1 / sqrt(t), so that schedules differ only in when
    the vector is updated.

    Attributes:
        dimensions: of the vector; in high dimension random directions are nearly orthogonal to it.
        steps: number of updates.
        constants: values of c.
        num_points: number of steps at which the norm is recorded, evenly spaced on a logarithmic scale.
    """

    dimensions: int = 2_000
    steps: int = 3_000
    constants: tuple[float, ...] = (0.5, 1.0, 2.0)
    num_points: int = 61

    def __post_init__(self) -> None:
        """Validate sizes and constants."""
        if self.dimensions < 2 or self.steps < 20 or self.num_points < 20:
            raise ValueError(
                "dimensions must be 2 or more, steps and num_points 20 or more, but got "
                f"{self.dimensions}, {self.steps} and {self.num_points}"
            )
        if not self.constants or min(self.constants) <= 0:
            raise ValueError(f"constants must be one or more, above 0, but got {self.constants}")

    def simulate(self, seed: int, progress: Progress = do_nothing) -> xr.Dataset:
        """Simulate vectors with all update rules and fit the exponents of norm growth.

        Args:
            seed: of the random directions.
            progress: receives (steps done, total steps, NaN).

        Returns:
            ``norm_by_*`` (step, rule) and ``exponent_by_*`` (rule), by constant c, by schedule and by size of the
            updates; ``norm_aligned`` (step), the exponential of the summed learning rates; and ``fit_r2``.
        """
        groups = self._group_rules()
        rules = [*(rule for group in groups.values() for rule in group.values()), UpdateRule(kind=ALIGNED)]
        steps = sorted({0, *(round(float(step)) for step in np.geomspace(1, self.steps, self.num_points))})
        norms = self.simulate_norms(rules, steps, simulation_generator(seed), progress)
        variables: dict[str, xr.DataArray] = {}
        for name, group in groups.items():
            curves, norms = norms[:, : len(group)], norms[:, len(group) :]
            variables |= _label_group(name, list(group), steps, curves)
        variables["norm_aligned"] = _label_aligned(steps, norms[:, 0])
        return xr.Dataset(variables | {"fit_r2": _fit_schedules(steps, variables["norm_by_schedule"])})

    def _group_rules(self) -> dict[str, dict[str | float, UpdateRule]]:
        return {
            "constant": {c: UpdateRule(c=c) for c in self.constants},
            "schedule": {name: UpdateRule(schedule=name) for name in SCHEDULES},
            "size": {kind: UpdateRule(kind=kind) for kind in (PROPORTIONAL, CONSTANT_SIZE)},
        }

    def simulate_norms(
        self,
        rules: Sequence[UpdateRule],
        recorded_steps: Sequence[int],
        generator: torch.Generator,
        progress: Progress = do_nothing,
    ) -> Float[np.ndarray, "step rule"]:
        """Simulate one vector per update rule and return its norm over the initial norm, (step, rule).

        Args:
            rules: update rules.
            recorded_steps: numbers of updates after which the norm is recorded.
            generator: source of the random directions.
            progress: receives (steps done, total steps, NaN).
        """
        recorded, norms = set(recorded_steps), []
        for step, theta in enumerate(self._iterate_vectors(rules, generator, progress)):
            if step in recorded:
                norms.append(theta.norm(dim=1).numpy())
        return np.stack(norms)

    def _iterate_vectors(
        self, rules: Sequence[UpdateRule], generator: torch.Generator, progress: Progress
    ) -> Iterator[Float[Tensor, "rule dimension"]]:
        """Iterate over the vectors before each update and after the last."""
        is_aligned = torch.tensor([rule.kind == ALIGNED for rule in rules])[:, None]
        has_constant_size = torch.tensor([rule.kind == CONSTANT_SIZE for rule in rules])[:, None]
        scales = [rule.c**0.5 * learning_rates(rule.schedule, self.steps) for rule in rules]
        rates = torch.from_numpy(np.stack(scales, 1))
        theta = torch.randn(len(rules), self.dimensions, generator=generator, dtype=torch.float64)
        theta = initial = theta / theta.norm(dim=1, keepdim=True)
        for step in count_steps(self.steps, progress):
            yield theta
            if step == self.steps:
                break
            drawn = torch.randn(theta.shape, generator=generator, dtype=theta.dtype)
            norm = theta.norm(dim=1, keepdim=True)
            direction = torch.where(is_aligned, theta / norm, drawn / drawn.norm(dim=1, keepdim=True))
            size = torch.where(has_constant_size, initial.norm(dim=1, keepdim=True), norm)
            theta = theta + rates[step][:, None] * size * direction


def learning_rates(schedule: str, steps: int) -> Float[np.ndarray, " step"]:
    """Return the learning rates of steps 1 to ``steps``, with the same sum of squares as 1 / sqrt(t).

    Args:
        schedule: one of :data:`SCHEDULES`.
        steps: number of steps.

    >>> learning_rates("1/√t", 4)[[0, 3]].tolist()
    [1.0, 0.5]
    >>> round(float((learning_rates("constant", 4) ** 2).sum()), 9) == round(25 / 12, 9)
    True
    """
    t = np.arange(1, steps + 1, dtype=float)
    rates = SCHEDULES[schedule](t)
    return rates * (SCHEDULES[PAPER_SCHEDULE](t) ** 2).sum() ** 0.5 / (rates**2).sum() ** 0.5


def _label_group(
    name: str, labels: list[str | float], steps: list[int], norms: Float[np.ndarray, "step rule"]
) -> dict[str, xr.DataArray]:
    axis, coords = f"_{name}", {f"_{name}": labels}
    curves = to_data_array(
        norms,
        "step",
        axis,
        units="1",
        description=f"norm of the vector over its initial norm, by {name}",
        coords={"step": steps} | coords,
    )
    exponents = to_data_array(
        np.array([_late_exponent(steps, norm) for norm in norms.T]),
        axis,
        units="1",
        description=f"exponent p of the growth of the norm as t^p after {EARLY_FRACTION:.0%} of the steps, by {name}",
        coords=coords,
    )
    return {f"norm_by_{name}": curves.assign_attrs(scale="log", view="training"), f"exponent_by_{name}": exponents}


def _label_aligned(steps: list[int], norm: Float[np.ndarray, " step"]) -> xr.DataArray:
    return to_data_array(
        norm,
        "step",
        units="1",
        description="norm over the initial norm of a vector with updates along itself",
        coords={"step": steps},
    ).assign_attrs(scale="log")


def _fit_schedules(steps: list[int], norms: xr.DataArray) -> xr.DataArray:
    t = np.array(steps, dtype=float)
    r_squared = {
        f"{schedule}, on {curve}": fit_line(function(t), norms.sel(_schedule=schedule).values)[1]
        for schedule in SCHEDULES
        for curve, function in FITTED_CURVES.items()
    }
    return to_data_array(
        np.array(list(r_squared.values())),
        "_fit",
        units="1",
        description="R² of the affine fit of the norm on a function of the step, by schedule",
        coords={"_fit": list(r_squared)},
    )


def _late_exponent(steps: Sequence[int], norm: Float[np.ndarray, " step"]) -> float:
    t = np.array(steps, dtype=float)
    late = t >= EARLY_FRACTION * t[-1]
    return fit_exponent(t[late], norm[late])
