"""The ranking of algorithms: the most similar first, the identified one marked, values below the axis reported."""

import json

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from mesascope.report.panels._similarity_plots import BAR_COLOUR, IDENTIFIED_COLOUR
from mesascope.report.panels.choose_view import build_panels

WHO = ["averaging", "ridge <b>x</b>", "gradient descent"]
SIMILARITY = [-7.0, 0.97, 0.98]


def found(seeds: int | None = 3, named=None) -> xr.Dataset:
    """Return three algorithms, two distributions and two statistics; gradient descent takes 5, 6, 7 ... steps."""
    lead = {"seed": seeds, "step": 1} if seeds else {}
    dims, sizes = list(lead), list(lead.values())
    near = np.zeros((*sizes, 2, 3, 2))
    near[..., 0, :, 0], near[..., 1, :, 0], near[..., 0, :, 1] = SIMILARITY, [0.1, 0.2, -0.3], [0.5, 0.6, np.nan]
    iterations = np.ones((*sizes, 3), dtype=int)
    iterations[..., 2] = np.arange(5, 5 + seeds)[:, None] if seeds else 5
    called = np.full((*sizes, 3), WHO, dtype=object)
    called[..., 2] = [[f"{n} steps"] for n in range(5, 5 + seeds)] if seeds else "5 steps"
    words = {"units": "text", "description": "words"}
    one = {"units": "1", "description": "number"}
    name = np.full(sizes, "ridge <b>x</b>", dtype=object) if named is None else np.array(named, dtype=object)
    return xr.Dataset(
        {
            "similarity": (
                [*dims, "distribution", "predictor", "stat"],
                near,
                {"units": "1", "description": "similarity", "view": "ranking", "headline": 1},
            ),
            "named": (dims, name.reshape(sizes), words),
            "low": ([*dims, "predictor"], near[..., 0, :, 0] - 0.01, one),
            "high": ([*dims, "predictor"], near[..., 0, :, 0] + 0.01, one),
            "distinguishable": ([*dims, "predictor"], np.broadcast_to([1, 0, 0], (*sizes, 3)).copy(), one),
            "similarity_null": ([*dims, "predictor"], np.zeros((*sizes, 3)), one),
            "display_name": ([*dims, "predictor"], called, words),
            "iterations": ([*dims, "predictor"], iterations, one),
            "hyperparameters": ([*dims, "predictor"], np.full((*sizes, 3), "step 0.5", dtype=object), words),
        },
        coords={
            "distribution": ["training distribution", "elsewhere"],
            "predictor": WHO,
            "stat": ["predictions", "errors"],
            **({"seed": range(seeds), "step": [100]} if seeds else {}),
        },
    )


def drawn(data: xr.Dataset):
    (panel,) = build_panels(data)
    for plot in panel.data["plots"]:
        go.Figure(data=plot["data"], layout=plot["layout"])
    return panel


def test_the_nearest_is_on_top_and_what_was_named_is_marked():
    panel = drawn(found())
    above, below = panel.data["plots"]
    assert above["layout"]["yaxis"]["ticktext"] == [
        "gradient descent, 5–7 *",
        "ridge &lt;b&gt;x&lt;/b&gt; *",
        "averaging",
    ]
    assert above["data"][0]["marker"]["color"] == [BAR_COLOUR, IDENTIFIED_COLOUR, BAR_COLOUR]
    assert below["layout"]["xaxis"]["ticktext"] == ["elsewhere", "errors"]
    assert panel.headline
    assert panel.title == "Most similar algorithm: ridge <b>x</b>, similarity 0.97"  # set as text


def test_what_lies_below_the_axis_is_drawn_at_its_edge_and_told():
    panel = drawn(found())
    bar, seeds, null = panel.data["plots"][0]["data"]
    assert bar["x"][2] == -0.1
    assert "−7" in bar["text"][2]
    assert "step 0.5" in bar["text"][2]
    assert "are drawn at" in panel.caption
    assert len(seeds["x"]) == 9
    assert set(null["x"]) == {0.0}


def test_hyperparameters_at_the_edge_of_their_grid_are_told_on_hover():
    data = found()
    edges = np.array(["ridge", "", ""], dtype=object)
    data["edges"] = data["hyperparameters"].copy(data=np.broadcast_to(edges, (3, 1, 3)).copy())
    texts = drawn(data).data["plots"][0]["data"][0]["text"]
    assert ["ridge at the edge of the grid" in text for text in texts] == [False, False, True]


def test_names_that_cannot_be_told_apart_are_the_title_and_no_bar_is_marked():
    both = "ridge <b>x</b> or 5 steps (cannot be distinguished here)"
    panel = drawn(found(named=[both] * 3))
    assert panel.title == f"Identified algorithm: {both}"
    assert IDENTIFIED_COLOUR not in panel.data["plots"][0]["data"][0]["marker"]["color"]


def test_cells_that_are_no_number_or_below_nothing_say_so():
    cells = drawn(found()).data["plots"][1]["data"][0]
    assert cells["text"][0][1] == "–"
    assert "&lt;0" in cells["text"][0][0]
    assert cells["text"][2] == ["0.10", "0.50"]


def test_seeds_that_are_named_differently_are_counted():
    panel = drawn(found(named=["averaging", "averaging", "7 steps"]))
    assert (
        panel.title
        == "Most similar algorithm: averaging (2 seeds) and gradient descent, 5–7 * (1 seed), similarity −4.34"
    )
    assert panel.data["plots"][0]["data"][0]["marker"]["color"] == [IDENTIFIED_COLOUR, BAR_COLOUR, IDENTIFIED_COLOUR]


def test_one_algorithm_with_different_iterations_is_one_name():
    panel = drawn(found(named=["5 steps", "6 steps", "7 steps"]))
    assert panel.title == "Most similar algorithm: gradient descent, 5–7 *, similarity 0.98"
    assert panel.data["plots"][0]["data"][0]["marker"]["color"] == [IDENTIFIED_COLOUR, BAR_COLOUR, BAR_COLOUR]


def test_a_model_that_is_near_to_nothing_is_said_to_be_so():
    assert drawn(found(named=["none of these"] * 3)).title == "Identified algorithm: none of these"
    some = drawn(found(named=["none of these", "none of these", "5 steps"])).title
    assert some == "Identified algorithm: none of these (2 seeds) and 5 steps (1 seed)"


def test_an_algorithm_that_has_left_all_numbers_in_one_seed_is_no_better_for_it():
    data = found()
    data["similarity"][0, 0, 0, 2, 0] = -np.inf
    panel = drawn(data)
    assert panel.data["plots"][0]["layout"]["yaxis"]["ticktext"][-1].startswith("gradient descent")
    assert panel.data["plots"][0]["data"][0]["x"][-1] == -0.1
    assert "diverged" in panel.data["plots"][0]["data"][0]["text"][-1]


def test_one_setting_alone_is_drawn_without_a_map_of_others():
    data = found().isel(distribution=[0], stat=[0])
    panel = drawn(data)
    assert len(panel.data["plots"]) == 1
    assert "other distributions" not in panel.caption


def test_one_model_has_no_seeds():
    panel = drawn(found(seeds=None))
    assert [trace["type"] for trace in panel.data["plots"][0]["data"]] == ["bar", "scatter"]
    assert panel.data["plots"][0]["layout"]["yaxis"]["ticktext"][0] == "gradient descent, 5 *"
    assert "<b>x" not in json.dumps(panel.data, ensure_ascii=False)


def test_without_what_belongs_to_it_there_is_a_table():
    drawn_alone = build_panels(found().drop_vars("similarity_null"))
    (panel,) = [one for one in drawn_alone if "No figure: a ranking needs" in one.caption]
    assert panel.kind == "table"
    assert len(drawn_alone) == 8  # nothing is lost
