"""Claims on layers as iterations of Newton's method: supported where they hold, else not."""

import numpy as np
import pytest
import torch
import xarray as xr

from cases import spread
from mesascope.analyses.algorithms.fit import fit_hyperparameters, fit_iterations
from mesascope.analyses.algorithms.identify import TRAINING_DISTRIBUTION
from mesascope.studies.newton import study as newton
from mesascope.studies.newton.claims import NEWTON, RIVALS
from mesascope.studies.verdicts import judge

from .seed_results import stack_steps

STATS = ["predictions"]
DEPTHS = ["embedding", *(f"after {layer}" for layer in range(6))]


def build_newton(
    newton_similarity=(-3.0, 0.2, 0.9, 0.95, 0.97, 0.98, 0.99),
    lead=0.05,
    lens=(1.0, *(1.01 * 0.5**n for n in range(6))),
    least=0.95,
    final=0.05,
):
    """Build the results of the study newton; the best rival agrees less with each layer than Newton by ``lead``."""
    by_depth = np.array(newton_similarity)
    near = np.stack([by_depth, by_depth - lead, by_depth - 2 * lead], axis=-1)[:, None]
    predictors = ["least squares", NEWTON, *RIVALS]
    similarity = np.array([[[least], [0.9], [0.9], [0.9]]])
    coords = {"layer": DEPTHS, "lens": ["affine lens"], "predictor": [NEWTON, *RIVALS]}
    dims = {"distribution": [TRAINING_DISTRIBUTION], "predictor": predictors, "stat": STATS}
    errors = np.array([[1.0, final], [1.0, 1.0]])
    return {
        "loss_vs_baselines": xr.Dataset(
            {"error": stack_steps(errors, errors, "predictor", "pos", predictor=["model", "zero"])}
        ),
        "which_algorithm": xr.Dataset(
            {
                "similarity": stack_steps(similarity * 0, similarity, *dims, **dims),
                "layer_similarity": stack_steps(near, near, *coords, **coords),
            }
        ),
        "probe_and_logit_lens": xr.Dataset({"affine_error": stack_steps(np.linspace(1, 1.3, 7), lens, "layer")}),
    }


NEWTON_CLAIMS = {claim.name: claim for claim in newton.STUDY.claims}
NEWTON_COUNTEREXAMPLES = {
    "predictions: least squares": build_newton(least=0.1),
    "layers agree with Newton's iterations": build_newton(lead=-0.05),
    "predictions are refined layer by layer": build_newton(lens=(1, 0.5, 0.2, 0.3, 0.1, 0.05, 0.01)),
}


@pytest.mark.parametrize("name", NEWTON_CLAIMS)
def test_newton_claim_is_supported_where_it_holds(name):
    assert judge(NEWTON_CLAIMS[name], build_newton(), "laptop").status == "supported"


@pytest.mark.parametrize("name", NEWTON_CLAIMS)
def test_newton_claim_is_contradicted_where_it_fails(name):
    assert judge(NEWTON_CLAIMS[name], NEWTON_COUNTEREXAMPLES[name], "laptop").status == "contradicted"


@pytest.mark.parametrize("name", NEWTON_CLAIMS)
def test_newton_claim_is_not_judged_without_learning(name):
    assert judge(NEWTON_CLAIMS[name], build_newton(final=0.3), "laptop").status == "not learned"


def test_average_over_layers_leaves_out_depths_without_agreement():
    verdict = judge(NEWTON_CLAIMS["layers agree with Newton's iterations"], build_newton(), "laptop")
    assert verdict.value == pytest.approx(np.mean([0.9, 0.95, 0.97, 0.98, 0.99]), rel=0.01)
    assert verdict.difference is not None
    assert np.mean(verdict.difference) == pytest.approx(0.05, rel=0.01)


def test_two_depths_with_agreement_are_too_few():
    results = build_newton(newton_similarity=(-3.0, 0.2, 0.2, 0.2, 0.2, 0.9, 0.95))
    assert judge(NEWTON_CLAIMS["layers agree with Newton's iterations"], results, "laptop").status == "inconclusive"


def test_equally_similar_algorithms_are_no_evidence_for_newton():
    results = build_newton(lead=0.001)
    assert judge(NEWTON_CLAIMS["layers agree with Newton's iterations"], results, "laptop").status == "no effect"


def measure_layer_similarity(predict_layers):
    """Return the similarity of fitted algorithms to layers whose readouts are known predictions; the last is final."""
    fitting, scoring = (
        newton.TASK.extract_examples(newton.TASK.sample(256, torch.Generator().manual_seed(seed)).inputs)
        for seed in (2, 3)
    )
    layers, expected = ([predict(context) for predict in predict_layers] for context in (fitting, scoring))
    weight = torch.ones(layers[0].shape[:2], dtype=torch.float64)
    similarity = []
    for algorithm in (NEWTON_ALGORITHMS[name] for name in (NEWTON, *RIVALS)):
        fitted = fit_hyperparameters(algorithm, fitting, layers[-1], weight)
        for one, layer in zip(fit_iterations(fitted, fitting, layers, weight), expected, strict=True):
            distance = (one(scoring) - layer).square().sum() / (layer - layer.mean(0)).square().sum()
            similarity.append(1 - float(distance))
    return np.array(similarity).reshape(1 + len(RIVALS), len(predict_layers)).T


def plant(name, iterations, **hyperparameters):
    return lambda context: NEWTON_ALGORITHMS[name].predict(context, (iterations,), **hyperparameters)[0]


NEWTON_ALGORITHMS = {one.name: one for one in newton.TASK.candidate_algorithms()}
DESCENT, RIDGE = RIVALS
PLANTED_LAYERS = {
    "supported": [plant(NEWTON, 2 * layer, start=1.0) for layer in range(1, 7)],
    "contradicted: gradient descent": [plant(DESCENT, 2**layer, step=1.0) for layer in range(1, 7)],
    "contradicted: ridge regression": [plant(RIDGE, 1, ridge=penalty) for penalty in (30.0, 10.0, 3.0, 1.0, 0.3, 0.1)],
}


@pytest.mark.parametrize("expected", spread(PLANTED_LAYERS, 1))
def test_planted_layers_are_distinguished_from_newton(expected):
    results = build_newton()
    coords = {"layer": DEPTHS[1:], "lens": ["affine lens"], "predictor": [NEWTON, *RIVALS]}
    similarity = measure_layer_similarity(PLANTED_LAYERS[expected])[:, None]
    results["which_algorithm"] = results["which_algorithm"].drop_dims("layer")
    results["which_algorithm"]["layer_similarity"] = stack_steps(similarity, similarity, *coords, **coords)
    status = judge(NEWTON_CLAIMS["layers agree with Newton's iterations"], results, "laptop").status
    assert status == expected.split(":")[0]


def test_first_layer_need_not_refine_the_prediction():
    results = build_newton(lens=(1.0, 1.2, 0.5, 0.2, 0.1, 0.05, 0.02))
    assert judge(NEWTON_CLAIMS["predictions are refined layer by layer"], results, "laptop").status == "supported"
