"""The table of head roles beside those of untrained models, and controls whose mean says nothing."""

import numpy as np
import xarray as xr

from mesascope.report.explorers.combined import find_quantities
from mesascope.report.load_run import ResultFile
from mesascope.report.panels.choose_view import build_panels
from mesascope.report.plotting.controls import has_random_sign, stack_replicates

ABOUT = {"units": "1", "description": "a number"}
UNTRAINED = {"control": "untrained"}


def counts(step: bool = True) -> xr.Dataset:
    """Two seeds, two layers and one role; four untrained models of each seed, and those at step 0."""
    trained = np.array([[[[2], [1]], [[3], [4]]], [[[2], [1]], [[2], [4]]]])  # seed step layer role
    draws = np.array([[[[3], [0]]] * 4] * 2)
    count = xr.DataArray(
        trained,
        dims=("seed", "step", "layer", "role_name"),
        coords={"seed": [0, 1], "step": [0, 60], "role_name": ["similarity"]},
        attrs=ABOUT | {"view": "role_counts", "num_heads": 4, "headline": 1},
    )
    null = xr.DataArray(draws, dims=("seed", "draw", "layer", "role_name"), attrs=ABOUT | UNTRAINED)
    data = xr.Dataset({"role_count": count, "role_count_null_untrained": null.assign_attrs(control_of="role_count")})
    return data if step else data.isel(step=-1, drop=True)


def test_a_cell_has_the_trained_and_the_untrained_number():
    (panel,) = build_panels(counts(step=False))
    assert panel.kind == "table"
    assert panel.headline
    assert panel.data["head"] == ["", "similarity"]
    assert panel.data["rows"][0] == ["layer 0", "trained 2.5 of 4, untrained 3 of 4"]
    assert "untrained: 8 draws" in panel.caption


def test_models_at_step_0_are_untrained_too():
    (panel,) = build_panels(counts())
    assert panel.data["rows"] == [
        ["layer 0", "trained 2.5 of 4, untrained 2.8 ± 0.4 of 4"],
        ["layer 1", "trained 4 of 4, untrained 0.2 ± 0.4 of 4"],
    ]
    assert "untrained: 10 draws" in panel.caption
    assert "Mean over 2 seeds" in panel.caption


def test_one_model_without_controls_has_its_numbers():
    data = counts().isel(seed=0, step=-1, drop=True).drop_vars("role_count_null_untrained")
    (panel,) = build_panels(data)
    assert panel.data["rows"] == [["layer 0", "trained 3 of 4"], ["layer 1", "trained 4 of 4"]]


def test_a_cell_of_many_layers_has_numbers_only():
    """Here each layer is repeated seven times."""
    data = counts(step=False)
    (panel,) = build_panels(data.isel(layer=[0, 1] * 7))
    assert panel.data["rows"][0] == ["layer 0", "2.5 (3)"]
    assert panel.data["rows"][13] == ["layer 13", "4 (0)"]
    assert "Of 4 heads in a layer; in brackets: untrained" in panel.caption
    (panel,) = build_panels(data.drop_vars("role_count_null_untrained").isel(layer=[0, 1] * 7))
    assert panel.data["rows"][0] == ["layer 0", "2.5"]
    assert "brackets" not in panel.caption


def heads(**attrs) -> xr.Dataset:
    """Scores of two heads; the draws of the control have random signs."""
    array = xr.DataArray(
        np.array([[0.3, -0.3], [0.1, 0.2]]), dims=("layer", "head"), attrs=ABOUT | {"center": 0} | attrs
    )
    draws = np.array([[[0.5, -0.5], [0.5, -0.5]], [[-0.5, 0.5], [-0.5, 0.5]]])
    null = xr.DataArray(
        draws, dims=("draw", "layer", "head"), attrs=ABOUT | UNTRAINED | {"control_of": "x", "center": 0}
    )
    return xr.Dataset({"x": array, "x_null_untrained": null})


def test_draws_of_random_sign_are_summarised_by_their_size():
    (panel,) = build_panels(heads())
    titles = [plot["title"] for plot in panel.data["plots"]]
    assert titles == ["this model", "untrained, root mean square"]
    assert panel.data["variants"][0][1]["z"] == [0.5] * 4 or panel.data["variants"][0][1]["z"] == [[0.5, 0.5]] * 2
    null = heads()["x_null_untrained"].expand_dims("seed")
    assert has_random_sign(stack_replicates(null))
    assert not has_random_sign(stack_replicates(abs(null).assign_attrs(null.attrs)))


def test_the_mean_of_roles_is_not_drawn():
    data = heads(categorical=1)
    (panel,) = build_panels(data)
    assert [plot["title"] for plot in panel.data["plots"]] == [""]
    file = ResultFile(file="x.nc", data=data)
    names = [one.name for one in find_quantities([file], lambda array: True, controls=False)]
    assert names == ["x"], "a control is no quantity of its own"
    (quantity,) = find_quantities([file], lambda array: True, controls=False)
    assert not quantity.variable.controls
