"""The head explorer: every head has its own values, controls, pattern and tokens."""

from base64 import b64decode

import numpy as np
import pytest
import xarray as xr

from mesascope.report import render_report
from mesascope.report.explorers.attention_excerpt import encode_attention_excerpt
from mesascope.report.explorers.head_explorer import align_to_grid, build_head_explorer
from mesascope.report.load_run import ResultFile, load_run
from mesascope.report.plotting.variable import prepare_variable


def explored(**files: xr.Dataset) -> dict:
    found = build_head_explorer([ResultFile(file=f"{name}.nc", data=data) for name, data in files.items()])
    assert found is not None
    return dict(found.panel.data)


def patterns(found: dict) -> np.ndarray:
    """Decode weights with axes (batch, layer, head, query, key), as the script does."""
    batch, layers, heads, queries, keys = found["shape"]
    codes = np.frombuffer(b64decode(found["bytes"]), np.uint8).astype(float)
    weights = np.where(codes > 0, found["top"] * ((codes - 1) / 254) ** 2, np.nan)
    if not found["causal"]:
        return weights.reshape(batch, layers, heads, queries, keys)
    full = np.zeros((batch, layers, heads, queries, keys))
    full[..., np.tril(np.ones((queries, keys), bool))] = weights.reshape(batch, layers, heads, -1)
    return full


@pytest.fixture(scope="module")
def found(inspection):
    gathered = build_head_explorer(load_run(inspection).results)
    assert gathered is not None
    return gathered


def test_scores_and_their_controls_are_those_of_the_head(found, inspection):
    data = {one.file: one.data for one in load_run(inspection).results}["heads.nc"]
    quantities = found.panel.data["quantities"]
    roles = data["stat"].values.tolist()
    assert [one["name"] for one in quantities] == [*(f"score: {role}" for role in roles), "copying"]
    for one, role in zip(quantities[:4], roles, strict=True):
        np.testing.assert_allclose(one["values"], data["score"].sel(stat=role).values.ravel(), rtol=1e-3)
        assert [control["name"] for control in one["controls"]] == ["keys shuffled", "no repetition"]
        rows = data["score_keys_shuffled"].sel(stat=role).values.reshape(3, -1)
        for name, expected in (("mean", rows.mean(0)), ("low", rows.min(0)), ("high", rows.max(0))):
            np.testing.assert_allclose(one["controls"][0][name], expected, rtol=1e-2)
    assert quantities[found.panel.data["selected"]]["name"] == "score: previous token"


def test_patterns_roles_and_top_tokens_are_those_of_the_head(found, inspection):
    files = {one.file: one.data for one in load_run(inspection).results}
    data = found.panel.data
    pattern = files["attention_patterns.nc"]["pattern"].values
    assert data["patterns"]["causal"]
    np.testing.assert_allclose(patterns(data["patterns"])[0], pattern, atol=0.004)
    tops = files["top_tokens.nc"]
    at = 7 * 9 + 4  # layer 7, head 4
    assert data["tops"]["token"][at] == tops["top_token"].values[7, 4].tolist()
    np.testing.assert_allclose(data["tops"]["logit"][at], tops["top_logit"].values[7, 4], rtol=1e-4)
    assert data["tops"]["position"][at] == tops["top_position"].values[7, 4].tolist()
    assert data["roles"][at] == files["heads.nc"]["role"].values[7, 4]
    assert data["patterns"]["labels"][0]["query"][1] == "␣first"


def test_what_it_shows_is_not_drawn_again_but_scores_are(found, inspection):
    assert found.used_variables["attention_patterns.nc"] == {"pattern", "token"}
    assert found.used_variables["heads.nc"] == {"role"}
    html = render_report(inspection)
    assert 'data-attention data-label="' not in html
    assert "<h2>Tokens that heads raise most</h2>" not in html
    assert "<h2>What heads do where tokens repeat</h2>" in html  # with its controls


def test_heads_are_matched_by_their_labels():
    whole = xr.DataArray(np.arange(12.0).reshape(4, 3), dims=("layer", "head"))
    part = xr.DataArray([[5.0, 6.0]], dims=("head", "layer"), coords={"layer": [3, 1], "head": [2]})
    other = xr.DataArray(np.ones((7, 7)), dims=("layer", "head"))
    files = {"a": whole.to_dataset(name="whole"), "b": whole.to_dataset(name="also"), "c": part.to_dataset(name="part")}
    data = explored(**files, d=other.to_dataset(name="strange"))
    by_name = {one["name"]: one["values"] for one in data["quantities"]}
    assert set(by_name) == {"whole", "also", "part"}
    assert by_name["part"] == [None] * 5 + [6.0] + [None] * 5 + [5.0]
    assert align_to_grid(part, (["0", "1"], ["2", "5"])).shape == (2, 2)


def test_any_pattern_is_packed():
    weights = np.random.default_rng(0).random((2, 3, 2, 4, 6))
    weights[1, 2, 1] = np.nan
    dims = ("batch", "layer", "head", "query", "key")
    data = xr.Dataset({"pattern": (dims, weights)})
    found = encode_attention_excerpt(data["pattern"], prepare_variable(data, "pattern"))
    assert not found["causal"]
    np.testing.assert_allclose(patterns(found), weights, atol=0.004)
    assert found["labels"][1] == {"query": list("0123"), "key": list("012345")}


def test_a_pattern_that_is_too_large_is_cut_and_says_so():
    pattern = xr.DataArray(np.ones((8, 8, 3, 150, 150)), dims=("layer", "head", "batch", "query", "key"))
    data = xr.Dataset({"pattern": pattern})
    found = encode_attention_excerpt(pattern, prepare_variable(data, "pattern"))
    assert found["shape"] == [1, 8, 8, 150, 150]
    assert found["left_out"] == "Showing the first 1 of 3 examples; the file contains all."
    wide = xr.Dataset({"pattern": (("layer", "head", "query", "key"), np.ones((30, 10, 100, 100)))})
    assert encode_attention_excerpt(wide["pattern"], prepare_variable(wide, "pattern"))["shape"] == [1, 30, 10, 81, 81]


def test_a_control_without_labels_is_found_by_its_place():
    score = xr.DataArray(np.zeros((2, 2, 2)), dims=("layer", "head", "stat"))
    null = xr.DataArray(np.stack([np.full((2, 2), 1.0), np.full((2, 2), 2.0)], -1), dims=score.dims)
    data = explored(a=xr.Dataset({"s": score, "n": null.assign_attrs(control_of="s", control="keys shuffled")}))
    assert [one["controls"][0]["mean"] for one in data["quantities"]] == [[1.0] * 4, [2.0] * 4]


def test_without_heads_there_is_no_explorer(inspection):
    assert (
        build_head_explorer([one for one in load_run(inspection).results if one.file in ("norms.nc", "text.nc")])
        is None
    )


def test_a_pattern_alone_is_enough(inspection):
    found = build_head_explorer([one for one in load_run(inspection).results if one.file == "attention_patterns.nc"])
    assert found is not None
    assert found.panel.data["quantities"] == []
    assert len(found.panel.data["layers"]) == 30
