"""Dependency trees of sentences."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

ROOT = -1  # head of the word that has none


@dataclass(frozen=True, kw_only=True)
class DependencyTree:
    """A sentence whose words are connected by labelled edges from heads to dependents.

    Attributes:
        words: the words, in the order of the sentence.
        lemmas: the lemma of every word.
        heads: the index of the head of every word; `ROOT` for one word.
        labels: the label of the edge from its head to every word.

    Raises:
        ValueError: the lists differ in length, a head does not exist, there is not one root, or edges form a cycle.

    >>> tree = DependencyTree(words=("two", "cats", "sleep"), lemmas=("two", "cat", "sleep"), heads=(1, 2, -1),
    ...                       labels=("nummod", "nsubj", "root"))
    >>> tree.root, tree.dependents(2), tree.dependents(1)
    (2, (1,), (0,))
    """

    words: tuple[str, ...]
    lemmas: tuple[str, ...]
    heads: tuple[int, ...]
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        """Validate the tree."""
        lengths = [len(each) for each in (self.words, self.lemmas, self.heads, self.labels)]
        if len(set(lengths)) > 1 or not self.words:
            raise ValueError(f"a tree must have one lemma, head and label per word, but their numbers are {lengths}")
        if wrong := [head for head in self.heads if head != ROOT and not 0 <= head < len(self.words)]:
            raise ValueError(f"heads must be words of the sentence or {ROOT}, but got {wrong[0]}")
        if self.heads.count(ROOT) != 1:
            raise ValueError(f"one word must be the root, but there are {self.heads.count(ROOT)}")
        for word in range(len(self.words)):
            if is_on_cycle(self.heads, word):
                raise ValueError(f"edges must not form a cycle, but {self.words[word]!r} is its own ancestor")

    def __len__(self) -> int:
        """Return the number of words."""
        return len(self.words)

    @property
    def root(self) -> int:
        """The index of the root."""
        return self.heads.index(ROOT)

    @cached_property
    def _dependents(self) -> tuple[tuple[int, ...], ...]:
        """By word, its dependents from the inside out."""
        by_head: list[list[int]] = [[] for _ in self.heads]
        for word, head in enumerate(self.heads):
            if head != ROOT:
                by_head[head].append(word)
        return tuple(
            (*reversed([one for one in each if one < head]), *(one for one in each if one > head))
            for head, each in enumerate(by_head)
        )

    def dependents(self, head: int) -> tuple[int, ...]:
        """Return the dependents of a word from the inside out: those before it, the nearest first, then those after it.

        Args:
            head: index of the word.
        """
        return self._dependents[head]

    @property
    def is_projective(self) -> bool:
        """True if every word and its descendants are adjacent."""
        return all(len(span) == max(span) - min(span) + 1 for span in map(self._descendants, range(len(self))))

    def _descendants(self, word: int) -> set[int]:
        below = (self._descendants(one) for one in self.dependents(word))
        return {word}.union(*below)


def is_on_cycle(heads: Sequence[int], word: int) -> bool:
    """Return whether a word is its own ancestor.

    Args:
        heads: the head of every word.
        word: index of the word.
    """
    ancestor, steps = heads[word], 0
    while ancestor not in (ROOT, word) and steps < len(heads):
        ancestor, steps = heads[ancestor], steps + 1
    return ancestor == word
