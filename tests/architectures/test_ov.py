"""Eigenvalues of W_E W_V W_O W_U: against the explicit matrix, whatever the basis of a head's values."""

import pytest
import torch

from mesascope.activations import UnsupportedModel, capture
from mesascope.analyses import ov_copying_score
from mesascope.analyses.heads.ov_circuit import compute_copying_score, compute_ov_products, random_rotations
from mesascope.tasks.base import Batch
from mesascope.testing import check_analysis

from .families import in_double, make, tokens


def llama_by_hand(model, layer: int, head: int) -> torch.Tensor:
    block, group = model.model.layers[layer], head // 2
    value = block.self_attn.v_proj.weight.unflatten(0, (2, 8))[group]
    output = block.self_attn.o_proj.weight.unflatten(1, (4, 8))[:, head]
    read = model.model.embed_tokens.weight * block.input_layernorm.weight
    return read @ value.T @ output.T @ (model.lm_head.weight * model.model.norm.weight).T


def gpt2_by_hand(model, layer: int, head: int) -> torch.Tensor:
    block = model.transformer.h[layer]
    value = block.attn.c_attn.weight[:, 64:].unflatten(1, (4, 8))[:, head]
    output = block.attn.c_proj.weight.unflatten(0, (4, 8))[head]
    embed = model.transformer.wte.weight
    centre = torch.eye(32, dtype=embed.dtype) - 1 / 32
    read = embed @ centre * block.ln_1.weight
    return read @ value @ output @ centre @ (model.lm_head.weight * model.transformer.ln_f.weight).T


@pytest.mark.parametrize(("family", "by_hand"), [("llama", llama_by_hand), ("gpt2", gpt2_by_hand)])
def test_the_small_product_has_the_eigenvalues_of_the_whole_matrix(family, by_hand):
    model = in_double(make(family))
    recorded = capture(model, tokens(), [])
    products, size = compute_ov_products(recorded.readout)
    found = ov_copying_score(recorded)["score"]
    for layer in range(2):
        for head in range(4):
            whole = torch.linalg.eigvals(by_hand(model, layer, head).detach())
            whole = whole[whole.abs().argsort(descending=True)]
            assert float(whole[8:].abs().max()) < 1e-9 * float(whole[0].abs())
            mine = torch.linalg.eigvals(products[layer, head])
            assert float((mine[:, None] - whole[:8]).abs().amin(1).max()) < 1e-9 * float(whole[0].abs())
            score = float(whole.real.sum() / whole.abs().sum())
            assert float(found[layer, head]) == pytest.approx(score, abs=1e-9)
            assert float(compute_copying_score(mine, size[layer, head])) == pytest.approx(score, abs=1e-9)


def test_turning_the_basis_of_a_head_s_values_changes_nothing():
    model = in_double(make("llama"))
    before = ov_copying_score(capture(model, tokens(), []))["score"]
    turn = random_rotations(8, 1, seed=5)[0]
    with torch.no_grad():
        for block in model.model.layers:
            values = block.self_attn.v_proj.weight.unflatten(0, (2, 8))
            values.copy_(torch.einsum("ab,kbm->kam", turn.T, values))
            outputs = block.self_attn.o_proj.weight.unflatten(1, (4, 8))
            outputs.copy_(outputs @ turn)
    after = ov_copying_score(capture(model, tokens(), []))["score"]
    assert abs(before - after).max() < 1e-9


def test_turns_are_orthogonal_and_differ():
    turns = random_rotations(6, 50, seed=0)
    assert torch.allclose(turns @ turns.mT, torch.eye(6, dtype=torch.float64).expand(50, 6, 6), atol=1e-12)
    assert 0.3 < float((torch.linalg.det(turns) > 0).double().mean()) < 0.7
    assert float(turns.mean(0).abs().max()) < 0.25


def test_copying_by_weights_passes_the_conformance_suite_and_refuses_by_name():
    batch = Batch(inputs=tokens(), targets=tokens(), weight=torch.ones(tokens().shape))
    found = check_analysis(ov_copying_score, make("llama"), batch)
    assert found["role"].dims == ("layer", "head")
    assert set(found["score_null"].attrs["control_of"].split()) == {"score"}
    with pytest.raises(UnsupportedModel, match="a norm may follow the value projection"):
        ov_copying_score(capture(make("deepseek_v3"), tokens(), []))
    with pytest.raises(UnsupportedModel, match="z must reach the stream through a linear map"):
        ov_copying_score(capture(make("gemma2"), tokens(), []))
