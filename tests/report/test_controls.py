"""Controls: named, with the same colour everywhere, and drawn with their values."""

import numpy as np
import pytest
import xarray as xr

from mesascope.report.panels.choose_view import build_panels
from mesascope.report.plotting.controls import control_colour, control_name, stack_replicates
from mesascope.report.plotting.figure import GREY
from mesascope.report.plotting.variable import prepare_variable

KINDS = ("random weights", "keys shuffled")


def controlled(dims: str, draws: int = 3, kinds=KINDS, size: int = 4, **attrs) -> xr.Dataset:
    draw, names = np.random.default_rng(0), dims.split()
    data = xr.Dataset({"x": (names, draw.random([size] * len(names)), {"description": "a number", **attrs})})
    for k, kind in enumerate(kinds):
        values = draw.random([draws, *[size] * len(names)])
        named = {"control": kind} if kind else {}
        data[f"null_{k}"] = (["draw", *names], values, {"control_of": "x", **named})
    return data


def plots(data: xr.Dataset) -> list[dict]:
    return build_panels(data)[0].data["plots"]


def test_each_control_is_a_band_from_least_to_greatest_with_its_mean():
    data = controlled("layer")
    (plot,) = plots(data)
    for k, kind in enumerate(KINDS):
        edge, mean = plot["data"][2 * k], plot["data"][2 * k + 1]
        rows = data[f"null_{k}"].values
        np.testing.assert_allclose(edge["y"], [*rows.max(0), *rows.min(0)[::-1]], rtol=1e-3)
        np.testing.assert_allclose(mean["y"], rows.mean(0), rtol=1e-3)
        assert mean["name"] == kind
        assert mean["line"]["dash"] == "dot"
        assert edge["fillcolor"] == mean["line"]["color"] == control_colour(data[f"null_{k}"])
    assert plot["data"][-1]["line"]["width"] > 2  # the model in front


def test_a_control_keeps_its_colour_and_others_differ():
    first, second = controlled("layer"), controlled("layer head", kinds=KINDS[::-1])
    assert control_colour(first["null_0"]) == control_colour(second["null_1"])
    assert control_colour(first["null_0"]) != control_colour(first["null_1"])
    own = xr.DataArray(0.0, attrs={"control": "one of my own"})
    assert control_colour(own) == control_colour(own.copy()) != GREY


def test_a_control_without_a_name_is_what_it_was():
    data = controlled("layer", kinds=[""])
    assert control_name(data["null_0"]) == "null (null 0)"
    assert control_colour(data["null_0"]) == GREY
    (panel,) = build_panels(data)
    assert "Grey: control (null)" in panel.caption


@pytest.mark.parametrize("series", ["sublayer", "stat", "map"])
def test_series_with_controls_of_their_own_get_plots_of_their_own(series):
    data = controlled(f"layer {series}", headline=1)
    (panel,) = build_panels(data)
    assert len(panel.data["plots"]) == 4
    for k, plot in enumerate(panel.data["plots"]):
        assert plot["title"] == str(k)
        mean = next(t for t in plot["data"] if t["name"] == "keys shuffled")
        np.testing.assert_allclose(mean["y"], data["null_1"].mean("draw").isel({series: k}), rtol=1e-3)
    assert {one["name"] for one in panel.data["legend"]} == {"x", *KINDS}
    for one in panel.data["legend"]:
        for plot, traces in zip(panel.data["plots"], one["each"], strict=True):
            assert {plot["data"][t]["name"] for t in traces} <= {one["name"], ""}


def test_what_was_not_measured_is_named_and_draws_nothing():
    data = controlled("layer sublayer", size=2).assign_coords(sublayer=["attention", "mlp"])
    data["x"][:, 1] = np.nan
    data["null_1"][:, :, 0] = np.nan
    (panel,) = build_panels(data)
    assert [plot["title"] for plot in panel.data["plots"]] == ["attention"]
    assert "Not measured: mlp." in panel.caption
    assert {one["name"] for one in panel.data["legend"]} == {"x", "random weights"}


def test_maps_stand_beside_the_mean_of_each_control():
    data = controlled("layer head")
    (panel,) = build_panels(data)
    assert [plot["title"] for plot in panel.data["plots"]] == ["this model", *KINDS]
    for k in range(2):
        np.testing.assert_allclose(panel.data["variants"][0][k + 1]["z"], data[f"null_{k}"].mean("draw"), rtol=1e-2)
    assert "random weights (3 draws) and keys shuffled (3 draws)" in panel.caption


def test_bars_mark_every_draw():
    data = controlled("component")
    (plot,) = plots(data)
    marks = next(trace for trace in plot["data"] if trace["name"] == "random weights")
    np.testing.assert_allclose(marks["x"], data["null_0"].values.ravel(), rtol=1e-3)


def test_draws_of_every_seed_are_replicates():
    values = np.arange(24.0).reshape(2, 3, 4)
    flat = stack_replicates(xr.DataArray(values, dims=("seed", "draw", "layer"), coords={"layer": list("abcd")}))
    assert flat.dims == ("seed", "layer")
    np.testing.assert_array_equal(flat, values.reshape(6, 4))
    assert flat["layer"].values.tolist() == list("abcd")


def test_one_model_over_training_is_also_drawn_as_layers_by_steps():
    data = controlled("step layer sublayer").assign_coords(step=[0, 10, 100, 1000])
    curves, over = build_panels(data)
    assert {one["name"] for one in curves.data["legend"]} == {"trained, step 1,000", "untrained", *KINDS}
    assert over.title == "x, over training"
    assert [one["name"] for one in over.data["choices"]] == ["sublayer"]
    cells = over.data["variants"][3]
    np.testing.assert_allclose(cells[0]["z"], data["x"].isel(sublayer=3).T, rtol=1e-2)
    np.testing.assert_allclose(cells[2]["z"], data["null_1"].mean("draw").isel(sublayer=3).T, rtol=1e-2)
    assert len(build_panels(data.expand_dims("seed"))) == 1  # a study has no such map by default


def test_a_spectrum_is_a_map_of_layers_by_places_for_each_linear_map():
    data = controlled("layer map eigen", kinds=(), scale="log").assign_coords(map=list("abcd"))
    (panel,) = build_panels(data)
    assert panel.data["choices"][0]["options"] == list("abcd")
    np.testing.assert_allclose(panel.data["variants"][2][0]["z"], np.log10(data["x"].isel(map=2)), atol=1e-2)


def test_a_long_spectrum_is_drawn_at_fewer_places_and_says_so():
    values = np.random.default_rng(0).random((10, 7, 4000))
    data = xr.Dataset({"energy": (("layer", "map", "eigen"), values, {"description": "squares", "scale": "log"})})
    (panel,) = build_panels(data)
    cells = np.array(panel.data["variants"][3][0]["z"])
    kept = [int(label) for label in panel.data["plots"][0]["labels"][1]]
    assert kept[0] == 0
    assert kept[-1] == 3999
    assert cells.shape == (10, len(kept)) != (10, 4000)
    np.testing.assert_allclose(cells, np.log10(values[:, 3, kept]), atol=1e-2, rtol=1e-2)
    assert f"(subsampled: {len(kept)} of 4,000 ranks, logarithmically spaced)" in panel.caption


def test_an_identity_says_that_it_cannot_fail():
    data = controlled("layer", tautology="u is minus the gradient")
    assert build_panels(data)[0].tautology == "u is minus the gradient."
    assert prepare_variable(controlled("layer"), "x").tautology == ""
