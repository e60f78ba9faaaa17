"""The first order: exact where what follows is linear, right for small changes, and told where it is not right."""

import numpy as np
import pytest
import torch

from mesascope.activations import capture
from mesascope.ground_truth.adapters import target_agreement
from mesascope.ground_truth.models.vectors import VECTOR_MECHANISMS, build_planted_model
from mesascope.interventions import attribution_patch, logit_difference, mean, replace, scale, sweep, zero
from mesascope.interventions.attribution_patching import compute_agreement
from mesascope.tasks.affine import Affine
from mesascope.testing import GROUND_TRUTH

from .test_changes import MODELS, tokens

SITES = ["resid_pre", "attn_out", "mlp_out", "z"]


@pytest.mark.parametrize(
    "name", [name for name in VECTOR_MECHANISMS if name != "residual only"]
)  # its heads write nothing
def test_it_is_the_effect_itself_where_only_the_read_out_follows(name):
    """The output of a planted model is linear in what its heads give; with a linear metric nothing is left out."""
    batch = Affine().sample(32, torch.Generator().manual_seed(0))
    over = ("layer", "head", "pos")
    found = attribution_patch(
        build_planted_model(name), batch, zero("z"), over, lambda p: p[:, -3:].sum((1, 2)), compare=True
    )
    size = float(abs(found["effect"]).max())
    assert size > 0.01
    assert float(abs(found["error"]).max()) < 1e-5 * size
    assert found["agreement"].values == pytest.approx([1.0, 1.0, 0.0], abs=1e-4)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("site", SITES)
def test_it_is_the_slope_of_the_effect(name, site):
    """As much more as less: what is left of the difference is of third order."""
    model, metric, over, small = MODELS[name], logit_difference(3, 4), ("layer", "pos"), 0.003
    slope = attribution_patch(model, tokens(), scale(site, 1 + small), over, metric)["estimate"]
    more, less = (sweep(model, tokens(), scale(site, 1 + by), over, metric)["effect"] for by in (small, -small))
    size = float(abs(slope).max())
    assert size > 1e-3
    np.testing.assert_allclose((more - less) / 2, slope, atol=2e-3 * size)


@pytest.mark.parametrize("name", MODELS)
def test_large_changes_leave_the_first_order_and_that_is_told(name):
    model, metric = MODELS[name], logit_difference(3, 4)
    other = replace("resid_pre", capture(model, tokens(1), ["resid_pre"]))
    found = attribution_patch(model, tokens(), other, ("layer", "pos"), metric, compare=True)
    assert float(found["agreement"].sel(stat="relative_error")) > 0.1
    assert abs(float(found["agreement"].sel(stat="correlation"))) < 0.999
    np.testing.assert_allclose(found["error"], found["estimate"] - found["effect"])


@pytest.mark.parametrize("name", ["gpt2", pytest.param("llama", marks=pytest.mark.slow)])
@pytest.mark.parametrize("site", SITES)
def test_along_the_way_the_places_of_a_layer_sum_to_the_effect_of_all(name, site):
    """Completeness, up to the square of the step; these models are so far from linear that it takes many."""
    model, metric = MODELS[name], logit_difference(3, 4)
    other = replace(site, capture(model, tokens(1), [site]))
    whole = sweep(model, tokens(), other, ("layer",), metric)["effect"]
    over = ("layer", "head", "pos") if site == "z" else ("layer", "pos")

    def error(steps: int) -> float:
        parts = attribution_patch(model, tokens(), other, over, metric, steps=steps)["estimate"]
        return float(abs(parts.sum([axis for axis in over if axis != "layer"]) - whole).max() / abs(whole).max())

    assert error(0) > 0.5
    assert error(256) < 0.03


@pytest.mark.slow
def test_along_the_way_a_saturated_softmax_hides_nothing():
    """The head whose tokens an induction head looks for: to first order nothing hangs on it."""
    (case,) = [case for case in GROUND_TRUTH if case.name == "language model"]
    model, batch, names = case.build_model(0), case.sample_batch(0), case.components(0)
    (place,) = [place for place, name in names.items() if name == "the head 'previous token'"]
    edit = mean("z", capture(model, batch, ["z"]))
    first, along = (
        attribution_patch(model, batch, edit, metric=target_agreement(batch), steps=steps, compare=True)
        for steps in (0, 20)
    )
    real = float(first["effect"][place])
    assert abs(float(first["estimate"][place])) < 0.01 * abs(real)
    assert float(along["estimate"][place]) == pytest.approx(real, rel=0.05)
    assert float(along["agreement"].sel(stat="relative_error")) < 0.05


def test_points_on_the_way_that_do_not_fit_at_once_run_one_after_the_other():
    model, metric = MODELS["llama"], logit_difference(3, 4)
    at_once, few = (
        attribution_patch(model, tokens(), zero("z"), metric=metric, steps=5, max_positions=positions)["estimate"]
        for positions in (4096, 2 * tokens().numel())
    )
    np.testing.assert_allclose(at_once, few, atol=1e-5 * float(abs(at_once).max()))


def test_what_changes_nothing_is_estimated_at_nothing():
    model = MODELS["llama"]
    own = replace("mlp_out", capture(model, tokens(), ["mlp_out"]))
    for steps in (0, 3):
        found = attribution_patch(model, tokens(), own, ("layer",), logit_difference(3, 4), steps=steps)
        assert (found["estimate"] == 0).all()


def test_agreement_is_told_of_numbers_that_are_known():
    effect = np.array([1.0, -1.0, 2.0, 0.0])
    assert compute_agreement(-effect, effect) == pytest.approx([-1.0, 0.0, 2.0])
    assert compute_agreement(2 * effect, effect) == pytest.approx([1.0, 1.0, 1.0])
    assert np.isnan(compute_agreement(effect, 0 * effect)).all()
    assert np.isnan(compute_agreement(0 * effect, effect)[0])
    assert compute_agreement(0 * effect, effect)[1:] == pytest.approx([0.0, 1.0])


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda m: attribution_patch(m, tokens(), zero("value"), ("layer",)), "must be at a site with a gradient"),
        (lambda m: attribution_patch(m, tokens(), zero("z"), metric="kl_divergence"), "because its gradient is 0"),
        (lambda m: attribution_patch(m, tokens(), zero("z"), steps=-1), "steps must be 0 or more, but got -1"),
        (lambda m: attribution_patch(m, tokens(), zero("z"), ("key",)), "axes must name axes of z"),
        (lambda m: attribution_patch(m, tokens(), zero("mlp_out"), ("layer", "head")), "axes must name axes of mlp"),
        (lambda m: capture(m, tokens(), ["resid_pre_grad"], objective=lambda p: p.sum((1, 2)), batch_size=2), "batch_"),
    ],
)
def test_what_has_no_first_order_is_refused(call, line):
    with pytest.raises(ValueError, match=line):
        call(MODELS["gpt2"])
