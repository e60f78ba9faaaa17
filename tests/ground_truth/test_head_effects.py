"""Ablation effects of planted heads, and the labels of decoys without effect."""

import pytest
import torch

from cases import spread
from mesascope.analyses.causal.head_ablation import head_ablation
from mesascope.analyses.causal.head_roles import select_role_analyses
from mesascope.ground_truth.models.vectors import build_planted_model
from mesascope.models.transformer import Decoder, DecoderConfig
from mesascope.tasks.affine import Affine
from mesascope.tasks.base import Batch
from mesascope.tasks.regression import Regression
from mesascope.tasks.seeded import SeededSequences

TASK = Affine(length=10)
SINGLE_HEADS = head_ablation.using(groups=False)


def sample_independent(count: int = 64) -> Batch:
    """Return independent terms with the previous term as target, so that a copying head determines the prediction."""
    x, noise = torch.randn(2, count, 10, 1, generator=torch.Generator().manual_seed(5))
    return Batch(inputs=x, targets=x.roll(1, 1) + 0.3 * noise, weight=torch.ones(count, 10))


@pytest.mark.parametrize("seed", spread(range(20), 8))
def test_only_the_planted_head_has_an_effect(seed):
    found = SINGLE_HEADS(build_planted_model("previous", length=10, seed=seed), TASK, sample_independent(), first=2)
    assert found["has_effect"][0].any("stat").values.tolist() == [True, False, False, False]
    assert float(found["effect"].sel(stat="mean")[0, 0]) > 10 * float(abs(found["effect_null"][0, 0]))


def test_planted_head_gets_its_label():
    found = SINGLE_HEADS(build_planted_model("previous", length=10), TASK, sample_independent(), first=2)
    assert found["label"][0].values.tolist() == ["copying, previous", "neither", "neither", "neither"]


def test_head_with_zero_output_weights_has_no_effect():
    model = build_planted_model("previous", length=10)
    with torch.no_grad():
        model.get_parameter("layers.0.attention.o_proj.weight")[:, :8] = 0.0
    found = SINGLE_HEADS(model, TASK, sample_independent(), first=2)
    assert found["label"][0, 0].item() == "previous, no effect"
    assert (found["effect"][0, 0] == 0).all()
    assert float(found["effect_null"][0, 0]) == 0


def test_head_with_effect_but_no_role_is_labelled_so():
    """It averages positions: no positional pattern, no similarity, and its output is not a term."""
    model = build_planted_model("constant", length=10, nuisance=0.0)
    with torch.no_grad():
        weight = model.get_parameter("layers.0.attention.v_proj.weight")
        weight[0], weight[0, 2] = 0.0, 1.0  # the position, averaged
        for name in ("q_proj", "k_proj"):
            model.get_parameter(f"layers.0.attention.{name}.weight")[:8] = 0.0
        weight[0, 0] = 0.3
    found = SINGLE_HEADS(model, TASK, sample_independent(), first=2)
    assert found["label"][0].values.tolist() == ["no role", "neither", "neither", "neither"]


def test_analyses_that_do_not_apply_to_linear_attention_are_left_out():
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "attention": "linear"}
    model, task = Decoder(DecoderConfig(d_in=3, d_out=1, **shape)).eval(), Regression(dim=2, layout="joined")
    found = SINGLE_HEADS(model, task, task.sample(32, torch.Generator().manual_seed(0)))
    assert (found["role"] == "").all()
    assert found["role"].attrs["not_applicable"] == "similarity, positional_attention"
    assert set(found["label"].values.ravel()) <= {"no role", "neither"}


def test_tokens_have_their_own_analyses():
    task = SeededSequences(num_symbols=7, num_generators=3, prefix_length=2, length=10)
    batch = task.sample(32, torch.Generator().manual_seed(0))
    assert [one.name for one in select_role_analyses(batch)] == [
        "positional_attention",
        "ov_copying_score",
        "token_similarity",
        "natural_induction",
    ]
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(vocab_size=7, num_hidden_layers=1, hidden_size=16, num_attention_heads=2)).eval()
    found = SINGLE_HEADS(model, task, batch, first=task.prefix_length)
    assert found["effect"].dims == ("layer", "head", "stat")
    assert found["low"].values.min() <= found["effect"].values.min()
    short = task.sample(32, torch.Generator().manual_seed(0))
    short = Batch(inputs=short.inputs[:, :6], targets=short.targets[:, :6], weight=short.weight[:, :6])
    assert "token_similarity" not in [one.name for one in select_role_analyses(short)]
