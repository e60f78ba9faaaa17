"""Ablation costs what it must on models whose heads are known, and nothing where a head does nothing."""

import numpy as np
import pytest
import torch

from mesascope.activations import Edit, capture
from mesascope.analyses.causal.head_ablation import head_ablation
from mesascope.ground_truth.models.vectors import build_planted_model
from mesascope.models.transformer import Decoder, DecoderConfig
from mesascope.tasks.affine import Affine

TASK = Affine(length=12)
BATCH = TASK.sample(128, torch.Generator().manual_seed(0))


def test_only_the_planted_head_costs_anything():
    found = head_ablation(build_planted_model("copying", length=12), TASK, BATCH, first=2)
    effect = found["effect"][0].sel(stat="mean")
    assert float(effect[0]) > 0.1
    assert float(np.abs(effect[1:]).max()) < 1e-3 * float(effect[0])


def test_a_mean_takes_away_exactly_the_heads_variance():
    """A copying head's output at a position, replaced by its mean: the prediction is the mean term."""
    model = build_planted_model("copying", length=12, nuisance=0.0)
    found = head_ablation(model, TASK, BATCH, groups=False)
    mean = BATCH.inputs.mean(0, keepdim=True)
    loss = TASK.loss(mean.expand_as(BATCH.inputs), BATCH).mean()
    assert float(found["effect"][0, 0].sel(stat="mean")) == pytest.approx(float(loss) - float(found["loss"]), rel=1e-4)


def test_resampling_costs_more_than_the_mean():
    effect = head_ablation(build_planted_model("copying", length=12), TASK, BATCH)["effect"][0, 0]
    assert float(effect.sel(stat="resample")) > 1.3 * float(effect.sel(stat="mean"))


def test_a_group_of_one_costs_what_the_head_costs_and_all_heads_cost_what_the_layer_does():
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(d_in=1, d_out=1, num_hidden_layers=2, hidden_size=16)).eval()
    found = head_ablation(model, TASK, BATCH)
    groups = found["group_effect"]
    assert len(groups["component"]) == 15
    assert (groups.sel(component=["0", "1", "2", "3"]).values == found["effect"].values).all()
    write = capture(model, BATCH, ["attn_out"])["attn_out"][0]
    edit = Edit(site="attn_out", where={"layer": 0}, fn=lambda old: write.mean(0, keepdim=True).expand_as(old))
    edited = capture(model, BATCH, ["output"], edits=[edit])["output"]
    by_layer = float(TASK.loss(edited, BATCH).mean()) - float(found["loss"])
    assert float(groups.sel(layer=0, component="0+1+2+3", stat="mean")) == pytest.approx(by_layer, rel=1e-3)


def test_too_many_heads_for_groups_are_refused_and_single_heads_are_not():
    model = Decoder(DecoderConfig(d_in=1, d_out=1, num_hidden_layers=1, hidden_size=16, num_attention_heads=8)).eval()
    with pytest.raises(ValueError, match="at most 6 heads in a layer, but got 8; use groups=False"):
        head_ablation(model, TASK, BATCH)
    found = head_ablation(model, TASK, BATCH, groups=False)
    assert found["effect"].sizes["head"] == 8
    assert "group_effect" not in found


def test_one_head_is_its_only_group():
    model = Decoder(DecoderConfig(d_in=1, d_out=1, num_hidden_layers=1, hidden_size=16, num_attention_heads=1)).eval()
    found = head_ablation(model, TASK, BATCH)
    assert found["group_effect"]["component"].values.tolist() == ["0"]
    assert (found["group_effect"].values == found["effect"].values).all()
