"""Regression in context: a prompt shows inputs of an unknown function with their answers, and asks for one more.

The setting of Garg et al., What Can Transformers Learn In-Context? A Case Study of Simple Function Classes (arXiv
2208.01066), where inputs and answers alternate, and of von Oswald et al., Transformers Learn In-Context by Gradient
Descent (arXiv 2212.07677), where each pair is one vector.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mesascope.tasks import algorithms, learners
from mesascope.tasks.algorithms import Algorithm
from mesascope.tasks.base import Batch
from mesascope.tasks.functions import Functions, Linear, Trees, TwoLayers
from mesascope.tasks.icl.base import InContext
from mesascope.tasks.icl.context import Examples, examples_before

Inputs = Float[Tensor, "batch pos d_in"]


@dataclass(frozen=True, kw_only=True)
class Features:
    """Inputs that are unit vectors, each along one coordinate (Huang et al. 2023, arXiv 2310.05249).

    Attributes:
        dominant: how often the first coordinate is drawn, as a share; all are drawn alike by default.
    """

    dominant: float | None = None

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        if self.dominant is not None and not 0 < self.dominant < 1:
            raise ValueError(f"dominant must be a share between 0 and 1, but got {self.dominant}")

    def draw(self, shape: tuple[int, int], dim: int, generator: torch.Generator) -> Int[Tensor, "batch point"]:
        """Which coordinate every input lies along."""
        share = self.share(dim).float()
        return torch.multinomial(share, shape[0] * shape[1], replacement=True, generator=generator).view(shape)

    def share(self, dim: int) -> Float[Tensor, "feature"]:
        """How often each coordinate is drawn, in float64.

        >>> Features().share(4).tolist(), Features(dominant=0.5).share(3).tolist()
        ([0.25, 0.25, 0.25, 0.25], [0.5, 0.25, 0.25])
        """
        first = 1 / dim if self.dominant is None else self.dominant
        share = torch.full((dim,), (1 - first) / max(dim - 1, 1) if self.dominant else first, dtype=torch.float64)
        share[0] = first
        return share


@final
@dataclass(frozen=True, kw_only=True)
class Regression(InContext):
    """Answers of a function that is fresh in every sequence, from pairs of inputs and answers.

    Alternating: x1, y1, x2, y2, ...; an answer stands in the first coordinate, and the answer to an input is predicted
    where it stands, from all pairs before it. Joined: every pair is one vector (x, y); the last one, (x, 0), asks.

    Attributes:
        dim: of an input.
        examples_shown: pairs before the last input that is asked.
        functions: where the function of a sequence comes from.
        layout: alternating or joined.
        scale: the standard deviation of the inputs.
        skew: how unequal the coordinates' variances are: they fall as 1 / i^skew, in a basis that is fresh in every
            sequence, and have the mean that scale says; 0 for equal ones.
        noise: the standard deviation of what is added to the answers.
        features: inputs that are unit vectors; normal ones by default.

    >>> Regression(dim=3, examples_shown=4).sample(2, torch.Generator().manual_seed(0)).inputs.shape
    torch.Size([2, 9, 3])
    >>> Regression(dim=3, examples_shown=4, layout="joined").sample(2, torch.Generator().manual_seed(0)).inputs.shape
    torch.Size([2, 5, 4])
    """

    dim: int = 5
    examples_shown: int = 10
    functions: Functions = field(default_factory=Linear)
    layout: Literal["alternating", "joined"] = "alternating"
    scale: float = 1.0
    skew: float = 0.0
    noise: float = 0.0
    features: Features | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be sampled."""
        for name in ("dim", "examples_shown"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, but got {getattr(self, name)}")
        if self.layout not in ("alternating", "joined"):
            raise ValueError(f"layout must be alternating or joined, but got {self.layout!r}")
        for name in ("skew", "noise"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, but got {getattr(self, name)}")
        if not self.scale > 0:
            raise ValueError(f"scale must be above 0, but got {self.scale}")
        if self.features is not None and self.skew:
            raise ValueError(f"skew must be 0 where inputs are unit vectors, but got {self.skew}")

    @property
    def length(self) -> int:
        """Positions of a sequence."""
        return 2 * self.examples_shown + 1 if self.layout == "alternating" else self.examples_shown + 1

    @property
    def width(self) -> int:
        """Coordinates of an input vector."""
        return self.dim if self.layout == "alternating" else self.dim + 1

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """Draw ``n`` functions and their inputs; ``feature`` says which unit vector, where they are such."""
        x, latents = self._drawn(n, generator), {}
        if self.features is not None:
            feature = x.argmax(-1)
            latents["feature"] = feature if self.layout == "joined" else feature.repeat_interleave(2, 1)[:, :-1]
        clean = self.functions.draw(n, self.dim, generator)(x)
        y = clean + self.noise * torch.randn(clean.shape, generator=generator) if self.noise else clean
        weight = torch.zeros(n, self.length)
        if self.layout == "joined":
            weight[:, -1] = 1
            inputs = torch.cat([x, y], dim=-1)
            inputs[:, -1, -1] = 0
            return Batch(inputs=inputs, targets=y, weight=weight, latents=latents)
        weight[:, ::2] = 1
        inputs = torch.zeros(n, self.length, self.dim)
        targets = torch.zeros(n, self.length, 1)
        inputs[:, ::2], inputs[:, 1::2, :1], targets[:, ::2] = x, y[:, :-1], y
        return Batch(inputs=inputs, targets=targets, weight=weight, latents=latents)

    def loss(self, prediction: Float[Tensor, "batch pos d_out"], batch: Batch) -> Float[Tensor, "batch pos"]:
        """Squared error; in squared units of the answers."""
        return (prediction - batch.targets).square().sum(-1)

    def examples(self, inputs: Inputs) -> Examples:
        """The pairs before every input that is asked."""
        if self.layout == "joined":
            last = inputs.shape[1] - 1
            return examples_before(inputs[..., :-1], inputs[..., -1:], at=(last,), points=(last,))
        x, y = inputs[:, ::2], inputs[:, 1::2, :1]
        y = torch.cat([y, torch.zeros_like(y[:, :1])], dim=1)[:, : x.shape[1]]
        return examples_before(x, y, at=tuple(range(0, inputs.shape[1], 2)))

    def shown(self, inputs: Inputs) -> Mapping[str, Bool[Tensor, "pos d_in"]]:
        """The answers that are shown, and the last input, which is asked."""
        answers = torch.zeros(inputs.shape[1:], dtype=torch.bool, device=inputs.device)
        asked = torch.zeros_like(answers)
        asked[-1, : self.dim] = True
        if self.layout == "joined":
            answers[:-1, -1] = True
        else:
            answers[1::2, 0] = True
        return {"answers shown": answers, "input asked": asked}

    def algorithms(self) -> Sequence[Algorithm]:
        """Exact ones for linear rules, iterations towards them, and ones without a rule."""
        found = [
            algorithms.least_squares(),
            algorithms.ridge(),
            algorithms.gradient_descent(),
            algorithms.newton(),
            algorithms.averaging(),
            algorithms.nearest_neighbours(),
        ]
        if self.layout == "joined":
            found.append(algorithms.transforming_descent())
        else:
            found.append(algorithms.gradient_descent("curvature"))
        if isinstance(self.functions, Linear) and self.functions.nonzero is not None:
            found.append(algorithms.lasso())
            if self.layout == "joined":
                found.append(algorithms.preprocessed_descent())
        return found

    def shifts(self) -> Mapping[str, "Regression"]:
        """Larger inputs, correlated or normal ones, noise, fewer or more examples; larger rules, or linear ones."""
        if self.features is None:
            other = {"correlated inputs": replace(self, skew=self.skew + 2.0)}
        else:
            other = {"normal inputs": replace(self, features=None)}
        found = {
            "inputs twice as large": replace(self, scale=2 * self.scale),
            **other,
            "noisy answers": replace(self, noise=(self.noise**2 + 0.25) ** 0.5),
            "twice as many examples": replace(self, examples_shown=2 * self.examples_shown),
        }
        if isinstance(self.functions, Linear):
            larger = replace(self.functions, scale=2 * self.functions.scale)
            found["rules twice as large"] = replace(self, functions=larger)
        else:
            found["linear functions"] = replace(self, functions=Linear())
        if self.layout == "joined":
            found["half as many examples"] = replace(self, examples_shown=max(1, self.examples_shown // 2))
        return found

    def oracles(self, batch: Batch) -> Mapping[str, Float[Tensor, "batch pos d_out"]]:
        """Nothing, averaging, nearest neighbours, least squares, ridge, and steps of gradient descent and Newton; and
        learners of the class of functions.
        """
        known = {each.name: each for each in self.algorithms()}
        descent = algorithms.gradient_descent("curvature")
        found = {
            "zero": torch.zeros_like(batch.inputs[..., :1]),
            "averaging": self.predicted(known["averaging"], batch),
            "3 nearest neighbours": self.predicted(known["nearest neighbours"], batch, 3),
            "least squares": self.predicted(known["least squares"], batch),
            "ridge 0.1": self.predicted(known["ridge regression"], batch, ridge=0.1),
            **{f"gradient descent {k}": self.predicted(descent, batch, k, step=1.0) for k in (1, 2, 4, 8, 16)},
            **{f"Newton {k}": self.predicted(known["Newton's iteration"], batch, k, start=1.0) for k in (1, 2, 4, 8)},
        }
        if "lasso" in known:
            found["lasso 0.01"] = self.predicted(known["lasso"], batch, penalty=0.01)
        if "preprocessed gradient descent" in known:
            preprocessed = known["preprocessed gradient descent"]
            found |= {f"preprocessed descent {k}": self.predicted(preprocessed, batch, k, step=1.0) for k in (2, 8)}
        if isinstance(self.functions, TwoLayers):
            network = learners.trained_network(self.functions.hidden)
            found[network.name] = self.predicted(network, batch, learners.NETWORK_STEPS)
        if isinstance(self.functions, Trees):
            for learner in (learners.greedy_tree(), learners.greedy_tree(signs=True), learners.boosted_trees()):
                found[learner.name] = self.predicted(learner, batch, learner.ticks[-1])
        return found

    def _drawn(self, n: int, generator: torch.Generator) -> Float[Tensor, "batch point feature"]:
        """The inputs of every sequence."""
        if self.features is not None:
            drawn = self.features.draw((n, self.examples_shown + 1), self.dim, generator)
            return self.scale * torch.nn.functional.one_hot(drawn, self.dim).float()
        x = self.scale * torch.randn(n, self.examples_shown + 1, self.dim, generator=generator)
        if not self.skew:
            return x
        variance = torch.arange(1, self.dim + 1).float() ** -self.skew
        basis, _ = torch.linalg.qr(torch.randn(n, self.dim, self.dim, generator=generator))
        return (x * (variance / variance.mean()).sqrt()) @ basis.mT
