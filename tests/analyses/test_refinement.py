"""Slopes equal least squares, and only a head that subtracts the error of the stream has the role of refinement."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mesascope.activations import capture
from mesascope.analyses import label_head_roles, refinement_heads
from mesascope.analyses.heads.refinement import direct_head_contributions, estimate_from_stream
from mesascope.ground_truth.cases.case import NextTokenTask, replace_targets
from mesascope.ground_truth.cases.refinement import REFINEMENT_CASES, TASK
from mesascope.ground_truth.models.refinement import (
    DIM,
    OUTPUT_DIMS,
    REFINEMENT_MECHANISMS,
    build_refinement_model,
)
from mesascope.ground_truth.models.vectors import build_planted_model
from mesascope.models.config import DecoderConfig
from mesascope.models.transformer import Decoder
from mesascope.tasks.affine import Affine
from mesascope.tasks.base import Batch

PLANTED = {"layer": 1, "head": 0}
CASES = {case.name: case for case in REFINEMENT_CASES}


def sample_vectors(count: int = 64, seed: int = 0) -> Batch:
    return TASK.sample(count, torch.Generator().manual_seed(seed))


def build_decoder(**shape) -> Decoder:
    torch.manual_seed(0)
    config = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "max_position_embeddings": 12}
    return Decoder(DecoderConfig(d_in=DIM, d_out=DIM, **config, **shape)).eval()


def with_perfect_targets(model: Decoder, batch: Batch) -> Batch:
    with torch.no_grad():
        return replace(batch, targets=model(batch.inputs).logits)


def build_model_with_inverting_mlp() -> Decoder:
    """The refining model with an MLP in layer 1 that subtracts twice of what the heads have written."""
    refining = build_refinement_model("refining", nuisance=0.0)
    config = DecoderConfig(**{**refining.config.to_diff_dict(), "intermediate_size": DIM})
    model = Decoder(config).eval()
    model.load_state_dict(refining.state_dict(), strict=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".mlp." in name:
                parameter.zero_()
        model.get_parameter("layers.1.mlp.up_proj.weight")[:, OUTPUT_DIMS] = torch.eye(DIM)
        model.get_parameter("layers.1.mlp.up_proj.bias").fill_(50.0)  # where the activation function is the identity
        model.get_parameter("layers.1.mlp.down_proj.weight")[OUTPUT_DIMS] = -2 * torch.eye(DIM)
        model.get_parameter("layers.1.mlp.down_proj.bias")[OUTPUT_DIMS] = 100.0
    return model


@pytest.mark.parametrize("shape", [{}, {"norm": "layer", "intermediate_size": 24}], ids=["attention only", "norm, MLP"])
def test_slopes_are_those_of_least_squares(shape):
    model, batch = build_decoder(**shape), sample_vectors()
    found = refinement_heads(model, TASK, batch, first=3, total=False)
    acts = capture(model, batch, ["resid_pre", "resid_post", "z"])
    for layer, head in ((0, 1), (1, 0)):
        contribution = direct_head_contributions(acts, layer)[head].double().numpy()
        stream, target = estimate_from_stream(acts, layer).double().numpy(), batch.targets.double().numpy()
        coefficients, unexplained, variance = [], 0.0, 0.0
        for position in range(3, 12):
            for j in range(DIM):
                y = contribution[:, position, j]
                x = np.stack([np.ones(64), stream[:, position, j], target[:, position, j]], axis=1)
                weight, (squares,), *_ = np.linalg.lstsq(x, y, rcond=None)
                marginal = np.polyfit(stream[:, position, j], y, 1)[0]
                coefficients.append([*weight[1:], marginal])
                unexplained, variance = unexplained + squares, variance + ((y - y.mean()) ** 2).sum()
        chosen = found.sel(layer=layer, head=head, stat="direct")
        slopes = [float(chosen[name]) for name in ("stream_slope", "target_slope", "marginal_slope")]
        assert slopes == pytest.approx(np.mean(coefficients, axis=0).tolist(), rel=1e-6)
        assert float(chosen["explained"]) == pytest.approx(1 - unexplained / variance, rel=1e-6)


def test_stream_and_contributions_of_the_last_layer_sum_to_the_output():
    model, batch = build_decoder(norm="layer"), sample_vectors()
    acts = capture(model, batch, ["resid_pre", "resid_post", "z", "output"])
    constant = acts.readout.attribute_logits(acts.readout.output_bias[1].expand(64, 12, -1), acts["resid_post"][-1])
    total = estimate_from_stream(acts, 1) + direct_head_contributions(acts, 1).sum(0) + constant
    assert torch.allclose(total, acts["output"], atol=1e-5)


def test_slopes_in_the_last_layer_of_a_model_without_error_sum_to_minus_one_and_one():
    """The two slopes are then no evidence of a mechanism, for all heads together."""
    model = build_decoder()
    found = refinement_heads(model, TASK, with_perfect_targets(model, sample_vectors())).sel(layer=1)
    for stat in ("direct", "total"):
        assert float(found["stream_slope"].sel(stat=stat).sum()) == pytest.approx(-1, abs=1e-4)
        assert float(found["target_slope"].sel(stat=stat).sum()) == pytest.approx(1, abs=1e-4)


def test_total_and_direct_scores_agree_where_there_is_one_path():
    found = refinement_heads(build_decoder(), TASK, sample_vectors()).sel(layer=1)
    for name in ("stream_slope", "target_slope", "marginal_slope", "explained", "stream_slope_null_low"):
        assert np.allclose(found[name].sel(stat="direct"), found[name].sel(stat="total"), atol=1e-5)


def test_total_contribution_includes_the_path_through_the_mlp():
    model = build_model_with_inverting_mlp()
    batch = replace_targets(build_refinement_model("refining", nuisance=0.0), sample_vectors(128), torch.Generator())
    found = refinement_heads(model, TASK, batch).sel(PLANTED)
    assert found["role"].sel(stat=["direct", "total"]).values.tolist() == [1, 0]
    direct, total = (float(found["target_slope"].sel(stat=stat)) for stat in ("direct", "total"))
    assert total == pytest.approx(-direct, abs=1e-3)


@pytest.mark.parametrize("draw", [0, 1], ids=["converging", "independent"])
@pytest.mark.parametrize("name", REFINEMENT_MECHANISMS)
def test_only_the_refining_head_has_the_role(name, draw):
    case = CASES[name]
    found = refinement_heads(case.build_model(draw), TASK, case.sample_batch(draw))
    expected = np.zeros((2, 4, 2))
    expected[1, draw] = name == "refining"
    assert np.array_equal(found["role"].transpose("layer", "head", "stat"), expected)
    assert found["undefined"].values.tolist() == ["", ""]
    assert found["defined"].values.tolist() == [1, 1]


def test_refining_head_has_no_role_for_another_target():
    case, batch = CASES["refining"], CASES["shrinking"].sample_batch(1)
    found = refinement_heads(case.build_model(1), TASK, batch).sel(layer=1, head=1)
    assert (found["role"] == 0).all()
    assert (found["marginal_slope"] < found["marginal_slope_null_low"]).all()  # it still opposes the stream


def test_joint_slopes_alone_would_take_a_useful_copying_head_for_a_refining_one():
    found = refinement_heads(CASES["adding"].build_model(1), TASK, CASES["adding"].sample_batch(1)).sel(layer=1, head=1)
    assert (found["stream_slope"] < found["stream_slope_null_low"]).all()
    assert (found["target_slope"] > found["target_slope_null_high"]).all()
    assert (abs(found["marginal_slope"]) < 0.1).all()


def test_shrinking_head_has_the_planted_slopes():
    found = refinement_heads(CASES["shrinking"].build_model(0), TASK, CASES["shrinking"].sample_batch(0))
    planted = found.sel(PLANTED)
    assert np.allclose(planted["stream_slope"], -0.5, atol=1e-3)
    assert np.allclose(planted["target_slope"], 0, atol=1e-3)
    assert np.allclose(planted["explained"], 1, atol=1e-4)


def test_targets_of_other_sequences_give_no_role():
    case = CASES["refining"]
    batch = case.sample_batch(1)
    shuffled = replace(batch, targets=batch.targets.roll(1, 0))
    assert int(refinement_heads(case.build_model(1), TASK, shuffled)["role"].sum()) == 0


@pytest.mark.parametrize("multiple", [1.0, -2.0])
def test_target_collinear_with_the_stream_gives_no_score_and_the_reason(multiple):
    model, batch = build_refinement_model("refining"), sample_vectors()
    acts = capture(model, batch, ["resid_pre", "resid_post"])
    found = refinement_heads(model, TASK, replace(batch, targets=multiple * estimate_from_stream(acts, 1) + 1))
    for name in ("stream_slope", "target_slope", "marginal_slope", "explained"):
        assert bool(found[name].sel(layer=1).isnull().all())
    assert int(found["role"].sel(layer=1).sum()) == 0
    assert "equals the target or a linear function of it" in str(found["undefined"].sel(layer=1).item())
    assert float(found["defined"].sel(layer=1)) == 0
    assert bool(found["stream_correlation"].sel(layer=1).isnull())


def test_constant_stream_and_constant_target_give_no_score_and_the_reason():
    task = Affine(length=12)
    batch = task.sample(64, torch.Generator().manual_seed(0))
    found = refinement_heads(build_planted_model("copying", length=12), task, batch)
    assert found["undefined"].values.tolist() == [
        "the stream before the layer gives the same estimate for every sequence"
    ]
    constant = replace(sample_vectors(), targets=torch.ones(64, 12, DIM))
    found = refinement_heads(build_refinement_model("refining"), TASK, constant)
    assert set(found["undefined"].values.tolist()) == {"the target is the same in every sequence"}
    assert bool(found["target_slope"].isnull().all())


def test_positions_without_a_defined_regression_are_left_out():
    batch = sample_vectors()
    targets = batch.targets.clone()
    targets[:, 6:] = batch.inputs[:, 6:]
    found = refinement_heads(build_refinement_model("refining", nuisance=0.0), TASK, replace(batch, targets=targets))
    early = Batch(inputs=batch.inputs[:, :6], targets=batch.targets[:, :6], weight=batch.weight[:, :6])
    expected = refinement_heads(build_refinement_model("refining", nuisance=0.0), TASK, early)
    assert found["defined"].values.tolist() == pytest.approx([0.4, 0.4])
    assert np.allclose(found["target_slope"], expected["target_slope"], atol=1e-6)


def test_role_counts_and_labels():
    case = CASES["refining"]
    found = refinement_heads(case.build_model(1), TASK, case.sample_batch(1))
    assert found["role_count"].transpose("layer", "role_name").values.tolist() == [[0, 0], [1, 1]]
    labels = label_head_roles({"refinement_heads": found})
    assert labels.values.tolist() == [["", "", "", ""], ["", "refining", "", ""]]
    direct = refinement_heads(case.build_model(1), TASK, case.sample_batch(1), total=False)
    assert direct["stat"].values.tolist() == ["direct"]
    assert label_head_roles({"refinement_heads": direct}).equals(labels)


def test_invalid_arguments_raise():
    model, batch = build_refinement_model("refining"), sample_vectors()
    unscored = replace(batch, weight=torch.zeros_like(batch.weight))
    tokens = NextTokenTask(draw_sequences=lambda n, g: torch.randint(0, 5, (n, 13), generator=g))
    with pytest.raises(
        ValueError, match=r"needs vectors with targets of the same shape, but got inputs of shape \(8, 12\)"
    ):
        refinement_heads(model, tokens, tokens.sample(8, torch.Generator()))
    with pytest.raises(ValueError, match="needs 4 sequences or more, but got 3"):
        refinement_heads(model, TASK, batch[:3])
    with pytest.raises(ValueError, match="needs a scored position from first=2 on"):
        refinement_heads(model, TASK, unscored)
    with pytest.raises(ValueError, match="shuffles must be 2 or more, but got 1"):
        refinement_heads(model, TASK, batch, shuffles=1)
    with pytest.raises(ValueError, match="a refinement model must be one of refining"):
        build_refinement_model("telepathy")
    with pytest.raises(ValueError, match="head must be from 0 to 3, but got 4"):
        build_refinement_model("refining", head=4)
