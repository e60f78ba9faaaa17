"""Algorithms that a model may have learned: each predicts from the pairs that a prompt shows, in float64.

Those with iterations give the prediction after each of them. All can be differentiated by what the prompt shows, so
that the weights they give to it can be compared with a model's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.tasks.examples import Examples, Rule

Path = Float[Tensor, "iteration batch place out"]
Bounds = tuple[float, float]
Per = Literal["mean", "curvature"]
STEPS = 32  # of gradient descent: an error of the step's own direction is gone long before
NEWTON = 8  # 2^8 steps of gradient descent, or so
NEIGHBOURS = 5
PROXIMAL = 200  # proximal steps of the lasso


@dataclass(frozen=True, kw_only=True, eq=False)
class Algorithm:
    """A predictor whose steps are known.

    Attributes:
        name: how it is called.
        predict: gets what the prompt shows and the parameters by name; returns the prediction after every iteration.
        iterations: how many there are; 1 where it has none.
        first: the number of the first of them.
        unit: what an iteration is called.
        parameters: numbers that are fitted, each with its lowest and highest value, above 0.
    """

    name: str
    predict: Callable[..., Path]
    iterations: int = 1
    first: int = 1
    unit: str = "step"
    parameters: Mapping[str, Bounds] = field(default_factory=dict)

    def called(self, iteration: int) -> str:
        """Its name after so many iterations.

        >>> gradient_descent().called(1), least_squares().called(1)
        ('1 step of gradient descent', 'least squares')
        """
        if self.iterations == 1:
            return self.name
        return f"{iteration} {self.unit}{'s' if iteration > 1 else ''} of {self.name}"


def least_squares() -> Algorithm:
    """The linear rule that fits all pairs seen so far best; of several, the smallest."""

    def predict(shown: Examples) -> Path:
        return shown.apply(torch.linalg.pinv(shown.known, rtol=1e-12) @ shown.following)[None]

    return Algorithm(name="least squares", predict=predict)


def ridge() -> Algorithm:
    """Least squares plus ``ridge`` times the squared size of the rule."""

    def predict(shown: Examples, ridge: float) -> Path:
        eye = torch.eye(shown.known.shape[-1], dtype=torch.float64, device=shown.known.device)
        return shown.apply(torch.linalg.solve(shown.gram + ridge * eye, shown.moment))[None]

    return Algorithm(name="ridge regression", predict=predict, parameters={"ridge": (1e-3, 1e2)})


def gradient_descent(per: Per = "mean") -> Algorithm:
    """Gradient descent on half the squared error of the pairs seen so far, from a rule of zeros.

    Args:
        per: what the step is measured by: on the ``mean`` over the pairs the rule moves by ``step`` times the gradient;
            with ``curvature`` by ``step`` over the largest curvature, so that below 2 it converges on every prompt.
    """

    def predict(shown: Examples, step: float) -> Path:
        gram, moment = shown.gram, shown.moment
        rate = step / (_largest(gram) if per == "curvature" else shown.seen.clamp_min(1)[:, None, None])
        rule, path = torch.zeros_like(moment), []
        for _ in range(STEPS):
            rule = rule - rate * (gram @ rule - moment)
            path.append(shown.apply(rule))
        return torch.stack(path)

    name = "gradient descent" if per == "mean" else "normalised gradient descent"
    bounds = (0.02, 4.0) if per == "mean" else (0.05, 1.95)
    return Algorithm(name=name, predict=predict, iterations=STEPS, parameters={"step": bounds})


def transforming_descent() -> Algorithm:
    """GD++ (von Oswald et al. 2023): before every step after the first, inputs are multiplied with 1 - gamma times
    their mean outer product, which evens out the curvature; the rule is told on the inputs as they have become. One
    step of it is one of gradient descent, so there are two or more.
    """

    def predict(shown: Examples, step: float, gamma: float) -> Path:
        known, residual, asked = shown.known, shown.following, shown.asked
        count = shown.seen.clamp_min(1)[:, None, None]
        answer, path = torch.zeros_like(shown.following[:, :, 0]), []
        for _ in range(STEPS // 4):
            change = step / count * (known.mT @ residual)
            answer = answer + torch.einsum("bpf,bpfo->bpo", asked, change)
            residual = residual - known @ change
            turn = gamma / count * (known.mT @ known)
            known, asked = known - known @ turn, asked - torch.einsum("bpf,bpfg->bpg", asked, turn)
            path.append(answer)
        return torch.stack(path[1:])

    bounds = {"step": (0.02, 4.0), "gamma": (1e-3, 1.0)}
    return Algorithm(name="GD++", predict=predict, iterations=STEPS // 4 - 1, first=2, parameters=bounds)


def newton() -> Algorithm:
    """Newton's iteration for the inverse of the Gram matrix S (Schulz): M <- 2 M - M S M from M = S start / |S|^2."""

    def predict(shown: Examples, start: float) -> Path:
        gram, moment = shown.gram, shown.moment
        largest = _largest(gram)
        inverse, path = gram / largest * (start / largest), []
        for _ in range(NEWTON):
            inverse = 2 * inverse - inverse @ gram @ inverse
            path.append(shown.apply(inverse @ moment))
        return torch.stack(path)

    return Algorithm(name="Newton's iteration", predict=predict, iterations=NEWTON, parameters={"start": (0.1, 1.95)})


def averaging() -> Algorithm:
    """The rule is the mean of input times answer: right where inputs are white and many."""

    def predict(shown: Examples) -> Path:
        return shown.apply(shown.moment / shown.seen.clamp_min(1)[:, None, None])[None]

    return Algorithm(name="averaging", predict=predict)


def nearest_neighbours() -> Algorithm:
    """The mean answer of the nearest inputs, as many as there are iterations, or as have been seen."""

    def predict(shown: Examples) -> Path:
        pairs = shown.known.shape[2]
        unseen = torch.arange(pairs, device=shown.seen.device) >= shown.seen[:, None]
        away = (shown.known - shown.asked[:, :, None]).square().sum(-1).masked_fill(unseen, torch.inf)
        nearest = away.argsort(-1)[..., None].expand(-1, -1, -1, shown.following.shape[-1])
        total = shown.following.gather(2, nearest).cumsum(2)
        path = [
            total[:, :, min(k, pairs) - 1] / shown.seen.clamp(min=1, max=k)[:, None] for k in range(1, NEIGHBOURS + 1)
        ]
        return torch.stack(path)

    return Algorithm(name="nearest neighbours", predict=predict, iterations=NEIGHBOURS, unit="neighbour")


def lasso() -> Algorithm:
    """Least squares on the mean, half of it, plus ``penalty`` times the sum of the rule's absolute values; by
    accelerated proximal gradient (Beck & Teboulle 2009).
    """

    def predict(shown: Examples, penalty: float) -> Path:
        count = shown.seen.clamp_min(1)[:, None, None]
        gram, moment = shown.gram / count, shown.moment / count
        rate = 1 / _largest(gram)
        rule = ahead = torch.zeros_like(moment)
        momentum = 1.0
        for _ in range(PROXIMAL):
            moved = ahead - rate * (gram @ ahead - moment)
            new = moved.sign() * (moved.abs() - penalty * rate).clamp_min(0)
            following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
            ahead, rule, momentum = new + (momentum - 1) / following * (new - rule), new, following
        return shown.apply(rule)[None]

    return Algorithm(name="lasso", predict=predict, parameters={"penalty": (1e-4, 1.0)})


def copying(features: slice) -> Algorithm:
    """The input that is asked, again: some of its features."""
    return Algorithm(name="copying", predict=lambda shown: shown.asked[None, :, :, features])


def extrapolation(features: slice) -> Algorithm:
    """A straight line through the last input and the one that is asked; where nothing has been seen, a copy."""

    def predict(shown: Examples) -> Path:
        last = (shown.seen - 1).clamp_min(0)
        before = shown.known[:, torch.arange(len(last), device=last.device), last][..., features]
        asked = shown.asked[..., features]
        return torch.where((shown.seen > 0)[:, None], 2 * asked - before, asked)[None]

    return Algorithm(name="straight line", predict=predict)


def last_pairs(count: int) -> Algorithm:
    """The smallest linear rule that fits the last pairs, as many as this."""

    def predict(shown: Examples) -> Path:
        pair = torch.arange(shown.known.shape[2], device=shown.seen.device)
        kept = (pair >= shown.seen[:, None] - count)[None, :, :, None].to(shown.known)
        rule: Rule = torch.linalg.pinv(shown.known * kept, rtol=1e-12) @ (shown.following * kept)
        return shown.apply(rule)[None]

    return Algorithm(name=f"the last {count} pairs", predict=predict)


def _largest(gram: Float[Tensor, "batch place feature feature"]) -> Float[Tensor, "batch place 1 1"]:
    """The largest eigenvalue; the smallest number above 0 where nothing has been seen."""
    values = torch.linalg.eigvalsh(gram)[..., -1, None, None]
    return values.clamp_min(torch.finfo(torch.float64).tiny)
