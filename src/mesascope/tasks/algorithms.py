"""Algorithms that a model may have learned: each predicts from the pairs that a prompt shows, in float64.

Those with iterations give the prediction after any of them. All can be differentiated by what the prompt shows, so
that the weights they give to it can be compared with a model's.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.tasks.icl.context import Examples, Rule

Path = Float[Tensor, "iteration *value batch place out"]
Number = float | Float[Tensor, "value 1 1 1 1"]  # of a parameter: one, or several that are tried side by side
Bounds = tuple[float, float]
Per = Literal["mean", "curvature"]
Ticks = tuple[int, ...]
STEPS = (*range(1, 17), *(each << n for n in range(9) for each in (20, 24, 28, 32)))  # of gradient descent, to 8192
FEW = tuple(range(2, 9))  # of GD++, which at one step is gradient descent
NEWTON = tuple(range(1, 21))  # of Newton's iteration: 2^20 steps of gradient descent, or so
NEIGHBOURS = tuple(range(1, 6))
PROXIMAL = 200  # proximal steps of the lasso


@dataclass(frozen=True, kw_only=True, eq=False)
class Algorithm:
    """A predictor whose steps are known.

    Attributes:
        name: how it is called.
        predict: gets what the prompt shows, after which iterations predictions are wanted, and the parameters by name.
        ticks: the iterations that are looked at, in order; 1 alone where it has none.
        unit: what an iteration is called; empty where it has none.
        parameters: numbers that are fitted, each with its lowest and highest value, above 0.
    """

    name: str
    predict: Callable[..., Path]
    ticks: Ticks = (1,)
    unit: str = ""
    parameters: Mapping[str, Bounds] = field(default_factory=dict)

    def called(self, iteration: int) -> str:
        """Its name after so many iterations.

        >>> gradient_descent().called(1), least_squares().called(1)
        ('1 step of gradient descent', 'least squares')
        """
        if not self.unit:
            return self.name
        return f"{iteration} {self.unit}{'s' if iteration > 1 else ''} of {self.name}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """What one step makes of a rule: a matrix times it, plus a constant; many steps are one of these again.

    Attributes:
        factor: the matrix.
        constant: what is added.
    """

    factor: Float[Tensor, "*lead feature feature"]
    constant: Float[Tensor, "*lead feature out"]

    def __call__(self, rule: Float[Tensor, "*lead feature out"]) -> Float[Tensor, "*lead feature out"]:
        """The rule after the step."""
        return self.factor @ rule + self.constant

    def then(self, other: "Step") -> "Step":
        """This and then another, as one."""
        return Step(factor=other.factor @ self.factor, constant=other(self.constant))


def after(step: Step, rule: Float[Tensor, "*lead feature out"], ticks: Ticks) -> Iterator[Float[Tensor, "..."]]:
    """The rule after so many steps, for each of some numbers of them in order; many steps are taken at once.

    Args:
        step: what one step makes of a rule.
        rule: before the first.
        ticks: how many steps.
    """
    powers, done = {0: step}, 0  # by the logarithm of how many steps they are
    for tick in ticks:
        left, done = tick - done, tick
        for power in range(left.bit_length()):
            if power not in powers:
                powers[power] = powers[power - 1].then(powers[power - 1])
            if left >> power & 1:
                rule = powers[power](rule)
        yield rule


def least_squares() -> Algorithm:
    """The linear rule that fits all pairs seen so far best; of several, the smallest."""

    def predict(shown: Examples, ticks: Ticks) -> Path:
        return shown.apply(torch.linalg.pinv(shown.known, rtol=1e-12) @ shown.following)[None]

    return Algorithm(name="least squares", predict=predict)


def ridge() -> Algorithm:
    """Least squares plus ``ridge`` times the squared size of the rule."""

    def predict(shown: Examples, ticks: Ticks, ridge: Number) -> Path:
        eye = torch.eye(shown.known.shape[-1], dtype=torch.float64, device=shown.known.device)
        return shown.apply(torch.linalg.solve(shown.gram + ridge * eye, shown.moment))[None]

    return Algorithm(name="ridge regression", predict=predict, parameters={"ridge": (1e-3, 1e2)})


def gradient_descent(per: Per = "mean") -> Algorithm:
    """Gradient descent on half the squared error of the pairs seen so far, from a rule of zeros.

    Args:
        per: what the step is measured by: on the ``mean`` over the pairs the rule moves by ``step`` times the gradient;
            with ``curvature`` by ``step`` over the largest curvature, so that below 2 it converges on every prompt.
    """

    def predict(shown: Examples, ticks: Ticks, step: Number) -> Path:
        gram, moment = shown.gram, shown.moment
        rate = step / (_largest(gram) if per == "curvature" else shown.seen.clamp_min(1).double()[:, None, None])
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        one = Step(factor=eye - rate * gram, constant=rate * moment)
        rules = after(one, torch.zeros_like(one.constant), ticks)
        return torch.stack([shown.apply(rule) for rule in rules])

    name = "gradient descent" if per == "mean" else "normalised gradient descent"
    bounds = (0.02, 4.0) if per == "mean" else (0.05, 1.95)
    return Algorithm(name=name, predict=predict, ticks=STEPS, unit="step", parameters={"step": bounds})


def preprocessed_descent() -> Algorithm:
    """Gradient descent on inputs whose every coordinate is multiplied with its mean product with the answers, which is
    large where a sparse rule is not 0 (Chen et al. 2024); by steps of ``step`` over the largest curvature there.
    """

    def predict(shown: Examples, ticks: Ticks, step: Number) -> Path:
        if shown.following.shape[-1] != 1:
            raise ValueError(f"preprocessing is told by one answer, but there are {shown.following.shape[-1]}")
        scale = shown.moment / shown.seen.clamp_min(1).double()[:, None, None]
        gram, moment = scale * shown.gram * scale.mT, scale * shown.moment
        rate = step / _largest(gram)
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        one = Step(factor=eye - rate * gram, constant=rate * moment)
        rules = after(one, torch.zeros_like(one.constant), ticks)
        return torch.stack([shown.apply(scale * rule) for rule in rules])

    return Algorithm(
        name="preprocessed gradient descent",
        predict=predict,
        ticks=STEPS,
        unit="step",
        parameters={"step": (0.05, 1.95)},
    )


def transforming_descent() -> Algorithm:
    """GD++ (von Oswald et al. 2023): before every step after the first, inputs are multiplied with 1 - gamma times
    their mean outer product, which evens out the curvature; the rule is told on the inputs as they have become. One
    step of it is one of gradient descent, so there are two or more.
    """

    def predict(shown: Examples, ticks: Ticks, step: Number, gamma: Number) -> Path:
        known, residual, asked = shown.known, shown.following, shown.asked[:, :, None]
        count = shown.seen.clamp_min(1).double()[:, None, None]
        answer, path = torch.zeros_like(shown.following[:, :, :1]), []
        for tick in range(1, max(ticks) + 1):
            change = step / count * (known.mT @ residual)
            answer = answer + asked @ change
            residual = residual - known @ change
            turn = gamma / count * (known.mT @ known)
            known, asked = known - known @ turn, asked - asked @ turn
            if tick in ticks:
                path.append(answer[..., 0, :])
        return torch.stack(path)

    bounds = {"step": (0.02, 4.0), "gamma": (1e-3, 1.0)}
    return Algorithm(name="GD++", predict=predict, ticks=FEW, unit="step", parameters=bounds)


def newton() -> Algorithm:
    """Newton's iteration for the inverse of the Gram matrix S (Schulz): M <- 2 M - M S M from M = S start / |S|^2."""

    def predict(shown: Examples, ticks: Ticks, start: Number) -> Path:
        gram, moment = shown.gram, shown.moment
        largest = _largest(gram)
        inverse, path = gram / largest * (start / largest), []
        for tick in range(1, max(ticks) + 1):
            inverse = 2 * inverse - inverse @ gram @ inverse
            if tick in ticks:
                path.append(shown.apply(inverse @ moment))
        return torch.stack(path)

    return Algorithm(
        name="Newton's iteration", predict=predict, ticks=NEWTON, unit="step", parameters={"start": (0.1, 1.95)}
    )


def averaging() -> Algorithm:
    """The rule is the mean of input times answer: right where inputs are white and many."""

    def predict(shown: Examples, ticks: Ticks) -> Path:
        return shown.apply(shown.moment / shown.seen.clamp_min(1).double()[:, None, None])[None]

    return Algorithm(name="averaging", predict=predict)


def nearest_neighbours() -> Algorithm:
    """The mean answer of the nearest inputs, as many as there are iterations, or as have been seen."""

    def predict(shown: Examples, ticks: Ticks) -> Path:
        pairs = shown.known.shape[2]
        unseen = torch.arange(pairs, device=shown.seen.device) >= shown.seen[:, None]
        away = (shown.known - shown.asked[:, :, None]).square().sum(-1).masked_fill(unseen, torch.inf)
        nearest = away.argsort(-1)[..., None].expand(-1, -1, -1, shown.following.shape[-1])
        total = shown.following.gather(2, nearest).cumsum(2)
        path = [total[:, :, min(k, pairs) - 1] / shown.seen.clamp(min=1, max=k).double()[:, None] for k in ticks]
        return torch.stack(path)

    return Algorithm(name="nearest neighbours", predict=predict, ticks=NEIGHBOURS, unit="neighbour")


def lasso() -> Algorithm:
    """Least squares on the mean, half of it, plus ``penalty`` times the sum of the rule's absolute values; by
    accelerated proximal gradient (Beck & Teboulle 2009).
    """

    def predict(shown: Examples, ticks: Ticks, penalty: Number) -> Path:
        count = shown.seen.clamp_min(1).double()[:, None, None]
        gram, moment = shown.gram / count, shown.moment / count
        rate = 1 / _largest(gram)
        rule = ahead = torch.zeros_like(penalty * moment)
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
    return Algorithm(name="copying", predict=lambda shown, ticks: shown.asked[None, :, :, features])


def extrapolation(features: slice) -> Algorithm:
    """A straight line through the last input and the one that is asked; where nothing has been seen, a copy."""

    def predict(shown: Examples, ticks: Ticks) -> Path:
        last = (shown.seen - 1).clamp_min(0)
        before = shown.known[:, torch.arange(len(last), device=last.device), last][..., features]
        asked = shown.asked[..., features]
        return torch.where((shown.seen > 0)[:, None], 2 * asked - before, asked)[None]

    return Algorithm(name="straight line", predict=predict)


def last_pairs(count: int) -> Algorithm:
    """The smallest linear rule that fits the last pairs, as many as this."""

    def predict(shown: Examples, ticks: Ticks) -> Path:
        pair = torch.arange(shown.known.shape[2], device=shown.seen.device)
        kept = (pair >= shown.seen[:, None] - count)[None, :, :, None].to(shown.known)
        rule: Rule = torch.linalg.pinv(shown.known * kept, rtol=1e-12) @ (shown.following * kept)
        return shown.apply(rule)[None]

    return Algorithm(name=f"the last {count} pairs", predict=predict)


def _largest(gram: Float[Tensor, "batch place feature feature"]) -> Float[Tensor, "batch place 1 1"]:
    """The largest eigenvalue; the smallest number above 0 where nothing has been seen."""
    values = torch.linalg.eigvalsh(gram)[..., -1, None, None]
    return values.clamp_min(torch.finfo(torch.float64).tiny)
