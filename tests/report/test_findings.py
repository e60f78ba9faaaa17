"""The sentences with which the page of an inspection begins say what is in its result files."""

import numpy as np
import pytest
import xarray as xr

from mesascope.report.findings import list_findings
from mesascope.report.load_run import ResultFile
from mesascope.report.page import render_report
from report import inspected

STATS = ("previous token", "induction", "duplicate token")
DEPTHS = ["embedding", "after 0", "after 1"]


def describe(analysis: str, data: xr.Dataset) -> list[str]:
    result = ResultFile(file=f"{analysis}.nc", data=data.assign_attrs(analysis=analysis))
    findings = list_findings([result])
    assert {one.file for one in findings} <= {result.file}
    return [one.text for one in findings]


def build_roles() -> xr.Dataset:
    """Two layers of two heads: two induction heads, of which L1H0 is the stronger one, and a previous-token head."""
    score = np.zeros((2, 2, 3))
    score[0, 1, 0], score[1, 0, 1], score[1, 1, 1] = 0.9, 0.8, 0.6
    by_head = ("layer", "head", "stat")
    return xr.Dataset(
        {
            "score": (by_head, score),
            "score_null": (by_head, np.full((2, 2, 3), 0.05)),
            "score_threshold": (by_head, np.full((2, 2, 3), 0.3)),
            "role_count_null_random_weights": (("draw", "layer", "role_name"), np.array([[[1], [0]], [[1], [1]]])),
            "loss_first": 9.5,
            "loss_again": 0.5,
        },
        coords={"layer": [0, 1], "head": [0, 1], "stat": list(STATS), "role_name": ["induction"]},
    )


def test_heads_with_a_role_are_counted_and_the_strongest_is_named():
    induction, previous, duplicate, loss = describe("repeated_token_heads", build_roles())
    assert induction == (
        "2 of 4 heads attend to the token after an earlier occurrence of the current one (induction heads); the "
        "strongest, L1H0, spends 0.8 of its attention on repeated random tokens, 0.05 with shuffled keys. With random "
        "weights there are 1.5 (mean of 2 draws)."
    )
    assert previous.startswith("1 of 4 heads attends to the token before the current one (previous-token heads)")
    assert "L0H1, spends 0.9" in previous
    assert "With random weights" not in previous, "there are no draws of this role"
    assert duplicate == "0 of 4 heads attend to an earlier occurrence of the current token (duplicate-token heads)."
    assert loss == "The loss on random tokens is 9.5 nat at their first occurrence and 0.5 nat at their repetition."


def test_scores_below_the_threshold_are_no_roles():
    roles = build_roles()
    roles["score_threshold"] = roles["score_threshold"] + 1
    assert [text.split(" ")[0] for text in describe("repeated_token_heads", roles)[:3]] == ["0", "0", "0"]


def build_lens(agrees: list[float]) -> xr.Dataset:
    return xr.Dataset(
        {"loss": ("layer", [9.0, 5.0, 2.5]), "agrees_with_final": ("layer", agrees)}, coords={"layer": DEPTHS}
    )


def test_predictions_are_settled_where_half_of_them_are_final():
    loss, settled = describe("logit_lens", build_lens([0.1, 0.6, 1.0]))
    assert loss == "The loss on the text is 2.5 nat per token."
    assert settled.startswith("After layer 0 (of 2 layers)")
    assert settled.endswith("at 60 % of the positions.")


@pytest.mark.parametrize("agrees", [[0.1, 0.4, 1.0], [np.nan] * 3])
def test_predictions_that_are_settled_at_the_end_have_no_sentence(agrees):
    assert len(describe("logit_lens", build_lens(agrees))) == 1


def test_norms_of_the_last_checkpoint_are_described():
    first = np.array([[1.0, 1.0, 1.0], [1.0, 60.0, 30.0]])
    data = xr.Dataset(
        {
            "mean": (("step", "layer"), np.array([[1.0, 1.0, 1.0], [1.0, 2.0, 3.0]])),
            "first_token": (("step", "layer"), first),
        },
        coords={"layer": DEPTHS, "step": [0, 100]},
    )
    largest, growth = describe("norms", data)
    assert (
        largest == "The norm of the first token is at most 30 times the mean norm of the other tokens (after layer 0)."
    )
    assert growth == "The mean norm of the other tokens is 1 at the embedding and 3 at the end."


def test_attention_to_the_first_position_is_compared_with_uniform_attention():
    by_head = ("layer", "head", "stat")
    data = xr.Dataset(
        {"score": (by_head, np.array([[[0.9], [0.1]]])), "score_null": (by_head, np.full((1, 2, 1), 0.1))},
        coords={"layer": [0], "head": [0, 1], "stat": ["first"]},
    )
    assert describe("positional_attention", data) == [
        "1 of 2 heads spend more than half of their attention on the first position of the text; the mean over heads "
        "is 0.5, and that of uniform attention 0.1."
    ]


def test_other_analyses_and_damaged_files_have_no_findings():
    assert describe("mine", build_roles()) == []
    assert describe("repeated_token_heads", build_roles().drop_vars("score_threshold")) == []
    assert list_findings([ResultFile(file="norms.nc", data=None, problem="damaged")]) == []


def test_findings_link_to_their_sections(tmp_path):
    run = inspected.write(tmp_path, length=64)
    build_lens([0.1, 0.6, 1.0]).assign_attrs(analysis="logit_lens", title="Logit lens").to_netcdf(
        run / "results" / "logit_lens.nc"
    )
    page = render_report(run)
    section = page.split('<section id="findings">')[1].split("</section>")[0]
    key = section.split('<a href="#')[1].split('"')[0]
    assert page.count(f'<section id="{key}">') == 1
    assert page.split(f'<section id="{key}">')[1].split("</h2>")[0].strip() == "<h2>Logit lens"
