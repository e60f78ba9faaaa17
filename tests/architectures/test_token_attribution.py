"""Contributions to the logits of chosen tokens sum to these logits, in both precisions."""

import numpy as np
import pytest
import torch

from mesascope.activations import capture
from mesascope.analyses import decompose_logits, token_attribution, top_tokens
from mesascope.analyses.stream.token_attribution import ATTRIBUTION_SITES
from mesascope.tasks.base import Batch
from mesascope.testing import check_analysis

from .families import in_double, make, tokens

FAMILIES = ["llama", "gpt2", "gpt_neox", "granite", "cohere", "mixtral"]
DOUBLE = ["llama", "gpt2", "gpt_neox", "granite"]  # the others compute some step in float32, whatever they are given


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.mark.parametrize("centred", [False, True])
def test_parts_sum_to_the_logit(family, centred):
    assert miss(make(family), centred) < 1e-4


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("name", DOUBLE)
def test_parts_sum_to_the_logit_in_float64(name, centred):
    assert miss(in_double(make(name)), centred) < 1e-10


def miss(model, centred: bool) -> float:
    recorded = capture(model, tokens(), [*ATTRIBUTION_SITES, "output"])
    batch, pos, wanted = torch.tensor([0, 2, 1, 1]), torch.tensor([0, 10, 4, 4]), torch.tensor([7, 39, 0, 12])
    parts = decompose_logits(recorded, batch, pos, wanted, centred=centred)
    logits = recorded["output"].double()
    logits = logits - logits.mean(-1, keepdim=True) if centred else logits
    largest = max(part.abs().max() for part in vars(parts).values())
    assert parts.head.shape == (2, 4, 4)
    return float((parts.total_logit - logits[batch, pos, wanted]).abs().max() / largest)


def test_a_head_s_part_is_its_write_through_the_frozen_norm(family):
    recorded = capture(make(family), tokens(), [*ATTRIBUTION_SITES])
    batch, pos, wanted = torch.tensor([0, 1]), torch.tensor([3, 9]), torch.tensor([5, 6])
    parts = decompose_logits(recorded, batch, pos, wanted)
    write = recorded["z"][1][:, :, 2] @ recorded.readout.output_projection[1, 2]
    whole = recorded.readout.attribute_logits(write, recorded["resid_post"][-1])
    assert torch.allclose(parts.head[1, 2].float(), whole[batch, pos, wanted], rtol=1e-4, atol=1e-5)


def test_a_head_that_writes_nothing_contributes_nothing():
    model = make("llama")
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight[:, 8:16] = 0.0
    recorded = capture(model, tokens(), [*ATTRIBUTION_SITES])
    heads = token_attribution(recorded)["head_contribution"]
    assert float(heads[1, 1]) == 0.0
    assert (abs(heads.values) > 0).sum() == 7
    assert (top_tokens(capture(model, tokens(1), ["resid_post", "z"]))["top_logit"][1, 1] == 0).all()


def test_the_measure_averages_over_places_with_a_next_token(family):
    model, x = make(family), tokens()
    found = token_attribution(capture(model, x, [*ATTRIBUTION_SITES]))
    with torch.no_grad():
        logits = model(x).logits[:, 1:-1]
    right = logits.gather(-1, x[:, 2:, None])[..., 0] - logits.mean(-1)
    assert float(found["logit"]) == pytest.approx(float(right.mean()), abs=1e-4)
    parts = ("head", "mlp", "attention_bias", "embedding", "readout_bias")
    total = sum(float(found[f"{name}_contribution"].sum()) for name in parts)
    assert total == pytest.approx(float(found["logit"]), abs=1e-6)
    assert float(found["gap"]) < 1e-3


def test_the_top_tokens_of_a_head_are_its_largest_contributions():
    model, x = make("gpt2"), tokens(1)
    recorded = capture(model, x, ["resid_post", "z"])
    found = top_tokens(recorded, k=3)
    assert found["top_logit"].dims == ("layer", "head", "rank")
    write = recorded["z"][0][:, :, 3] @ recorded.readout.output_projection[0, 3]
    logits = recorded.readout.attribute_logits(write, recorded["resid_post"][-1])[0]
    logits = (logits - logits.mean(-1, keepdim=True)).numpy()
    for rank, flat in enumerate(np.argsort(-logits, axis=None)[:3]):
        at, token = divmod(int(flat), 40)
        here = found.isel(layer=0, head=3, rank=rank)
        assert (int(here["top_position"]), int(here["top_token_id"])) == (at, token)
        assert float(here["top_logit"]) == pytest.approx(float(logits[at, token]), rel=1e-5)


def test_both_pass_the_conformance_suite():
    x = tokens(1)
    batch = Batch(inputs=x, targets=x, weight=torch.ones(x.shape))
    check_analysis(token_attribution, make("llama"), batch)
    check_analysis(top_tokens, make("llama"), batch)


def test_what_would_be_wrong_is_refused():
    model = make("llama")
    with pytest.raises(ValueError, match=r"all 2 layers must be recorded, but only \[0\] were; leave out layers="):
        token_attribution(capture(model, tokens(), [*ATTRIBUTION_SITES], layers=[0]))
    with pytest.raises(ValueError, match=r"top_tokens needs one sequence of tokens, but got \(3, 11\)"):
        top_tokens(capture(model, tokens(), ["resid_post", "z"]))
