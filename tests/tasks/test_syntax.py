"""Dependency trees, functions of edges and sentences with levels, against independent definitions."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesascope.tasks.syntax.dependency_trees import ROOT, DependencyTree
from mesascope.tasks.syntax.edge_functions import DEFAULT, NAMES, SYMBOLS, find_effective_labels, transform
from mesascope.tasks.syntax.levels import ROOT_LABEL, LevelLabels, build_tree
from mesascope.tasks.syntax.treebank import load_treebank

LEVELS = LevelLabels(num_levels=3)
RULES = st.dictionaries(st.sampled_from(LEVELS.names), st.sampled_from(NAMES), max_size=len(LEVELS.names))


@st.composite
def sentences(draw: st.DrawFn) -> DependencyTree:
    labels = LEVELS.draw(random.Random(draw(st.integers(0, 10**6))), draw(st.integers(1, 9)))
    return build_tree(LEVELS, labels, [f"w{index}" for index in range(len(labels))])


def make_tree() -> DependencyTree:
    """Return "the old man saw two cats": saw > man > the, old; saw > cats > two."""
    return DependencyTree(
        words=("the", "old", "man", "saw", "two", "cats"),
        lemmas=("the", "old", "man", "see", "two", "cat"),
        heads=(2, 2, 3, -1, 5, 3),
        labels=("det", "amod", "nsubj", "root", "nummod", "obj"),
    )


@pytest.mark.parametrize(
    ("function", "output"),
    [
        ("concat", "the old man saw two cats"),
        ("concat-rel", "the old man saw obj two cats"),
        ("rev", "two cats the old man saw"),
        ("rev-rel", "two cats obj the old man saw"),
        ("triple", "the old man saw ( see obj cat ) two cats"),
        ("triple-inv", "the old man saw ( cat obj by see ) two cats"),
        ("bracket-1", "the old man saw ( obj two cats )"),
        ("bracket-1-inv", "two cats ( obj by the old man saw )"),
        ("bracket-2", "( the old man saw obj two cats )"),
        ("bracket-2-inv", "( two cats obj by the old man saw )"),
        ("bracket-3", "the old man saw ( two cats )"),
        ("bracket-4", "the old man saw obj ( two cats )"),
        ("ignore-dep", "the old man saw"),
        ("bracket-full", "the old man saw ( obj two cats )"),
    ],
)
def test_every_function_on_one_edge(function, output):
    assert " ".join(transform(make_tree(), {"obj": function})) == output


def test_triples_leave_out_a_dependent_that_is_a_leaf():
    assert " ".join(transform(make_tree(), {"det": "triple"})) == "old man ( man det the ) saw two cats"


def test_full_brackets_join_the_dependents_of_one_word():
    tree = make_tree()
    assert " ".join(transform(tree, {"det": "bracket-full", "amod": "bracket-full"})) == (
        "man ( amod old , det the ) saw two cats"
    )
    every = transform(tree, dict.fromkeys(("nsubj", "obj", "nummod"), "bracket-full"))
    assert " ".join(every) == "saw ( nsubj the old man , obj cats ( nummod two ) )"


def test_dependents_are_folded_from_the_inside_out():
    both = transform(make_tree(), {"det": "rev", "amod": "rev"})
    assert " ".join(both) == "man old the saw two cats"


def test_an_unknown_function_is_refused():
    with pytest.raises(ValueError, match=r"a function must be one of concat, .*, but got 'copy'"):
        transform(make_tree(), {"obj": "copy"})


@settings(max_examples=100, deadline=None)
@given(sentences())
def test_concatenation_is_the_sentence_of_a_projective_tree(tree):
    assert tree.is_projective
    assert transform(tree, {}) == list(tree.words)
    assert transform(tree, dict.fromkeys(LEVELS.names, DEFAULT)) == list(tree.words)


@settings(max_examples=100, deadline=None)
@given(sentences(), st.sampled_from(("rev", "bracket-2-inv")))
def test_reversing_every_edge_reverses_the_words(tree, function):
    """Every dependent goes to the other side of its head, where the innermost one stays the innermost."""
    output = [word for word in transform(tree, dict.fromkeys(LEVELS.names, function)) if word in tree.words]
    if function == "rev":
        assert output == list(reversed(tree.words))
    assert sorted(output) == sorted(tree.words)


@settings(max_examples=200, deadline=None)
@given(sentences(), RULES)
def test_functions_keep_words_and_balance_brackets(tree, rules):
    output = transform(tree, rules)
    depth = 0
    for word in output:
        depth += (word == "(") - (word == ")")
        assert depth >= 0
    assert depth == 0
    assert set(output) <= {*tree.words, *SYMBOLS, *LEVELS.names}
    if not {"ignore-dep", "triple", "triple-inv"} & set(rules.values()):
        assert sorted(word for word in output if word in tree.words) == sorted(tree.words)
    if "ignore-dep" not in rules.values():
        assert set(tree.words) <= set(output)


@settings(max_examples=100, deadline=None)
@given(sentences(), RULES)
def test_effective_labels_are_those_without_which_the_output_changes(tree, rules):
    effective = find_effective_labels(tree, rules)
    assert set(effective) <= set(tree.labels) & set(rules)
    for label in set(rules) - set(effective):
        assert transform(tree, {key: value for key, value in rules.items() if key != label}) == transform(tree, rules)
    if not effective and len(rules) == 1:
        assert transform(tree, rules) == list(tree.words)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 4))
def test_labels_have_exactly_one_tree(seed, num_words, num_levels):
    """The labels name each dependent's side and level, and the tree that was drawn is the one that is parsed."""
    levels = LevelLabels(num_levels=num_levels)
    labels = levels.draw(random.Random(seed), num_words)
    heads = levels.parse(labels)
    tree = DependencyTree(words=labels, lemmas=labels, heads=heads, labels=labels)
    assert len(tree) == num_words
    assert tree.is_projective
    for word, (head, label) in enumerate(zip(heads, labels, strict=True)):
        if head != ROOT:
            assert levels.get_level(labels[head]) == levels.get_level(label) - 1
            assert (word < head) == label.endswith("l")


def test_every_sequence_of_labels_is_drawn():
    """With three words and two levels there are six trees with ordered sides."""
    rng, levels = random.Random(0), LevelLabels(num_levels=2)
    drawn = {levels.draw(rng, 3) for _ in range(300)}
    assert drawn == {
        ("al", "al", "root"),
        ("al", "root", "ar"),
        ("root", "ar", "ar"),
        ("bl", "al", "root"),
        ("al", "br", "root"),
        ("root", "bl", "ar"),
        ("root", "ar", "br"),
    }


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["al"], "one word must be the root, but there are 0"),
        (["root", "al"], r"a word must have a head of the level above, but word 1 \(al\) has none"),
        (["bl", "root"], r"but word 0 \(bl\) has none"),
    ],
)
def test_labels_without_a_tree_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        LEVELS.parse(labels)


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ((-1, -1), "one word must be the root, but there are 2"),
        ((1, 0), "one word must be the root, but there are 0"),
        ((-1, 5), "heads must be words of the sentence or -1, but got 5"),
        ((-1, 0, 0), "a tree must have one lemma, head and label per word, but their numbers are"),
    ],
)
def test_heads_without_a_tree_are_refused(heads, message):
    with pytest.raises(ValueError, match=message):
        DependencyTree(words=("a", "b"), lemmas=("a", "b"), heads=heads, labels=(ROOT_LABEL, "al"))


def test_a_cycle_is_refused():
    with pytest.raises(ValueError, match="edges must not form a cycle, but 'b' is its own ancestor"):
        DependencyTree(words=("a", "b", "c"), lemmas=("a", "b", "c"), heads=(-1, 2, 1), labels=("root", "x", "y"))


def test_a_tree_that_is_not_projective_is_transformed():
    """Crossing edges are folded like others: the output is that of the tree, not the sentence."""
    tree = DependencyTree(
        words=tuple("abcd"), lemmas=tuple("abcd"), heads=(2, 3, -1, 2), labels=("x", "y", "root", "z")
    )
    assert not tree.is_projective
    assert transform(tree, {}) == list("acbd")


SENTENCE = [
    "# text = two cats",
    "1-2\ttwocats\t_\t_\t_\t_\t_\t_\t_\t_",
    "1\ttwo\ttwo\tNUM\t_\t_\t2\tnummod\t_\t_",
    "1.1\tgap\t_\t_\t_\t_\t_\t_\t_\t_",
    "2\tcats\tcat\tNOUN\t_\t_\t0\troot\t_\t_",
]


def write_treebank(folder, *lines: str):
    file = folder / "bank.conllu"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def test_a_treebank_is_read(tmp_path):
    single = "1\tGo\t_\tVERB\t_\t_\t0\troot\t_\t_"
    trees = load_treebank(write_treebank(tmp_path, *SENTENCE, "", "", single))
    assert [tree.words for tree in trees] == [("two", "cats"), ("Go",)]
    assert trees[0].heads == (1, ROOT)
    assert (trees[0].lemmas, trees[1].lemmas) == (("two", "cat"), ("Go",))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["1\ta\ta\t_\t_\t_\t0\troot\t_"], "line 1: a word must have 10 columns between tabs, but it has 9"),
        (["1\ta\ta\t_\t_\t_\t7\tx\t_\t_"], "line 1: the head must be 0 or a word from 1 to 1, but it is '7'"),
        (["1\ta\ta\t_\t_\t_\t_\tx\t_\t_"], "line 1: the head must be 0 or a word from 1 to 1, but it is '_'"),
        (["2\ta\ta\t_\t_\t_\t0\tx\t_\t_"], "line 1: words must be numbered 1, 2, ..., but this one is '2'"),
        (
            [f"{n}\tw{n}\t_\t_\t_\t_\t{head}\tx\t_\t_" for n, head in ((1, 0), (2, 3), (3, 2))],
            "line 2: edges must not form a cycle, but 'w2' is its own ancestor",
        ),
        (
            [f"{n}\tw{n}\t_\t_\t_\t_\t{head}\tx\t_\t_" for n, head in ((1, 0), (2, 1), (3, 0))],
            "line 3: one word must be the root, but there are 2",
        ),
        (
            [f"{n}\tw{n}\t_\t_\t_\t_\t{head}\tx\t_\t_" for n, head in ((1, 2), (2, 1))],
            "line 1: one word must be the root, but there are 0",
        ),
        (["# nothing"], "bank.conllu must have at least one sentence, but has none"),
    ],
)
def test_a_bad_treebank_is_named_with_file_and_line(tmp_path, lines, message):
    file = write_treebank(tmp_path, *lines)
    with pytest.raises(ValueError, match=message) as caught:
        load_treebank(file)
    assert str(file) in str(caught.value)


def test_a_missing_treebank_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must be a readable file in UTF-8, but"):
        load_treebank(tmp_path / "none.conllu")
