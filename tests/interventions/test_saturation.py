"""Parameters made large: identities, networks that are saturated or see the future by hand, and decoys of both."""

import copy

import pytest
import torch
import xarray as xr

from mesascope.activations import capture
from mesascope.analyses.causal.mask_future import lookahead_ablation, mask_lookahead
from mesascope.analyses.causal.saturation import count_attended_positions, fraction_on_later, saturation
from mesascope.axes import to_data_array
from mesascope.models.transformer import Decoder, DecoderConfig
from mesascope.tasks.chains import MarkovChains
from mesascope.testing import GroundTruthCase, check_ground_truth, heads_where
from small import llama

LENGTH, HEADS = 12, 3
TASK = MarkovChains(num_symbols=5, length=LENGTH)
SHAPE = {
    "vocab_size": 5,
    "num_hidden_layers": 1,
    "hidden_size": 24,
    "num_attention_heads": HEADS,
    "max_position_embeddings": LENGTH,
    "initializer_range": 0.5,
}
FUTURE, ALIKE, CHOOSES = "looks at the future", "attends alike to all", "chooses one position"


def drawn(count: int = 6, seed: int = 0):
    return TASK.sample(count, torch.Generator().manual_seed(seed))


def decoder(seed: int = 0, **options) -> Decoder:
    torch.manual_seed(seed)
    return Decoder(DecoderConfig(**SHAPE | options)).eval()


def planted(seed: int, scores: str, **options) -> Decoder:
    """A decoder whose head of number ``seed`` has scores that are all below 0, or all alike, or as they were drawn."""
    model = decoder(seed, **options)
    attention, rows = model.layers[0].attention, slice(8 * (seed % HEADS), 8 * (seed % HEADS) + 8)
    with torch.no_grad():
        if scores == "below 0":
            model.embed.weight[:, 0], model.position_embed.weight[:, 0] = 1.0, 0.0  # in every token
            attention.q_proj.weight[rows] = 0.0
            attention.k_proj.weight[rows] *= 0.2
            attention.q_proj.weight[rows, 0], attention.k_proj.weight[rows, 0] = 3.0, -3.0
        if scores == "alike":
            attention.q_proj.weight[rows] = 0.0
            attention.q_proj.bias[rows] = 0.0
    return model


def case(name: str, label: str, others: str, scores: str, **options) -> GroundTruthCase:
    """One head of a kind among others; which is at another place in every draw."""

    def truth(draw: int) -> dict:
        place = (0, draw % HEADS)
        rest = {(0, head) for head in range(HEADS)} - {place}
        return {label: {place}} | ({others: rest | ({place} if others == label else set())} if others else {})

    return GroundTruthCase(
        name=name,
        description=scores,
        task=TASK,
        build_model=lambda draw: planted(draw, scores, **options),
        sample_batch=lambda draw: drawn(seed=draw),
        true_locations=truth,
        components=lambda draw: {(0, draw % HEADS): name},
    )


CASES = (
    case("scores below 0, no causal mask", FUTURE, "", "below 0", mask="multiplicative"),
    case("decoy: scores below 0, causal", CHOOSES, CHOOSES, "below 0"),
    case("decoy: alike to the past", ALIKE, CHOOSES, "alike"),
)


def kinds(found: xr.Dataset) -> dict:
    """Heads that have nearly all of their attention on later positions; that have many positions, and none of those."""
    many = found["attended"] > 0.4 * LENGTH
    return {
        FUTURE: heads_where(found["later_attention"] > 0.85),  # all of it, but at the last position
        ALIKE: heads_where(many & (found["later_attention"] == 0)),
        CHOOSES: heads_where(found["attended"] < 1.5) if bool((found["later_attention"] == 0).all()) else set(),
    }


def test_heads_that_look_at_the_future_are_found_and_decoys_are_not():
    findings = check_ground_truth(lambda model, batch: saturation(model, TASK, batch), kinds, draws=HEADS, cases=CASES)
    findings.assert_exact()
    assert findings.select(mechanism=FUTURE).cases[0] == CASES[0].name


def test_how_many_positions_a_head_has_does_not_tell_whether_they_are_later():
    """A worse criterion: by numbers alone, attention alike to the past is taken for that to the future."""

    def by_number(found: xr.Dataset) -> dict:
        return {FUTURE: heads_where(found["attended"] > 0.4 * LENGTH)}

    findings = check_ground_truth(lambda model, batch: saturation(model, TASK, batch), by_number, draws=1, cases=CASES)
    assert findings.recall == 1
    assert {mark.case for mark in findings.false_positives} == {"decoy: alike to the past"}


@pytest.mark.parametrize("mask", ["causal", "multiplicative"])
def test_a_factor_of_1_changes_nothing(mask):
    found = saturation(decoder(mask=mask, num_hidden_layers=2), TASK, drawn(), factor=1.0)
    assert found["cosine"].values == pytest.approx(1.0, abs=1e-12)
    assert (found["later_attention"] == found["later_attention_unscaled"]).all()


@pytest.mark.parametrize("options", [{}, {"norm": "layer", "norm_position": "post", "intermediate_size": 8}], ids=str)
def test_numbers_are_those_of_the_model_with_larger_parameters(options):
    model, batch = decoder(num_hidden_layers=2, **options), drawn()
    found = saturation(model, TASK, batch, factor=7.0)
    large = copy.deepcopy(model).double()
    for parameter in large.parameters():
        parameter.data *= 7.0
    sites = ["resid_post", "pattern"]
    plain, scaled = capture(copy.deepcopy(model).double(), batch.inputs, sites), capture(large, batch.inputs, sites)
    cosine = torch.nn.functional.cosine_similarity(plain["resid_post"], scaled["resid_post"], dim=-1)
    assert found["cosine"].values == pytest.approx(cosine.mean((1, 2)).numpy())
    seen = (scaled["pattern"] > 1e-5).sum(-1).double().mean((1, 3))
    assert found["attended"].values == pytest.approx(seen.numpy())
    assert found["attended_sorted"].values == pytest.approx(sorted(seen.flatten().tolist(), reverse=True))
    assert all(map(torch.equal, model.parameters(), decoder(num_hidden_layers=2, **options).parameters()))


def test_a_saturated_network_is_told_from_one_with_large_parameters():
    """Decoy: a bias of all keys changes no softmax, however large it is."""
    shape = {"num_hidden_layers": 2, "norm": "layer", "norm_position": "post", "intermediate_size": 8}
    plain, saturated, decoy = (decoder(**shape) for _ in range(3))
    with torch.no_grad():
        for parameter in saturated.parameters():
            parameter *= 1e4
        for layer in decoy.layers:
            layer.attention.k_proj.bias.fill_(1e4)
    cosines = [saturation(each, TASK, drawn(16))["cosine"].values for each in (plain, saturated, decoy)]
    assert saturated.layers[0].attention.k_proj.weight.norm() > 1e3 * plain.layers[0].attention.k_proj.weight.norm()
    assert cosines[1].min() > 0.999
    assert cosines[0].max() < 0.95
    assert cosines[2].max() < 0.95


def test_averages_of_rows_are_those_of_known_patterns():
    """Uniform over later zeros: (T (T - 1) / 2 + 1) / T positions, 41.01 of 83, and 42 where it is the past."""
    ahead = torch.ones(83, 83).triu(1)
    ahead[-1, -1] = 1.0
    behind = torch.ones(83, 83).tril()
    rows = [(each / each.sum(-1, keepdim=True)).expand(1, 1, -1, -1) for each in (ahead, behind)]
    assert [count_attended_positions(each).item() for each in rows] == pytest.approx([41.012, 42.0], abs=1e-3)
    assert [fraction_on_later(each).item() for each in rows] == pytest.approx([82 / 83, 0.0])


def test_other_models_are_made_large_too_and_stay_as_they_are():
    task, model = MarkovChains(num_symbols=20, length=LENGTH), llama()
    batch = task.sample(4, torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(batch.inputs).logits
        found = saturation(model, task, batch)
        assert torch.equal(model(batch.inputs).logits, before)
    assert found["attended"].shape == (3, 4)
    assert (found["attended"] == 1).all()
    assert found["cosine"].max() < 1
    assert (found["later_attention"] == 0).all()
    assert float(lookahead_ablation(model, task, batch)["loss_increase"]) == 0.0


def test_a_factor_that_is_none_is_refused():
    with pytest.raises(ValueError, match="factor must be above 0, but got 0"):
        saturation(decoder(), TASK, drawn(), factor=0.0)


def test_the_loss_without_the_future_is_that_of_a_causal_model():
    model, causal = decoder(mask="multiplicative"), decoder()
    causal.load_state_dict(model.state_dict())
    batch = drawn(20)
    found, plain = lookahead_ablation(model, TASK, batch), lookahead_ablation(causal, TASK, batch)
    assert float(found["loss"].sel(stat="causal mask")) == pytest.approx(float(plain["loss"][0]), abs=1e-6)
    assert float(plain["loss_increase"]) == 0.0
    assert float(found["loss_increase"]) == float(found["loss"][1]) - float(found["loss"][0]) != 0.0


def answers(**options) -> Decoder:
    """Attends to all positions alike and predicts the token that is there most, its own place apart."""
    model = decoder(positions="none", **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embed.weight[:, :5] = torch.eye(5)
        attention = model.layers[0].attention
        for head in range(HEADS):
            attention.v_proj.weight[8 * head : 8 * head + 5, :5] = torch.eye(5)
        attention.o_proj.weight[8:13, :5] = 30 * torch.eye(5)
        model.readout.weight[:, 8:13] = torch.eye(5)
    return model


def test_a_model_that_lives_by_the_future_loses_and_one_that_sees_it_idly_does_not():
    """Planted: the commonest token is told from all positions. Decoy: the same attention, and nothing is written."""
    batch = drawn(50)
    tokens = torch.zeros_like(batch.inputs)
    tokens[:, -1] = batch.inputs[:, -1]  # what is to be predicted stands at the end alone
    asked = type(batch)(inputs=tokens, targets=tokens[:, -1:].expand_as(tokens).clone(), weight=batch.weight)
    planted_model, idle = answers(mask="multiplicative"), answers(mask="multiplicative")
    with torch.no_grad():
        idle.layers[0].attention.o_proj.weight.zero_()
    assert abs(float(lookahead_ablation(planted_model, TASK, asked)["loss_increase"])) > 0.1
    assert float(lookahead_ablation(idle, TASK, asked)["loss_increase"]) == 0.0


def test_rows_that_see_nothing_else_are_left_empty():
    rows = torch.tensor([[[[0.0, 1.0], [0.3, 0.7]]]])
    assert mask_lookahead(rows).flatten().tolist() == pytest.approx([0.0, 0.0, 0.3, 0.7])


def test_results_say_what_they_are():
    for found in (saturation(decoder(), TASK, drawn()), lookahead_ablation(decoder(), TASK, drawn())):
        for array in found.data_vars.values():
            assert array.attrs["units"]
            assert array.attrs["description"]
            to_data_array(array.values, *map(str, array.dims), units="1", description="axes of the vocabulary")
