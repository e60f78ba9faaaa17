"""Preprocess, then optimise: what several heads in a first layer are good for in sparse linear regression.

Chen, Zhao and Zou, How Transformers Utilize Multi-Head Attention in In-Context Learning? A Case Study on Sparse Linear
Regression (arXiv 2408.04532). A rule w with few coordinates that are not 0 is told by n noisy answers. The mechanism of
the paper is an algorithm: multiply every coordinate of the inputs with its mean product with the answers, which is
large where w is not 0, and go on with gradient descent, for which one head in each later layer suffices.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mesascope.axes import label
from mesascope.store import ignore
from mesascope.studies.toy_model import Progress, Reduced, generator, told

Inputs = Float[Tensor, "problem example feature"]
Answers = Float[Tensor, "problem example"]
Rules = Float[Tensor, "problem feature"]
WAYS = ["gradient descent", "preprocessed gradient descent"]
STOPPED = [*WAYS, "ridge regression", "lasso"]
PENALTIES = tuple(10.0 ** np.linspace(-3, 1, 13))
SHRINKING, LOOKED_AT = 5_000, 10  # proximal steps of the lasso at most, and between two looks at its gap
SOLVED = 1e-5  # of the loss of predicting nothing


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Sizes of a problem: coordinates, those that are not 0, examples, and the standard deviation of the noise."""

    features: int = 16
    nonzero: int = 4
    examples: int = 20
    noise: float = 0.5

    def __post_init__(self) -> None:
        """Refuse what is not sparse, or has nothing to go by."""
        if not 1 <= self.nonzero <= self.features or self.examples < 1 or self.noise < 0:
            raise ValueError(
                "nonzero must lie between 1 and features, examples be 1 or more and noise 0 or more, but got "
                f"{self.nonzero}, {self.features}, {self.examples} and {self.noise}"
            )

    @property
    def name(self) -> str:
        """Its sizes, in a few letters: coordinates that are not 0, of how many, examples, and noise."""
        return f"{self.nonzero} of {self.features}, n = {self.examples}, σ = {self.noise:g}"

    def draw(self, count: int, draws: torch.Generator) -> tuple[Inputs, Answers, Rules]:
        """Problems: normal inputs, rules whose coordinates are standard normal where they are not 0, answers."""
        x = torch.randn(count, self.examples, self.features, generator=draws, dtype=torch.float64)
        rule = torch.randn(count, self.features, generator=draws, dtype=torch.float64)
        place = torch.rand(count, self.features, generator=draws).argsort(1).argsort(1)
        rule = rule * (place < self.nonzero)
        noise = self.noise * torch.randn(count, self.examples, generator=draws, dtype=torch.float64)
        return x, torch.einsum("pef,pf->pe", x, rule) + noise, rule


SETTINGS = (
    Setting(),
    Setting(examples=10, noise=0.0),
    Setting(features=64, examples=40, noise=0.1),
    Setting(examples=40),
    Setting(noise=0.0),  # more examples than coordinates and no noise: here preprocessing is in the way
)


@final
@dataclass(frozen=True, kw_only=True)
class SparseDescent(Reduced):
    """Gradient descent from 0 on the squared error of the examples, on the inputs as they are and preprocessed, each
    problem by steps of one over its largest curvature; beside it ridge regression and the lasso by their best penalty.
    The excess risk is the squared distance from the rule, since inputs are standard normal.

    Attributes:
        settings: the sizes of the problems.
        steps: of gradient descent.
        problems: of each setting.
    """

    settings: tuple[Setting, ...] = SETTINGS
    steps: int = 400
    problems: int = 1_000

    def simulate(self, seed: int, progress: Progress = ignore) -> xr.Dataset:
        """Excess risk by steps, and by the best step or penalty; the same for all problems of a setting."""
        paths, stopped = [], []
        for number, setting in enumerate(self.settings):
            x, y, rule = setting.draw(self.problems, generator(seed, number))
            scale = (x * y[..., None]).mean(1)
            found = [risks(x, y, rule, torch.ones_like(scale), self.steps, progress)]
            found.append(risks(x, y, rule, scale, self.steps, progress))
            paths.append(np.stack(found))
            shrunk = min(risk(ridge(x, y, penalty), rule) for penalty in PENALTIES)
            stopped.append([*paths[-1].min(-1), shrunk, _best_lasso(x, y, rule)])
        named = {"setting": [setting.name for setting in self.settings]}
        best = label(
            np.array(stopped),
            "setting",
            "predictor",
            units="squared rule",
            about="excess risk after the best number of steps, or with the best penalty",
            coords=named | {"predictor": STOPPED},
        )
        curves = np.stack(paths)
        found = {
            "best": best.assign_attrs(view="curves", scale="log"),
            "ratio": _curves(curves[:, 1] / curves[:, 0], named, "that of preprocessed over that of plain descent"),
            "plain": _curves(curves[:, 0], named, "gradient descent", "squared rule"),
            "preprocessed": _curves(curves[:, 1], named, "preprocessed gradient descent", "squared rule"),
        }
        return xr.Dataset(found)


def _curves(values: np.ndarray, named: dict[str, list[str]], what: str, units: str = "1") -> xr.DataArray:
    """Numbers by setting and step, drawn along steps."""
    about = f"excess risk after so many steps, mean over problems: {what}"
    found = label(values.T, "_steps", "setting", units=units, about=about, coords=named)
    return found.assign_attrs(view="curves", scale="log")


def risks(
    x: Inputs, y: Answers, rule: Rules, scale: Rules, steps: int, progress: Progress = ignore
) -> Float[np.ndarray, " step"]:
    """Excess risk of gradient descent on scaled inputs, before each step and after the last."""
    seen = x * scale[:, None]
    gram, moment = seen.mT @ seen / x.shape[1], torch.einsum("pef,pe->pf", seen, y) / x.shape[1]
    rate = 1 / torch.linalg.eigvalsh(gram)[:, -1:].clamp_min(torch.finfo(torch.float64).tiny)
    at, found = torch.zeros_like(rule), []
    for _ in told(steps, progress):
        found.append(risk(scale * at, rule))
        at = at + rate * (moment - torch.einsum("pfg,pg->pf", gram, at))
    return np.array(found)


def risk(found: Rules, rule: Rules) -> float:
    """Mean squared distance from the rule."""
    return (found - rule).square().sum(1).mean().item()


def _best_lasso(x: Inputs, y: Answers, rule: Rules) -> float:
    """The least risk of a lasso, each begun where that of the next larger penalty ended."""
    at, found = None, []
    for penalty in sorted(PENALTIES, reverse=True):
        at = lasso(x, y, penalty, at)
        found.append(risk(at, rule))
    return min(found)


def ridge(x: Inputs, y: Answers, penalty: float) -> Rules:
    """Least squares plus ``penalty`` times the squared size of the rule, per example."""
    eye = torch.eye(x.shape[2], dtype=x.dtype)
    moment = torch.einsum("pef,pe->pf", x, y)
    return torch.linalg.solve(x.mT @ x + penalty * x.shape[1] * eye, moment)


def lasso(x: Inputs, y: Answers, penalty: float, start: Rules | None = None) -> Rules:
    """Half the mean squared error plus ``penalty`` times the sum of sizes, by accelerated proximal steps (FISTA; Beck
    and Teboulle 2009), begun anew where they go astray (O'Donoghue and Candès 2015). A problem is left alone when its
    duality gap, which its distance from the least value cannot exceed, is under a share of the loss of nothing.

    Args:
        x, y: the examples.
        penalty: above 0.
        start: where to begin, such as the rules by a larger penalty; 0 by default.

    Raises:
        ValueError: a problem is not solved after so many steps.
    """
    if penalty <= 0:
        raise ValueError(f"penalty must be above 0, but got {penalty}; least squares needs none")
    gram, moment = x.mT @ x / x.shape[1], torch.einsum("pef,pe->pf", x, y) / x.shape[1]
    nothing = y.square().mean(1)
    rate = 1 / torch.linalg.eigvalsh(gram)[:, -1:]
    found = torch.zeros_like(moment) if start is None else start.clone()
    left = torch.arange(len(x))
    at, ahead, pace = found.clone(), found.clone(), torch.ones(len(x), 1, dtype=x.dtype)
    for step in range(SHRINKING + 1):
        if step % LOOKED_AT == 0:
            open_ = gap(gram, moment, nothing, at, penalty) > SOLVED * nothing
            found[left] = at
            if not open_.any():
                return found
            left, gram, moment, nothing, rate = (one[open_] for one in (left, gram, moment, nothing, rate))
            at, ahead, pace = at[open_], ahead[open_], pace[open_]
        down = ahead + rate * (moment - _times(gram, ahead))
        new = down.sign() * (down.abs() - rate * penalty).clamp_min(0)
        astray = ((ahead - new) * (new - at)).sum(1, keepdim=True) > 0
        pace = torch.where(astray, 1.0, pace)
        faster = (1 + (1 + 4 * pace**2).sqrt()) / 2
        at, ahead, pace = new, new + (pace - 1) / faster * (new - at), faster
    raise ValueError(f"a lasso must be solved in {SHRINKING} steps, but {len(left)} of {len(x)} problems were not")


def gap(
    gram: Float[Tensor, "problem feature feature"],
    moment: Rules,
    nothing: Float[Tensor, " problem"],
    at: Rules,
    penalty: float,
) -> Float[Tensor, " problem"]:
    """How far a lasso may still be from its least value: the loss minus that of the dual problem where residuals are
    shrunk until no coordinate's product with them exceeds the penalty.

    Args:
        gram: mean product of inputs with inputs.
        moment: of inputs with answers.
        nothing: of answers with answers.
        at: the rules.
        penalty: on the sum of their sizes.
    """
    product = _times(gram, at)
    residual = nothing - ((2 * moment - product) * at).sum(1)
    along = nothing - (moment * at).sum(1)
    shrunk = (penalty / (moment - product).abs().amax(1).clamp_min(penalty)).clamp_max(1)
    dual = shrunk * along - shrunk.square() * residual / 2
    return residual / 2 + penalty * at.abs().sum(1) - dual


def _times(gram: Float[Tensor, "problem feature feature"], at: Rules) -> Rules:
    """Each matrix times its vector."""
    return (gram @ at[..., None])[..., 0]
