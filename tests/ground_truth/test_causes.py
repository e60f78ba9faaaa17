"""A head that carries the mechanism has an effect, and nothing else has; a head that only looks like it is marked."""

import pytest
import torch

from mesascope.analyses.causal.head_importance import causes, effects, named_by
from mesascope.ground_truth.models.vectors import planted
from mesascope.models.transformer import Decoder, DecoderConfig
from mesascope.tasks.affine import Affine
from mesascope.tasks.base import Batch
from mesascope.tasks.seeded import Seeded

TASK = Affine(length=10)


def independent(count: int = 64) -> Batch:
    """Each term is drawn anew, and the one before is asked for: what the head copies is the whole answer."""
    x, noise = torch.randn(2, count, 10, 1, generator=torch.Generator().manual_seed(5))
    return Batch(inputs=x, targets=x.roll(1, 1) + 0.3 * noise, weight=torch.ones(count, 10))


@pytest.mark.parametrize("seed", range(20))
def test_only_the_planted_head_has_an_effect(seed):
    found = effects(planted("previous", length=10, seed=seed), TASK, independent(), first=2)
    assert found["caused"][0].any("stat").values.tolist() == [True, False, False, False]
    assert float(found["effect"].sel(stat="mean")[0, 0]) > 10 * float(abs(found["effect_turned"][0, 0]))


def test_it_is_called_what_it_is():
    found = causes(planted("previous", length=10), TASK, independent(), first=2)
    assert found["mark"][0].values.tolist() == ["copying, previous", "neither", "neither", "neither"]


def test_a_head_that_looks_like_the_mechanism_and_writes_nothing_has_no_effect():
    model = planted("previous", length=10)
    with torch.no_grad():
        model.get_parameter("layers.0.attention.o_proj.weight")[:, :8] = 0.0
    found = causes(model, TASK, independent(), first=2)
    assert found["mark"][0, 0].item() == "previous, no effect"
    assert (found["effect"][0, 0] == 0).all()
    assert float(found["effect_turned"][0, 0]) == 0


def test_a_head_with_an_effect_that_looks_nowhere_is_named_so():
    """It averages: it has no place, is no matter of similarity, and what it writes is the place rather than a term."""
    model = planted("constant", length=10, nuisance=0.0)
    with torch.no_grad():
        weight = model.get_parameter("layers.0.attention.v_proj.weight")
        weight[0], weight[0, 2] = 0.0, 1.0  # the place, averaged
        for name in ("q_proj", "k_proj"):
            model.get_parameter(f"layers.0.attention.{name}.weight")[:8] = 0.0
        weight[0, 0] = 0.3
    found = causes(model, TASK, independent(), first=2)
    assert found["mark"][0].values.tolist() == ["no role", "neither", "neither", "neither"]


def test_tokens_have_instruments_of_their_own():
    task = Seeded(symbols=7, generators=3, first=2, length=10)
    batch = task.sample(32, torch.Generator().manual_seed(0))
    assert [one.name for one in named_by(batch)] == ["position", "token_copying", "token_similarity", "repeats"]
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(vocab_size=7, num_hidden_layers=1, hidden_size=16, num_attention_heads=2)).eval()
    found = causes(model, task, batch, first=task.first)
    assert found["effect"].dims == ("layer", "head", "stat")
    assert found["low"].values.min() <= found["effect"].values.min()
    short = task.sample(32, torch.Generator().manual_seed(0))
    short = Batch(inputs=short.inputs[:, :6], targets=short.targets[:, :6], weight=short.weight[:, :6])
    assert "token_similarity" not in [one.name for one in named_by(short)]
