"""Captures of models that halt hold what a loop in plain PyTorch computes, and NaN where an iteration did not run."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cases import covering
from mesascope import capture
from mesascope.activations import Edit, LayerReduction, Reduction
from mesascope.activations.sites import HALTING_SITES, UnsupportedModel
from mesascope.interventions import mean, replace
from mesascope.models.recurrent.model import RecurrentTransformer
from recurrent_models import recurrent, some_tokens

from .ours import TOKENS, decoder, inputs

KINDS = ["UT", "GUT", "GUT without gate", "GUT without global halting", "GUT without transition"]
STREAM = ["resid_pre", "resid_post"]
UPDATES = ["attn_out", "mlp_out"]
EditFn = Callable[[str, int, int, Tensor], Tensor]


def halting(kind: str, **fields: Any) -> RecurrentTransformer:
    """A model whose halting probabilities are about 1/2, so that all positions stop in the third to eighth step."""
    model = recurrent(kind, **{"num_hidden_layers": 2, "max_iterations": 12} | fields)
    with torch.no_grad():
        model.halting.logit.weight.mul_(0.1)
        model.halting.logit.bias.zero_()
    return model


def has_gate(model: RecurrentTransformer) -> bool:
    return bool(model.config.gate)


def mean_state(states: Tensor, real: Tensor, place: int, causal: bool) -> Tensor:
    """The mean over the positions that are not padding, up to a place in a causal model."""
    seen = real.clone()
    seen[:, place + 1 :] &= not causal
    return (states * seen[..., None]).sum(1) / seen.sum(1, keepdim=True).clamp(min=1)


def halting_probability(model: RecurrentTransformer, before: Tensor, after: Tensor, real: Tensor) -> Tensor:
    unit, causal = model.halting, model.config.mask == "causal"
    assert unit is not None
    read = torch.cat([before, after], -1) if model.config.transition else before
    if model.config.halt == "global":
        read = torch.stack([mean_state(read, real, place, causal) for place in range(read.shape[1])], 1)
    return unit.logit(functional.gelu(unit.hidden(read))).sigmoid()[..., 0]


def run_block(model, layer: int, iteration: int, x: Tensor, bias: Tensor, places: Tensor, edit: EditFn) -> tuple:
    """The activations of one call of a block, and its output."""
    block, found = model.layers[layer], {}

    def record(site: str, value: Tensor) -> Tensor:
        found[site] = edit(site, layer, iteration, value)
        return found[site]

    x = record("resid_pre", x)
    attended = record("attn_out", block.attention(block.attention_norm(x), bias, places))
    normed = block.mlp_norm(x + attended)
    y = x + attended + record("mlp_out", block.mlp(normed))
    y = y if block.gate is None else x + block.gate(normed).sigmoid() * (y - x)
    return record("resid_post", y), found


def run_by_hand(
    model: RecurrentTransformer,
    x: Tensor,
    mask: Tensor | None = None,
    edit: EditFn = lambda site, layer, n, value: value,
) -> dict:
    """Every site by (site, layer, iteration), the fields of the output, and the states after every step."""
    real = torch.ones_like(x, dtype=torch.bool) if mask is None else mask.bool()
    visible = real[:, None] & torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
    bias = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)[:, None]
    places = (real.long().cumsum(1) - 1).clamp(min=0)
    states, found = model.embed(x), {}
    running, not_halted = real, real.float()
    output, probabilities, all_states, weights = torch.zeros_like(states), [], [states], []
    for iteration in range(model.config.max_iterations):
        if iteration >= 2 and not running.any():
            break
        after = states
        for layer in range(len(model.layers)):
            after, sites = run_block(model, layer, iteration, after, bias, places, edit)
            found |= {(site, layer, iteration): value for site, value in sites.items()}
        p = torch.where(running, halting_probability(model, states, after, real), 0.0)
        stops = running & (1 - not_halted * (1 - p) >= model.config.halting_threshold)
        weight = torch.where(stops, not_halted, not_halted * p)
        output = output + weight[..., None] * states
        not_halted, running = not_halted - weight, running & ~stops
        states = torch.where(running[..., None], after, states)
        probabilities.append(p)
        weights.append(weight)
        all_states.append(states)
    output = output + not_halted[..., None] * states
    logits = model.readout(model.final_norm(output))
    return found | {"ran": len(probabilities), "p": torch.stack(probabilities), "logits": logits, "average": output}


def sites_of(model: RecurrentTransformer) -> list[str]:
    return STREAM if has_gate(model) else [*STREAM, *UPDATES]


def padded(side: str) -> Tensor | None:
    if side == "none":
        return None
    mask = torch.ones(3, 11, dtype=torch.long)
    mask[1, :4] = mask[2, :1] = 0
    return mask if side == "left" else mask.flip(1)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "side", "layers"), covering(KINDS, ["none", "left", "right"], [1, 2]))
def test_sites_are_those_of_a_loop_by_hand_and_nan_beyond(kind, side, layers):
    model = halting(kind, num_hidden_layers=layers)
    x, mask, sites = some_tokens(), padded(side), sites_of(model)
    expected = run_by_hand(model, x, mask)
    found = capture(model, x, [*sites, *HALTING_SITES, "logits"], attention_mask=mask)
    real = torch.ones(3, 11, dtype=torch.bool) if mask is None else mask.bool()
    ran = expected["ran"]
    assert 2 < ran < 12
    assert found.iterations_run.tolist() == [ran] * 3
    for site in sites:
        assert found[site].shape == (layers, 12, 3, 11, 16)
        assert found[site][:, ran:].isnan().all()
        for layer in range(layers):
            for iteration in range(ran):
                value = expected[site, layer, iteration]
                torch.testing.assert_close(found[site][layer, iteration][real], value[real], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["logits"][real], expected["logits"][real], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["halting_probabilities"][:ran], expected["p"], rtol=1e-4, atol=1e-5)
    assert not found["halting_probabilities"][ran:].any()
    output = model(x, attention_mask=mask)
    for site in HALTING_SITES:
        assert torch.equal(found[site], output[site]), site
    assert found.to_xarray("halting_probabilities").dims == ("iteration", "batch", "pos")
    assert found.to_xarray("expected_steps").dims == ("batch", "pos")


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_end_by_themselves(kind):
    model, x = halting(kind), some_tokens()
    sites = ["resid_post", "pattern", *HALTING_SITES]
    found = capture(model, x, sites, batch_size=1)
    alone = [capture(model, x[row : row + 1], sites) for row in range(3)]
    for row, each in enumerate(alone):
        assert found.iterations_run[row] == each.iterations_run[0]
        for site in ("resid_post", "pattern"):
            assert torch.equal(found[site][:, :, row].nan_to_num(7), each[site][:, :, 0].nan_to_num(7))
        for site in ("expected_steps", "num_steps"):
            assert torch.equal(found[site][row], each[site][0])
        assert torch.equal(found["halting_probabilities"][:, row], each["halting_probabilities"][:, 0])
    fewest = int(found.iterations_run.min())
    part = capture(model, x, sites, batch_size=1, iterations=range(fewest)).unrolled(include_stopped=True)
    assert torch.equal(part["resid_post"], found["resid_post"][:, :fewest].transpose(0, 1).flatten(0, 1))
    with pytest.raises(ValueError, match=rf"only {fewest} did; pass iterations=range\({fewest}\) to capture"):
        found.unrolled(include_stopped=True)
    with pytest.raises(ValueError, match="layers of a model that halts also run at positions that have stopped"):
        found.unrolled()


@torch.no_grad()
@pytest.mark.parametrize(("kind", "side", "place"), covering(KINDS, ["none", "left"], [(0, 0), (1, 1), (0, 2)]))
def test_an_edit_changes_nothing_earlier_and_is_that_of_the_loop_by_hand(kind, side, place):
    layer, iteration = place
    model, x, mask = halting(kind), some_tokens(), padded(side)
    real = torch.ones(3, 11, dtype=torch.bool) if mask is None else mask.bool()
    sites = sites_of(model)
    plain = capture(model, x, [*sites, "halting_probabilities"], attention_mask=mask)
    direction = torch.randn(16, generator=torch.Generator().manual_seed(2))
    for edited in sites:

        def push(site: str, at: int, step: int, value: Tensor, edited: str = edited) -> Tensor:
            pushed = value + direction * real[..., None]
            return pushed if (site, at, step) == (edited, layer, iteration) else value

        where = {"layer": layer, "iteration": iteration}
        edit = Edit(site=edited, where=where, fn=lambda old: old + direction)
        found = capture(model, x, [*sites, *HALTING_SITES, "logits"], edits=edit, attention_mask=mask)
        expected = run_by_hand(model, x, mask, push)
        call, ran = 2 * iteration + layer, expected["ran"]
        for site in sites:
            before = (
                found[site].transpose(0, 1).flatten(0, 1)[:call],
                plain[site].transpose(0, 1).flatten(0, 1)[:call],
            )
            assert torch.equal(*before)
            assert found[site][:, ran:].isnan().all()
            for key in range(2 * ran):
                value, at = expected[site, key % 2, key // 2], (key % 2, key // 2)
                torch.testing.assert_close(found[site][at][real], value[real], rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(found["halting_probabilities"][:ran], expected["p"], rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(found["logits"][real], expected["logits"][real], rtol=1e-4, atol=2e-5)
        earlier = found["halting_probabilities"][:iteration], plain["halting_probabilities"][:iteration]
        assert torch.equal(*earlier)


@pytest.mark.parametrize("kind", ["UT", "GUT", "GUT without gate"])
def test_gradients_are_those_of_the_loop_by_hand(kind):
    """The gradient of resid_pre is that through the block alone, which is what an edit of resid_pre changes."""
    model, x = halting(kind), some_tokens()
    sites = ["resid_pre"] if has_gate(model) else ["resid_pre", *UPDATES]
    changes: dict = defaultdict(lambda: torch.zeros(3, 11, 16, requires_grad=True))
    by_hand = run_by_hand(model, x, edit=lambda site, layer, n, value: value + changes[site, layer, n])
    targets = x[:, 1:]
    functional.cross_entropy(by_hand["logits"][:, :-1].flatten(0, 1), targets.flatten(), reduction="sum").backward()
    found = capture(model, x, [f"{site}_grad" for site in sites])
    for site in sites:
        assert found[f"{site}_grad"][:, by_hand["ran"] :].isnan().all()
        for layer in range(2):
            for iteration in range(by_hand["ran"]):
                value = found[f"{site}_grad"][layer, iteration]
                torch.testing.assert_close(value, changes[site, layer, iteration].grad, rtol=1e-3, atol=1e-5)
                assert value.any() == (iteration + 1 < by_hand["ran"])  # all positions stop in the last iteration


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_the_readout_maps_states_and_their_average_to_logits(kind):
    model, x = recurrent(kind), some_tokens()
    found = capture(model, x, ["resid_post", "logits"])
    average = run_by_hand(model, x)["average"]
    torch.testing.assert_close(found.readout.compute_output(average), found["logits"], rtol=1e-4, atol=1e-5)
    state = found["resid_post"][0, 0]
    assert torch.equal(found.readout.compute_output(state), model.readout(model.final_norm(state)))
    with pytest.raises(UnsupportedModel, match="the output is read from a weighted average of the states"):
        found.readout.attribute_logits(state, state)


@torch.no_grad()
@pytest.mark.parametrize("bias", [-1e6, 1e6])
def test_a_model_whose_average_is_one_state_is_treated_like_others(bias):
    """What the traced inputs do must not vouch for others: the last state is the average of these inputs alone."""
    model, x = recurrent("UT"), some_tokens()
    model.halting.logit.bias.fill_(bias)
    found = capture(model, x, ["resid_pre", "resid_post", "num_steps", "logits"])
    ran = 5 if bias < 0 else 2
    assert found.iterations_run.tolist() == [ran] * 3
    assert (found["num_steps"] == (5 if bias < 0 else 0)).all()
    assert found["resid_pre"][:, ran:].isnan().all()
    final = found["resid_post"][0, -1] if bias < 0 else found["resid_pre"][0, 0]
    torch.testing.assert_close(found.readout.compute_output(final), found["logits"])
    with pytest.raises(UnsupportedModel, match="the output is read from a weighted average of the states"):
        found.readout.attribute_logits(final, final)


@torch.no_grad()
def test_a_gated_block_has_no_updates_but_a_stream_that_the_gate_mixes():
    model, x = recurrent("GUT"), some_tokens()
    found, block = capture(model, x, ["resid_pre", "resid_post"]), model.layers[0]
    mask = torch.full((11, 11), torch.finfo(torch.float32).min).triu(1)[None, None]
    for iteration in range(int(found.iterations_run.min())):
        stream = found["resid_pre"][0, iteration]
        after_attention = stream + block.attention(block.attention_norm(stream), mask, torch.arange(11)[None])
        normed = block.mlp_norm(after_attention)
        gate = block.gate(normed).sigmoid()
        expected = gate * (after_attention + block.mlp(normed)) + (1 - gate) * stream
        torch.testing.assert_close(found["resid_post"][0, iteration], expected, rtol=1e-4, atol=1e-5)
    for site in (*UPDATES, "resid_mid", "attn_out_grad"):
        with pytest.raises(
            UnsupportedModel, match="must exist in every requested layer, but RecurrentTransformer lacks"
        ):
            capture(model, x, [site])


def counting_model(max_iterations: int = 6) -> RecurrentTransformer:
    """Coordinate 0 counts steps, coordinate 1 is the number that the token asks for, and 2 counts on as a decoy.

    A position halts in the step in which its counter has reached the number: the number is that of its steps.
    """
    model = recurrent("UT", norm="none", max_iterations=max_iterations)
    for parameter in model.parameters():
        parameter.detach().zero_()
    with torch.no_grad():
        model.embed.weight[:, 1] = torch.arange(7.0)
        model.layers[0].mlp.down_proj.bias[:3] = torch.tensor([1.0, 0.0, 1.0])
        model.halting.hidden.weight[0, :2] = torch.tensor([20.0, -20.0])
        model.halting.hidden.bias[0] = 10.0  # 10 once the counter has reached the number, and -10 before
        model.halting.logit.weight[0, 0] = 10.0
        model.halting.logit.bias[0] = -50.0
    return model


@torch.no_grad()
def test_a_counter_set_by_hand_is_read_and_a_decoy_is_not():
    model, x = counting_model(), torch.tensor([[0, 1, 2, 3, 4], [2, 2, 0, 1, 5]])
    found = capture(model, x, ["resid_pre", *HALTING_SITES])
    assert torch.equal(found["num_steps"], x)
    assert torch.equal(found["expected_steps"], x.float())
    iterations = torch.arange(6)[:, None, None]
    torch.testing.assert_close(found["halting_probabilities"], (iterations == x).float())
    counter = found["resid_pre"][0, ..., 0]
    assert torch.equal(counter, iterations.minimum(x).float())  # a position that has stopped does not count on
    assert found.iterations_run.tolist() == [6, 6]

    def push(coordinate: int) -> Edit:
        change = torch.zeros(16).index_fill(0, torch.tensor(coordinate), 1.0)
        return Edit(site="mlp_out", where={"iteration": 0}, fn=lambda old: old + change)

    moved = capture(model, x, list(HALTING_SITES), edits=push(0))
    assert torch.equal(moved["num_steps"], torch.where(x > 1, x - 1, x))
    decoy = capture(model, x, ["resid_pre", *HALTING_SITES], edits=push(2))
    for site in HALTING_SITES:
        assert torch.equal(decoy[site], found[site])
    assert not torch.equal(decoy["resid_pre"], found["resid_pre"])


@torch.no_grad()
def test_an_edit_may_make_a_model_take_more_steps_than_without():
    model, x = counting_model(), torch.tensor([[1, 1, 2]])
    assert capture(model, x, ["num_steps"]).iterations_run.tolist() == [3]
    back = Edit(site="resid_post", where={"iteration": 0, "pos": 2}, fn=lambda old: old - torch.eye(16)[0])
    found = capture(model, x, ["resid_pre", "num_steps"], edits=back)
    assert found["num_steps"].tolist() == [[1, 1, 3]]
    assert found.iterations_run.tolist() == [4]
    assert found["resid_pre"][0, :, 0, 2, 0].nan_to_num(-1).tolist() == [0, 0, 1, 2, -1, -1]


@torch.no_grad()
def test_iterations_that_run_for_no_sequence_are_refused():
    model, x = counting_model(), torch.tensor([[1, 1, 2]])
    assert capture(model, x, ["resid_pre"], iterations=[2, 5])["resid_pre"][:, 1].isnan().all()
    with pytest.raises(
        ValueError, match=r"iterations must run for some sequence, but those of resid_pre, \[3, 5\], run"
    ):
        capture(model, x, ["resid_pre"], iterations=[3, 5])


@torch.no_grad()
def test_reductions_are_nan_where_an_iteration_did_not_run():
    model, x = counting_model(), torch.tensor([[1, 1, 2], [3, 1, 1]])
    reduce = {
        "first": Reduction(site="resid_pre", fn=lambda stream: stream[:, :, 0], axes=("batch", "pos")),
        "both": LayerReduction(
            sites=("resid_pre",),
            fn=lambda view: {"twice": 2 * view["resid_pre"][..., 0]},
            axes={"twice": ("batch", "pos")},
        ),
    }
    found = capture(model, x, ["resid_pre"], reduce=reduce, batch_size=1)
    assert found.axes["twice"] == ("layer", "iteration", "batch", "pos")
    assert found["first"][0, :, 0, 2].nan_to_num(-1).tolist() == [0, 1, 2, -1, -1, -1]
    assert found["twice"][0, :, 1, 0].nan_to_num(-1).tolist() == [0, 2, 4, 6, -1, -1]
    positive = Reduction(site="resid_pre", fn=lambda stream: stream > 0, axes=("batch", "pos", "d_model"))
    with pytest.raises(
        ValueError, match=r"the reduction positive must return floating-point .* but returned torch.bool"
    ):
        capture(model, x, ["resid_pre"], reduce={"positive": positive})


@torch.no_grad()
def test_a_source_must_have_run_in_every_iteration():
    model, x = counting_model(), torch.tensor([[1, 1, 2]])
    short, other = capture(model, x, ["resid_post"]), torch.tensor([[0, 3, 3]])
    with pytest.raises(ValueError, match=r"but only 3 did; pass iterations=range\(3\) to capture"):
        replace("resid_post", short)
    part = capture(model, x, ["resid_post"], iterations=range(3))
    assert capture(model, other, ["num_steps"], edits=replace("resid_post", part))["num_steps"].tolist() == [[0, 1, 2]]
    assert mean("resid_post", part).edited_layers(1, 6) == [0, 1, 2]


@pytest.mark.parametrize("site", HALTING_SITES)
def test_sites_of_halting_are_refused_by_name_in_models_that_do_not_halt(site):
    for model, x in ((decoder(**TOKENS), inputs(decoder(**TOKENS))), (recurrent("UT without halting"), some_tokens())):
        with pytest.raises(UnsupportedModel, match=f"{site} needs a model that returns halting_probabilities, but"):
            capture(model, x, [site])
    with pytest.raises(ValueError, match=f"an edit must act in a layer, but {site} is after"):
        Edit(site=site, fn=torch.zeros_like)
    with pytest.raises(ValueError, match=f"{site} cannot be reduced; record it as a site"):
        capture(recurrent(), some_tokens(), reduce={"half": Reduction(site=site, fn=lambda x: x, axes=("batch",))})
