"""Syntactic transformations: a sentence is rewritten by rules, one function per label of its dependency tree.

After Lindemann, Koller & Titov (arXiv 2407.04543), with sentences whose tree follows from the words.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.argument_types import validate_arguments, validate_fields
from mesascope.tasks.base import Batch
from mesascope.tasks.syntax.dependency_trees import DependencyTree
from mesascope.tasks.syntax.edge_functions import EDGE_FUNCTIONS, NAMES, SYMBOLS, find_effective_labels, transform
from mesascope.tasks.syntax.levels import ROOT_LABEL, LevelLabels, build_tree
from mesascope.tasks.token_predictions import TokenTask, log_probabilities

PADDING, BEGIN, END = ".", "=", "#"  # texts of the other tokens
EXACT, IDENTITY, CHANCE = "exact transformation", "unchanged sentence", "chance"
MAX_DRAWS = 10_000  # of sentences that are too long or without a change, one after another
Rules = Mapping[str, str]


@final
@dataclass(frozen=True, kw_only=True)
class SyntacticTransformations(TokenTask):
    """A sentence is rewritten by one function per label of its dependency tree.

    A sequence has three parts of fixed sizes: rules, words, and the output from the token ``=`` on. A rule is one
    token, such as ``al:rev``; rules are sorted by label. Words are such as ``al3``: their label and a number, so that
    the tree follows from the sentence (see `LevelLabels`). Each part is padded with ``.`` on the right. The output
    is scored, up to its end ``#``.

    A sentence gets rules for a random subset of the labels in it, and for some labels that are not in it, in random
    number. Sentences are drawn again until a rule changes the output. Some pairs of a label and a function never occur
    in training; every validation sentence has a rule of such a pair that changes its output.

    Attributes:
        num_levels: levels of the tree below the root; there are two labels per level.
        words_per_label: number of words with the same label.
        min_words: smallest number of words of a sentence.
        max_words: largest number of words of a sentence.
        functions: names of functions, from `EDGE_FUNCTIONS`.
        max_rules: largest number of rules.
        max_output: largest number of words of the output.
        held_out: number of labels for which each function, apart from the first one, is held out.
        held_out_rules: rules, such as ``al:rev``, that never occur together in training.
        split: train or validation.

    Raises:
        ValueError: a field is out of range.

    >>> task = SyntacticTransformations(max_words=5, max_output=8)
    >>> batch = task.sample(1, torch.Generator().manual_seed(1))
    >>> " ".join(task.decode_token(token) for token in batch.inputs[0].tolist())
    'al:bracket-1 ar:rev . . al1 root0 ar4 . . = ar4 root0 ( al al1 ) . .'
    """

    num_levels: int = 2
    words_per_label: int = 8
    min_words: int = 3
    max_words: int = 7
    functions: tuple[str, ...] = ("rev", "concat-rel", "bracket-1", "bracket-2-inv", "ignore-dep")
    max_rules: int = 4
    max_output: int = 24
    held_out: int = 1
    held_out_rules: tuple[str, ...] = ()
    split: Literal["train", "validation"] = "train"

    def __post_init__(self) -> None:
        """Validate the fields."""
        validate_fields(self)
        labels = self.labels.names
        limits = {
            "words_per_label": (1, None),
            "min_words": (2, self.max_words),
            "max_rules": (1, len(labels)),
            "max_output": (1, None),
            "held_out": (0, len(labels) - 1),
        }
        for name, (least, most) in limits.items():
            value = getattr(self, name)
            if value < least or (most is not None and value > most):
                limit = f"at least {least}" if most is None else f"from {least} to {most}"
                raise ValueError(f"{name} must be {limit}, but got {value}")
        if wrong := [name for name in self.functions if name not in EDGE_FUNCTIONS]:
            raise ValueError(f"a function must be one of {', '.join(NAMES)}, but got {wrong[0]!r}")
        if not self.functions or len(set(self.functions)) < len(self.functions):
            raise ValueError(f"functions must be different and at least one, but got {self.functions}")
        rules = [f"{label}:{function}" for label in labels for function in self.functions]
        if wrong := [rule for rule in self.held_out_rules if rule not in rules]:
            raise ValueError(f"held_out_rules must be of labels and functions of the task, but got {wrong[0]!r}")
        if self.held_out_rules and not 1 < len(self.composition) == len(self.held_out_rules) <= self.max_rules:
            raise ValueError(
                f"held_out_rules must be from 2 to {self.max_rules} rules of different labels, but got "
                f"{', '.join(self.held_out_rules)}"
            )
        if self.split == "validation" and not self.held_out_pairs:
            raise ValueError(
                "a validation split needs held-out pairs, but there are none; set held_out and two functions"
            )

    @property
    def labels(self) -> LevelLabels:
        """The labels of the edges."""
        return LevelLabels(num_levels=self.num_levels)

    @cached_property
    def held_out_pairs(self) -> frozenset[tuple[str, str]]:
        """Pairs of a label and a function that do not occur in training.

        The labels of function n are those after label n, cyclically; every label keeps the first function.
        """
        names = self.labels.names
        return frozenset(
            (names[(number + offset) % len(names)], function)
            for number, function in enumerate(self.functions)
            for offset in range(self.held_out)
            if number > 0
        )

    @property
    def composition(self) -> dict[str, str]:
        """The held-out rules, function by label."""
        return dict(rule.split(":") for rule in self.held_out_rules)

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """The text of every token: padding, begin and end, symbols, labels, words and rules."""
        names = self.labels.names
        words = (f"{label}{number}" for label in (ROOT_LABEL, *names) for number in range(self.words_per_label))
        rules = (f"{label}:{function}" for label in names for function in self.functions)
        return (PADDING, BEGIN, END, *SYMBOLS, *names, *words, *rules)

    @property
    def vocab_size(self) -> int:
        """The number of tokens."""
        return len(self.texts)

    @property
    def source_length(self) -> int:
        """The number of positions of rules and words."""
        return self.max_rules + self.max_words

    @property
    def length(self) -> int:
        """The number of input positions: rules, words, ``=`` and the output."""
        return self.source_length + 1 + self.max_output

    @validate_arguments
    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """Draw ``n`` sentences with their rules.

        Args:
            n: number of sequences.
            generator: source of randomness.

        Returns:
            The batch. Its latents are ``words`` (batch), the number of words; ``held-out rules`` (batch), the number of
            rules of held-out pairs that change the output; ``label`` and ``head`` (batch, pos): at a word, the index
            of its label among the labels (their number for the root), and the position of its head; -1 elsewhere and
            for the head of the root; and ``rule label`` (batch, pos): at a rule, the index of its label, else -1.

        Raises:
            ValueError: no sentence has a change and an output of at most ``max_output`` words.
        """
        rng = _make_rng(generator)
        return self._encode([self._draw(rng) for _ in range(n)])

    @validate_arguments
    def sample_with_rules(self, rules: Mapping[str, str], n: int, generator: torch.Generator) -> Batch:
        """Draw ``n`` sentences with the same rules, of which one changes the output.

        Args:
            rules: function by label; pairs may be held out, whatever the split.
            n: number of sequences.
            generator: source of randomness.

        Returns:
            The batch, with the latents of `sample`.

        Raises:
            ValueError: a label or a function is not one of the task, there are more than ``max_rules``, or no sentence
                has a change and an output of at most ``max_output`` words.

        >>> task = SyntacticTransformations()
        >>> batch = task.sample_with_rules({"br": "rev", "al": "concat-rel"}, 2, torch.Generator().manual_seed(0))
        >>> [task.decode_token(token) for token in batch.inputs[1, :4].tolist()]
        ['al:concat-rel', 'br:rev', '.', '.']
        """
        names = self.labels.names
        for what, given, allowed in (("label", rules, names), ("function", rules.values(), self.functions)):
            if wrong := [one for one in given if one not in allowed]:
                raise ValueError(f"a {what} must be one of {', '.join(allowed)}, but got {wrong[0]!r}")
        if not 1 <= len(rules) <= self.max_rules:
            raise ValueError(f"there must be from 1 to {self.max_rules} rules, but got {len(rules)}")
        ordered = {label: rules[label] for label in sorted(rules, key=names.index)}
        rng = _make_rng(generator)
        return self._encode([self._draw(rng, ordered) for _ in range(n)])

    def _encode(self, examples: Sequence["_Example"]) -> Batch:
        """Return the sequences of examples."""
        ids, names = {text: token for token, text in enumerate(self.texts)}, self.labels.names
        parts, blank = (self.max_rules, self.max_words, self.length - self.source_length), ids[PADDING]
        inputs, targets, weight, label, head, rule_label = [], [], [], [], [], []
        for one in examples:
            output = [ids[word] for word in (BEGIN, *one.output, END)]
            rules = [ids[f"{name}:{function}"] for name, function in one.rules.items()]
            words = [ids[word] for word in one.tree.words]
            labels = [(*names, ROOT_LABEL).index(name) for name in one.tree.labels]
            heads = [index if index < 0 else index + self.max_rules for index in one.tree.heads]
            inputs.append(_pad_parts(parts, blank, rules, words, output[:-1]))
            targets.append(_pad_parts(parts, blank, [], [], output[1:]))
            weight.append(_pad_parts(parts, 0, [], [], [1] * (len(output) - 1)))
            label.append(_pad_parts(parts, -1, [], labels, []))
            head.append(_pad_parts(parts, -1, [], heads, []))
            rule_label.append(_pad_parts(parts, -1, [names.index(name) for name in one.rules], [], []))
        latents = {
            "words": torch.tensor([len(one.tree) for one in examples]),
            "held-out rules": torch.tensor([one.num_held_out for one in examples]),
            "label": torch.tensor(label),
            "head": torch.tensor(head),
            "rule label": torch.tensor(rule_label),
        }
        return Batch(
            inputs=torch.tensor(inputs),
            targets=torch.tensor(targets),
            weight=torch.tensor(weight, dtype=torch.float32),
            latents=latents,
        )

    def baselines(self, batch: Batch) -> Mapping[str, Float[Tensor, "batch pos d_out"]]:
        """Compute log-probabilities of the exact output, of the unchanged sentence, and of chance.

        The unchanged sentence is the output without rules; after its end, it predicts ``#``.

        Args:
            batch: the sequences to predict.

        Returns:
            Log-probabilities by the name of the baseline; before ``=`` and where there is no tree, those of chance.
        """
        texts = self.texts
        ids = {text: token for token, text in enumerate(texts)}
        uniform = torch.full((*batch.inputs.shape, len(texts)), 1 / len(texts))
        probabilities = {EXACT: uniform, IDENTITY: uniform.clone(), CHANCE: uniform.clone()}
        for row, tokens in enumerate(batch.inputs[:, : self.source_length].tolist()):
            try:
                tree, rules = self._parse([texts[token] for token in tokens])
                outputs = {EXACT: transform(tree, rules), IDENTITY: transform(tree, {})}
            except ValueError:  # no sentence: chance
                continue
            for name, words in outputs.items():
                output = [*(ids[word] for word in words), *[ids[END]] * self.length]
                rest = probabilities[name][row, self.source_length :]
                rest.zero_()
                rest[torch.arange(len(rest)), output[: len(rest)]] = 1
        return {name: log_probabilities(one).to(batch.inputs.device) for name, one in probabilities.items()}

    def validation_task(self) -> "SyntacticTransformations":
        """Return the task of sentences with held-out pairs; without such pairs, every sentence is fresh."""
        return replace(self, split="validation") if self.held_out_pairs else self

    def decode_token(self, token: int) -> str:
        """Decode a token: a word, a label, a rule, or one of ``. = # ( ) , by``.

        Args:
            token: token index.
        """
        return self.texts[token]

    def _draw(self, rng: random.Random, given: Rules | None = None) -> "_Example":
        """Draw a sentence and rules of the split, or given ones, with a change and an output that is short enough."""
        for _ in range(MAX_DRAWS):
            labels = self.labels.draw(rng, rng.randint(self.min_words, self.max_words))
            words = [f"{label}{rng.randrange(self.words_per_label)}" for label in labels]
            tree = build_tree(self.labels, labels, words)
            rules = self._draw_rules(rng, set(labels) - {ROOT_LABEL}) if given is None else given
            output = transform(tree, rules)
            if len(output) > self.max_output or (given is None and self._holds_out(rules)):
                continue
            effective = find_effective_labels(tree, rules)
            num_held_out = sum((label, rules[label]) in self.held_out_pairs for label in effective)
            if num_held_out or (effective and (self.split == "train" or given is not None)):
                return _Example(tree=tree, rules=rules, output=output, num_held_out=num_held_out)
        raise ValueError(
            f"a sentence must have a rule of the split that changes it and at most {self.max_output} words in its "
            f"output, but none of {MAX_DRAWS} draws has; choose a larger max_output or other functions"
        )

    def _holds_out(self, rules: Rules) -> bool:
        """Return whether rules include all that never occur together in training."""
        return self.split == "train" and bool(self.held_out_rules) and self.composition.items() <= rules.items()

    def _draw_rules(self, rng: random.Random, present: Iterable[str]) -> Rules:
        names = self.labels.names
        inside = sorted(present)
        chosen = rng.sample(inside, rng.randint(1, min(self.max_rules, len(inside))))
        outside = [name for name in names if name not in inside]
        chosen += rng.sample(outside, rng.randint(0, min(self.max_rules - len(chosen), len(outside))))
        held_out = self.held_out_pairs if self.split == "train" else ()
        return {
            label: rng.choice([one for one in self.functions if (label, one) not in held_out])
            for label in sorted(chosen, key=names.index)
        }

    def _parse(self, texts: list[str]) -> tuple[DependencyTree, Rules]:
        """Return the tree and the rules of the tokens before the output."""
        rules = dict(text.split(":") for text in texts[: self.max_rules] if ":" in text)
        words = [text for text in texts[self.max_rules :] if text[-1].isdecimal()]
        return build_tree(self.labels, [word.rstrip("0123456789") for word in words], words), rules


@dataclass(frozen=True, kw_only=True)
class _Example:
    """A sentence with its rules and its output, and the number of rules of held-out pairs that change the output."""

    tree: DependencyTree
    rules: Rules
    output: Sequence[str]
    num_held_out: int


def _make_rng(generator: torch.Generator) -> random.Random:
    return random.Random(int(torch.randint(2**62, (1,), generator=generator)))


def _pad_parts(lengths: Sequence[int], blank: int, *parts: Sequence[int]) -> list[int]:
    """Return the parts of a sequence, each padded on the right to its length."""
    padded = ([*part, *[blank] * (length - len(part))] for length, part in zip(lengths, parts, strict=True))
    return [value for part in padded for value in part]
