"""Models of vectors: sequences with changed terms, and views with the numbers of the public interface."""

import json

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from mesascope.activations import capture
from mesascope.analyses import probe_and_logit_lens, run_analyses
from mesascope.explorer import (
    ExploredModel,
    create_app,
    explore_task_model,
    view_lens,
    view_objective,
    view_pattern,
    view_term_ablation,
    view_term_attribution,
    view_term_lens,
    view_term_patching,
    view_terms,
    view_tokens,
)
from mesascope.explorer.page import render_explorer
from mesascope.interventions import patch
from mesascope.models.transformer import Decoder, DecoderConfig
from mesascope.tasks.affine import Affine
from mesascope.tasks.regression import Regression
from mesascope.tasks.seeded import SeededSequences

PORT, TOKEN = 8123, "the-secret"
CHANGED = "3; 5=1.5"


def make_model(d_in: int = 1, d_out: int = 1, **options) -> Decoder:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "norm": "layer", "num_hidden_layers": 3}
    return Decoder(DecoderConfig(d_in=d_in, d_out=d_out, **shape, **options)).eval()


@pytest.fixture(scope="module")
def task() -> Affine:
    return Affine(length=12)


@pytest.fixture(scope="module")
def subject(task: Affine) -> ExploredModel:
    return explore_task_model(make_model(), task, "affine <b>model</b>")


@pytest.fixture(scope="module")
def client(subject: ExploredModel) -> TestClient:
    return TestClient(create_app(subject, TOKEN, PORT), base_url=f"http://127.0.0.1:{PORT}")


def draw(task, number):
    return task.sample(1, torch.Generator().manual_seed(number))


def rerun(subject, view):
    space = {"model": subject.model, "task": subject.source.task}
    exec(compile(view["code"], "code of a view", "exec"), space)
    return space


def test_a_sequence_is_that_of_the_task(subject, task):
    view, batch = view_terms(subject, 3), draw(task, 3)
    assert (view["number"], view["changes"]) == (3, [])
    assert view["inputs"] == batch.inputs[0].tolist()
    assert view["truth"] == batch.targets[0].tolist()
    with torch.no_grad():
        prediction = subject.model(batch.inputs).logits
    assert np.allclose(view["prediction"], prediction[0], atol=1e-6)
    assert np.allclose(view["loss"], (prediction - batch.targets).square().sum(-1)[0], rtol=1e-4, atol=1e-7)
    assert set(view["baselines"]) == set(task.baselines(batch))
    assert view["baselines"]["copy"] == view["inputs"]
    assert len(view["norm"]) == len(view["depths"]) == subject.layers + 1
    assert view_terms(subject, "3") == view == view_terms(subject, " 3 ; ")


def test_a_changed_term_has_no_truth_and_changes_what_follows(subject, task):
    plain, view = view_terms(subject, 3), view_terms(subject, CHANGED)
    assert view["changes"] == [[5, 0, 1.5]]
    assert view["inputs"][5] == [1.5]
    assert [k for k in range(12) if view["inputs"][k] != plain["inputs"][k]] == [5]
    assert view["truth"] == [*plain["truth"][:5], *[None] * 7]
    assert view["loss"][:5] == pytest.approx(plain["loss"][:5], rel=1e-4)
    assert view["loss"][5:] == [None] * 7
    assert np.allclose(view["prediction"][:5], plain["prediction"][:5], atol=1e-6)
    assert not np.isclose(view["prediction"][5:], plain["prediction"][5:], atol=1e-6).any()
    with torch.no_grad():
        changed = draw(task, 3).inputs.clone()
        changed[0, 5] = 1.5
        assert np.allclose(view["prediction"], subject.model(changed).logits[0], atol=1e-6)
    assert view["baselines"]["copy"][5] == [1.5]
    assert draw(task, 3).targets[0].tolist() == plain["truth"]  # the sequence of the task is unchanged


def test_the_code_of_every_view_computes_its_numbers(subject):
    for prompt in (3, CHANGED):
        view = view_terms(subject, prompt)
        again = rerun(subject, view)
        known = [k for k, value in enumerate(view["loss"]) if value is not None]
        assert view["prediction"] == again["prediction"][0].tolist()
        assert [view["loss"][k] for k in known] == again["loss"][known].tolist()
        assert again["weight"][0].bool().tolist() == [value is not None for value in view["loss"]]
        assert view["norm"] == again["norm"].tolist()
        assert view["baselines"]["least squares"] == again["baselines"]["least squares"][0].tolist()
        view = view_pattern(subject, prompt, 2, 1)
        assert view["pattern"] == rerun(subject, view)["pattern"].tolist()
        view = view_term_lens(subject, prompt, 4)
        again = rerun(subject, view)
        assert [row["prediction"] for row in view["rows"]] == again["prediction"][:, 4].tolist()
        assert [row["loss"] for row in view["rows"]] == again["loss"][:, 4].tolist()
        assert [row["mean_loss"] for row in view["rows"]] == pytest.approx(again["mean_loss"].tolist(), rel=1e-5)
        view = view_term_attribution(subject, prompt, 4)
        contributions = rerun(subject, view)["contributions"]
        assert view["head"][2][1] == float(contributions["head 2.1"])
        assert view["mlp"][1] == float(contributions["mlp 1"])
        for view in (
            view_term_ablation(subject, prompt, [[2, 1], [0, 3], [0, 1]], "mean"),
            view_term_ablation(subject, prompt, [[1, 1]]),
            view_term_patching(subject, prompt, "7; 2=0.5, 3=-1", "z", 1, 4, head=2),
            view_term_patching(subject, prompt, 7, "resid_pre", 1, 4),
        ):
            again = rerun(subject, view)
            assert (view["before"], view["after"]) == (again["before"][0].tolist(), again["after"][0].tolist())
            assert view["loss_before"] == pytest.approx(float(again["loss_before"]), rel=1e-5)
            assert view["loss_after"] == pytest.approx(float(again["loss_after"]), rel=1e-5)
            assert view["change"] > 0


def test_the_last_depth_of_the_lens_is_the_prediction(subject, task):
    terms, view = view_terms(subject, 3), view_term_lens(subject, 3, 4)
    assert np.allclose(view["rows"][-1]["prediction"], terms["prediction"][4], atol=1e-6)
    assert view["rows"][-1]["loss"] == pytest.approx(terms["loss"][4], rel=1e-4)
    batch = draw(task, 3)
    two = type(batch)(
        **{name: getattr(batch, name).repeat(2, 1, 1) for name in ("inputs", "targets")},
        weight=batch.weight.repeat(2, 1),
    )
    errors = run_analyses(subject.model, two, [probe_and_logit_lens])["probe_and_logit_lens"]["logit_lens_error"]
    assert [row["mean_loss"] for row in view["rows"]] == pytest.approx(errors.values.tolist(), rel=1e-4)
    assert {row["loss"] for row in view_term_lens(subject, CHANGED, 5)["rows"]} == {None}
    assert None not in {row["mean_loss"] for row in view_term_lens(subject, CHANGED, 5)["rows"]}
    assert {row["mean_loss"] for row in view_term_lens(subject, "3; 0=1", 5)["rows"]} == {None}


def test_contributions_sum_to_the_prediction(subject):
    view = view_term_attribution(subject, CHANGED, 7)
    total = np.sum(view["head"]) + np.sum(view["mlp"]) + view["embedding"] + view["biases"]
    assert total == pytest.approx(view["total"], abs=1e-9)
    assert view["total"] == pytest.approx(view["prediction"], abs=1e-5)
    assert view["prediction"] == view_terms(subject, CHANGED)["prediction"][7][0]


@pytest.mark.parametrize("position", [0, 6])
def test_an_inner_objective_is_that_of_the_analysis(subject, position):
    for objective in ("linear", "quadratic", "hopfield", "fast_weight"):
        view = view_objective(subject, 3, position, objective)
        results = rerun(subject, view)["results"]
        assert [(row["layer"], row["sublayer"]) for row in view["rows"]][:2] == (
            [(0, "attention"), (0, "mlp")] if objective == "linear" else [(0, "attention"), (1, "attention")]
        )
        suffix = "_at_sinks" if position == 0 else ""  # the first position is a sink, with means of its own
        for row in view["rows"]:
            where = {"layer": row["layer"], "sublayer": row["sublayer"]}
            for name in ("before", "after", "cosine"):
                assert row[name] == pytest.approx(float(results[name + suffix].sel(where)), rel=1e-5, abs=1e-6)
        assert (view["tautology"] != "") is (objective in ("linear", "quadratic"))


def test_a_patch_is_that_of_the_interventions(subject, task):
    view = view_term_patching(subject, 3, 7, "resid_pre", 2, 5)
    found = patch(
        subject.model,
        draw(task, 3).inputs,
        draw(task, 7).inputs,
        lambda output: output[:, 8, 0],
        "resid_pre",
        ["layer", "pos"],
        where={"layer": 2, "pos": 5},
    )
    assert found["value"].values.item() == pytest.approx(view["after"][8][0], abs=1e-6)
    assert view["source"] == view_terms(subject, 7)["prediction"]
    last = view_term_patching(subject, 3, 7, "resid_pre", 2, 11)
    changed = [k for k in range(12) if last["before"][k] != pytest.approx(last["after"][k], abs=1e-6)]
    assert changed == [11]


def test_an_ablation_is_that_of_the_capture(subject, task):
    view = view_term_ablation(subject, 3, [[1, 2]])
    z = capture(subject.model, draw(task, 3).inputs, ["z"])["z"]
    assert z.shape[3] == subject.heads
    again = rerun(subject, view)
    assert [edit.where for edit in again["edits"]] == [{"layer": 1, "head": [2]}]
    difference = np.subtract(view["after"], view["before"])
    assert view["change"] == pytest.approx(np.sqrt((difference**2).mean()), rel=1e-5)


def test_vectors_of_several_coordinates_and_positions_without_a_truth():
    task = Regression(dim=3, num_examples=4)
    subject = explore_task_model(make_model(3, 1), task, "regression")
    view = view_terms(subject, "2; 1.0=-2, 4.2=1e-3")
    assert view["changes"] == [[1, 0, -2.0], [4, 2, 0.001]]
    assert view["inputs"][1][0] == -2
    assert view["inputs"][4][2] == pytest.approx(0.001)
    assert [value is not None for value in view_terms(subject, 2)["truth"]] == [True, False] * 4 + [True]
    assert [value is not None for value in view["truth"]] == [True] + [False] * 8
    assert len(view["prediction"][0]) == 1
    assert [value is not None for value in view["baselines"]["least squares"]] == [True, False] * 4 + [True]
    with pytest.raises(ValueError, match=r"a change must name one of 3 coordinates, such as 1\.0=1, but got '1=3'"):
        view_terms(subject, "2; 1=3")
    with pytest.raises(ValueError, match="the coordinate of a change must be from 0 to 2, but got 3"):
        view_terms(subject, "2; 1.3=3")
    with pytest.raises(ValueError, match="coordinate must be from 0 to 0, but got 1"):
        view_term_attribution(subject, 2, 0, 1)


def test_linear_attention_has_negative_weights():
    model = make_model(4, 1, attention="linear")
    subject = explore_task_model(model, Regression(dim=3, num_examples=4, layout="joined"), "linear attention")
    assert np.min(view_pattern(subject, 0, 0, 0)["pattern"]) < 0


MISTAKES = [
    (
        "terms",
        {"prompt": "abc"},
        "a sequence must be given by its number, with changes after a semicolon, such as '3; 5",
    ),
    ("terms", {"prompt": ""}, "from 0 to 2147483647, but got ''"),
    ("terms", {"prompt": -1}, "from 0 to 2147483647, but got -1"),
    ("terms", {"prompt": 2**31}, "from 0 to 2147483647, but got 2147483648"),
    ("terms", {"prompt": "٣"}, "from 0 to 2147483647, but got"),
    ("terms", {"prompt": "3; 5"}, "but a change is '5'"),
    ("terms", {"prompt": "3; 5=1, "}, "but a change is ''"),
    ("terms", {"prompt": "3; x=1"}, "but a change is 'x=1'"),
    ("terms", {"prompt": "3; 12=1"}, "the position of a change must be from 0 to 11, but got 12"),
    ("terms", {"prompt": "3; 5.1=1"}, "the coordinate of a change must be from 0 to 0, but got 1"),
    ("terms", {"prompt": "3; 5=1, 5.0=2"}, "a coordinate must be changed once, but 5.0 is changed twice"),
    ("terms", {"prompt": "3; 5=nan"}, "a changed value must be a number from -1,000,000 to 1,000,000, but got 'nan'"),
    ("terms", {"prompt": "3; 5=inf"}, "a changed value must be a number"),
    ("terms", {"prompt": "3; 5=1e300"}, "a changed value must be a number"),
    ("terms", {"prompt": "3; 5=__import__('os')"}, "a changed value must be a number"),
    ("terms", {"prompt": "3; " + "5=1," * 9000}, "a prompt must have up to 20000 characters"),
    ("terms", {"prompt": None}, "prompt must be a text, or the number of a sequence, but got None"),
    ("pattern", {"prompt": 3, "layer": 3, "head": 0}, "layer must be from 0 to 2, but got 3"),
    ("lens", {"prompt": 3, "position": 12}, "position must be from 0 to 11, but got 12"),
    ("lens", {"prompt": 3}, "a request for lens must have prompt, position, but lacks position"),
    ("objective", {"prompt": 3, "position": 0, "objective": "outer"}, "an objective must be one of linear, quadratic"),
    ("attribution", {"prompt": 3, "position": 0, "coordinate": 1}, "coordinate must be from 0 to 0, but got 1"),
    ("attribution", {"prompt": 3, "position": 0, "token": 1}, "must have no keys but prompt, position, coordinate"),
    ("ablation", {"prompt": 3, "heads": []}, "heads must have one head or more"),
    ("ablation", {"prompt": 3, "heads": [[0, 0]], "method": "median"}, "a method must be one of zero, mean"),
    ("patching", {"prompt": 3, "source_prompt": "x", "site": "z", "layer": 0, "position": 0}, "but got 'x'"),
    ("patching", {"prompt": 3, "source_prompt": 1, "site": "y", "layer": 0, "position": 0}, "a site must be one of"),
    (
        "patching",
        {"prompt": 3, "source_prompt": 1, "site": "z", "layer": 9, "position": 0},
        "layer must be from 0 to 2",
    ),
]


@pytest.mark.parametrize(("view", "body", "line"), MISTAKES)
def test_a_malformed_request_gets_one_line(client, view, body, line):
    answer = client.post(f"/api/{view}", params={"token": TOKEN}, content=json.dumps(body))
    assert answer.status_code == 400
    assert line in answer.json()["error"]
    assert "\n" not in answer.json()["error"]
    assert len(answer.json()["error"]) < 400


def test_views_of_tokens_do_not_exist_for_vectors_and_the_reverse(client, subject):
    answer = client.post("/api/tokens", params={"token": TOKEN}, content=b"{}")
    assert answer.status_code == 404
    assert (
        "a view must be one of terms, pattern, lens, objective, attribution, ablation, patching"
        in answer.json()["error"]
    )
    for call in (lambda: view_tokens(subject, 3), lambda: view_lens(subject, 3, 0)):
        with pytest.raises(ValueError, match=r"needs a model of tokens, but the inputs of affine .* are vectors"):
            call()


def test_the_page_is_escaped_and_has_the_sections_of_its_views(client):
    page = client.get("/", params={"token": TOKEN}).text
    assert "affine &lt;b&gt;model" in page
    assert "<b>model" not in page
    for view in ("terms", "pattern", "lens", "objective", "attribution", "ablation", "patching"):
        assert f'<section id="{view}"' in page
        assert page.count(f'data-code="{view}"') == 1
    assert '<section id="tokens"' not in page


def test_the_page_of_tokens_has_no_part_for_vectors():
    task = SeededSequences(num_symbols=5, num_generators=3, prefix_length=1, length=8)
    torch.manual_seed(0)
    subject = explore_task_model(Decoder(DecoderConfig(vocab_size=5, hidden_size=16)).eval(), task, "tokens")
    page = render_explorer(subject)
    assert '<section id="tokens"' in page
    assert "objective-table" not in page
    with pytest.raises(ValueError, match="needs a model of vectors, but the inputs of tokens are tokens"):
        view_terms(subject, 3)
