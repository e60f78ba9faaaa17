"""How the norm of parameters grows when the size of updates is known: a vector that is moved, and nothing else.

Merrill, Ramanujan, Goldberg, Schwartz and Smith, Effects of Parameter Norm Growth During Transformer Training
(arXiv 2010.09697), derive that the norm grows as the square root of time if updates lie at right angles to the
parameters and their size is in proportion to both the norm and a learning rate of 1 / sqrt(t). Worked out: with
|delta|^2 = c eta^2 |theta|^2 every step multiplies |theta|^2 by 1 + c eta^2, so that with eta = 1 / sqrt(t) the norm
grows as t^(c / 2). It is the square root for c = 1 alone, and the power follows from the schedule.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float

from mesascope.axes import label
from mesascope.store import ignore
from mesascope.studies.toy_model import Progress, Reduced, generator, line, power, told

RATES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "constant": np.ones_like,
    "1/√t": lambda t: t**-0.5,
    "linear decay": lambda t: 1 - (t - 1) / len(t),
}
PROPORTION, WALK, ALIGNED = "in proportion to the norm", "of one size whatever the norm", "along the vector"
PAPERS = "1/√t"  # the schedule of the derivation
STRAIGHT: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {"√t": np.sqrt, "t": lambda t: t}
LATE = 0.1  # of the steps: powers are those of the steps after


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a vector is moved.

    Attributes:
        kind: at random and in proportion to its norm, at random and of one size, or along itself and in proportion.
        schedule: one of :data:`RATES`.
        c: the squared size of a move over those of rate and norm.
    """

    kind: str = PROPORTION
    schedule: str = PAPERS
    c: float = 1.0


@final
@dataclass(frozen=True, kw_only=True)
class NormGrowth(Reduced):
    """A vector that is moved at every step t by sqrt(c) eta(t) |theta| in a direction that is drawn anew, along the
    vector itself (aligned), or in a random one without the factor |theta| (a walk). The learning rates of all schedules
    have the same sum of squares, that of 1 / sqrt(t), so that they differ in nothing but when the vector is moved.

    Attributes:
        dimensions: of the vector; in many, directions drawn at random lie nearly at right angles to it.
        steps: how often it is moved.
        constants: the numbers c.
        points: steps at which its norm is written down, evenly in the logarithm.
    """

    dimensions: int = 2_000
    steps: int = 3_000
    constants: tuple[float, ...] = (0.5, 1.0, 2.0)
    points: int = 61

    def __post_init__(self) -> None:
        """Refuse sizes that give no power, and moves of no size."""
        if self.dimensions < 2 or self.steps < 20 or self.points < 20:
            raise ValueError(
                "dimensions must be 2 or more, steps and points 20 or more, but got "
                f"{self.dimensions}, {self.steps} and {self.points}"
            )
        if not self.constants or min(self.constants) <= 0:
            raise ValueError(f"constants must be one or more, above 0, but got {self.constants}")

    def simulate(self, seed: int, progress: Progress = ignore) -> xr.Dataset:
        """The norm over steps, and the power of the steps by which it grows in the end, by the number c, by the
        schedule and by the size of the moves, all else being the paper's with c = 1; and the norm of a vector that is
        moved along itself, which is the exponential of the sum of the rates.
        """
        tried: dict[str, dict[str | float, Way]] = {
            "constant": {c: Way(c=c) for c in self.constants},
            "schedule": {name: Way(schedule=name) for name in RATES},
            "size": {kind: Way(kind=kind) for kind in (PROPORTION, WALK)},
        }
        ways = [*(way for group in tried.values() for way in group.values()), Way(kind=ALIGNED)]
        due = sorted({0, *(round(float(step)) for step in np.geomspace(1, self.steps, self.points))})
        norms, found = self.norms(ways, due, generator(seed), progress), {}
        for name, group in tried.items():
            own, norms = norms[:, : len(group)], norms[:, len(group) :]
            where = {f"_{name}": list(group)}
            about = f"norm of the vector over its first, by {name}"
            curve = label(own, "step", f"_{name}", units="1", about=about, coords={"step": due} | where)
            found[f"norm_by_{name}"] = curve.assign_attrs(scale="log", view="training")
            about = f"power of the step by which the norm grows in the end, by {name}"
            powers = [_late(due, each) for each in own.T]
            found[f"power_by_{name}"] = label(np.array(powers), f"_{name}", units="1", about=about, coords=where)
        about = "norm of a vector that is moved along itself, over its first"
        aligned = label(norms[:, 0], "step", units="1", about=about, coords={"step": due})
        found["norm_along_itself"] = aligned.assign_attrs(scale="log")
        at = np.array(due, dtype=float)
        straight = {
            f"{name}, on {on}": line(curve(at), found["norm_by_schedule"].sel(_schedule=name).values)[1]
            for name in RATES
            for on, curve in STRAIGHT.items()
        }
        about = "R² of the affine fit of the norm on a function of the step, by schedule"
        r2 = label(np.array(list(straight.values())), "_fit", units="1", about=about, coords={"_fit": list(straight)})
        found["straight"] = r2
        return xr.Dataset(found)

    def norms(
        self, ways: Sequence[Way], due: Sequence[int], draws: torch.Generator, progress: Progress = ignore
    ) -> Float[np.ndarray, "step way"]:
        """The norm of a vector for each way, over that of the first, after so many steps."""
        aligned = torch.tensor([way.kind == ALIGNED for way in ways])[:, None]
        walks = torch.tensor([way.kind == WALK for way in ways])[:, None]
        rate = torch.from_numpy(np.stack([way.c**0.5 * rates(way.schedule, self.steps) for way in ways], 1))
        at = torch.randn(len(ways), self.dimensions, generator=draws, dtype=torch.float64)
        at = first = at / at.norm(dim=1, keepdim=True)
        wanted, found = set(due), []
        for step in told(self.steps, progress):
            if step in wanted:
                found.append(at.norm(dim=1).numpy())
            if step == self.steps:
                break
            drawn = torch.randn(at.shape, generator=draws, dtype=at.dtype)
            size = at.norm(dim=1, keepdim=True)
            toward = torch.where(aligned, at / size, drawn / drawn.norm(dim=1, keepdim=True))
            at = at + rate[step][:, None] * torch.where(walks, first.norm(dim=1, keepdim=True), size) * toward
        return np.stack(found)


def rates(schedule: str, steps: int) -> Float[np.ndarray, " step"]:
    """The learning rates of steps 1, 2, ..., whose squares sum to what those of 1 / sqrt(t) sum to.

    >>> rates("1/√t", 4)[[0, 3]].tolist(), round(float((rates("constant", 4) ** 2).sum()), 9) == round(25 / 12, 9)
    ([1.0, 0.5], True)
    """
    t = np.arange(1, steps + 1, dtype=float)
    found = RATES[schedule](t)
    return found * (RATES[PAPERS](t) ** 2).sum() ** 0.5 / (found**2).sum() ** 0.5


def _late(due: Sequence[int], norm: Float[np.ndarray, " step"]) -> float:
    """The power of the steps by which the norm grows after the first part of them."""
    steps = np.array(due, dtype=float)
    late = steps >= LATE * steps[-1]
    return power(steps[late], norm[late])
