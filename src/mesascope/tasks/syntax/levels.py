"""Sentences whose dependency tree follows from the labels of their words.

Every label has a level and a side. A word of level k is the dependent of the nearest word of level k - 1 on the side of
its head, so that a sentence has exactly one tree, and a reader finds it from the labels alone.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from mesascope.tasks.syntax.dependency_trees import ROOT, DependencyTree

ROOT_LABEL = "root"
LEVEL_NAMES = "abcdefgh"
SIDES = ("l", "r")  # of the dependent: before or after its head


@dataclass(frozen=True, kw_only=True)
class LevelLabels:
    """Labels of some levels, with two sides each, such as ``al``: level 1, before its head.

    Attributes:
        num_levels: number of levels below the root.

    >>> LevelLabels(num_levels=2).names
    ('al', 'ar', 'bl', 'br')
    """

    num_levels: int

    def __post_init__(self) -> None:
        """Validate the number of levels."""
        if not 1 <= self.num_levels <= len(LEVEL_NAMES):
            raise ValueError(f"num_levels must be from 1 to {len(LEVEL_NAMES)}, but got {self.num_levels}")

    @property
    def names(self) -> tuple[str, ...]:
        """The labels without that of the root."""
        return tuple(level + side for level in LEVEL_NAMES[: self.num_levels] for side in SIDES)

    def get_level(self, label: str) -> int:
        """Return the level of a label; that of the root is 0.

        Args:
            label: the label.
        """
        return 0 if label == ROOT_LABEL else 1 + LEVEL_NAMES.index(label[0])

    def parse(self, labels: Sequence[str]) -> tuple[int, ...]:
        """Return the head of every word.

        Args:
            labels: the label of every word.

        Returns:
            Indices of the heads; `ROOT` for the root.

        Raises:
            ValueError: a word has no head, or there is not one root.

        >>> LevelLabels(num_levels=2).parse(["bl", "al", "root", "ar", "br"])
        (1, 2, -1, 2, 3)
        """
        if labels.count(ROOT_LABEL) != 1:
            raise ValueError(f"one word must be the root, but there are {labels.count(ROOT_LABEL)}")
        levels, heads = [self.get_level(label) for label in labels], []
        for word, label in enumerate(labels):
            if label == ROOT_LABEL:
                heads.append(ROOT)
                continue
            towards_head = range(word + 1, len(labels)) if label[1] == SIDES[0] else range(word - 1, -1, -1)
            head = next((one for one in towards_head if levels[one] == levels[word] - 1), None)
            if head is None:
                raise ValueError(f"a word must have a head of the level above, but word {word} ({label}) has none")
            heads.append(head)
        return tuple(heads)

    def draw(self, rng: random.Random, num_words: int) -> tuple[str, ...]:
        """Draw the labels of a sentence.

        Words are added one after another: each becomes the outermost dependent, before or after, of a word drawn
        uniformly from those that are not of the lowest level.

        Args:
            rng: source of randomness.
            num_words: number of words.

        Returns:
            The label of every word, in the order of the sentence.
        """
        levels, dependents = [0], [([], [])]
        for _ in range(num_words - 1):
            head = rng.choice([one for one, level in enumerate(levels) if level < self.num_levels])
            dependents[head][rng.randrange(2)].append(len(levels))
            levels.append(levels[head] + 1)
            dependents.append(([], []))

        def list_labels(word: int, label: str) -> list[str]:
            names = [LEVEL_NAMES[levels[word]] + side for side in SIDES] if levels[word] < self.num_levels else ["", ""]
            before, after = (
                [list_labels(one, name) for one in each] for each, name in zip(dependents[word], names, strict=True)
            )
            return [each for part in (*reversed(before), [label], *after) for each in part]

        return tuple(list_labels(0, ROOT_LABEL))


def build_tree(levels: LevelLabels, labels: Sequence[str], words: Sequence[str]) -> DependencyTree:
    """Return the tree of a sentence; every word is its own lemma.

    Args:
        levels: the labels.
        labels: the label of every word.
        words: the words.
    """
    heads = levels.parse(labels)
    return DependencyTree(words=tuple(words), lemmas=tuple(words), heads=heads, labels=tuple(labels))
