"""What a head is worth is the difference of two explicit runs, sequence by sequence; and how sure it is."""

import pytest
import torch

from mesascope.activations import Edit, capture
from mesascope.analyses.causal.head_ablation import head_ablation
from mesascope.ground_truth.models.vectors import build_planted_model
from mesascope.interventions import head_ablation_effects, mean, resample, task_loss
from mesascope.interventions.head_ablation_effects import (
    build_perturbation_edit,
    draw_signed_permutations,
    mask_significant,
)
from mesascope.models.transformer import Decoder, DecoderConfig
from mesascope.statistics import bootstrap_interval
from mesascope.tasks.affine import Affine
from mesascope.tasks.seeded import SeededSequences

TASK = Affine(length=12)
BATCH = TASK.sample(48, torch.Generator().manual_seed(0))


def decoder(**shape) -> Decoder:
    torch.manual_seed(0)
    return Decoder(DecoderConfig(num_hidden_layers=2, hidden_size=16, num_attention_heads=2, **shape)).eval()


@pytest.mark.parametrize("tokens", [False, True])
def test_an_effect_is_the_difference_of_two_runs(tokens):
    task = SeededSequences(num_symbols=7, num_generators=3, prefix_length=2, length=10) if tokens else TASK
    batch = task.sample(32, torch.Generator().manual_seed(1))
    model = decoder(vocab_size=7, norm="layer") if tokens else decoder(d_in=1, d_out=1)
    metric = task_loss(task, batch, first_position=2)
    found = head_ablation_effects(model, batch, metric, seed=3)
    recorded = capture(model, batch, ["z", "output"])
    intact = metric(recorded["output"])
    assert torch.allclose(found.intact, intact, atol=1e-6)
    for layer in range(2):
        for head in range(2):
            where = {"layer": layer, "head": head}
            edits = [mean("z", recorded, where), resample("z", recorded, where, seed=3)]
            for kind, edit in enumerate(edits):
                edited = metric(capture(model, batch, ["output"], edits=[edit])["output"])
                assert torch.allclose(found.effect[layer, head, kind], edited - intact, atol=1e-5)


def test_the_mean_over_sequences_is_what_ablation_tells():
    model = decoder(d_in=1, d_out=1)
    found = head_ablation_effects(model, BATCH, task_loss(TASK, BATCH, first_position=3))
    effect = torch.from_numpy(head_ablation(model, TASK, BATCH, first=3, groups=False)["effect"].values)
    assert torch.allclose(found.effect.mean(-1), effect, atol=1e-6)


def test_the_control_adds_as_much_in_another_direction():
    model = decoder(d_in=1, d_out=1, norm="none", intermediate_size=0)
    head = {"layer": 1, "head": 0}
    recorded = capture(model, BATCH, ["z", "resid_post"])
    removed = capture(model, BATCH, ["resid_post"], edits=[mean("z", recorded, head)])
    change = removed["resid_post"][1] - recorded["resid_post"][1]
    seen: list[torch.Tensor] = []

    def spying(old: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        seen.append(other)
        return old + other

    edit = build_perturbation_edit(recorded, 1, 0, mean("z", recorded), draw_signed_permutations(len(BATCH), 16, 0))
    assert edit.source is not None
    capture(
        model, BATCH, [], edits=[Edit(site=edit.site, where=edit.where, fn=spying, source=edit.source)], check=False
    )
    assert torch.allclose(seen[-1].norm(dim=-1), change.norm(dim=-1), rtol=1e-3)
    assert abs(float(torch.cosine_similarity(seen[-1].flatten(), change.flatten(), dim=0))) < 0.2


def test_turned_at_random_the_change_misses_the_one_direction_that_is_read():
    found = head_ablation_effects(build_planted_model("copying", length=12), BATCH, task_loss(TASK, BATCH))
    assert float(found.effect[0, 0, 0].mean()) > 10 * float(found.perturbation_effect[0, 0].mean().abs())


def test_an_interval_covers_the_mean_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    low, high = bootstrap_interval(torch.randn(1000, 60, generator=generator, dtype=torch.float64) + 1.0)
    assert 0.91 < float(((low < 1) & (high > 1)).double().mean()) < 0.97


def test_an_effect_must_be_sure_and_large_enough():
    low, high = torch.tensor([0.1, -0.1, -2.0, 0.1]), torch.tensor([0.3, 0.3, -1.0, 0.2])
    assert mask_significant(low, high, (low + high) / 2, min_effect=0.18).tolist() == [True, False, True, False]


def test_positions_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match=r"first_position must be in 0\.\.11, but got 12"):
        task_loss(TASK, BATCH, first_position=12)
