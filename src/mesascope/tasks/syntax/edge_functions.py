"""Functions of edges of a dependency tree, and the transformation of a sentence by one function per label.

The 14 functions of Lindemann, Koller & Titov, Strengthening Structural Inductive Biases by Pre-training to Perform
Syntactic Transformations (arXiv 2407.04543).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mesascope.tasks.syntax.dependency_trees import DependencyTree

Words = list[str]


@dataclass(frozen=True, kw_only=True)
class Edge:
    """An edge, and what has been computed on both sides of it.

    Attributes:
        head: output of the head and of the dependents before this one, from the inside out.
        dependent: output of the dependent and all below it.
        label: label of the edge.
        head_lemma: lemma of the head.
        dependent_lemma: lemma of the dependent.
        is_after: whether the dependent is after the head in the sentence.
        is_leaf: whether the dependent has no dependents.
        is_first: whether no dependent before this one, from the inside out, has the same function.
        is_last: whether no dependent after this one has the same function.
    """

    head: Words
    dependent: Words
    label: str
    head_lemma: str
    dependent_lemma: str
    is_after: bool
    is_leaf: bool
    is_first: bool
    is_last: bool

    @property
    def in_order(self) -> tuple[Words, Words]:
        """Head and dependent in the order of the sentence."""
        return (self.head, self.dependent) if self.is_after else (self.dependent, self.head)

    @property
    def rest(self) -> Words:
        """The dependent and all below it, unless nothing is below it."""
        return [] if self.is_leaf else self.dependent


def _join(*parts: str | Words) -> Words:
    """Return words and lists of words as one list."""
    return [word for part in parts for word in ([part] if isinstance(part, str) else part)]


def _concat(edge: Edge) -> Words:
    first, second = edge.in_order
    return _join(first, second)


def _concat_rel(edge: Edge) -> Words:
    first, second = edge.in_order
    return _join(first, edge.label, second)


def _rev(edge: Edge) -> Words:
    first, second = edge.in_order
    return _join(second, first)


def _rev_rel(edge: Edge) -> Words:
    first, second = edge.in_order
    return _join(second, edge.label, first)


def _bracket_full(edge: Edge) -> Words:
    """Return the head with all dependents of this function in one bracket, between commas."""
    opening = "(" if edge.is_first else ","
    return _join(edge.head, opening, edge.label, edge.dependent, [")"] if edge.is_last else [])


EDGE_FUNCTIONS: Mapping[str, Callable[[Edge], Words]] = {
    "concat": _concat,
    "concat-rel": _concat_rel,
    "rev": _rev,
    "rev-rel": _rev_rel,
    "triple": lambda edge: _join(edge.head, "(", edge.head_lemma, edge.label, edge.dependent_lemma, ")", edge.rest),
    "triple-inv": lambda edge: _join(
        edge.head, "(", edge.dependent_lemma, edge.label, "by", edge.head_lemma, ")", edge.rest
    ),
    "bracket-1": lambda edge: _join(edge.head, "(", edge.label, edge.dependent, ")"),
    "bracket-1-inv": lambda edge: _join(edge.dependent, "(", edge.label, "by", edge.head, ")"),
    "bracket-2": lambda edge: _join("(", edge.head, edge.label, edge.dependent, ")"),
    "bracket-2-inv": lambda edge: _join("(", edge.dependent, edge.label, "by", edge.head, ")"),
    "bracket-3": lambda edge: _join(edge.head, "(", edge.dependent, ")"),
    "bracket-4": lambda edge: _join(edge.head, edge.label, "(", edge.dependent, ")"),
    "ignore-dep": lambda edge: edge.head,
    "bracket-full": _bracket_full,
}
SYMBOLS = ("(", ")", ",", "by")  # that functions add, beside words, lemmas and labels
DEFAULT = "concat"  # the function of labels without a rule
NAMES = tuple(EDGE_FUNCTIONS)


def transform(tree: DependencyTree, rules: Mapping[str, str]) -> Words:
    """Transform a sentence: fold the dependents of every word into it, from the inside out.

    Args:
        tree: the sentence.
        rules: function by label; edges with other labels are concatenated in the order of the sentence.

    Returns:
        The words of the output.

    Raises:
        ValueError: a function does not exist.

    >>> tree = DependencyTree(words=("two", "cats", "sleep"), lemmas=("two", "cat", "sleep"), heads=(1, 2, -1),
    ...                       labels=("nummod", "nsubj", "root"))
    >>> " ".join(transform(tree, {"nsubj": "bracket-1"}))
    'sleep ( nsubj two cats )'
    >>> " ".join(transform(tree, {"nsubj": "rev", "nummod": "triple-inv"}))
    'sleep cats ( two nummod by cat )'
    """
    if wrong := [name for name in rules.values() if name not in EDGE_FUNCTIONS]:
        raise ValueError(f"a function must be one of {', '.join(NAMES)}, but got {wrong[0]!r}")
    return _transform_subtree(tree, tree.root, rules)


def _transform_subtree(tree: DependencyTree, head: int, rules: Mapping[str, str]) -> Words:
    dependents = tree.dependents(head)
    functions = [rules.get(tree.labels[one], DEFAULT) for one in dependents]
    output = [tree.words[head]]
    for index, (dependent, function) in enumerate(zip(dependents, functions, strict=True)):
        edge = Edge(
            head=output,
            dependent=_transform_subtree(tree, dependent, rules),
            label=tree.labels[dependent],
            head_lemma=tree.lemmas[head],
            dependent_lemma=tree.lemmas[dependent],
            is_after=dependent > head,
            is_leaf=not tree.dependents(dependent),
            is_first=function not in functions[:index],
            is_last=function not in functions[index + 1 :],
        )
        output = EDGE_FUNCTIONS[function](edge)
    return output


def find_effective_labels(tree: DependencyTree, rules: Mapping[str, str]) -> Sequence[str]:
    """Return the labels whose rule changes the output: without it, the output would be another one.

    Args:
        tree: the sentence.
        rules: function by label.
    """
    output = transform(tree, rules)
    return [label for label in rules if transform(tree, {**rules, label: DEFAULT}) != output]
