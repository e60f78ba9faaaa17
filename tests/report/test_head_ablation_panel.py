"""Maps of ablation effects: effects next to roles, with roles without an effect marked."""

import numpy as np
import plotly.graph_objects as go
import pytest
import xarray as xr

from mesascope.report.panels.choose_view import build_panels
from mesascope.report.panels.head_ablation import KIND_COLOURS, NEITHER, NO_EFFECT, NO_ROLE, ROLE
from mesascope.report.text import encode_script_json

WORDS = [["negative similarity, copying", "copying"], ["", ""]]


def found(heads: int = 2, seeded: bool = True, words=None) -> xr.Dataset:
    """Return two layers, two ablations, two steps and three seeds; the first head of each layer has an effect."""
    lead = {"seed": 3, "step": 2} if seeded else {}
    dims, sizes = [*lead, "layer", "head"], [*lead.values(), 2, heads]
    effect = np.zeros((*sizes, 2))
    effect[..., 0, 1] = 0.5  # by resampling only
    named = np.full(sizes, "", dtype=object)
    named[..., :2] = np.array(WORDS if words is None else words, dtype=object)
    attrs = {
        "units": "units of the loss",
        "description": "increase of the loss",
        "view": "head_ablation",
        "headline": 1,
    }
    control = {"control_of": "effect", "control": "turned <b>at random</b>", "units": "1", "description": "control"}
    return xr.Dataset(
        {
            "effect": ([*dims, "stat"], effect, attrs),
            "effect_null": (dims, effect[..., 0] + 0.031, control),
            "low": ([*dims, "stat"], effect - 0.1, {"units": "1", "description": "low"}),
            "high": ([*dims, "stat"], effect + 0.1, {"units": "1", "description": "high"}),
            "has_effect": ([*dims, "stat"], (effect > 0).astype(int), {"units": "1", "description": "has effect"}),
            "role": (dims, named, {"units": "text", "description": "roles"}),
            "label": (dims, named, {"units": "text", "description": "roles"}),
        },
        coords={"stat": ["mean", "resample"], **({"seed": [0, 1, 2], "step": [0, 60]} if seeded else {})},
    )


def test_roles_stand_beside_effects_for_every_seed():
    (panel,) = build_panels(found())
    assert panel.headline
    titles = [plot["title"] for plot in panel.data["plots"]]
    assert titles == [f"seed {k}, by {what}" for k in range(3) for what in ("effect", "role")]
    assert [one["name"] for one in panel.data["choices"]] == ["training step", "ablation"]
    assert len(panel.data["variants"]) == 4
    for k, plot in enumerate(panel.data["plots"]):
        for variant in panel.data["variants"]:
            go.Figure(data=[trace | variant[k] for trace in plot["data"]], layout=plot["layout"])


def test_the_last_checkpoint_alone_or_one_kind_of_ablation_alone_is_drawn_without_a_control():
    whole = build_panels(found())[0].data
    (last,) = build_panels(found().isel(step=[-1]))
    assert [one["name"] for one in last.data["choices"]] == ["ablation"]
    assert last.data["variants"] == whole["variants"][2:]  # those of the last step
    (one,) = build_panels(found().isel(stat=[1]))
    assert [each["name"] for each in one.data["choices"]] == ["training step"]
    assert "No figure" not in last.caption + one.caption


def test_a_role_without_an_effect_is_struck_out_and_says_so_whatever_kind_is_chosen():
    (panel,) = build_panels(found())
    for variant in panel.data["variants"]:
        assert variant[1]["z"] == [[ROLE, NO_EFFECT], [NO_ROLE, NEITHER]]
        (role, struck), (without, neither) = variant[1]["text"]
        assert role == "negative<br>similarity<br>copying"
        assert "<s>copying</s>" in struck
        assert "no effect" in struck
        assert without == "no role"
        assert "neither" in neither
    assert len(KIND_COLOURS) == 4


def test_effects_carry_their_interval_and_their_control():
    (panel,) = build_panels(found())
    by_mean, by_resampling = panel.data["variants"][2][0], panel.data["variants"][3][0]
    assert by_resampling["text"][0][0].startswith("0.5<br>")
    assert "(0.031)" in by_resampling["text"][0][0]
    assert "95% CI [0.4, 0.6]" in by_resampling["hovertext"][0][0]
    assert "color:" in by_mean["text"][0][0]  # grey: by its mean, the head has no effect
    assert by_resampling["z"] == [[1.0, 0.0], [1.0, 0.0]]


def test_analyses_without_roles_are_named():
    data = found()
    assert "do not apply" not in build_panels(data)[0].caption
    data["role"].attrs["not_applicable"] = "similarity"
    assert "Analyses of roles that do not apply to this model: similarity." in build_panels(data)[0].caption


def test_foreign_words_are_no_markup():
    (panel,) = build_panels(found(words=[["<img src=x>", "</s><b>"], ["", ""]]))
    text = encode_script_json(panel.data)
    assert "<img" not in text
    assert "&lt;img" in str(panel.data["variants"][0][1]["text"][0][0])
    assert "&lt;b&gt;at random" in panel.data["variants"][0][0]["hovertext"][0][0]


@pytest.mark.parametrize(("heads", "written"), [(6, True), (7, False)])
def test_of_many_heads_the_pointer_tells_the_names(heads, written):
    (panel,) = build_panels(found(heads=heads, seeded=False))
    cells = panel.data["variants"][0][1]
    assert any(map(any, cells["text"])) == written
    assert "negative" in cells["hovertext"][0][0]
    assert ("texttemplate" in panel.data["plots"][1]["data"][0]) == written


def test_without_names_there_is_no_map_but_nothing_is_lost():
    drawn = build_panels(found().drop_vars("role"))
    assert "No figure: a map of ablation effects needs axes layer and head" in drawn[0].caption
