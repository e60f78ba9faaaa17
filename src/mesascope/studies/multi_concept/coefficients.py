"""Coefficient dynamics: the expected gradient step of the toy model on words with a single concept and without noise.

Bu et al. 2024 (arXiv 2411.02199) follow the projections of the weights onto the parts of the concept vectors. Here a
word is a + b or a - b, and its label c + d or c - d. The span of a and b is closed under the expected gradient step, so
that two-by-two blocks of W_Q and W_K and the projections of the MLP onto c and d describe a concept completely. The
expectation over prompts is a finite sum over the sign of the query and the number of demonstrations with the sign +.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import final

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mesascope.axes import to_data_array
from mesascope.statistics import evenly_spaced_steps
from mesascope.store import do_nothing
from mesascope.studies.multi_concept.toy_model import SHARED, SIGN, AttentionWeights, ConceptAttention
from mesascope.studies.toy_model import Progress, ToyModel, count_steps, simulation_generator

Blocks = Float[Tensor, "concept row column"]
SIGNS = torch.tensor([1.0, -1.0], dtype=torch.float64)


@dataclass(frozen=True, kw_only=True, eq=False)
class ConceptCoefficients:
    """Coefficients of the weights along unit vectors of a and b, and of c and d.

    Attributes:
        query: block of W_Q for each concept.
        key: block of W_K for each concept.
        mlp: projections of each neuron onto c and d of each concept.
        output: fixed weights of the second layer of the MLP.
    """

    query: Blocks
    key: Blocks
    mlp: Float[Tensor, "neuron concept column"]
    output: Float[Tensor, " neuron"]

    @classmethod
    def from_weights(cls, weights: AttentionWeights, concepts: int) -> "ConceptCoefficients":
        """Return the projections of the weights of the toy model.

        Args:
            weights: of the toy model.
            concepts: number of concepts.
        """
        rows = torch.arange(2 * concepts).view(concepts, 2)
        query, key = (matrix[rows[:, :, None], rows[:, None]] for matrix in (weights.query, weights.key))
        return cls(query=query, key=key, mlp=weights.mlp[:, rows], output=weights.output)

    @property
    def scores(self) -> Blocks:
        """The block of W_K^T W_Q for each concept."""
        return self.key.mT @ self.query


@dataclass(frozen=True, kw_only=True, eq=False)
class SignCounts:
    """The expectation over prompts of one concept, as a finite sum.

    Attributes:
        vectors: coordinates of both words, and of both labels, along unit vectors of the shared and the sign part.
        counts: number of demonstrations with each sign; (count, sign).
        probability: of each number of demonstrations with the sign +.
    """

    vectors: Float[Tensor, "sign column"]
    counts: Float[Tensor, "count sign"]
    probability: Float[Tensor, " count"]

    @classmethod
    def from_model(cls, model: ConceptAttention) -> "SignCounts":
        """Return the counts for the prompts of a toy model.

        Args:
            model: gives the number of demonstrations and the geometry.
        """
        demonstrations, correlation = model.prompts.demonstrations, model.prompts.correlation
        plus = torch.arange(demonstrations + 1, dtype=torch.float64)
        binomial = [math.comb(demonstrations, int(count)) / 2**demonstrations for count in plus]
        shared = torch.full((2,), ((1 + correlation) / 2) ** 0.5, dtype=torch.float64)
        return cls(
            vectors=torch.stack([shared, SIGNS * ((1 - correlation) / 2) ** 0.5], 1),
            counts=torch.stack([plus, demonstrations - plus], 1),
            probability=torch.tensor(binomial, dtype=torch.float64),
        )

    def attend(self, coefficients: ConceptCoefficients) -> Float[Tensor, "concept query count sign"]:
        """Return the total attention to the demonstrations of each sign, for each sign of the query.

        Args:
            coefficients: of the weights.
        """
        scores = torch.einsum("si,kij,qj->kqs", self.vectors, coefficients.scores, self.vectors)
        weight = self.counts * (scores - scores.amax(-1, keepdim=True)).exp()[:, :, None]
        return weight / weight.sum(-1, keepdim=True)

    def mean_same_sign(self, coefficients: ConceptCoefficients) -> float:
        """Return the expected attention to demonstrations with the sign of the query.

        Args:
            coefficients: of the weights.
        """
        same_sign = torch.diagonal(self.attend(coefficients), dim1=1, dim2=3)
        return float(torch.einsum("knq,n->kq", same_sign, self.probability).mean())

    def update(
        self, coefficients: ConceptCoefficients, learning_rate: float, weight_decay: float
    ) -> ConceptCoefficients:
        """Return the coefficients after one step of gradient descent on the expected cross-entropy.

        Args:
            coefficients: of the weights.
            learning_rate: of gradient descent.
            weight_decay: coefficient of half the squared norm of all weights.
        """
        attention = self.attend(coefficients)
        mean_label = attention @ self.vectors
        hidden = torch.einsum("kqnc,mkc->kqnm", mean_label, coefficients.mlp)
        answer, weight = SIGNS[:, None], self.probability / (2 * len(coefficients.query))
        error_signal = -answer * (-answer * (hidden.relu() @ coefficients.output)).sigmoid() * weight
        hidden_signal = (hidden > 0) * coefficients.output * error_signal[..., None]
        mlp_gradient = torch.einsum("kqnm,kqnc->mkc", hidden_signal, mean_label)
        label_signal = torch.einsum("kqnm,mkc,sc->kqns", hidden_signal, coefficients.mlp, self.vectors)
        centred = attention * (label_signal - (attention * label_signal).sum(-1, keepdim=True))
        gradient = torch.einsum("kqns,si,qj->kij", centred, self.vectors, self.vectors)
        query, key = coefficients.query, coefficients.key
        return replace(
            coefficients,
            query=query - learning_rate * (key @ gradient + weight_decay * query),
            key=key - learning_rate * (query @ gradient.mT + weight_decay * key),
            mlp=coefficients.mlp - learning_rate * (mlp_gradient + weight_decay * coefficients.mlp),
        )


@final
@dataclass(frozen=True, kw_only=True)
class CoefficientDynamics(ToyModel):
    """The coefficients of a toy model, trained by gradient descent on the expected cross-entropy.

    Attributes:
        model: the toy model; gives geometry, initial weights, learning rate and steps.
    """

    model: ConceptAttention = field(default_factory=ConceptAttention)

    def simulate(self, seed: int, progress: Progress = do_nothing) -> xr.Dataset:
        """Train the coefficients from the same initial weights as those of the toy model with this seed.

        Args:
            seed: of the initial weights.
            progress: receives (steps done, total steps, NaN).

        Returns:
            ``attention`` and ``score`` by step, as for the toy model.
        """
        recorded_steps = set(evenly_spaced_steps(self.model.steps, self.model.checkpoints))
        counts, records = SignCounts.from_model(self.model), []
        for step, coefficients in enumerate(self._iterate_coefficients(counts, seed, progress)):
            if step in recorded_steps:
                diagonal = torch.diagonal(coefficients.scores, dim1=1, dim2=2).mean(0)
                records.append([counts.mean_same_sign(coefficients), *diagonal.tolist()])
        values, coords = np.array(records), {"step": sorted(recorded_steps)}
        attention = to_data_array(
            values[:, 0],
            "step",
            units="1",
            description="expected attention to demonstrations whose sign is that of the query",
            coords=coords,
        )
        score = to_data_array(
            values[:, 1:],
            "step",
            "stat",
            units="1",
            description="quadratic form of the score matrix along unit vectors of a (shared) and b (sign), mean over "
            "concepts",
            coords=coords | {"stat": [SHARED, SIGN]},
        )
        return xr.Dataset({"attention": attention, "score": score})

    def _iterate_coefficients(self, counts: SignCounts, seed: int, progress: Progress) -> Iterator[ConceptCoefficients]:
        weights = AttentionWeights.initialize(self.model, simulation_generator(seed))
        coefficients = ConceptCoefficients.from_weights(weights, self.model.prompts.concepts)
        for _ in count_steps(self.model.steps, progress):
            yield coefficients
            coefficients = counts.update(coefficients, self.model.learning_rate, self.model.weight_decay)
