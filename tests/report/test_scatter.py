"""Scatter plots: every example at its coordinates with its colour for every choice; external text is escaped."""

import numpy as np
import plotly.graph_objects as go
import pytest
import xarray as xr

from mesascope.report import render_report
from mesascope.report.panels.choose_view import build_panels, choose_view
from mesascope.report.plotting.scatter import PALETTE, plot_scatter
from mesascope.report.plotting.variable import prepare_variable
from mesascope.report.text import encode_script_json

USE = """
  const said = [], plot = document.querySelectorAll(".js-plotly-plot")[1];
  const selects = [...document.querySelectorAll(".controls select")];
  const pick = (select, value) => { select.value = value; select.dispatchEvent(new Event("change")); };
  const say = () => {
    Plotly.Fx.hover(plot, [{ curveNumber: 0, pointNumber: 3 }]);
    const text = [...plot.querySelectorAll(".hoverlayer text tspan, .hoverlayer text")].map(one => one.textContent);
    said.push(plot.data[0].x[3], plot.data[0].marker.color[3], text.join(" "));
  };
  say();
  pick(selects[0], 1);
  pick(selects[1], 0);
  pick(selects[2], 1);
  await wait(300);  // plotly draws hovering at intervals
  say();
  return said;
"""


def points(dims="seed step layer batch component", kinds=None, examples=20, **sizes) -> xr.Dataset:
    """Return random coordinates with two labels: one of examples only, one of seeds, steps and examples."""
    sizes = {"seed": 2, "step": 3, "layer": 4, "batch": examples, "component": 2} | sizes
    names = dims.split()
    random = np.random.default_rng(0)
    places = random.standard_normal([sizes[d] for d in names])
    known = {"step": [0, 10, 2000], "component": ["first", "second"], "layer": ["embedding", *"abcdefgh"]}
    coords = {d: known[d][: sizes[d]] for d in names if d in known}
    attrs = {"units": "1", "description": "coordinates", "view": "scatter", "headline": 1}
    own = [d for d in ("seed", "step", "batch") if d in names]
    varying = random.integers(0, 30, [sizes[d] for d in own])
    kinds = np.arange(examples) % 5 if kinds is None else np.array(kinds)
    return xr.Dataset(
        {
            "coordinates": xr.DataArray(places, dims=names, coords=coords, attrs=attrs),
            "label_generator": ("batch", kinds, {"title": "hidden generator"}),
            "label_next_token": (own, varying),
            "explained": (("layer", "component"), np.ones((sizes["layer"], 2))),
        }
    )


def drawn(data: xr.Dataset):
    return build_panels(data)[0]


def test_a_variable_asks_for_it_and_labels_are_not_drawn_alone():
    data = points()
    assert choose_view(prepare_variable(data, "coordinates")) is plot_scatter
    assert [panel.title for panel in build_panels(data)] == ["coordinates", "explained"]
    del data["coordinates"].attrs["view"]
    assert {panel.title for panel in build_panels(data)} >= {"hidden generator", "label next token"}


def test_every_choice_has_its_points_and_colours():
    data, panel = points(), drawn(points())
    assert [one["name"] for one in panel.data["choices"]] == ["seed", "training step", "colours"]
    assert panel.data["choices"][1]["options"] == ["0", "2000"]  # the first and the last step
    assert panel.data["choices"][1]["selected"] == 1
    assert panel.data["choices"][2]["options"] == ["hidden generator", "next token"]
    assert [plot["title"] for plot in panel.data["plots"]] == ["embedding", "a", "b", "c"]
    marks = panel.data["marks"]
    for seed in range(2):
        for k, step in enumerate([0, 2000]):
            for layer in range(4):
                place = data["coordinates"].isel(seed=seed, layer=layer).sel(step=step)
                cells = panel.data["variants"][seed * 2 + k][layer]
                np.testing.assert_allclose(cells["x"], place.isel(component=0), rtol=5e-3)
                np.testing.assert_allclose(cells["y"], place.isel(component=1), rtol=5e-3)
            for kind, (name, prefix) in enumerate([("generator", "hidden generator"), ("next_token", "next token")]):
                code = marks["codes"][marks["used"][(seed * 2 + k) * 2 + kind]]
                label = data[f"label_{name}"]
                label = label.isel(seed=seed).isel(step=2 * k) if "seed" in label.dims else label
                assert [marks["names"][kind][one] for one in code] == [f"{prefix}: {v}" for v in label.values]
    assert len(marks["codes"]) == 1 + 4  # a label that is the same for all seeds is stored once


def test_plotly_accepts_it():
    panel = drawn(points())
    for plot, cells in zip(panel.data["plots"], panel.data["variants"][0], strict=True):
        go.Figure(data=[trace | cells for trace in plot["data"]], layout=plot["layout"])


def test_one_model_has_nothing_to_choose_but_colours():
    data = points("layer batch component")
    panel = drawn(data)
    assert [one["name"] for one in panel.data["choices"]] == ["colours"]
    assert "Select" not in panel.caption
    alone = drawn(data[["coordinates"]])
    assert alone.data["choices"] == []
    assert "marks" not in alone.data
    assert "customdata" not in alone.data["plots"][0]["data"][0]["hovertemplate"]


def test_colours_come_again_where_there_are_many_labels():
    few, many = points("layer batch component"), points("layer batch component", kinds=range(20))
    assert f"Colours repeat after {len(PALETTE)} labels" in drawn(many).caption
    assert "repeat" not in drawn(few[["coordinates", "label_generator"]]).caption
    assert len(set(PALETTE)) == len(PALETTE)


def test_a_page_has_room_for_it():
    panel = drawn(points(seed=3, layer=5, examples=256))
    assert len(encode_script_json(panel.data)) < 150_000
    large = drawn(points("layer batch component", examples=9000))
    assert len(large.data["variants"][0][0]["x"]) == 7500
    assert "Showing the first 7500 of 9000 examples; the file contains all." in large.caption


def test_a_gap_stays_a_gap():
    data = points("layer batch component")
    data["coordinates"][0, 0, 0] = np.nan
    assert drawn(data).data["variants"][0][0]["x"][0] is None
    assert "NaN" not in encode_script_json(drawn(data).data)


def test_other_dims_give_way_to_a_table():
    (panel,) = build_panels(points("layer batch", component=1)[["coordinates"]])
    assert panel.kind == "table"
    assert "No figure: a scatter plot needs layers, examples and two components" in panel.caption


def test_labels_are_text(samples):
    kinds = [samples.HOSTILE, "<b>", *"abcdefghijklmnopqr"]
    data = points("layer batch component", kinds=kinds)
    data["label_generator"].attrs["title"] = samples.HOSTILE
    panel = drawn(data)
    assert "<" not in "".join(panel.data["marks"]["names"][0])
    assert "%{" not in "".join(panel.data["marks"]["names"][0])
    assert "</script" not in encode_script_json(panel.data)


@pytest.mark.needs_chromium
def test_seed_step_and_colours_are_chosen(tmp_path, browser):
    data = points(kinds=[f"<i>{k}</i>" for k in range(20)])
    run = tmp_path / "run"
    (run / "results").mkdir(parents=True)
    (run / "run.json").write_text("{}")
    data.to_netcdf(run / "results/pictures.nc", engine="netcdf4")
    seen, console = browser.look(render_report(run), USE, width=500)
    assert console == []
    across, colour, words, then_across, then_colour, then_words = seen
    place = data["coordinates"].isel(layer=1, batch=3, component=0)
    order = sorted(data["label_generator"].values)
    assert float(across) == pytest.approx(float(place[0, 2]), rel=5e-3)
    assert colour == PALETTE[order.index("<i>3</i>") % len(PALETTE)]
    assert "hidden generator: <i>3</i>" in words
    value = int(data["label_next_token"][1, 0, 3])
    assert float(then_across) == pytest.approx(float(place[1, 0]), rel=5e-3)
    assert then_colour == PALETTE[np.unique(data["label_next_token"]).tolist().index(value) % len(PALETTE)]
    assert f"next token: {value}" in then_words
