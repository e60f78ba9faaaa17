"""Sequences x[n+1] = W phi(x[n]) with known features phi, whose rule is continued in context."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.argument_types import validate_arguments, validate_fields
from mesascope.tasks import algorithms, baselines
from mesascope.tasks.algorithms import Algorithm
from mesascope.tasks.base import Batch
from mesascope.tasks.icl.base import InContextTask
from mesascope.tasks.icl.context import ContextExamples, build_context

DESCENT_STEPS = (1, 2, 4, 8, 16)  # of the baselines
SEPARATING_NOISE = 0.1  # ours: standard deviation, a tenth of that of offsets and first terms


@dataclass(frozen=True, kw_only=True)
class Recurrence(InContextTask):
    """Sequences x[n+1] = W phi(x[n]) with known features phi and a rule W drawn anew for every sequence.

    Attributes:
        length: number of input terms; the last predicted term is x[length].
        unidentified_weight: training-loss weight of positions at which the rule is not yet determined (fewer pairs than
            coefficients). Their error is mostly irreducible, so at full weight it dominates the gradient.
        noise: standard deviation of the noise that is added to every term before the next one is computed from it.
    """

    length: int = 20
    unidentified_weight: float = 1.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        """Validate the fields."""
        validate_fields(self)
        if self.length < self.num_coefficients + 2:
            raise ValueError(
                f"length must be at least {self.num_coefficients + 2}, so that some position determines the rule, "
                f"but got {self.length}"
            )
        if not 0 <= self.unidentified_weight <= 1:
            raise ValueError(f"unidentified_weight must lie in [0, 1], but got {self.unidentified_weight}")
        if self.noise < 0:
            raise ValueError(f"noise must be 0 or more, but got {self.noise}")

    @property
    @abstractmethod
    def input_dim(self) -> int:
        """The dimension of a term."""

    @property
    @abstractmethod
    def num_coefficients(self) -> int:
        """The number of features; as many pairs determine the rule."""

    @abstractmethod
    def compute_features(self, x: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos feature"]:
        """Compute phi(x), which includes a constant 1.

        Args:
            x: terms.

        Returns:
            The features of every term.
        """

    @abstractmethod
    def sample_rules(
        self, n: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "batch feature d_in"], Float[Tensor, "batch d_in"]]:
        """Sample rules and first terms.

        Args:
            n: number of sequences.
            generator: source of randomness.

        Returns:
            The rule and the first term of every sequence.
        """

    @property
    def identified_from(self) -> int:
        """The first position at which the earlier pairs determine the rule."""
        return self.num_coefficients

    @validate_arguments
    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """Draw sequences, computed in float64 and rounded once to float32.

        Args:
            n: number of sequences.
            generator: source of randomness.

        Returns:
            The batch, with the latents ``rule`` and ``start``.
        """
        rule, start = self.sample_rules(n, generator)
        x = self.iterate_rule(rule, start, generator).float()
        weight = torch.ones(n, self.length)
        weight[:, : self.identified_from] = self.unidentified_weight
        return Batch(inputs=x[:, :-1], targets=x[:, 1:], weight=weight, latents={"rule": rule, "start": start})

    def iterate_rule(
        self,
        rule: Float[Tensor, "batch feature d_in"],
        start: Float[Tensor, "batch d_in"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch term d_in"]:
        """Compute the terms x[0], ..., x[length] of sequences.

        Args:
            rule: the rule of every sequence, as `sample_rules` returns it.
            start: first terms.
            generator: source of the noise; without one, no noise is added.

        Returns:
            The terms, in float64.
        """
        terms = [start.double()]
        for _ in range(self.length):
            term = torch.einsum("bf,bfo->bo", self.compute_features(terms[-1][:, None])[:, 0], rule.double())
            noisy = self.noise > 0 and generator is not None
            terms.append(term + self.noise * torch.randn(term.shape, generator=generator) if noisy else term)
        return torch.stack(terms, dim=1)

    def loss(self, prediction: Float[Tensor, "batch pos d_out"], batch: Batch) -> Float[Tensor, "batch pos"]:
        """Compute the squared error, summed over the coordinates of a term, in squared units of the terms.

        Args:
            prediction: model output.
            batch: the sequences that were predicted.

        Returns:
            The squared error, (batch, pos).
        """
        return (prediction - batch.targets).square().sum(-1)

    def baselines(self, batch: Batch) -> Mapping[str, Float[Tensor, "batch pos d_out"]]:
        """Compute the baselines: zero, copy, extrapolation, closed form, least squares, ridge, gradient descent.

        Args:
            batch: the sequences to predict.

        Returns:
            Predictions by the name of the baseline.
        """
        x, phi = batch.inputs, self.compute_features(batch.inputs)
        descent = baselines.predict_gradient_descent(x, phi, steps=DESCENT_STEPS)
        return {
            "zero": baselines.predict_zero(x),
            "copy": baselines.predict_copy(x),
            "linear extrapolation": baselines.predict_extrapolation(x),
            "closed form": baselines.predict_closed_form(x, phi),
            "least squares": baselines.predict_least_squares(x, phi),
            "ridge 0.01": baselines.predict_ridge(x, phi, penalty=0.01),
            "ridge 0.1": baselines.predict_ridge(x, phi, penalty=0.1),
            **{f"gradient descent {k}": one for k, one in zip(DESCENT_STEPS, descent, strict=True)},
        }

    def extract_examples(self, inputs: Float[Tensor, "batch pos d_in"]) -> ContextExamples:
        """Extract the context pairs; every term is the target of the term before it.

        Args:
            inputs: model inputs.

        Returns:
            The context pairs, the query inputs and their positions.
        """
        targets = torch.cat([inputs[:, 1:], torch.zeros_like(inputs[:, :1])], dim=1)
        return build_context(self.compute_features(inputs), targets, positions=tuple(range(inputs.shape[1])))

    def reference_predictions(self, context: ContextExamples) -> Float[Tensor, "batch query out"]:
        """Return the last term, from which the distance of a prediction is the predicted step.

        Args:
            context: in-context examples and queries.
        """
        return context.query_x[..., 1 : 1 + self.input_dim]

    def separating_distributions(self) -> Mapping[str, "Recurrence"]:
        """Return noisy terms: without noise, all pairs and the last ones determine the same rule."""
        return {"noisy terms": replace(self, noise=SEPARATING_NOISE)}

    def candidate_algorithms(self) -> Sequence[Algorithm]:
        """Return copying, linear extrapolation, the rule of the last pairs, and solvers for the rule of all pairs."""
        term = slice(1, 1 + self.input_dim)  # the features begin with the constant 1 and the term
        return [
            algorithms.copy_query(term),
            algorithms.linear_extrapolation(term),
            algorithms.last_pairs_least_squares(self.num_coefficients),
            algorithms.least_squares(),
            algorithms.ridge_regression(),
            algorithms.gradient_descent("curvature"),
            algorithms.newton_iteration(),
        ]
