"""All measures with all controls on a tiny model saved to a folder: one inspection, at which every test here looks."""

import pytest
import torch

from mesascope import api
from mesascope.analyses.inner_objectives import objectives
from mesascope.inspection import ANALYSIS_NAMES, load_sample_text
from mesascope.models.load import load_pretrained, make_untrained_factory
from mesascope.store import Run
from saved import save_tiny


@pytest.fixture(scope="module")
def everything(tmp_path_factory) -> Run:
    """All measures with all controls on the tiny model."""
    place = tmp_path_factory.mktemp("everything")
    return api.inspect(str(save_tiny(place, seed=7)), tokens=32, sequences=3, out=place / "out")


def test_every_measure_is_there_and_nothing_was_left_out(everything):
    expected = {f"inner_{one.name}" for one in objectives.OBJECTIVES} | set(ANALYSIS_NAMES) - {"inner"} | {"text"}
    assert set(everything.result_names()) == expected
    facts = everything.read_json("model")
    assert facts["skipped"] == {}
    assert facts["class"] == "GPT2LMHeadModel"
    assert everything.read_results("text")["token"].values[0, 0] == load_sample_text().split()[0]
    assert everything.read_results("norms")["norm"].sizes == {"layer": 3, "batch": 3, "pos": 32}


def test_every_curve_has_its_controls_in_draws(everything):
    for name, variable, kinds in (
        ("norms", "mean", {"random weights", "positions shuffled"}),
        ("logit_lens", "loss", {"random weights", "positions shuffled"}),
        ("affine_lens", "loss", {"random weights", "positions shuffled"}),
        ("positional_attention", "score", {"random weights", "positions shuffled", "uniform attention"}),
        ("inner_quadratic", "cosine", {"random weights", "positions shuffled", "keys shuffled"}),
        ("inner_outer", "cosine", {"random weights", "positions shuffled", "keys shuffled"}),
        ("inner_readout", "before", {"random weights", "positions shuffled"}),
        ("input_spectra", "effective_rank", {"random weights"}),
        ("token_attribution", "head_contribution", {"random weights", "positions shuffled"}),
        ("token_similarity", "partial", {"random weights", "positions shuffled"}),
        ("repeated_token_heads", "score", {"random weights", "keys shuffled", "no repetition"}),
        ("ov_copying_score", "score", {"random weights"}),
        ("positional_attention", "role_count", {"random weights", "positions shuffled"}),
        ("token_similarity", "role_count", {"random weights", "positions shuffled"}),
        ("repeated_token_heads", "role_count", {"random weights"}),
        ("ov_copying_score", "role_count", {"random weights"}),
    ):
        data = everything.read_results(name)
        controls = {
            array.attrs["control"]: array
            for array in data.data_vars.values()
            if array.attrs.get("control_of") == variable and "control" in array.attrs
        }
        assert kinds <= set(controls), name
        for kind in kinds & {"random weights", "positions shuffled"}:
            assert {str(d) for d in controls[kind].dims} == {"draw", *map(str, data[variable].dims)}, (name, kind)
            assert "headline" not in controls[kind].attrs


def test_the_untrained_model_is_another_one_and_the_same_for_the_same_seed(everything):
    model, _ = load_pretrained(everything.record["model"])
    make = make_untrained_factory(model)
    first, again, other = make(0), make(0), make(1)
    pairs = list(zip(first.parameters(), again.parameters(), other.parameters(), model.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _, _ in pairs)
    assert any(not torch.equal(a, c) for a, _, c, _ in pairs)
    assert any(not torch.equal(a, d) for a, _, _, d in pairs)
    loss = everything.read_results("logit_lens")["loss"]
    assert float(loss[-1]) != float(everything.read_results("logit_lens")["loss_null_random_weights"][0, -1])


def test_the_page_is_drawn(everything):
    page = (everything.path / "report.html").read_text(encoding="utf-8")
    for heading in ("Logit lens", "Attention by position", "Inner objective: quadratic", "Input spectra"):
        assert heading in page
