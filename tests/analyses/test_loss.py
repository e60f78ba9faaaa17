"""Losses of many sequences are the same in chunks, and their standard errors are the spread of other draws."""

from collections.abc import Callable
from dataclasses import replace
from functools import wraps

import numpy as np
import pytest
import torch
import xarray as xr

from mesascope import analyses
from mesascope.activations import Capture, capture
from mesascope.analyses.sequence_losses import concatenate_losses, measure_losses
from mesascope.axes import to_data_array
from mesascope.ground_truth.models.vectors import build_planted_model
from mesascope.report.panels.choose_view import build_panels
from mesascope.runner._checkpoints import SeedCheckpoints
from mesascope.runner._evaluation import (
    MIN_EVALUATION_SEQUENCES,
    count_evaluation_sequences,
    draw_evaluation_batches,
)
from mesascope.statistics import MIN_LOSS, ratio_of_sums
from mesascope.studies.base import ScaleConfig
from mesascope.studies.registry import load_study
from mesascope.tasks.affine import Affine
from mesascope.tasks.base import Batch
from mesascope.tasks.seeded import SeededSequences
from mesascope.train import TrainingConfig

TASK = Affine(length=8)
LOSSES = ("error", "scored", "relative", "mean_log10_loss")


def evaluate(seed: int, sequences: int = 400) -> xr.Dataset:
    """Evaluate the copying model on its own draw, in chunks of 64 sequences."""
    model = build_planted_model("copying", length=8, nuisance=0.05)
    chunks = []
    for batch in draw_evaluation_batches(TASK, 64, sequences, seed):
        predictions = {"model": capture(model, batch, ["output"])["output"], **TASK.baselines(batch)}
        chunks.append(measure_losses(predictions, batch))
    return analyses.loss_vs_baselines(concatenate_losses(chunks))


@analyses.analysis(title="Mean square", description="Mean square of the recorded site.", sites=["output"])
def mean_square(acts: Capture) -> xr.Dataset:
    """An analysis of one site."""
    (recorded,) = acts.sites.values()
    return xr.Dataset({"mean": to_data_array(recorded.square().mean(), units="1", description="mean square")})


def count_calls(forward: Callable, passed: list[int]) -> Callable:
    """The same function, which notes the number of sequences of every call."""

    @wraps(forward)
    def counted(inputs, *rest, **named):
        passed.append(len(inputs))
        return forward(inputs, *rest, **named)

    return counted


def test_chunks_give_the_losses_of_one_capture():
    batches = draw_evaluation_batches(TASK, 64, 150, 3)
    assert [len(batch) for batch in batches] == [64, 64, 22]
    model = build_planted_model("copying", length=8, nuisance=0.05)
    joined = Batch(
        inputs=torch.cat([one.inputs for one in batches]),
        targets=torch.cat([one.targets for one in batches]),
        weight=torch.cat([one.weight for one in batches]),
    )
    whole = analyses.loss_vs_baselines(capture(model, joined, ["output"], baselines=TASK.baselines(joined)))
    xr.testing.assert_allclose(evaluate(3, 150), whole, rtol=1e-4)
    assert evaluate(3, 150)["predictor"].values[0] == "model"


def test_every_seed_has_its_own_sequences_and_the_first_chunk_is_analysed():
    draws = [draw_evaluation_batches(TASK, 16, 48, seed) for seed in (0, 1)]
    assert not torch.equal(draws[0][0].inputs, draws[1][0].inputs)
    assert not torch.equal(draws[0][0].inputs, draws[0][1].inputs)
    assert torch.equal(draws[0][0].inputs, draw_evaluation_batches(TASK, 16, 16, 0)[0].inputs)


@pytest.mark.slow
def test_standard_errors_are_the_spread_of_independent_draws():
    draws = xr.concat([evaluate(seed) for seed in range(20)], dim="draw")
    for name in LOSSES:
        assert draws[f"{name}_se"].attrs["uncertainty_of"] == name
        spread, stated = draws[name].std("draw", ddof=1), np.sqrt((draws[f"{name}_se"] ** 2).mean("draw"))
        ratio = (spread / stated).sel(predictor=["model", "zero", "linear extrapolation"])
        # 20 draws: the spread has a relative error of 16 %; the errors have heavy tails besides
        assert float(ratio.median()) == pytest.approx(1.0, abs=0.35), name
        assert float(ratio.min()) > 0.4, name
        assert float(ratio.max()) < 2.0, name
    exact = draws["relative_se"].sel(predictor="copy")
    assert float(abs(exact).max()) < 1e-12  # copying over copying is 1 in every draw


def test_the_ratio_of_sums_has_the_spread_that_it_states():
    generator = torch.Generator().manual_seed(0)
    denominator = torch.rand(2000, 200, generator=generator, dtype=torch.float64) + 0.5
    numerator = 3 * denominator + torch.randn(2000, 200, generator=generator, dtype=torch.float64)
    ratio, standard_error = ratio_of_sums(numerator, denominator)
    assert float(ratio.std() / standard_error.square().mean().sqrt()) == pytest.approx(1.0, abs=0.06)
    assert float(ratio.mean()) == pytest.approx(3.0, abs=0.01)
    values = torch.randn(50, generator=generator)
    mean, standard_error = ratio_of_sums(values, torch.ones(1))
    assert float(mean) == pytest.approx(float(values.mean()), rel=1e-5)
    assert float(standard_error) == pytest.approx(float(values.std() / 50**0.5), rel=1e-5)
    assert ratio_of_sums(values[:1], torch.ones(1))[1].isnan()


def test_the_mean_log_loss_is_not_decided_by_one_sequence():
    batch = TASK.sample(100, torch.Generator().manual_seed(0))
    prediction = batch.targets + 0.1
    outlier = prediction.clone()
    outlier[0] += 1000.0
    found = analyses.loss_vs_baselines(measure_losses({"calm": prediction, "outlier": outlier}, batch))
    assert np.allclose(found["mean_log10_loss"].sel(predictor="calm"), -2.0, atol=1e-4)
    assert float(found["mean_log10_loss"].sel(predictor="outlier")) == pytest.approx(-2.0 + 0.08, abs=0.001)
    assert float(found["scored"].sel(predictor="outlier")) > 1e4 - 1
    exact = analyses.loss_vs_baselines(measure_losses({"exact": batch.targets}, batch))
    assert float(exact["mean_log10_loss"][0]) == pytest.approx(np.log10(MIN_LOSS))
    assert float(exact["mean_log10_loss_se"][0]) < 1e-12


def test_unscored_positions_and_sequences_count_in_no_mean():
    batch = TASK.sample(6, torch.Generator().manual_seed(0))
    weight = torch.ones(6, 8)
    weight[:, 0], weight[5] = 0, 0
    prediction = batch.targets + 0.1
    prediction[:, 0], prediction[5] = torch.inf, torch.inf
    found = analyses.loss_vs_baselines(measure_losses({"model": prediction}, replace(batch, weight=weight)))
    assert float(found["scored"][0]) == pytest.approx(0.01, rel=1e-4)
    assert float(found["mean_log10_loss"][0]) == pytest.approx(-2.0, abs=1e-4)


def test_tokens_have_the_logarithm_of_the_mean_cross_entropy():
    task = SeededSequences(num_symbols=7, num_generators=3, prefix_length=2, length=10)
    batch = task.sample(32, torch.Generator().manual_seed(1))
    found = analyses.loss_vs_baselines(measure_losses({"uniform": torch.zeros(32, 10, 7)}, batch))
    assert float(found["mean_log10_loss"][0]) == pytest.approx(np.log10(np.log(7)), rel=1e-5)
    assert found["mean_log10_loss"].attrs["units"] == "log10 nat"
    assert float(found["scored_se"][0]) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("recorded", "passes"), [(mean_square, 1), (replace(mean_square, sites=("resid_pre",)), 2)])
def test_an_output_that_is_recorded_is_not_computed_again(recorded, passes, monkeypatch):
    model, passed = build_planted_model("copying", length=8, nuisance=0.05), []
    monkeypatch.setattr(model, "forward", count_calls(model.forward, passed))
    checkpoints = SeedCheckpoints(
        task=TASK,
        steps=(0,),
        seed=3,
        evaluation_batches=draw_evaluation_batches(TASK, 64, 150, 3),
        load=lambda step: model,
        open_history=lambda step: pytest.fail("no analysis reads a history"),
    )
    checkpoints.analyse(0, [recorded, analyses.loss_vs_baselines])  # checks the model at every length
    passed.clear()
    found = checkpoints.analyse(0, [recorded, analyses.loss_vs_baselines])
    assert passed == [64] * passes + [64, 22]  # the first chunk, and the others
    alone = checkpoints.analyse(0, [analyses.loss_vs_baselines])
    xr.testing.assert_identical(found["loss_vs_baselines"], alone["loss_vs_baselines"])
    xr.testing.assert_identical(found[recorded.name], checkpoints.analyse(0, [recorded])[recorded.name])


def test_the_number_of_evaluation_sequences_follows_the_scale():
    condition = load_study("affine").main
    assert [count_evaluation_sequences(condition, scale) for scale in MIN_EVALUATION_SEQUENCES] == [64, 4096, 4096]
    training = TrainingConfig(steps=2, checkpoints=2)
    few, many = ScaleConfig(training=training, evaluation_sequences=700), ScaleConfig(training=training, sequences=5000)
    changed = replace(condition, scales={**condition.scales, "laptop": few, "paper": many})
    assert [count_evaluation_sequences(changed, scale) for scale in ("laptop", "paper")] == [700, 5000]


def test_reports_show_no_standard_error_as_a_result():
    titles = [panel.title for panel in build_panels(evaluate(0, 64))]
    assert titles == ["error", "scored", "mean log10 loss", "relative"]


def test_predictors_on_other_sequences_are_refused():
    batch = TASK.sample(8, torch.Generator().manual_seed(0))
    model = measure_losses({"model": batch.targets}, batch)
    baselines = measure_losses(TASK.baselines(batch[:4]), batch[:4])
    with pytest.raises(ValueError, match="must be evaluated on the same sequences, but got 8 and 4"):
        model.with_predictors(baselines)
    joined = model.with_predictors(measure_losses({}, batch))
    assert joined.predictors == ("model",)
    assert joined.values.shape == (1, 8, 8)


def test_only_analyses_of_captures_can_be_evaluated():
    with pytest.raises(ValueError, match="evaluation needs input='capture', but got input='model'"):
        analyses.analysis(title="t", description="d", input="model", evaluation=True)
