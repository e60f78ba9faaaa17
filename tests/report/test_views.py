"""Choice of the view for a variable, and validity of the plotly figures."""

import numpy as np
import plotly.graph_objects as go
import pytest
import xarray as xr

from mesascope.report.explorers.attention import build_attention_browser
from mesascope.report.explorers.colored_text import build_coloured_text
from mesascope.report.load_run import load_run
from mesascope.report.panels.choose_view import build_panels, choose_view
from mesascope.report.panels.training import plot_training_log, smooth_values, thin_rows
from mesascope.report.panels.verdicts import build_strip
from mesascope.report.plotting.bars import plot_bars
from mesascope.report.plotting.curves import plot_over_axis, plot_over_steps
from mesascope.report.plotting.heat_maps import plot_heat_maps
from mesascope.report.plotting.table import build_table
from mesascope.report.plotting.variable import prepare_variable
from mesascope.report.text import encode_script_json


def variable(dims: str, size: int = 3, text: bool = False, **attrs) -> xr.Dataset:
    names = dims.split()
    values = np.random.default_rng(0).random([size] * len(names))
    data = xr.Dataset({"x": xr.DataArray(values, dims=names, attrs={"units": "1", "description": "a number", **attrs})})
    return data.assign(token=(("batch", "pos"), np.full((size, size), "a", dtype=object))) if text else data


@pytest.mark.parametrize(
    ("dims", "view"),
    [
        ("seed step predictor pos", plot_over_axis),
        ("seed step", plot_over_steps),
        ("seed step stat", plot_over_steps),
        ("layer", plot_over_axis),
        ("seed step layer predictor", plot_over_axis),
        ("seed pos", plot_over_axis),
        ("d_model", plot_over_axis),
        ("layer head", plot_heat_maps),
        ("seed step layer head stat", plot_heat_maps),
        ("layer pos", plot_heat_maps),
        ("layer predictor pos", plot_heat_maps),
        ("batch pos", plot_heat_maps),
        ("component stat", plot_heat_maps),
        ("seed layer head batch query key", build_attention_browser),
        ("query key", build_attention_browser),
        ("seed component", plot_bars),
        ("predictor", plot_bars),
        ("seed", build_table),
        ("seed step _a _b _c _d _e", build_table),
    ],
)
def test_dims_decide(dims, view):
    data = variable(dims)
    assert choose_view(prepare_variable(data, "x")) is view
    (panel,) = build_panels(data)
    assert panel.caption.startswith("A number.")


@pytest.mark.parametrize("dims", ["batch pos", "seed step layer batch pos"])
def test_a_quantity_at_each_token_colours_the_text(dims):
    data = variable(dims, text=True)
    assert choose_view(prepare_variable(data, "x")) is build_coloured_text
    assert [panel.kind for panel in build_panels(data)] == ["tokens"]


def test_a_view_can_be_asked_for():
    assert choose_view(prepare_variable(variable("layer", view="bars"), "x")) is plot_bars
    assert choose_view(prepare_variable(variable("layer", view="no such view"), "x")) is plot_over_axis


def test_a_view_that_cannot_draw_gives_way_to_a_table():
    (panel,) = build_panels(variable("stat", view="tokens"))
    assert panel.kind == "table"
    assert "No figure: coloured text needs a variable `token` and the axis `pos`" in panel.caption


def test_a_map_with_too_many_cells_becomes_a_table():
    assert choose_view(prepare_variable(variable("layer head batch pos", size=30), "x")) is build_table


def test_no_variable_is_dropped(study_run):
    for result in load_run(study_run).results:
        data = result.data
        assert data is not None
        inside = [v for v in data.data_vars if "control_of" in data[v].attrs or v in ("token", "value")]
        assert len(build_panels(data)) == len(data.data_vars) - len(inside)


def test_plotly_accepts_every_figure(study_run, inspect_run):
    """Check every figure with plotly's graph objects, which reject unknown properties."""
    count = 0
    for run in (study_run, inspect_run):
        record = load_run(run)
        drawn = [p for r in record.results if r.data is not None for p in build_panels(r.data)]
        drawn += [panel for each in record.logs.values() if (panel := plot_training_log(each))]
        for panel in [p for p in drawn if p.kind == "figure"]:
            for k, plot in enumerate(panel.data["plots"]):
                cells = panel.data["variants"][0][k] if "variants" in panel.data else {}
                go.Figure(data=[trace | cells for trace in plot["data"]], layout=plot["layout"])
                count += 1
    assert count > 20


def test_a_control_is_drawn_with_what_it_belongs_to(samples):
    data = samples.study_results(np.random.default_rng(0))
    heads = {panel.title: panel for panel in build_panels(data["heads"])}
    assert [plot["title"] for plot in heads["similarity"].data["plots"]][-1] == "null (permuted)"
    readout = {panel.title: panel for panel in build_panels(data["layers"])}["readout"]
    assert [one["name"] for one in readout.data["legend"]] == [
        "trained, step 6,000",
        "untrained",
        "null (untrained keys)",
    ]


def test_a_control_that_a_view_cannot_hold_stands_alone():
    data = variable("layer head query key")
    data["y"] = data["x"].assign_attrs(control_of="x")
    assert [panel.title for panel in build_panels(data)] == ["x", "y: control of x"]


def test_rounding_errors_of_an_exact_oracle_do_not_flatten_the_rest(samples):
    error = {p.title: p for p in build_panels(samples.study_results(np.random.default_rng(0))["loss_vs_baselines"])}[
        "error"
    ]
    low, high = error.data["plots"][0]["layout"]["yaxis"]["range"]
    assert high - low < 5
    assert "are outside the plot" in error.caption


def test_what_spans_many_powers_of_ten_by_itself_is_drawn_whole():
    values = 10.0 ** np.arange(0, 41, 4)
    curve = xr.DataArray(
        values, dims="step", coords={"step": np.arange(11)}, attrs={"units": "1", "description": "a number"}
    )
    (panel,) = build_panels(xr.Dataset({"x": curve.assign_attrs(scale="log")}))
    assert "range" not in panel.data["plots"][0]["layout"]["yaxis"]
    assert "are outside the plot" not in panel.caption


def test_curves_are_the_mean_over_seeds():
    data = variable("seed layer")
    (panel,) = build_panels(data)
    bold = panel.data["plots"][0]["data"][-1]
    np.testing.assert_allclose(bold["y"], data["x"].mean("seed"), rtol=1e-3)


def test_many_seeds_become_a_band_and_a_choice():
    curve = build_panels(variable("seed layer", size=8))[0]
    assert "band: range over seeds" in curve.caption
    maps = build_panels(variable("seed layer head", size=8))[0]
    assert [one["name"] for one in maps.data["choices"]] == ["seed"]
    assert len(maps.data["plots"]) == 1


def test_every_choice_has_its_cells():
    data = variable("seed step layer head stat", size=3)
    (panel,) = build_panels(data)
    assert [one["name"] for one in panel.data["choices"]] == ["training step", "quantity"]
    last = panel.data["variants"][2 * 3 + 1]  # the last step, the second quantity
    np.testing.assert_allclose(last[2]["z"], data["x"].isel(seed=2, step=2, stat=1), rtol=1e-2)


def test_patterns_keep_three_digits_and_say_what_is_left_out():
    data = variable("layer head batch query key", size=4)
    (panel,) = build_panels(data)
    found = np.array(panel.data["values"]).reshape(panel.data["shape"])[0] / 1000 * panel.data["top"]
    np.testing.assert_allclose(found, data["x"].values, atol=6e-4)
    wide = xr.Dataset({"x": (("layer", "head", "batch", "query", "key"), np.ones((8, 8, 40, 32, 32)))})
    (panel,) = build_panels(wide)
    assert "the first 9 of 40 examples" in panel.caption


def test_numbers_that_are_none_draw_nothing():
    for dims in ("seed step", "layer", "layer head", "component", "query key", "stat pos", "seed"):
        data = variable(dims)
        data["x"] = data["x"] * np.nan
        assert build_panels(data)[0].caption


@pytest.mark.parametrize(
    "dims", ["seed step", "seed step layer", "layer head", "seed component", "stat pos", "seed pos"]
)
def test_a_gap_stays_a_gap(dims):
    for size in (3, 8):
        data = variable(dims, size=size)
        values = data["x"].values
        values[..., 0], values[..., 1] = np.nan, np.inf
        control = data["x"].assign_attrs(control_of="x")
        panel = build_panels(data.assign(y=control))[0]
        assert "NaN" not in encode_script_json(panel.data)


def test_logs_are_thinned_but_keep_their_ends(tmp_path, samples):
    kept = thin_rows(60_000)
    assert (kept[0], kept[-1]) == (0, 59_999)
    assert len(kept) <= 400
    assert smooth_values(np.array([1.0, np.nan, 3.0]), fraction=1.0)[-1] == 3.0
    panel = plot_training_log(load_run(samples.write_study(tmp_path / "run")).logs[""])
    assert panel is not None
    assert all(len(trace["x"]) <= 400 for plot in panel.data["plots"] for trace in plot["data"])


def test_the_strip_shades_the_side_on_which_the_claim_holds():
    verdict = {"per_seed": [1.0, 2.0], "value": 1.5, "interval": [1.0, 2.0], "threshold": 3.0, "direction": "below"}
    found = build_strip(verdict)
    assert found is not None
    assert found["better"] == (0.0, found["threshold"])
    assert found["seeds"] == [5.0, 50.0]
    assert found["words"] == "per seed: 1, 2; threshold: 3"
    assert build_strip({"status": "inconclusive"}) is None
