"""Every view has the numbers of the public interface, and its code computes them again."""

import itertools

import numpy as np
import pytest
import torch

from mesascope.activations import capture
from mesascope.analyses.stream.token_lenses import logit_lens
from mesascope.explorer import (
    explore_model,
    view_ablation,
    view_attribution,
    view_lens,
    view_patching,
    view_pattern,
    view_tokens,
)
from mesascope.inspection import encode_prompt
from mesascope.interventions import patch
from small_tokenizers import make_sentencepiece

PROMPT = "the statement is a list"
OTHER = "the expression is a list"


@pytest.fixture(autouse=True)
def _whole_vocabulary(monkeypatch):
    """Views may list all tokens, so that whole predictions can be compared."""
    monkeypatch.setattr("mesascope.explorer.views.MAX_K", 400)


@pytest.fixture(scope="module")
def space(subject):
    """The names that the code of a model in memory needs."""
    return {"model": subject.model, "tokenizer": make_sentencepiece()}


@pytest.fixture(scope="module")
def pair(subject):
    """Two prompts of as many tokens, and the first position at which they differ."""
    words = ["list", "class", "value", "name", "object", "type", "string", "module"]
    lengths = {word: len(subject.source.read_input(f"the {word} is a")) for word in words}
    first, second = next(two for two in itertools.combinations(words, 2) if lengths[two[0]] == lengths[two[1]])
    rows = [subject.source.read_input(f"the {word} is a").values[0].tolist() for word in (first, second)]
    differing = next(k for k, tokens in enumerate(zip(*rows, strict=True)) if len(set(tokens)) == 2)
    return f"the {first} is a", f"the {second} is a", differing


def rerun(view, space):
    found = dict(space)
    exec(compile(view["code"], "code of a view", "exec"), found)
    return found


def plain(tensor):
    return tensor.tolist()


def test_tokens_join_to_the_prompt_and_begin_as_the_tokenizer_begins_a_text(subject):
    view = view_tokens(subject, PROMPT)
    assert "".join(one["text"] for one in view["tokens"][1:]).strip() == PROMPT
    assert view["tokens"][0]["text"] == "<s>"


def test_losses_and_norms_are_those_of_the_model(subject, space):
    view = view_tokens(subject, PROMPT)
    tokens = torch.tensor([[one["id"] for one in view["tokens"]]])
    with torch.no_grad():
        found = subject.model(tokens, output_hidden_states=True)
    losses = torch.nn.functional.cross_entropy(found.logits[0, :-1], tokens[0, 1:], reduction="none")
    assert view["loss"][0] is None
    assert view["probability"][-1] is None
    assert np.allclose(view["loss"][1:], losses, atol=1e-6)
    assert np.allclose(view["probability"][:-1], losses.neg().exp(), atol=1e-6)
    assert np.allclose(view["norm"][0], found.hidden_states[0][0].norm(dim=-1), atol=1e-5)
    again = rerun(view, space)
    assert (view["loss"][1:], view["probability"][:-1]) == (plain(again["loss"]), plain(again["probability"]))
    assert view["norm"] == plain(again["norm"])
    assert len(view["norm"]) == len(view["depths"]) == subject.layers + 1


def test_a_pattern_is_that_of_its_head(subject, space):
    view = view_pattern(subject, PROMPT, 2, 3)
    tokens = torch.tensor([[one["id"] for one in view_tokens(subject, PROMPT)["tokens"]]])
    assert view["pattern"] == plain(capture(subject.model, tokens, ["pattern"])["pattern"][2, 0, 3])
    assert view["pattern"] == plain(rerun(view, space)["pattern"])


def test_the_last_depth_of_the_lens_is_the_prediction(subject, space):
    view = view_lens(subject, PROMPT, 3, k=400)
    ids = encode_prompt(PROMPT, space["tokenizer"], subject.model, "tiny")
    acts = capture(subject.model, [ids], ["resid_pre", "resid_post", "output"])
    expected = acts["output"][0, 3].softmax(-1)
    last = {one["id"]: one["probability"] for one in view["rows"][-1]["top"]}
    assert np.allclose([last[token] for token in range(400)], expected, atol=1e-6)
    again = rerun(view_lens(subject, PROMPT, 3), space)
    assert [[one["id"] for one in row["top"]] for row in view_lens(subject, PROMPT, 3)["rows"]] == plain(again["token"])
    assert [[one["probability"] for one in row["top"]] for row in view["rows"]] == plain(
        rerun(view, space)["probability"]
    )


def test_the_lens_agrees_with_the_analysis(subject):
    inputs = subject.source.read_input(PROMPT)
    acts = capture(subject.model, inputs.values, ["resid_pre", "resid_post", "output"], reduce=logit_lens.reductions)
    losses = logit_lens(acts)["loss_by_position"].values[:, 0]
    target = int(inputs.values[0, 3])
    for depth, row in enumerate(view_lens(subject, PROMPT, 2, k=400)["rows"]):
        probability = next(one["probability"] for one in row["top"] if one["id"] == target)
        assert np.isclose(-np.log(probability), losses[depth, 2], atol=1e-5)


@pytest.mark.parametrize("token", [None, 7])
def test_contributions_sum_to_the_logit(subject, space, token):
    view = view_attribution(subject, PROMPT, 4, token)
    parts = np.sum(view["head"]) + np.sum(view["mlp"]) + np.sum(view["attention_bias"])
    assert np.isclose(parts + view["embedding"] + view["readout_bias"], view["total"], atol=1e-9)
    assert np.isclose(view["total"], view["logit"], atol=1e-4)
    assert view["token"]["id"] == (view["top"][0]["id"] if token is None else token)
    again = rerun(view, space)["contributions"]
    assert (view["head"], view["mlp"]) == (plain(again.head[..., 0]), plain(again.mlp[:, 0]))


@pytest.mark.parametrize("method", ["zero", "mean"])
def test_heads_that_are_switched_off_change_the_prediction_as_the_edit_does(subject, space, method):
    view = view_ablation(subject, PROMPT, [[2, 1], [0, 3], [0, 1], [2, 1]], method, position=3, k=400)
    again = rerun(view, space)
    order = [row["id"] for row in view["rows"]]
    assert [row["before"] for row in view["rows"]] == plain(again["before"][order])
    assert [row["after"] for row in view["rows"]] == plain(again["after"][order])
    assert [edit.where["head"] for edit in again["edits"]] == [[1, 3], [1]]
    log_ratio = (again["before"].log() - again["after"].log()).double()
    assert np.isclose(view["kl"], float((again["before"] * log_ratio).sum()), atol=1e-6)
    assert view["kl"] > 1e-4
    assert view["notes"] == []
    if method == "mean":
        assert again["reference_tokens"].shape == (16, len(view_tokens(subject, PROMPT)["tokens"]))
        assert again["reference_tokens"][:, 0].unique().tolist() == [1]  # <s>, as before the prompt


def test_a_head_that_writes_nothing_is_noted(subject, monkeypatch):
    projection = subject.model.model.layers[1].self_attn.v_proj.weight
    kept = projection.detach().clone()
    with torch.no_grad():
        projection.zero_()
    try:
        view = view_ablation(subject, PROMPT, [[1, 0]])
    finally:
        with torch.no_grad():
            projection.copy_(kept)
    assert view["kl"] == 0
    assert "no effect" in view["notes"][0]


@pytest.mark.parametrize("site", ["resid_pre", "z"])
@pytest.mark.parametrize("layer", [0, 2])
def test_a_patch_is_that_of_the_interventions(subject, space, pair, site, layer):
    first, second, position = pair
    view = view_patching(subject, first, second, site, layer, position, k=400)
    again = rerun(view, space)
    order = [row["id"] for row in view["rows"]]
    for name in ("before", "after"):
        assert [row[name] for row in view["rows"]] == plain(again[name][order])
    target = order[0]
    found = patch(
        subject.model,
        again["tokens"],
        again["source_tokens"],
        lambda logits: logits[:, -1].log_softmax(-1)[:, target],
        site,
        ["layer", "pos"],
        where={"layer": layer, "pos": position},
    )
    assert np.isclose(found["value"].values.item(), np.log(view["rows"][0]["after"]), atol=1e-6)
    changes_last = site == "resid_pre" or layer == 0  # z of the last layer reaches its own position alone
    assert (view["kl"] > 0) is changes_last


def test_a_patched_stream_at_its_own_position_gives_the_prediction_of_the_second_prompt(subject, pair):
    """Where the prompts differ for the first time, all that the position attends to before is the same."""
    first, second, position = pair
    view = view_patching(subject, first, second, "resid_pre", 2, position, read_position=position, k=400)
    assert np.allclose([row["after"] for row in view["rows"]], [row["source"] for row in view["rows"]], atol=1e-6)


def test_one_head_can_be_patched(subject, pair, space):
    first, second, position = pair
    view = view_patching(subject, first, second, "z", 1, position, head=2)
    again = rerun(view, space)
    assert again["edit"].where == {"layer": 1, "pos": position, "head": 2}
    assert [row["after"] for row in view["rows"]] == plain(again["after"][[row["id"] for row in view["rows"]]])
    assert view["rows"] != view_patching(subject, first, second, "z", 1, position)["rows"]


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda s: view_tokens(s, ""), "a prompt must not be empty"),
        (lambda s: view_tokens(s, "word " * 100), r"a prompt must fit into the context of the model, 40 tokens, but"),
        (lambda s: view_tokens(s, "x" * 30_000), "up to 20000 characters"),
        (lambda s: view_tokens(s, 3), "a prompt must be a text, but got 3"),
        (lambda s: view_pattern(s, PROMPT, 3, 0), "layer must be from 0 to 2, but got 3"),
        (lambda s: view_pattern(s, PROMPT, 0, -1), "head must be from 0 to 3, but got -1"),
        (lambda s: view_lens(s, PROMPT, 99), "position must be from 0 to"),
        (lambda s: view_lens(s, PROMPT, 0, k=0), "k must be from 1 to 400, but got 0"),
        (lambda s: view_attribution(s, PROMPT, 0, 400), "token must be from 0 to 399, but got 400"),
        (lambda s: view_ablation(s, PROMPT, []), "heads must have one head or more"),
        (lambda s: view_ablation(s, PROMPT, [[0, 4]]), "head must be from 0 to 3, but got 4"),
        (lambda s: view_ablation(s, PROMPT, [[0, 0]], "median"), "a method must be one of zero, mean"),
        (lambda s: view_patching(s, PROMPT, "the", "resid_pre", 0, 0), "both prompts must have as many tokens"),
        (lambda s: view_patching(s, PROMPT, PROMPT, "mlp_out", 0, 0), "a site must be one of resid_pre, z"),
        (lambda s: view_patching(s, PROMPT, PROMPT, "resid_pre", 0, 0, head=1), "head must be given at z only"),
        (lambda s: view_patching(s, PROMPT, PROMPT, "resid_pre", 9, 0), "layer must be from 0 to 2, but got 9"),
    ],
)
def test_mistakes_are_one_line(subject, call, line):
    with pytest.raises(ValueError, match=line) as caught:
        call(subject)
    assert "\n" not in str(caught.value)


def test_a_prompt_is_a_comment_of_the_code_and_no_code(subject, space):
    prompt = 'a"\n\u2028import os; os.abort() #'
    view = view_tokens(subject, prompt)
    assert [one["id"] for one in view["tokens"]] == rerun(view, space)["tokens"][0].tolist()


@pytest.mark.parametrize(("argument", "value"), [("model", object()), ("tokenizer", {}), ("name", 3)])
def test_what_cannot_be_explored_is_refused_by_name(subject, argument, value):
    valid = {"model": subject.model, "tokenizer": make_sentencepiece(), "name": "tiny"}
    with pytest.raises(ValueError, match=f"{argument} must be ") as caught:
        explore_model(**{**valid, argument: value})
    assert len(str(caught.value).splitlines()) == 1
