"""The token view: every quantity with the right values at the right tokens."""

from base64 import b64decode

import numpy as np
import pytest
import xarray as xr

from mesascope.report import render_report
from mesascope.report.explorers.token_view import MAX_NUMBERS, build_token_view
from mesascope.report.load_run import ResultFile, load_run
from pages import read_figure_data


def decoded(quantity: dict, data: dict) -> np.ndarray:
    """Decode one quantity with axes (layer, batch, pos), as the script does."""
    codes = np.frombuffer(b64decode(quantity["bytes"]), np.uint8)
    levels = np.array([np.nan, *quantity["levels"]])
    return levels[codes].reshape(-1, len(data["tokens"]), len(data["tokens"][0]))


def results(**variables) -> list[ResultFile]:
    token = xr.DataArray(np.array([["a", "b", "c"], ["d", "e", "f"]], dtype=object), dims=("batch", "pos"))
    measured = xr.Dataset({name: (dims, values, attrs) for name, (dims, values, attrs) in variables.items()})
    return [
        ResultFile(file="text.nc", data=xr.Dataset({"token": token})),
        ResultFile(file="measured.nc", data=measured),
    ]


@pytest.fixture(scope="module")
def panel(inspection):
    found = build_token_view(load_run(inspection).results)
    assert found is not None
    return found


def test_numbers_stand_at_their_tokens(panel, inspection):
    data = panel.panel.data
    files = {one.file: one.data for one in load_run(inspection).results}
    by_name = {one["name"]: one for one in data["quantities"]}
    assert list(by_name) == ["norm", "robust z-score", "loss", "descent: attention", "descent: mlp"]
    norm = files["norms.nc"]["norm"].values
    np.testing.assert_allclose(decoded(by_name["norm"], data), norm, rtol=0.03)
    assert by_name["norm"]["log"]
    assert by_name["norm"]["layers"][:2] == ["embedding", "after 0"]
    z_score = files["norms.nc"]["robust_z_score"].values
    np.testing.assert_allclose(decoded(by_name["robust z-score"], data), z_score, atol=0.05, rtol=0.05)
    assert by_name["robust z-score"]["low"] == -by_name["robust z-score"]["high"]
    mlp = files["surprisal.nc"]["descent"].sel(stat="mlp").values
    np.testing.assert_allclose(decoded(by_name["descent: mlp"], data), mlp, atol=0.02)
    assert by_name["descent: mlp"]["missing"] == np.isnan(mlp).sum() > 0
    assert data["tokens"] == files["text.nc"]["token"].values.tolist()
    assert data["quantities"][data["selected"]]["name"] == "robust z-score"  # the first headline


def test_what_is_gathered_is_not_drawn_again(panel, inspection):
    assert panel.used_variables["norms.nc"] >= {"norm", "robust_z_score"}
    assert "mean" not in panel.used_variables["norms.nc"]
    html = render_report(inspection)
    assert "".join(read_figure_data(html)).count("Norm from the median of the text.") == 1
    assert html.count("<h2>Prediction</h2>") == 0  # the panel shows the whole file
    assert "<code>results/surprisal.nc</code>" in html


def test_only_what_fits_the_text_is_gathered():
    found = build_token_view(
        results(
            fits=(("pos", "batch"), np.arange(6.0).reshape(3, 2), {}),
            shorter=(("batch", "pos_"), np.ones((2, 2)), {}),
            per_layer=(("layer",), np.ones(4), {}),
            words=(("batch", "pos"), np.full((2, 3), "x", dtype=object), {}),
        )
    )
    assert found is not None
    (only,) = found.panel.data["quantities"]
    np.testing.assert_array_equal(decoded(only, found.panel.data)[0], np.arange(6).reshape(3, 2).T)
    assert build_token_view(results(other=(("layer",), np.ones(4), {}))) is None
    assert build_token_view(results(fits=(("batch", "pos"), np.ones((2, 3)), {}))[1:]) is None  # no text


def test_a_control_at_tokens_is_a_quantity_of_its_own():
    null = np.stack([np.full((2, 3), 1.0), np.full((2, 3), 3.0)])
    found = build_token_view(
        results(
            x=(("batch", "pos"), np.ones((2, 3)), {}),
            x_null=(("draw", "batch", "pos"), null, {"control_of": "x", "control": "random weights"}),
        )
    )
    assert found is not None
    assert [one["name"] for one in found.panel.data["quantities"]] == ["x", "x: random weights"]
    assert (decoded(found.panel.data["quantities"][1], found.panel.data) == 2).all()


def test_a_logarithm_of_negative_numbers_is_not_drawn():
    values = np.array([[1.0, 2.0, -1.0], [3.0, 4.0, 5.0]])
    found = build_token_view(results(x=(("batch", "pos"), values, {"scale": "log"})))
    assert found is not None
    assert not found.panel.data["quantities"][0]["log"]
    np.testing.assert_array_equal(decoded(found.panel.data["quantities"][0], found.panel.data)[0], values)


@pytest.mark.parametrize(
    ("layers", "batch", "pos", "kept", "said"),
    [
        (2, 5, MAX_NUMBERS // 8, (4, MAX_NUMBERS // 8), "the first 4 of 5 sequences"),
        (4, 2, MAX_NUMBERS // 2, (1, MAX_NUMBERS // 4), "the first 1 of 2 sequences, the first 750,000 of 1,500,000"),
    ],
)
def test_the_page_stays_small_and_says_what_was_cut(layers, batch, pos, kept, said):
    token = xr.DataArray(np.full((batch, pos), "a", dtype=object), dims=("batch", "pos"))
    values = xr.DataArray(np.ones((layers, batch, pos), "float32"), dims=("layer", "batch", "pos"))
    files = [ResultFile(file="text.nc", data=xr.Dataset({"token": token, "x": values}))]
    found = build_token_view(files)
    assert found is not None
    data = found.panel.data
    assert (len(data["tokens"]), len(data["tokens"][0])) == kept
    assert decoded(data["quantities"][0], data).shape == (layers, *kept)
    assert said in found.panel.caption
