"""Prompts of words with several concepts, one of which determines the labels.

The setting of Bu et al. 2024, Provably Transformers Harness Multi-Concept Word Semantics for Efficient In-Context
Learning (arXiv 2411.02199). Its sampler and its sizes are not known to us; those here are ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, final, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mesascope.argument_types import validate_arguments, validate_fields
from mesascope.tasks.base import Batch, Task

ConceptVectors = Float[Tensor, "concept d_in"]
LabelRule = Literal["own", "swapped", "drawn", "random"]
LABEL_RULES: tuple[str, ...] = get_args(LabelRule)
BASELINE_LOGIT = 20.0  # logit of the label that a baseline predicts
TRAINING_PROMPTS = "training distribution"
SHORTER, LONGER, SKEWED, SWITCHED, UNSEEN = SHIFTS = (
    "half as many demonstrations",
    "twice as many demonstrations",
    "skewed concepts",
    "switched features",
    "unseen combinations",
)
NEAREST = "most similar demonstration"  # the baseline
SWAPPED_LABELS = "swapped labels"
SKEW = 2.0  # exponent of the frequencies under the skewed distribution; ours


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptSample:
    """A sample of prompts in float64.

    Attributes:
        words: of the demonstrations and, last, of the query.
        labels: label vectors of the demonstrations.
        signs: 1 or -1 for each word of the prompt's concept.
        label_signs: 1 or -1 for each label; the last one is the answer.
        concept: the concept that all words of a prompt share.
    """

    words: Float[Tensor, "prompt pos d_in"]
    labels: Float[Tensor, "prompt key d_in"]
    signs: Float[Tensor, "prompt pos"]
    label_signs: Float[Tensor, "prompt pos"]
    concept: Int[Tensor, " prompt"]


@final
@dataclass(frozen=True, kw_only=True)
class ConceptPrompts(Task):
    """Predict the label of a word from labelled words that share one of its concepts.

    Concept k has two words, a_k + b_k and a_k - b_k, and two labels, c_k + d_k and c_k - d_k. All a, b, c and d are
    orthogonal. Words and labels have norm 1, and the inner product of the two words of a concept is ``correlation``.
    The words of a prompt share a concept; a fair sign selects one of its two words for every demonstration and for the
    query, and the label with that sign. Other concepts of a group are added to each word independently, with signs of
    their own. Normal noise is added to words and labels. The target is the sign of the query.

    Attributes:
        concepts: number of concepts.
        group_size: concepts of a group; a divisor of the number of concepts, less than it.
        demonstrations: labelled words of a prompt.
        correlation: inner product of the two words, and of the two labels, of a concept.
        companion_probability: probability that a word also has a given other concept of the group.
        noise: standard deviation of each coordinate of the noise.
        noise_dims: coordinates that contain nothing but noise, of words and of labels each.
        skew: exponent of the frequencies of concepts, which are proportional to 1 / (k + 1)^skew; 0 for equal ones.
        pairing: ``seen``: words combine concepts of one group; ``unseen``: the other concepts of a word come from
            another group.
        switched: whether b and d of each concept are those of the next one, so that words and labels are new.
        label_rule: ``own``: labels have the signs of their words; ``swapped``: the opposite signs, the answer included;
            ``drawn``: one of the two for each prompt; ``random``: labels have independent signs, and the answer is the
            sign of the query.

    >>> ConceptPrompts(demonstrations=4).sample(2, torch.Generator().manual_seed(0)).inputs.shape
    torch.Size([2, 5, 40])
    """

    concepts: int = 6
    group_size: int = 3
    demonstrations: int = 24
    correlation: float = 0.5
    companion_probability: float = 0.25
    noise: float = 0.1
    noise_dims: int = 8
    skew: float = 0.0
    pairing: Literal["seen", "unseen"] = "seen"
    switched: bool = False
    label_rule: LabelRule = "own"

    def __post_init__(self) -> None:
        """Validate the fields."""
        validate_fields(self)
        if not 2 <= self.group_size < self.concepts or self.concepts % self.group_size:
            raise ValueError(
                f"group_size must be 2 or more and a divisor of concepts, less than it, but got {self.group_size} and "
                f"{self.concepts}"
            )
        if self.demonstrations < 2:
            raise ValueError(f"demonstrations must be 2 or more, but got {self.demonstrations}")
        if not -1 <= self.correlation < 1:
            raise ValueError(f"correlation must be -1 or more and less than 1, but got {self.correlation}")
        if not 0 <= self.companion_probability <= 1:
            raise ValueError(f"companion_probability must lie in [0, 1], but got {self.companion_probability}")
        for name in ("noise", "noise_dims", "skew"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, but got {getattr(self, name)}")
        self._validate_choices()

    def _validate_choices(self) -> None:
        if self.pairing not in ("seen", "unseen"):
            raise ValueError(f"pairing must be seen or unseen, but got {self.pairing!r}")
        if self.label_rule not in LABEL_RULES:
            raise ValueError(f"label_rule must be one of {', '.join(LABEL_RULES)}, but got {self.label_rule!r}")

    @property
    def length(self) -> int:
        """The number of positions: the demonstrations and the query."""
        return self.demonstrations + 1

    @property
    def dim(self) -> int:
        """The dimension of a word, and that of a label."""
        return 2 * self.concepts + self.noise_dims

    @property
    def shared_vectors(self) -> ConceptVectors:
        """The part a_k, or c_k, that both words, or labels, of a concept share; along coordinate 2 k."""
        return ((1 + self.correlation) / 2) ** 0.5 * torch.eye(self.dim, dtype=torch.float64)[: 2 * self.concepts : 2]

    @property
    def sign_vectors(self) -> ConceptVectors:
        """The part b_k, or d_k, whose sign differs between the words of a concept; along coordinate 2 k + 1."""
        return ((1 - self.correlation) / 2) ** 0.5 * torch.eye(self.dim, dtype=torch.float64)[1 : 2 * self.concepts : 2]

    @property
    def concept_frequencies(self) -> Float[Tensor, "concept"]:
        """The probability of each concept."""
        weight = torch.arange(1, self.concepts + 1, dtype=torch.float64) ** -self.skew
        return weight / weight.sum()

    @property
    def companions(self) -> Bool[Tensor, "concept other"]:
        """The pairs of a concept (first axis) and another that its words may have; ``group_size - 1`` in each row."""
        index = torch.arange(self.concepts)
        group, rank = index // self.group_size, index % self.group_size
        partner = group if self.pairing == "seen" else (group + 1) % (self.concepts // self.group_size)
        return (partner[:, None] == group) & (rank[:, None] != rank)

    def distribution_shifts(self) -> Mapping[str, "ConceptPrompts"]:
        """Return the tasks of shifted prompts, by the name of the distribution."""
        shifts = (
            replace(self, demonstrations=max(2, self.demonstrations // 2)),
            replace(self, demonstrations=2 * self.demonstrations),
            replace(self, skew=SKEW),
            replace(self, switched=True),
            replace(self, pairing="unseen"),
        )
        return dict(zip(SHIFTS, shifts, strict=True))

    def with_swapped_labels(self) -> "ConceptPrompts":
        """Return the task whose labels, the answers included, have the opposite signs of their words."""
        return replace(self, label_rule="swapped")

    def sample_prompts(self, n: int, generator: torch.Generator) -> PromptSample:
        """Draw prompts.

        Args:
            n: number of prompts.
            generator: source of randomness.

        Returns:
            words, labels and signs in float64.
        """
        concept = torch.multinomial(self.concept_frequencies, n, replacement=True, generator=generator)
        sign_of = 2.0 * torch.randint(0, 2, (n, self.length, self.concepts), generator=generator).double() - 1
        drawn = torch.rand(n, self.length, self.concepts, generator=generator) < self.companion_probability
        own = torch.nn.functional.one_hot(concept, self.concepts).bool()[:, None]
        present = (drawn & self.companions[concept][:, None]) | own
        signs = sign_of[torch.arange(n), :, concept]
        label_signs = self._draw_label_signs(signs, generator)
        shared, sign_vectors = self.shared_vectors, self._shifted_sign_vectors
        words = present.double() @ shared + (present * sign_of) @ sign_vectors
        labels = shared[concept][:, None] + label_signs[:, :-1, None] * sign_vectors[concept][:, None]
        return PromptSample(
            words=self._add_noise(words, generator),
            labels=self._add_noise(labels, generator),
            signs=signs,
            label_signs=label_signs,
            concept=concept,
        )

    @property
    def _shifted_sign_vectors(self) -> ConceptVectors:
        return self.sign_vectors.roll(-int(self.switched), 0)

    def _draw_label_signs(self, signs: Float[Tensor, "prompt pos"], generator: torch.Generator) -> Tensor:
        if self.label_rule == "own":
            return signs
        if self.label_rule == "swapped":
            return -signs
        if self.label_rule == "drawn":
            return signs * (2.0 * torch.randint(0, 2, (len(signs), 1), generator=generator) - 1)
        drawn = 2.0 * torch.randint(0, 2, signs.shape, generator=generator).double() - 1
        return torch.cat([drawn[:, :-1], signs[:, -1:]], 1)

    def _add_noise(self, vectors: Tensor, generator: torch.Generator) -> Tensor:
        return vectors + self.noise * torch.randn(vectors.shape, generator=generator, dtype=torch.float64)

    @validate_arguments
    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """Draw ``n`` prompts; each position has a word and its label, the last one a word and zeros.

        Args:
            n: number of prompts.
            generator: source of randomness.

        Returns:
            The batch, scored at the last position, with the latents ``sign`` (of the word) and ``concept``, at every
            position.
        """
        drawn = self.sample_prompts(n, generator)
        inputs = torch.cat([drawn.words, torch.nn.functional.pad(drawn.labels, (0, 0, 0, 1))], -1).float()
        weight = torch.zeros(n, self.length)
        weight[:, -1] = 1
        return Batch(
            inputs=inputs,
            targets=(drawn.label_signs > 0).long(),
            weight=weight,
            latents={
                "sign": (drawn.signs > 0).long(),
                "concept": drawn.concept[:, None].expand(-1, self.length).contiguous(),
            },
        )

    def loss(self, prediction: Float[Tensor, "batch pos d_out"], batch: Batch) -> Float[Tensor, "batch pos"]:
        """Compute the cross-entropy of the label's sign.

        Args:
            prediction: logits of the signs - and +.
            batch: the prompts that were predicted.

        Returns:
            Cross-entropy in nats; 0 at positions that are not scored.
        """
        return torch.nn.functional.cross_entropy(prediction.mT, batch.targets, reduction="none") * (batch.weight > 0)

    def baselines(self, batch: Batch) -> Mapping[str, Float[Tensor, "batch pos d_out"]]:
        """Compute the logits of three rules: one reads the query, one the nearest demonstration, one all labels.

        Args:
            batch: the prompts to predict.

        Returns:
            The sign of the query along b of the concept that the labels so far have (it knows all vectors and uses
            labels for nothing else); the label of the most similar earlier word; and the mean of the labels so far.
        """
        words, labels = batch.inputs.split(self.dim, -1)
        shared, sign_vectors = (each.to(words) for each in (self.shared_vectors, self._shifted_sign_vectors))
        concept = (labels.cumsum(1) @ shared.T).argmax(-1, keepdim=True)
        label_sign = labels @ sign_vectors.sum(0)
        earlier = torch.ones(words.shape[1], words.shape[1], dtype=torch.bool, device=words.device).tril(-1)
        most_similar = (words @ words.mT).masked_fill(~earlier, -torch.inf).argmax(-1)
        rules = {
            "sign of the query": (words @ sign_vectors.T).gather(-1, concept)[..., 0],
            NEAREST: label_sign.gather(1, most_similar) * earlier.any(-1),
            "mean label": label_sign.cumsum(1),
        }
        return {name: _encode_sign(score) for name, score in rules.items()}


def _encode_sign(score: Float[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_out"]:
    return BASELINE_LOGIT / 2 * torch.stack([-score.sign(), score.sign()], -1)
