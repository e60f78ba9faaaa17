"""Each claim of the studies of regression in context is supported by results that show it, and not by others."""

import numpy as np
import pytest
import xarray as xr

from mesascope.analyses.algorithms.identify import TRAINED
from mesascope.studies.function_classes import study as function_classes
from mesascope.studies.gradient_descent import study as gradient_descent
from mesascope.studies.newton import study as newton
from mesascope.studies.verdicts import judge

SEEDS = 3
WHO = ["least squares", "gradient descent", "GD++", "nearest neighbours"]
STATS = ["predictions", "weights: answers shown"]
SETTINGS = [TRAINED, *gradient_descent.SAME_LENGTH]
DEPTHS = ["embedding", *(f"after {layer}" for layer in range(6))]


def over_steps(untrained, trained, *dims, **coords):
    """Two checkpoints, three seeds with a little noise."""
    values = [
        np.stack([np.asarray(v, float) * (1 + 1e-3 * seed) for v in (untrained, trained)]) for seed in range(SEEDS)
    ]
    names = {"seed": range(SEEDS), "step": [0, 100]} | coords
    return xr.DataArray(np.stack(values), dims=("seed", "step", *dims), coords=names)


def found(similar, iterations=1, step=gradient_descent.BEST, model_error=0.1, error=0.1):
    """What which_algorithm would have found: by algorithm, the similarity of predictions and of weights."""
    table = np.array([[similar.get(name, 0.1)] * len(STATS) for name in WHO])
    trained = np.broadcast_to(table, (len(SETTINGS), *table.shape))
    who, where = {"predictor": WHO}, {"setting": SETTINGS}
    numbers = np.full(len(WHO), 1.0)
    losses = np.full(len(SETTINGS), model_error)
    return xr.Dataset(
        {
            "similarity": over_steps(trained * 0, trained, "setting", "predictor", "stat", **where, **who, stat=STATS),
            "iterations": over_steps(numbers, numbers * iterations, "predictor", **who),
            "fitted": over_steps(numbers, numbers * step, "predictor", **who),
            "model_error": over_steps(losses, losses, "setting", **where),
            "error": over_steps(
                *[np.full((len(SETTINGS), len(WHO)), error)] * 2, "setting", "predictor", **where, **who
            ),
        }
    )


ONE = {"gradient descent": 0.998, "least squares": 0.5}
TWO = {"gradient descent": 0.7, "GD++": 0.9}


def descent(one=None, two=None, lens=(1.0, 0.3, 0.05)):
    return {
        "which_algorithm": found(ONE, **(one or {})) if not isinstance(one, xr.Dataset) else one,
        "two_which_algorithm": found(TWO, iterations=7),
        "two_two_steps": found(TWO, model_error=0.05) if two is None else two,
        "two_lens": xr.Dataset({"affine_error": over_steps([1.0, 1.1, 1.2], lens, "layer")}),
    }


DESCENT = {claim.name: claim for claim in gradient_descent.STUDY.claims}
OPPOSITE = {
    "one layer is one step": descent(one=found({"gradient descent": 0.9, "least squares": 0.5})),
    "and no more than one": descent(one={"iterations": 9}),
    "the best step": descent(one={"step": 0.8 * gradient_descent.BEST}),
    "the same weights": descent(one=found({"gradient descent": 0.8, "least squares": 0.9})),
    "elsewhere too": descent(one=found({"gradient descent": 0.5, "least squares": 0.1})),
    "two layers do better than two steps": descent(two=found(TWO, model_error=0.2)),
    "by curvature correction": descent(two=found({"gradient descent": 0.9, "GD++": 0.7})),
    "layer by layer": descent(lens=(1.0, 0.3, 0.4)),
}


@pytest.mark.parametrize("name", DESCENT)
def test_a_run_that_shows_descent_supports_it(name):
    assert judge(DESCENT[name], descent(), "laptop").word == "supported"


@pytest.mark.parametrize("name", DESCENT)
def test_a_run_that_does_not_show_descent_contradicts_it(name):
    assert judge(DESCENT[name], OPPOSITE[name], "laptop").word == "contradicted"


def layers(newton_steps, descent_steps, readable=True, lens=tuple(0.5**n for n in range(7)), least=0.95):
    """What a run of the layers' study would show."""
    who = ["least squares", newton.NEWTON, newton.DESCENT, "nearest neighbours"]
    near = np.full((7, 1, 4), 0.9 if readable else 0.2)
    near[:2] = -3.0
    ones = np.ones(7)
    steps = np.stack([ones, np.asarray(newton_steps, float), np.asarray(descent_steps, float), ones], axis=-1)[:, None]
    coords = {"layer": DEPTHS, "lens": ["affine lens"], "predictor": who}
    alike = np.array([[[least], [0.9], [0.9], [0.2]]])
    exact = xr.DataArray(
        np.broadcast_to(steps, (SEEDS, 2, *steps.shape)).copy(),
        dims=("seed", "step", "layer", "lens", "predictor"),
        coords={"seed": range(SEEDS), "step": [0, 100], **coords},
    )
    return {
        "which_algorithm": xr.Dataset(
            {
                "similarity": over_steps(
                    alike * 0, alike, "setting", "predictor", "stat", setting=[TRAINED], predictor=who, stat=STATS[:1]
                ),
                "layer_similarity": over_steps(near, near, "layer", "lens", "predictor", **coords),
                "layer_iterations": exact,
            }
        ),
        "lens": xr.Dataset({"affine_error": over_steps(np.linspace(1, 1.3, 7), lens, "layer")}),
    }


LINE, DOUBLING = [1, 1, 3, 6, 9, 12, 15], [1, 1, 8, 64, 512, 4096, 8192 * 4]
LAYERS = {claim.name: claim for claim in newton.STUDY.claims}
NOT_SHOWN = {
    "ends at the answer": layers(LINE, DOUBLING, least=0.1),
    "a constant number of Newton's iterations for each layer": layers(
        [1, 1, 3, 3, 3, 3, 20], [1, 1, 8, 16, 24, 32, 40]
    ),
    "exponentially many steps of gradient descent": layers(LINE, [1, 1, 8, 16, 24, 32, 40]),
    "layer by layer": layers(LINE, DOUBLING, lens=(1, 0.5, 0.2, 0.3, 0.1, 0.05, 0.01)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_run_that_shows_newton_supports_it(name):
    assert judge(LAYERS[name], layers(LINE, DOUBLING), "laptop").word == "supported"


@pytest.mark.parametrize("name", LAYERS)
def test_a_run_that_does_not_show_newton_contradicts_it(name):
    assert judge(LAYERS[name], NOT_SHOWN[name], "laptop").word == "contradicted"


def test_layers_that_cannot_be_read_decide_nothing():
    verdict = judge(
        LAYERS["exponentially many steps of gradient descent"], layers(LINE, DOUBLING, readable=False), "laptop"
    )
    assert verdict.word == "inconclusive"


def classes(
    alike=(0.97, 0.1), elsewhere=0.95, linear=0.02, sparse=0.5, lasso=0.9, network=1.0, rules=(0.95, 0.1), tree=0.7
):
    """What a run of the four classes would show; errors of the model are told as shares of what they stand against."""

    def behaviour(model, others):
        """Untrained, the model errs as much as predicting 0; before the last four places nothing is known."""
        errors = {"model": model, "zero": 1.6, "3 nearest neighbours": 2.0, **others}
        values = np.array(list(errors.values()))
        first = np.array([1.6, *values[1:]])
        by_place = [np.stack([np.ones_like(each)] * 8 + [each] * 4, -1) for each in (first, values)]
        who = {"predictor": list(errors)}
        error = over_steps(*by_place, "predictor", "pos", **who)
        return xr.Dataset({"scored": over_steps(first, values, "predictor", **who), "error": error})

    def likenesses(**settings):
        who = list(next(iter(settings.values())))
        table = np.array([[[settings[name][one]] for one in who] for name in settings])
        where = {"setting": [name.replace("_", " ") for name in settings], "predictor": who, "stat": STATS[:1]}
        return xr.Dataset({"similarity": over_steps(table * 0, table, "setting", "predictor", "stat", **where)})

    first = dict(zip(("least squares", "nearest neighbours"), alike, strict=True))
    other = {"least squares": elsewhere, "nearest neighbours": 0.1}
    on_lines = dict(zip(("least squares", "nearest neighbours"), rules, strict=True))
    trees = {"greedy tree": 1.0, "greedy tree of signs": 1.0, "boosted trees": 1.0}
    return {
        "behaviour": behaviour(linear, {"averaging": 0.7, "least squares": 0.9 * linear}),
        "which_algorithm": likenesses(as_in_training=first, correlated_inputs=other, inputs_twice_as_large=other),
        "sparse_behaviour": behaviour(sparse, {"least squares": 1.0}),
        "sparse_which_algorithm": likenesses(as_in_training={"lasso": lasso, "least squares": 0.8}),
        "network_behaviour": behaviour(network, {"trained network": 1.0}),
        "network_linear_algorithms": likenesses(
            as_in_training={"least squares": -9.0, "nearest neighbours": 0.5}, linear_functions=on_lines
        ),
        "tree_behaviour": behaviour(tree, trees),
    }


CLASSES = {claim.name: claim for claim in function_classes.STUDY.claims}
NOT_LEARNED = {
    "linear: least squares": classes(alike=(0.5, 0.1)),
    "linear: learned": classes(linear=0.4),
    "linear: elsewhere too": classes(elsewhere=0.2),
    "sparse: better than least squares": classes(sparse=1.05),
    "sparse: like the lasso": classes(lasso=0.5),
    "networks: as good as training one": classes(network=1.4),
    "networks: linear functions, too": classes(rules=(0.5, 0.1)),
    "trees: better than greedy trees": classes(tree=1.1),
    "trees: better than greedy trees that see signs": classes(tree=1.1),
    "trees: better than boosted trees": classes(tree=1.1),
}


@pytest.mark.parametrize("name", CLASSES)
def test_a_run_that_shows_learning_in_context_supports_it(name):
    assert judge(CLASSES[name], classes(), "laptop").word == "supported"


@pytest.mark.parametrize("name", CLASSES)
def test_a_run_that_does_not_show_learning_in_context_contradicts_it(name):
    assert judge(CLASSES[name], NOT_LEARNED[name], "laptop").word == "contradicted"


@pytest.mark.parametrize(
    ("name", "results"),
    [
        ("linear: least squares", classes(alike=(0.95, 0.96))),
        ("networks: as good as training one", classes(network=2.1)),
        ("networks: linear functions, too", classes(rules=(0.95, 0.97))),
        ("sparse: like the lasso", classes(lasso=0.7)),
    ],
)
def test_what_the_control_has_too_is_not_supported(name, results):
    assert judge(CLASSES[name], results, "laptop").word == "contradicted"
