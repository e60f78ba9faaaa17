"""Somebody with a regression transformer as Garg et al. (2022) train it, in a plain module around GPT2Model.

By docs/your-own-model.md ("A regression transformer") and docs/algorithms.md: which algorithm predicts like it?
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import mesascope
from mesascope.interventions import sweep, zero
from mesascope.tasks.regression import Regression
from plain_modules import RegressionTransformer, predictions_of_regression

TASK = Regression(dim=1, num_examples=6)
STEPS = 400


@pytest.fixture(scope="module")
def untrained() -> RegressionTransformer:
    torch.manual_seed(0)
    return RegressionTransformer(dim=1, width=32).eval()


@pytest.fixture(scope="module")
def prompts() -> tuple[Tensor, Tensor]:
    """Inputs and values of linear functions of their own: xs (batch, pos, dim), ys (batch, pos)."""
    generator = torch.Generator().manual_seed(0)
    xs = torch.randn(32, 7, 1, generator=generator)
    return xs, (xs @ torch.randn(32, 1, 1, generator=generator)).squeeze(-1)


def test_the_class_is_wrapped_with_the_layout_of_the_task(untrained: RegressionTransformer):
    """The task interleaves x and y as the class does, and the prediction of y stands at the position of its x."""
    batch = TASK.sample(32, torch.Generator().manual_seed(0))
    xs, ys = batch.inputs[:, ::2], batch.targets[:, ::2, 0]
    assert torch.equal(batch.inputs[:, 1::2, 0], ys[:, :-1])
    model = mesascope.wrap(untrained, forward=predictions_of_regression)
    acts = mesascope.capture(model, batch, ["resid_pre", "query", "pattern", "output"])
    assert acts["output"].shape == (32, 13, 1)
    assert torch.allclose(acts["output"][:, ::2, 0], untrained(xs, ys), atol=1e-6)
    assert acts["pattern"].shape == (2, 32, 4, 13, 13)


def test_without_a_forward_function_the_line_says_so(untrained: RegressionTransformer):
    """The `forward(xs, ys)` of the class takes two arguments."""
    batch = TASK.sample(4, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="forward=") as refusal:
        mesascope.capture(mesascope.wrap(untrained), batch)
    assert "\n" not in str(refusal.value)


def test_an_untrained_model_is_like_none_of_the_algorithms(untrained: RegressionTransformer):
    (report,) = mesascope.rank_algorithms(
        mesascope.wrap(untrained, forward=predictions_of_regression), task=TASK, sequences=64
    )
    assert report.results["named"].item() == "none of these"
    shown = repr(report).splitlines()
    assert shown[0] == "Nearest algorithm: none of these (Regression)"
    assert len(shown) == 1 + report.results.sizes["predictor"]
    assert "<table>" in report._repr_html_()


def test_heads_are_ablated_by_the_change_of_the_prediction(untrained: RegressionTransformer):
    model = mesascope.wrap(untrained, forward=predictions_of_regression)
    batch = TASK.sample(16, torch.Generator().manual_seed(0))
    effects = sweep(model, batch, zero("z"), axes=("layer", "head"), metric="squared_distance")["effect"]
    assert effects.sizes == {"layer": 2, "head": 4}
    assert (effects > 0).all()


def test_the_command_line_has_no_way_to_open_a_module(
    tmp_path: Path, untrained: RegressionTransformer, command: Callable
):
    """A folder with the GPT2Model inside is no model that predicts."""
    untrained.backbone.save_pretrained(tmp_path / "backbone")
    code, out, err = command("which-algorithm", tmp_path / "backbone")
    assert (code, out) == (2, "")
    assert "is a backbone without the head of a language model" in err.splitlines()[-1]


@pytest.mark.slow
def test_a_trained_model_is_near_least_squares():
    """One coefficient, which any pair determines: after some hundred steps, predictions follow least squares."""
    torch.manual_seed(0)
    module = RegressionTransformer(dim=1, width=32)
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        batch = TASK.sample(64, generator)
        loss = (TASK.loss(module.predict(batch.inputs), batch) * batch.weight).sum() / batch.weight.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model = mesascope.wrap(module.eval(), forward=predictions_of_regression)
    (report,) = mesascope.rank_algorithms(model, task=TASK, sequences=128)
    similarity = report.results["similarity"].sel(distribution="training distribution", stat="predictions")
    assert float(similarity.sel(predictor="least squares")) > 0.5
    assert report.results["named"].item() != "none of these"
    assert float(report.results["similarity_null"].sel(predictor="least squares")) < 0.1
