"""Which algorithm: what is planted is named, with its numbers; what ignores its context, or is none of them, is not."""

import functools

import pytest
import torch
import xarray as xr
from torch import Tensor

from mesascope.analyses import which_algorithm
from mesascope.analyses.algorithms.agreement import compute_input_gradients
from mesascope.analyses.algorithms.fit import fit_hyperparameters
from mesascope.analyses.algorithms.identify import NO_ALGORITHM, TRAINING_DISTRIBUTION
from mesascope.ground_truth.models.descent import build_context_blind_model, build_gradient_descent_model
from mesascope.models.config import DecoderConfig
from mesascope.models.transformer import Decoder
from mesascope.tasks import algorithms
from mesascope.tasks.affine import Affine
from mesascope.tasks.base import Batch
from mesascope.tasks.chains import MarkovChains
from mesascope.tasks.icl.base import InContextTask
from mesascope.tasks.regression import Regression
from mesascope.tasks.seeded import SeededSequences

JOINED = Regression(dim=3, num_examples=8, layout="joined")
ALTERNATING = Regression(dim=3, num_examples=8)


def drawn(task: InContextTask, n: int = 64) -> Batch:
    return task.sample(n, torch.Generator().manual_seed(3))


def dressed(task: InContextTask, name: str, tick: int = 1, **parameters: float):
    """An algorithm as a function from inputs to predictions."""
    (algorithm,) = (each for each in task.candidate_algorithms() if each.name == name)

    def predict(inputs: Tensor) -> Tensor:
        shown = task.extract_examples(inputs)
        answers = algorithm.predict(shown, (tick,), **parameters)[0]
        return shown.scatter_to_positions(answers, inputs.shape[1]).to(inputs.dtype)

    return predict


@functools.cache
def found_of(steps: int) -> xr.Dataset:
    return which_algorithm(build_gradient_descent_model(3, 8, steps, step=0.7), JOINED, drawn(JOINED), shifted=False)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_planted_steps_of_gradient_descent_are_named_with_their_step(steps):
    found = found_of(steps)
    assert found["named"].item() == f"{steps} step{'s' if steps > 1 else ''} of gradient descent"
    here = found.sel(predictor="gradient descent")
    assert float(here["fitted"]) == pytest.approx(0.7, rel=0.002)
    assert float(here["similarity"].sel(distribution=TRAINING_DISTRIBUTION, stat="predictions")) > 0.99999
    assert float(here["similarity"].sel(distribution=TRAINING_DISTRIBUTION, stat="weights: context targets")) > 0.9999
    assert float(here["similarity_null"]) < 0.1


def test_every_layer_of_it_is_one_step_more():
    found = found_of(4).sel(predictor="gradient descent")
    own = found.sel(lens="logit lens")
    assert own["layer_iterations"].values[1:].tolist() == [1, 2, 3, 4]
    assert (own["layer_similarity"].values[1:] > 0.9999).all()
    fitted = found.sel(lens="affine lens")
    assert fitted["layer_iterations"].values[1] < fitted["layer_iterations"].values[4]
    assert found_of(4)["layer_nearest"].values[0] == NO_ALGORITHM


@pytest.mark.parametrize("kind", ["linear", "constant"])
def test_a_model_that_ignores_its_context_is_none_of_these(kind):
    found = which_algorithm(build_context_blind_model(3, kind), JOINED, drawn(JOINED), layers=False, shifted=False)
    assert found["named"].item() == NO_ALGORITHM


def test_an_untrained_model_is_none_of_these():
    torch.manual_seed(0)
    config = DecoderConfig(d_in=3, d_out=1, hidden_size=16, max_position_embeddings=17, norm="layer")
    found = which_algorithm(Decoder(config).eval(), ALTERNATING, drawn(ALTERNATING), layers=False, shifted=False)
    assert found["named"].item() == NO_ALGORITHM


@pytest.mark.parametrize(
    ("task", "name", "tick", "parameters"),
    [
        (JOINED, "least squares", 1, {}),
        (ALTERNATING, "least squares", 1, {}),
        (ALTERNATING, "ridge regression", 1, {"ridge": 0.5}),
        (JOINED, "averaging", 1, {}),
        (JOINED, "nearest neighbours", 3, {}),
        (JOINED, "Newton's iteration", 3, {"start": 1.1}),
    ],
)
def test_an_algorithm_dressed_as_a_model_is_named(task, name, tick, parameters):
    found = which_algorithm(dressed(task, name, tick, **parameters), task, drawn(task), shifted=False)
    (algorithm,) = (each for each in task.candidate_algorithms() if each.name == name)
    assert found["named"].item() == algorithm.display_name(tick)
    for value in parameters.values():
        assert float(found["fitted"].sel(predictor=name)) == pytest.approx(value, rel=0.01)
    assert "layer_nearest" not in found


def test_an_algorithm_with_noise_is_still_nearest_but_no_longer_the_same():
    exact = dressed(ALTERNATING, "least squares")

    def noisy(inputs: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(int(inputs.shape[1]))
        answers = exact(inputs)
        return answers + 0.5 * torch.randn(answers.shape, generator=generator)

    found = which_algorithm(noisy, ALTERNATING, drawn(ALTERNATING), shifted=False)
    here = found.sel(predictor="least squares")
    alike = float(here["similarity"].sel(distribution=TRAINING_DISTRIBUTION, stat="predictions"))
    assert 0.5 < alike < 0.9
    assert float(here["low"]) < alike < float(here["high"])
    assert float(here["distinguishable"]) == 0


def test_examples_of_another_sequence_do_not_name_a_model():
    """The decoy: what it predicts is least squares on the wrong examples, so it is as large and as lively."""

    def elsewhere(inputs: Tensor) -> Tensor:
        other = inputs.roll(1, 0).clone()
        other[:, ::2] = inputs[:, ::2]
        return dressed(ALTERNATING, "least squares")(other)

    found = which_algorithm(elsewhere, ALTERNATING, drawn(ALTERNATING), shifted=False)
    assert found["named"].item() == NO_ALGORITHM


def test_a_copy_needs_no_context_and_is_named_all_the_same():
    task = Affine(length=8)
    found = which_algorithm(lambda inputs: inputs.clone(), task, drawn(task), shifted=False)
    assert found["named"].item() == "copying"
    assert float(found["similarity_null"].sel(predictor="copying")) == 0


def test_other_distributions_tell_apart_what_training_s_does_not():
    """Without noise and past the dimension, a nearly vanishing ridge is least squares, but not on tiny inputs."""
    found = which_algorithm(dressed(ALTERNATING, "ridge regression", ridge=0.5), ALTERNATING, drawn(ALTERNATING))
    alike = found["similarity"].sel(stat="predictions")
    assert len(alike["distribution"]) >= 4
    assert (alike.sel(predictor="ridge regression") > 0.999).all()
    assert (alike.sel(predictor="least squares") < alike.sel(predictor="ridge regression")).all()


def test_markov_chains_name_what_counts_pairs_and_what_counts_symbols():
    task = MarkovChains(num_symbols=3, length=24)
    for name in ("bigram", "unigram", "trigram"):
        (algorithm,) = (each for each in task.candidate_algorithms() if each.name == name)

        def predict(inputs: Tensor, algorithm=algorithm) -> Tensor:
            return algorithm.predict(task.extract_examples(inputs), (1,), pseudocount=0.5)[0].log()

        found = which_algorithm(predict, task, drawn(task), shifted=False)
        assert found["named"].item() == name
        assert float(found["fitted"].sel(predictor=name)) == pytest.approx(0.5, rel=0.01)


def test_gradients_are_finite_differences():
    batch = drawn(JOINED, 4)
    inputs = batch.inputs.double()
    for algorithm in JOINED.candidate_algorithms():
        if algorithm.name == "nearest neighbours":
            continue

        def predict(x: Tensor, algorithm=algorithm) -> Tensor:
            numbers = {name: (low * high) ** 0.5 for name, (low, high) in algorithm.hyperparameter_bounds.items()}
            return algorithm.predict(JOINED.extract_examples(x), (algorithm.iteration_grid[0],), **numbers)[0][:, -1]

        found = compute_input_gradients(predict, inputs)
        for pos, coordinate in ((0, 1), (4, 3), (8, 0)):
            step = torch.zeros_like(inputs)
            step[:, pos, coordinate] = 1e-6
            wanted = (predict(inputs + step) - predict(inputs - step)) / 2e-6
            assert torch.allclose(found[:, :, pos, coordinate], wanted, atol=1e-5), algorithm.name


def test_numbers_between_the_values_of_the_grid_are_found():
    shown = JOINED.extract_examples(drawn(JOINED).inputs)
    for algorithm, tick, numbers in (
        (algorithms.ridge_regression(), 1, {"ridge": 0.777}),
        (algorithms.gradient_descent(), 6, {"step": 0.333}),
        (algorithms.gd_plus_plus(), 3, {"step": 0.5, "gamma": 0.05}),
    ):
        target = algorithm.predict(shown, (tick,), **numbers)[0]
        found = fit_hyperparameters(algorithm, shown, target, torch.ones(target.shape[:2], dtype=torch.float64))
        assert found.iteration == tick
        assert found.hyperparameters == pytest.approx(numbers, rel=0.01)


def test_iterations_can_be_given():
    found = which_algorithm(
        build_gradient_descent_model(3, 8, 4, step=0.7),
        JOINED,
        drawn(JOINED),
        layers=False,
        shifted=False,
        iterations=2,
    ).sel(predictor=["gradient descent", "GD++"])
    assert found["iterations"].values.tolist() == [2, 2]
    assert (
        float(
            found["similarity"].sel(
                distribution=TRAINING_DISTRIBUTION, stat="predictions", predictor="gradient descent"
            )
        )
        < 0.99
    )


def test_what_has_no_algorithms_and_too_few_sequences_are_refused():
    seeded = SeededSequences()
    with pytest.raises(ValueError, match=r"needs a task that is learned in context, but SeededSequences is not"):
        which_algorithm(lambda x: x, seeded, seeded.sample(32, torch.Generator().manual_seed(0)))
    with pytest.raises(ValueError, match=r"needs 32 sequences or more, but got 8"):
        which_algorithm(lambda x: x, JOINED, drawn(JOINED, 8))
    with pytest.raises(ValueError, match=r"must predict finite numbers"):
        which_algorithm(lambda x: x[..., :1] * torch.nan, JOINED, drawn(JOINED))
