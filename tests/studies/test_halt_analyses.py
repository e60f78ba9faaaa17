"""Analyses of dynamic halting find known answers and known steps, and nothing where steps are constant."""

import copy

import pytest
import torch

from mesascope.models.config import DecoderConfig
from mesascope.models.transformer import Decoder
from mesascope.studies.dynamic_halt.accuracy import MODEL, answer_accuracy, shifted_answer_accuracy
from mesascope.studies.dynamic_halt.answers import find_correct, predict_answers, score_baselines
from mesascope.studies.dynamic_halt.halting_steps import (
    DEPTH,
    DEPTH_AT_LENGTH,
    EXPECTED,
    TAKEN,
    halting_steps,
    partial_rank_correlation,
)
from mesascope.studies.dynamic_halt.shifts import (
    DENSE,
    DOUBLE_LENGTH,
    LONGER,
    MORE_OPERATORS,
    SPARSE,
    TRAINING,
    WIDER,
    list_distributions,
)
from mesascope.studies.dynamic_halt.step_limits import OTHER, OWN, limit_steps, step_limits
from mesascope.tasks.affine import Affine
from mesascope.tasks.base import Batch
from mesascope.tasks.expressions.list_ops import CHANCE, EXACT, SHALLOW
from mesascope.tasks.expressions.logical_inference import LogicalInference
from mesascope.tasks.flip_flop import LAST_BIT, LAST_WRITTEN, MAJORITY, FlipFlop
from recurrent_models import recurrent

from .halting_models import LIST_OPS, BaselineModel, DepthModel, sample_expressions

FLIP_FLOP = FlipFlop(length=32)


def sample_bits(n: int) -> Batch:
    return FLIP_FLOP.sample(n, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", [LAST_WRITTEN, LAST_BIT])
def test_a_model_that_is_a_baseline_has_its_exact_accuracy(name):
    batch = sample_bits(2_000)
    results = answer_accuracy(BaselineModel(FLIP_FLOP, name), FLIP_FLOP, batch)
    accuracy, standard_error = (results[one].sel(predictor=MODEL).item() for one in ("accuracy", "accuracy_se"))
    expected = FLIP_FLOP.expected_accuracy()
    assert accuracy == pytest.approx(expected[name], abs=4 * standard_error)
    for baseline in (LAST_BIT, MAJORITY):
        assert results["accuracy"].sel(predictor=baseline).item() == pytest.approx(expected[baseline])


@pytest.mark.parametrize("name", [EXACT, SHALLOW])
def test_baselines_of_expressions_are_measured_as_models_are(name):
    batch = sample_expressions()
    accuracy = answer_accuracy(BaselineModel(LIST_OPS, name), LIST_OPS, batch)["accuracy"]
    guesses = 1 / 10 * (name == SHALLOW)  # where no digit is among the arguments, a tie counts with its probability
    assert accuracy.sel(predictor=MODEL).item() == pytest.approx(accuracy.sel(predictor=name).item(), abs=guesses)
    assert accuracy.sel(predictor=CHANCE).item() == pytest.approx(0.1)


def test_ignoring_nested_lists_is_right_where_there_are_none():
    batch = sample_expressions()
    results = answer_accuracy(BaselineModel(LIST_OPS, SHALLOW), LIST_OPS, batch).sel(predictor=SHALLOW)
    nested = (batch.latents["depth"] > 1).double().mean().item()
    assert 0 < nested < 1
    expected = 1 - nested + nested * results["nested_accuracy"].item()
    assert results["accuracy"].item() == pytest.approx(expected)
    assert "nested_accuracy" not in answer_accuracy(BaselineModel(FLIP_FLOP, LAST_BIT), FLIP_FLOP, sample_bits(4))


def test_only_the_last_answer_counts():
    batch = sample_bits(50)
    assert batch.weight.sum(1).max() > 1  # there are earlier reads
    model = BaselineModel(FLIP_FLOP, LAST_BIT)
    expected = model(batch.inputs).logits[:, -1].argmax(-1) == batch.targets[:, -1]
    assert torch.equal(find_correct(model, batch), expected)


def test_shifted_distributions_differ_from_training_in_one_way():
    shifted = list_distributions(FLIP_FLOP)
    assert list(shifted) == [TRAINING, DENSE, SPARSE, DOUBLE_LENGTH]
    assert shifted[DOUBLE_LENGTH] == FlipFlop(length=64)
    longer, wider = (
        list_distributions(LIST_OPS)[name].sample(50, torch.Generator().manual_seed(0)) for name in (LONGER, WIDER)
    )
    assert longer.latents["expression length"].min() > LIST_OPS.max_length
    assert wider.inputs.shape[1] == 2 * LIST_OPS.max_length + 1
    more = list_distributions(LogicalInference(max_operators=2))[MORE_OPERATORS]
    assert more.sample(20, torch.Generator().manual_seed(0)).latents["operators"].min() == 3
    with pytest.raises(ValueError, match=r"the task must be FlipFlop, ListOps or LogicalInference, but got Affine"):
        list_distributions(Affine())


def test_shifted_accuracy_holds_that_of_training_and_is_a_function_of_the_batch():
    batch, model = sample_expressions(), BaselineModel(LIST_OPS, SHALLOW)
    first, second = (shifted_answer_accuracy(model, LIST_OPS, batch) for _ in range(2))
    assert first.identical(second)
    in_distribution = answer_accuracy(model, LIST_OPS, batch)["accuracy"].sel(predictor=MODEL)
    assert first["accuracy"].sel(predictor=MODEL, distribution=TRAINING).item() == in_distribution.item()
    assert (first["accuracy"].sel(predictor=EXACT) == 1).all()


def test_steps_that_follow_the_depth_are_found_and_others_are_not():
    batch = sample_expressions()
    correlations = {}
    for rule in ("depth", "length", "constant"):
        results = halting_steps(DepthModel(rule), LIST_OPS, batch)
        found = results["depth_correlation"].sel(_correlated_with=[DEPTH, DEPTH_AT_LENGTH])
        correlations[rule] = found.sel(stat=TAKEN).values
        assert found.sel(stat=EXPECTED).values == pytest.approx(correlations[rule])  # half as many
        steps = results["mean_steps"]
        assert steps.sel(stat=EXPECTED).item() == pytest.approx(steps.sel(stat=TAKEN).item() / 2)
        if rule == "depth":
            by_depth = results["steps_by_depth"].sel(stat=TAKEN)
            assert by_depth.values == pytest.approx(by_depth["_depth"].values)
    assert correlations["depth"] == pytest.approx([1, 1])
    assert correlations["length"][0] > 0.5  # deep expressions are long
    assert abs(correlations["length"][1]) < 0.2
    assert correlations["constant"].tolist() == [0, 0]


def test_a_partial_correlation_is_that_of_residuals():
    generator = torch.Generator().manual_seed(0)
    given, noise = (torch.randn(500, generator=generator, dtype=torch.float64) for _ in range(2))
    x, y = given + noise, given - noise
    ranks = [one.argsort().argsort().double() for one in (x, y, given)]
    centred = [one - one.mean() for one in ranks]
    residuals = [one - (one @ centred[2]) / (centred[2] @ centred[2]) * centred[2] for one in centred[:2]]
    expected = residuals[0] @ residuals[1] / (residuals[0].norm() * residuals[1].norm())
    assert partial_rank_correlation(x, y, given) == pytest.approx(expected.item())
    assert partial_rank_correlation(given, y, given) == 0


def test_steps_of_a_model_without_halting_are_refused():
    model = Decoder(DecoderConfig(vocab_size=LIST_OPS.vocab_size))
    with pytest.raises(ValueError, match=r"steps are counted in a model with halting, but this one has none"):
        halting_steps(model, LIST_OPS, sample_expressions(4))


def test_a_limit_on_steps_costs_what_the_sequences_need():
    """A model that needs as many steps as lists are nested, and takes them."""
    batch = sample_expressions()
    depth = batch.latents["depth"]
    results = step_limits(DepthModel("depth"), LIST_OPS, batch)
    limits = results["accuracy_by_limit"]["_limit"].values
    assert results["accuracy_by_limit"].values == pytest.approx(
        [(depth <= one).double().mean().item() for one in limits]
    )
    assert results["enough_steps"] == depth.max()
    assert results["mean_steps"] == pytest.approx(depth.double().mean().item())
    assert results["accuracy"].sel(stat=OWN) == 1
    exchanged = (depth[None] <= depth[:, None]).double().mean()  # over all pairs
    assert results["accuracy"].sel(stat=OTHER) == pytest.approx(exchanged.item())


def test_exchanging_constant_steps_changes_nothing():
    results = step_limits(DepthModel("constant"), LIST_OPS, sample_expressions())
    assert results["accuracy"].sel(stat=OWN) == results["accuracy"].sel(stat=OTHER)
    assert results["enough_steps"] == 3


@pytest.mark.parametrize("transition", [True, False])
def test_a_model_that_is_stopped_where_it_stops_gives_the_same_output(transition):
    """Identity: the output with a limit of the steps that a sequence takes is the output without a limit."""
    vocabulary = {"vocab_size": LIST_OPS.vocab_size, "pad_token_id": 16, "mask": "full"}
    model, batch = recurrent("GUT", transition=transition, **vocabulary).double(), sample_expressions(60)
    with torch.no_grad():  # about half of the sequences stop before the first step
        model.get_parameter("halting.logit.weight").mul_(4)
        first = model(batch.inputs).halting_probabilities[0, :, 0]
        model.get_parameter("halting.logit.bias").sub_(first.logit().median() - 2)
        steps = model(batch.inputs).num_steps.amax(1)
    assert len(steps.unique()) > (1 if transition else 4)  # sequences stop at different steps
    whole = predict_answers(model, batch)
    for limit in range(1, 6):
        limited = predict_answers(limit_steps(model, limit), batch)
        rows = steps.clamp_min(1) == limit
        assert torch.allclose(limited[rows], whole[rows], atol=1e-12)
        assert limit == 5 or not torch.allclose(limited, whole, atol=1e-6)
    assert model.config.max_iterations == 5  # the model is left as it is


def test_positions_that_stop_at_different_steps_are_refused():
    for kind in ("UT", "GUT"):  # halting per token, and causal halting
        model = copy.deepcopy(recurrent(kind, vocab_size=LIST_OPS.vocab_size))
        with pytest.raises(ValueError, match=r"all positions of a sequence must take the same number of steps"):
            step_limits(model, LIST_OPS, sample_expressions(4))


def test_baselines_of_flip_flop_are_exact():
    batch = sample_bits(4)
    scores = {name: value.tolist() for name, value in score_baselines(FLIP_FLOP, batch).items()}
    assert scores == {name: [value] * 4 for name, value in FLIP_FLOP.expected_accuracy().items()}
