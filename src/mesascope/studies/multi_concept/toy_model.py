"""Toy model of multi-concept prompts: one layer of softmax attention and a ReLU MLP.

Bu et al. 2024, Provably Transformers Harness Multi-Concept Word Semantics for Efficient In-Context Learning
(arXiv 2411.02199). The query attends to the demonstrations with the scores x_l^T W_K^T W_Q x_query. The values are the
label vectors, so that the query reaches the output through attention only. An MLP with fixed output weights 1/m and
-1/m maps the mean label, weighted by attention, to the logit of the sign +. W_Q, W_K and the first layer of the MLP
are trained by stochastic gradient descent on the cross-entropy with L2 regularisation.
"""

from collections.abc import Mapping, Sequence
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
from mesascope.studies.multi_concept.error_curves import EXPONENTIAL, POWER_LAW, fit_decays
from mesascope.studies.multi_concept.task import NEAREST, TRAINING_PROMPTS, ConceptPrompts, PromptSample
from mesascope.studies.toy_model import Progress, ToyModel, count_steps, simulation_generator

SHARED, SIGN, NOISE = DIRECTIONS = ["shared part", "sign part", "noise"]
ZERO_ONE, SMOOTHED = ERRORS = ["zero_one_error", "smoothed_error"]
MODEL = "toy model"


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionWeights:
    """The parameters of the toy model.

    Attributes:
        query: W_Q.
        key: W_K.
        mlp: weights of the first layer of the MLP.
        output: fixed weights of its second layer.
    """

    query: Float[Tensor, "d_in d_in"]
    key: Float[Tensor, "d_in d_in"]
    mlp: Float[Tensor, "neuron d_in"]
    output: Float[Tensor, " neuron"]

    @classmethod
    def initialize(cls, model: "ConceptAttention", generator: torch.Generator) -> "AttentionWeights":
        """Return the initial parameters: multiples of the identity, and normal weights of the MLP.

        Args:
            model: gives the sizes.
            generator: source of randomness.
        """
        dim, neurons = model.prompts.dim, model.neurons
        identity = model.initial_score**0.5 * torch.eye(dim, dtype=torch.float64)
        mlp = model.initial_size * torch.randn(neurons, dim, generator=generator, dtype=torch.float64)
        output = torch.ones(neurons, dtype=torch.float64) / neurons
        output[1::2] *= -1
        return cls(query=identity, key=identity.clone(), mlp=mlp, output=output)

    @property
    def scores(self) -> Float[Tensor, "d_in d_in"]:
        """The matrix W_K^T W_Q, whose bilinear form of a demonstration and the query is the score."""
        return self.key.T @ self.query

    def attend(self, prompts: PromptSample, uniform: bool = False) -> Float[Tensor, "prompt key"]:
        """Return the attention of the query to the demonstrations.

        Args:
            prompts: a sample of prompts.
            uniform: whether all demonstrations get equal attention instead.
        """
        queries = prompts.words[:, -1] @ self.query.T @ self.key
        scores = torch.einsum("pli,pi->pl", prompts.words[:, :-1], queries)
        return (scores * float(not uniform)).softmax(1)

    def predict(self, prompts: PromptSample, attention: Float[Tensor, "prompt key"]) -> Float[Tensor, " prompt"]:
        """Return the logit of the sign + for each prompt.

        Args:
            prompts: a sample of prompts.
            attention: to the demonstrations.
        """
        return (self._mean_label(prompts, attention) @ self.mlp.T).relu() @ self.output

    def update(
        self, prompts: PromptSample, learning_rate: float, weight_decay: float, uniform: bool = False
    ) -> "AttentionWeights":
        """Return the parameters after one step of gradient descent on the mean cross-entropy.

        Args:
            prompts: a batch.
            learning_rate: of gradient descent.
            weight_decay: coefficient of half the squared norm of all parameters.
            uniform: whether attention is uniform and W_Q and W_K stay as they are.
        """
        attention = self.attend(prompts, uniform)
        mean_label = self._mean_label(prompts, attention)
        hidden = mean_label @ self.mlp.T
        answer = prompts.label_signs[:, -1]
        error_signal = -answer * (-answer * (hidden.relu() @ self.output)).sigmoid() / len(answer)
        hidden_signal = (hidden > 0) * self.output * error_signal[:, None]
        mlp = self.mlp - learning_rate * (hidden_signal.T @ mean_label + weight_decay * self.mlp)
        if uniform:
            return replace(self, mlp=mlp)
        attention_signal = torch.einsum("pli,pi->pl", prompts.labels, hidden_signal @ self.mlp)
        centred = attention_signal - (attention * attention_signal).sum(1, keepdim=True)
        weighted_words = torch.einsum("pl,pli->pi", attention * centred, prompts.words[:, :-1])
        gradient = weighted_words.T @ prompts.words[:, -1]  # with respect to the score matrix
        return AttentionWeights(
            query=self.query - learning_rate * (self.key @ gradient + weight_decay * self.query),
            key=self.key - learning_rate * (self.query @ gradient.T + weight_decay * self.key),
            mlp=mlp,
            output=self.output,
        )

    @staticmethod
    def _mean_label(prompts: PromptSample, attention: Float[Tensor, "prompt key"]) -> Float[Tensor, "prompt d_in"]:
        return torch.einsum("pl,pli->pi", attention, prompts.labels)


@final
@dataclass(frozen=True, kw_only=True)
class ConceptAttention(ToyModel):
    """Softmax attention and a ReLU MLP, trained by stochastic gradient descent on fresh prompts.

    Attributes:
        prompts: the task.
        neurons: of the MLP, m; an even number.
        initial_score: W_K^T W_Q before training is this multiple of the identity.
        initial_size: standard deviation of the weights of the MLP before training.
        learning_rate: of gradient descent.
        weight_decay: coefficient of half the squared norm of all parameters.
        steps: number of updates.
        batch_size: prompts of an update.
        evaluation_prompts: held-out prompts of each distribution.
        checkpoints: number of steps that are recorded.
        uniform: whether attention stays uniform, as a control.
    """

    prompts: ConceptPrompts = field(default_factory=ConceptPrompts)
    neurons: int = 16
    initial_score: float = 1.0
    initial_size: float = 0.1
    learning_rate: float = 10.0
    weight_decay: float = 1e-5
    steps: int = 1_000
    batch_size: int = 64
    evaluation_prompts: int = 4_096
    checkpoints: int = 251
    uniform: bool = False

    def __post_init__(self) -> None:
        """Validate the number of neurons and the numbers that must be positive."""
        if self.neurons < 2 or self.neurons % 2:
            raise ValueError(f"neurons must be an even number, 2 or more, but got {self.neurons}")
        for name in ("initial_score", "initial_size", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, but got {getattr(self, name)}")

    def simulate(self, seed: int, progress: Progress = do_nothing) -> xr.Dataset:
        """Train the parameters, and evaluate them on held-out prompts and on shifted ones.

        Args:
            seed: of the parameters and of the prompts.
            progress: receives (steps done, total steps, NaN).

        Returns:
            both errors, ``attention`` and the projections ``score`` and ``mlp_weight`` by step; ``decay_r2`` and
            ``fitted_decades`` of fits to the errors; and ``accuracy`` by distribution at the end.
        """
        generator, held_out = simulation_generator(seed), simulation_generator(seed, 1)
        evaluation = self.prompts.sample_prompts(self.evaluation_prompts, held_out)
        weights = AttentionWeights.initialize(self, generator)
        recorded_steps, records = set(evenly_spaced_steps(self.steps, self.checkpoints)), []
        for step in count_steps(self.steps, progress):
            if step in recorded_steps:
                records.append(self._record_state(weights, evaluation))
            if step < self.steps:
                batch = self.prompts.sample_prompts(self.batch_size, generator)
                weights = weights.update(batch, self.learning_rate, self.weight_decay, self.uniform)
        curves = _describe_curves(records, sorted(recorded_steps))
        fits = _describe_fits(curves)
        return xr.Dataset(curves | fits | {"accuracy": self._test_shifts(weights, evaluation, held_out)})

    def _record_state(self, weights: AttentionWeights, evaluation: PromptSample) -> dict[str, np.ndarray]:
        attention = weights.attend(evaluation, self.uniform)
        margin = evaluation.label_signs[:, -1] * weights.predict(evaluation, attention)
        same_sign = evaluation.signs[:, :-1] == evaluation.signs[:, -1:]
        scores, dim = weights.scores, 2 * self.prompts.concepts
        diagonal, mlp = scores.diagonal(), weights.mlp.abs()
        noise_score = scores[dim:, dim:].abs().max() if self.prompts.noise_dims else torch.tensor(torch.nan)
        noise_mlp = mlp[:, dim:].max() if self.prompts.noise_dims else torch.tensor(torch.nan)
        return {
            ZERO_ONE: (margin <= 0).double().mean().numpy(),
            SMOOTHED: (-margin).sigmoid().mean().numpy(),
            "attention": (attention * same_sign).sum(1).mean().numpy(),
            "score": np.array([diagonal[0:dim:2].mean(), diagonal[1:dim:2].mean(), noise_score]),
            "mlp_weight": np.array([mlp[:, 0:dim:2].amax(0).mean(), mlp[:, 1:dim:2].amax(0).mean(), noise_mlp]),
        }

    def _test_shifts(
        self, weights: AttentionWeights, evaluation: PromptSample, generator: torch.Generator
    ) -> xr.DataArray:
        shifted = self.prompts.distribution_shifts()
        samples = {name: task.sample_prompts(self.evaluation_prompts, generator) for name, task in shifted.items()}
        accuracy = [
            [_compute_accuracy(weights.predict(sample, weights.attend(sample, self.uniform)), sample), nearest]
            for sample, nearest in (
                (sample, _compute_accuracy(_answer_by_nearest(sample), sample))
                for sample in (evaluation, *samples.values())
            )
        ]
        return to_data_array(
            np.array(accuracy),
            "distribution",
            "predictor",
            units="1",
            description="fraction of held-out prompts with the right sign, at the end of training, and for the label "
            "of the demonstration whose word has the largest inner product with the query",
            coords={"distribution": [TRAINING_PROMPTS, *samples], "predictor": [MODEL, NEAREST]},
        ).assign_attrs(view="bars")


def _answer_by_nearest(prompts: PromptSample) -> Float[Tensor, " prompt"]:
    similarity = torch.einsum("pli,pi->pl", prompts.words[:, :-1], prompts.words[:, -1])
    return prompts.label_signs.gather(1, similarity.argmax(1, keepdim=True))[:, 0]


def _compute_accuracy(logits: Float[Tensor, " prompt"], prompts: PromptSample) -> float:
    return float((logits * prompts.label_signs[:, -1] > 0).double().mean())


_CURVES: Mapping[str, tuple[str, str, list[str] | None]] = {
    ZERO_ONE: ("1", "fraction of held-out prompts with the wrong sign", None),
    SMOOTHED: ("1", "mean over held-out prompts of sigmoid(-margin)", None),
    "attention": ("1", "attention to demonstrations whose sign is that of the query", None),
    "score": (
        "1",
        "quadratic form of the score matrix along unit vectors of a (shared) and b (sign), mean over concepts, and its "
        "largest absolute entry among noise coordinates",
        DIRECTIONS,
    ),
    "mlp_weight": (
        "1",
        "largest absolute weight of a neuron along unit vectors of c (shared) and d (sign), mean over concepts, and "
        "along noise coordinates",
        DIRECTIONS,
    ),
}


def _describe_curves(records: Sequence[Mapping[str, np.ndarray]], steps: list[int]) -> dict[str, xr.DataArray]:
    variables = {}
    for name, (units, description, stats) in _CURVES.items():
        dims, coords = ("step",), {"step": steps}
        if stats is not None:
            dims, coords = ("step", "stat"), {"step": steps, "stat": stats}
        values = np.stack([record[name] for record in records])
        variables[name] = to_data_array(values, *dims, units=units, description=description, coords=coords)
    for name in ERRORS:
        variables[name].attrs |= {"scale": "log", "steps": "even"}  # the claims are about straight lines
    return variables


def _describe_fits(curves: Mapping[str, xr.DataArray]) -> dict[str, xr.DataArray]:
    fits = np.array([fit_decays(curves[name]["step"].values.astype(float), curves[name].values) for name in ERRORS])
    coords = {"_error": ERRORS}
    r2 = to_data_array(
        fits[:, :2],
        "_error",
        "_decay",
        units="1",
        description="R² of two fits to the logarithm of the error: a line in the step and a line in its logarithm",
        coords=coords | {"_decay": [EXPONENTIAL, POWER_LAW]},
    )
    decades = to_data_array(
        fits[:, 2], "_error", units="1", description="powers of ten of the error in the fits", coords=coords
    )
    return {"decay_r2": r2, "fitted_decades": decades}
