"""In-context regression: predict the target of a query input from examples of an unknown function.

Two published prompt layouts: alternating inputs and targets (Garg et al., What Can Transformers Learn In-Context? A
Case Study of Simple Function Classes, arXiv 2208.01066), and one vector per pair (von Oswald et al., Transformers Learn
In-Context by Gradient Descent, arXiv 2212.07677).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mesascope.argument_types import validate_arguments, validate_fields
from mesascope.tasks import algorithms, learners
from mesascope.tasks.algorithms import Algorithm
from mesascope.tasks.base import Batch
from mesascope.tasks.functions import DecisionTrees, FunctionClass, LinearFunctions, TwoLayerNetworks
from mesascope.tasks.icl.base import InContextTask
from mesascope.tasks.icl.context import ContextExamples, build_context
from mesascope.tasks.icl.one_hot import OneHotInputs

Inputs = Float[Tensor, "batch pos d_in"]


@final
@dataclass(frozen=True, kw_only=True)
class Regression(InContextTask):
    """In-context regression of a function that is drawn anew for every sequence.

    With the alternating layout a sequence is x1, y1, x2, y2, ...; a target occupies the first coordinate of its vector,
    and is predicted at the position of its input from all earlier pairs. With the joined layout every pair is one
    vector (x, y); the last vector, (x, 0), is the query.

    Attributes:
        dim: dimension of an input.
        num_examples: number of context pairs before the last query.
        functions: the function class.
        layout: alternating or joined.
        scale: standard deviation of the inputs.
        skew: decay exponent of the input variances: coordinate i has a variance proportional to 1 / i^skew, in a basis
            that is drawn anew for every sequence; the mean variance is scale^2. 0 for isotropic inputs.
        noise: standard deviation of the noise on the targets.
        noisy_query: False for a query target without noise (joined layout only), so that the loss is the excess risk.
        one_hot_inputs: distribution of one-hot inputs; inputs are Gaussian by default.

    >>> Regression(dim=3, num_examples=4).sample(2, torch.Generator().manual_seed(0)).inputs.shape
    torch.Size([2, 9, 3])
    >>> Regression(dim=3, num_examples=4, layout="joined").sample(2, torch.Generator().manual_seed(0)).inputs.shape
    torch.Size([2, 5, 4])
    """

    dim: int = 5
    num_examples: int = 10
    functions: FunctionClass = field(default_factory=LinearFunctions)
    layout: Literal["alternating", "joined"] = "alternating"
    scale: float = 1.0
    skew: float = 0.0
    noise: float = 0.0
    noisy_query: bool = True
    one_hot_inputs: OneHotInputs | None = None

    def __post_init__(self) -> None:
        """Validate the fields."""
        validate_fields(self)
        for name in ("dim", "num_examples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, but got {getattr(self, name)}")
        if self.layout not in ("alternating", "joined"):
            raise ValueError(f"layout must be alternating or joined, but got {self.layout!r}")
        for name in ("skew", "noise"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, but got {getattr(self, name)}")
        if not self.noisy_query and self.layout != "joined":
            raise ValueError(f"a query without noise needs layout='joined', but got {self.layout!r}")
        if not self.scale > 0:
            raise ValueError(f"scale must be above 0, but got {self.scale}")
        if self.one_hot_inputs is not None and self.skew:
            raise ValueError(f"skew must be 0 for one-hot inputs, but got {self.skew}")

    @property
    def length(self) -> int:
        """The number of positions of a sequence."""
        return 2 * self.num_examples + 1 if self.layout == "alternating" else self.num_examples + 1

    @property
    def input_dim(self) -> int:
        """The dimension of an input vector."""
        return self.dim if self.layout == "alternating" else self.dim + 1

    @validate_arguments
    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """Draw functions and the inputs of their sequences.

        Args:
            n: number of sequences.
            generator: source of randomness.

        Returns:
            The batch; with one-hot inputs its latent ``feature`` is the coordinate index at each position.
        """
        x, latents = self._sample_inputs(n, generator), {}
        if self.one_hot_inputs is not None:
            feature = x.argmax(-1)
            latents["feature"] = feature if self.layout == "joined" else feature.repeat_interleave(2, 1)[:, :-1]
        clean = self.functions.sample_functions(n, self.dim, generator)(x)
        y = clean + self.noise * torch.randn(clean.shape, generator=generator) if self.noise else clean
        y = y if self.noisy_query else torch.cat([y[:, :-1], clean[:, -1:]], dim=1)
        return self._build_batch(x, y, latents)

    def _build_batch(self, x: Tensor, y: Tensor, latents: Mapping[str, Tensor]) -> Batch:
        """Lay out inputs and targets as sequences."""
        weight = torch.zeros(len(x), self.length)
        if self.layout == "joined":
            weight[:, -1] = 1
            inputs = torch.cat([x, y], dim=-1)
            inputs[:, -1, -1] = 0
            return Batch(inputs=inputs, targets=y, weight=weight, latents=latents)
        weight[:, ::2] = 1
        inputs = torch.zeros(*weight.shape, self.dim)
        targets = torch.zeros(*weight.shape, 1)
        inputs[:, ::2], inputs[:, 1::2, :1], targets[:, ::2] = x, y[:, :-1], y
        return Batch(inputs=inputs, targets=targets, weight=weight, latents=latents)

    def loss(self, prediction: Float[Tensor, "batch pos d_out"], batch: Batch) -> Float[Tensor, "batch pos"]:
        """Compute the squared error, in squared units of the targets.

        Args:
            prediction: model output.
            batch: the sequences that were predicted.

        Returns:
            The squared error, (batch, pos).
        """
        return (prediction - batch.targets).square().sum(-1)

    def extract_examples(self, inputs: Inputs) -> ContextExamples:
        """Extract the context pairs before every query.

        Args:
            inputs: model inputs.

        Returns:
            The context pairs, the query inputs and their positions.
        """
        if self.layout == "joined":
            last = inputs.shape[1] - 1
            return build_context(inputs[..., :-1], inputs[..., -1:], positions=(last,), queries=(last,))
        x, y = inputs[:, ::2], inputs[:, 1::2, :1]
        y = torch.cat([y, torch.zeros_like(y[:, :1])], dim=1)[:, : x.shape[1]]
        return build_context(x, y, positions=tuple(range(0, inputs.shape[1], 2)))

    def gradient_masks(self, inputs: Inputs) -> Mapping[str, Bool[Tensor, "pos d_in"]]:
        """Return masks of the context targets and of the last query input.

        Args:
            inputs: model inputs.

        Returns:
            Masks over (pos, d_in) by the name of the group.
        """
        targets = torch.zeros(inputs.shape[1:], dtype=torch.bool, device=inputs.device)
        query = torch.zeros_like(targets)
        query[-1, : self.dim] = True
        if self.layout == "joined":
            targets[:-1, -1] = True
        else:
            targets[1::2, 0] = True
        return {"context targets": targets, "query input": query}

    def candidate_algorithms(self) -> Sequence[Algorithm]:
        """Return exact and iterative solvers for linear rules, and nonparametric predictors."""
        candidates = [
            algorithms.least_squares(),
            algorithms.ridge_regression(),
            algorithms.gradient_descent(),
            algorithms.newton_iteration(),
            algorithms.averaging_estimator(),
            algorithms.nearest_neighbours(),
        ]
        if self.layout == "joined":
            candidates += [algorithms.gd_plus_plus(), algorithms.variable_step_descent()]
        else:
            candidates.append(algorithms.gradient_descent("curvature"))
        if isinstance(self.functions, LinearFunctions) and self.functions.num_nonzero is not None:
            candidates.append(algorithms.lasso_regression())
            if self.layout == "joined":
                candidates.append(algorithms.preprocessed_gradient_descent())
        return candidates

    def distribution_shifts(self) -> Mapping[str, "Regression"]:
        """Return tasks with shifted inputs, noise, context lengths or function classes."""
        if self.one_hot_inputs is None:
            other = {"correlated inputs": replace(self, skew=self.skew + 2.0)}
        else:
            other = {"normal inputs": replace(self, one_hot_inputs=None)}
        shifts = {
            "inputs twice as large": replace(self, scale=2 * self.scale),
            **other,
            "noisy targets": replace(self, noise=(self.noise**2 + 0.25) ** 0.5),
            "twice as many examples": replace(self, num_examples=2 * self.num_examples),
        }
        if isinstance(self.functions, LinearFunctions):
            larger = replace(self.functions, scale=2 * self.functions.scale)
            shifts["coefficients twice as large"] = replace(self, functions=larger)
        else:
            shifts["linear functions"] = replace(self, functions=LinearFunctions())
        if self.layout == "joined":
            shifts["half as many examples"] = replace(self, num_examples=max(1, self.num_examples // 2))
        return shifts

    def baselines(self, batch: Batch) -> Mapping[str, Float[Tensor, "batch pos d_out"]]:
        """Compute the baselines: zero, averaging, nearest neighbours, least squares, ridge, gradient descent, Newton.

        Learners of the function class are added: lasso and preprocessed gradient descent, trained networks, or trees.
        """
        named = {each.name: each for each in self.candidate_algorithms()}
        solvers = self._run_linear_solvers(named, batch) | self._run_sparse_solvers(named, batch)
        return solvers | self._run_learners(batch)

    def _run_linear_solvers(self, algorithms_by_name: Mapping[str, Algorithm], batch: Batch) -> dict[str, Tensor]:
        descent = algorithms.gradient_descent("curvature")
        return {
            "zero": torch.zeros_like(batch.inputs[..., :1]),
            "averaging": self.run_algorithm(algorithms_by_name["averaging"], batch),
            "3 nearest neighbours": self.run_algorithm(algorithms_by_name["nearest neighbours"], batch, 3),
            "least squares": self.run_algorithm(algorithms_by_name["least squares"], batch),
            "ridge 0.1": self.run_algorithm(algorithms_by_name["ridge regression"], batch, ridge=0.1),
            **{f"gradient descent {k}": self.run_algorithm(descent, batch, k, step=1.0) for k in (1, 2, 4, 8, 16)},
            **{
                f"Newton {k}": self.run_algorithm(algorithms_by_name["Newton's iteration"], batch, k, start=1.0)
                for k in (1, 2, 4, 8)
            },
        }

    def _run_sparse_solvers(self, algorithms_by_name: Mapping[str, Algorithm], batch: Batch) -> dict[str, Tensor]:
        predictions = {}
        if "lasso" in algorithms_by_name:
            predictions["lasso 0.01"] = self.run_algorithm(algorithms_by_name["lasso"], batch, penalty=0.01)
        if "preprocessed gradient descent" in algorithms_by_name:
            preprocessed = algorithms_by_name["preprocessed gradient descent"]
            predictions |= {
                f"preprocessed descent {k}": self.run_algorithm(preprocessed, batch, k, step=1.0) for k in (2, 8)
            }
        return predictions

    def _run_learners(self, batch: Batch) -> dict[str, Tensor]:
        predictions = {}
        if isinstance(self.functions, TwoLayerNetworks):
            network = learners.trained_network(self.functions.num_hidden)
            predictions[network.name] = self.run_algorithm(network, batch, learners.NETWORK_STEPS)
        if isinstance(self.functions, DecisionTrees):
            for learner in (learners.greedy_tree(), learners.greedy_tree(signs_only=True), learners.boosted_trees()):
                predictions[learner.name] = self.run_algorithm(learner, batch, learner.iteration_grid[-1])
        return predictions

    def _sample_inputs(self, n: int, generator: torch.Generator) -> Float[Tensor, "batch point feature"]:
        if self.one_hot_inputs is not None:
            indices = self.one_hot_inputs.sample_indices((n, self.num_examples + 1), self.dim, generator)
            return self.scale * torch.nn.functional.one_hot(indices, self.dim).float()
        x = self.scale * torch.randn(n, self.num_examples + 1, self.dim, generator=generator)
        if not self.skew:
            return x
        variance = torch.arange(1, self.dim + 1).float() ** -self.skew
        basis, _ = torch.linalg.qr(torch.randn(n, self.dim, self.dim, generator=generator))
        return (x * (variance / variance.mean()).sqrt()) @ basis.mT
