"""Claims of the meta-learning study on synthetic results: supported where they hold, not where they fail."""

import numpy as np
import pytest
import xarray as xr

from mesascope.analyses.stream.probes import depth_names
from mesascope.studies.meta_learning.claims import meta_learning_claims
from mesascope.studies.meta_learning.history_claims import HISTORY_LABELS, HISTORY_RESULT
from mesascope.studies.verdicts import CONTRADICTED, NO_EFFECT, NOT_LEARNED, NOT_TESTED, SUPPORTED, judge

SEEDS, LAYERS = 5, 4
DEPTHS = depth_names(range(LAYERS))
READ_DEPTHS = ["0", "1", "2", "3", "output head"]
MAPS = ["attention.q_proj", "mlp.up_proj"]
CLAIMS = {claim.name: claim for claim in meta_learning_claims()}
CHECKS = [name for name, claim in CLAIMS.items() if claim.kind == "check"]
JUDGED = [name for name in CLAIMS if name not in CHECKS]
LOSS_CLAIMS = ("the outer loss is low", "on real text: the outer loss is low")
IDENTITIES = ("outputs are attention over the training history", "output norms follow from the Gram matrix")


def stack_steps(untrained, trained, *dims: str, **coords) -> xr.DataArray:
    """Build an array over seeds, with a little noise, and two checkpoints."""
    values = np.stack(
        [np.stack([np.asarray(v, float) * (1 + 0.001 * seed) for v in (untrained, trained)]) for seed in range(SEEDS)]
    )
    return xr.DataArray(values, dims=("seed", "step", *dims), coords={"seed": range(SEEDS), "step": [0, 9], **coords})


def fill_array(value: float, *sizes: int) -> np.ndarray:
    return np.full(sizes, value)


def build_loss(model: float, oracle: str, oracle_loss: float) -> xr.Dataset:
    """Build the losses of a model, of a bigram baseline and of an oracle."""
    predictors = {"predictor": ["model", "bigram", oracle]}
    return xr.Dataset(
        {"scored": stack_steps([3.0, 2.0, oracle_loss], [model, 2.0, oracle_loss], "predictor", **predictors)}
    )


def build_objective(holds: bool) -> xr.Dataset:
    """Build the cosines of an inner objective and their nulls."""
    names, cosine = {"sublayer": ["attention", "mlp"]}, fill_array(0.2 if holds else 0.01, LAYERS, 2)
    low, null = fill_array(0.01, LAYERS, 2), fill_array(0.02, LAYERS, 2)
    shuffled = np.stack([null, null])
    return xr.Dataset(
        {
            "cosine": stack_steps(low, cosine, "layer", "sublayer", **names),
            "cosine_null": stack_steps(shuffled, shuffled, "draw", "layer", "sublayer", **names),
            "cosine_null_other_positions": stack_steps(null, null, "layer", "sublayer", **names),
        }
    )


def build_inner_loss(holds: bool) -> xr.Dataset:
    """Build the opposition of representations and updates, which is low in the trained model if `holds`."""
    names, trained = {"sublayer": ["attention", "mlp"]}, fill_array(-0.3 if holds else 0.09, LAYERS, 2)
    untrained, shuffled = fill_array(0.1, LAYERS, 2), fill_array(0.1, 2, LAYERS, 2)
    return xr.Dataset(
        {
            "opposition": stack_steps(untrained, trained, "layer", "sublayer", **names),
            "opposition_null": stack_steps(shuffled, shuffled, "draw", "layer", "sublayer", **names),
        }
    )


def build_clusters(holds: bool) -> xr.Dataset:
    """Build F1 of clusters with two labels, which rises with depth if `holds`."""
    labels = {"stat": ["generator", "next token"]}
    low, rising = fill_array(0.2, 5, 2), np.linspace(0.3, 0.9, 5)[:, None] * np.ones(2)
    permuted = fill_array(0.21, 2, 5, 2)
    return xr.Dataset(
        {
            "pairwise_f1": stack_steps(low, rising if holds else low * 0.9, "layer", "stat", layer=DEPTHS, **labels),
            "pairwise_f1_null": stack_steps(permuted, permuted, "draw", "layer", "stat", layer=DEPTHS, **labels),
        }
    )


def build_history(holds: bool) -> xr.Dataset:
    """Build the fractions of attended instances with the query's label, and the errors of the dual form."""
    labels, low = {"stat": list(HISTORY_LABELS)}, fill_array(0.2, 5, 2)
    share = np.linspace(0.9, 0.5, 5)[:, None] * np.ones(2) if holds else low
    variables = {
        f"top_by_layer{null}": stack_steps(low, value, "layer", "stat", layer=READ_DEPTHS, **labels)
        for null, value in {"": share, "_null_untrained": low}.items()
    }
    whole, half = (1e-7, 0.3) if holds else (0.05, 0.05)
    for name, value in (("dual_error", whole), ("dual_error_half", half)):
        errors = fill_array(0, 5, 2), fill_array(value, 5, 2)
        variables[name] = stack_steps(*errors, "layer", "map", layer=READ_DEPTHS, map=MAPS)
    return xr.Dataset(variables)


def build_spectra(holds: bool) -> xr.Dataset:
    """Build gains of linear modules, above those of rotated inputs and of the untrained model if `holds`."""
    values = {
        "gain": 3.0 if holds else 1.0,
        "gain_null_high": 1.2,
        "observed_norm": 2.0,
        "predicted_norm": 2.0 if holds else 3,
    }
    return xr.Dataset(
        {
            name: stack_steps(fill_array(1, 4, 2), fill_array(value, 4, 2), "layer", "map")
            for name, value in values.items()
        }
    )


def build_ablation(holds: bool) -> xr.Dataset:
    """Build the results of head ablation: heads matter more than random perturbations if `holds`."""
    effect = fill_array(0.1, LAYERS, 2)
    both_kinds, null = np.stack([effect, effect], axis=-1), effect * (0.1 if holds else 1)
    return xr.Dataset(
        {
            "log_effect": stack_steps(both_kinds, both_kinds, "layer", "head", "stat", stat=["mean", "resample"]),
            "log_effect_null": stack_steps(null, null, "layer", "head"),
        }
    )


def build_results(holds: bool) -> dict[str, xr.Dataset]:
    """Build results of models that have learned their tasks, in which every claim on mechanism holds, or none does."""
    flat, falling = fill_array(0.3, 5), np.linspace(0.3, 0.1, 5)
    variation = xr.Dataset({"variation": stack_steps(flat, falling if holds else flat, "layer")})
    worse, better = np.linspace(1, 2, 5), np.linspace(2, 1, 5)
    lens = xr.Dataset({"loss": stack_steps(worse, better if holds else worse, "layer")})
    return {
        "loss_vs_baselines": build_loss(0.31, "Bayes", 0.3),
        "sgd_loss_vs_baselines": build_loss(0.4, "Bayes", 0.3),
        "text_loss_vs_baselines": build_loss(1.5, "unigram", 2.5),
        "clusters": build_clusters(holds),
        HISTORY_RESULT: build_history(holds),
        "input_spectra": build_spectra(holds),
        "inner_fast_weight": build_objective(holds),
        "inner_linear": build_inner_loss(holds),
        **{f"{prefix}inner_outer": build_objective(holds) for prefix in ("", "text_")},
        **{f"{prefix}head_ablation": build_ablation(holds) for prefix in ("", "text_")},
        **{f"{prefix}norms": variation for prefix in ("", "text_")},
        **{f"{prefix}logit_lens": lens for prefix in ("", "text_")},
    }


def build_unlearned_results() -> dict[str, xr.Dataset]:
    """Build results in which every mechanism is present, but no model has learned its task."""
    return build_results(holds=True) | {
        "loss_vs_baselines": build_loss(0.5, "Bayes", 0.3),
        "sgd_loss_vs_baselines": build_loss(0.5, "Bayes", 0.3),
        "text_loss_vs_baselines": build_loss(2.01, "unigram", 2.5),
    }


@pytest.mark.parametrize("name", JUDGED)
def test_claim_is_supported_where_it_holds(name: str) -> None:
    verdict = judge(CLAIMS[name], build_results(holds=True), "laptop")
    assert verdict.status == SUPPORTED, verdict.reason
    assert judge(CLAIMS[name], build_results(holds=True), "smoke").status == NOT_TESTED


@pytest.mark.parametrize("name", [name for name in JUDGED if name not in LOSS_CLAIMS])
def test_claim_on_mechanism_is_judged_and_not_supported_where_it_fails(name: str) -> None:
    verdict = judge(CLAIMS[name], build_results(holds=False), "laptop")
    assert verdict.status in (NO_EFFECT, CONTRADICTED), verdict.reason


@pytest.mark.parametrize("name", CHECKS)
def test_check_holds_and_fails(name: str) -> None:
    failing = build_unlearned_results() if name in LOSS_CLAIMS else build_results(holds=False)
    assert judge(CLAIMS[name], build_results(holds=True), "laptop").status == "holds"
    assert judge(CLAIMS[name], failing, "laptop").status == "fails"


@pytest.mark.parametrize("name", [name for name in CLAIMS if name not in (*LOSS_CLAIMS, *IDENTITIES)])
def test_claim_on_mechanism_requires_a_learned_task(name: str) -> None:
    verdict = judge(CLAIMS[name], build_unlearned_results(), "laptop")
    assert verdict.status == NOT_LEARNED
    expected = {"on real text": "bigram", "attention to the same": "trained by SGD"}
    assert next((words for start, words in expected.items() if name.startswith(start)), "generators") in verdict.reason


@pytest.mark.parametrize(("loss", "status"), [(1.8, SUPPORTED), (1.95, NO_EFFECT), (2.2, CONTRADICTED)])
def test_loss_on_text_is_compared_with_the_bigram_baseline(loss: float, status: str) -> None:
    results = {"text_loss_vs_baselines": build_loss(loss, "unigram", 2.5)}
    assert judge(CLAIMS["on real text: the outer loss is low"], results, "laptop").status == status


@pytest.mark.parametrize(("cosine", "status"), [(0.003, NO_EFFECT), (-0.002, NO_EFFECT), (-0.2, CONTRADICTED)])
@pytest.mark.parametrize("prefix", ["", "text_"])
def test_a_small_cosine_is_no_descent(prefix: str, cosine: float, status: str) -> None:
    results, name = build_results(holds=True), f"{'on real text: ' if prefix else ''}updates descend the outer loss"
    results[f"{prefix}inner_outer"]["cosine"][:, 1] = cosine
    assert judge(CLAIMS[name], results, "laptop").status == status


@pytest.mark.parametrize("null", ["cosine_null", "cosine_null_other_positions"])
def test_descent_must_exceed_its_null(null: str) -> None:
    results = build_results(holds=True)
    name = "attention descends: fast weight" if null == "cosine_null" else "updates descend the outer loss"
    results["inner_fast_weight" if null == "cosine_null" else "inner_outer"][null] += 0.2
    assert judge(CLAIMS[name], results, "laptop").status == NO_EFFECT


def test_descent_is_not_supported_by_a_null_that_opposes_the_gradient() -> None:
    results = build_results(holds=True)
    outer = results["inner_outer"]
    outer["cosine"][:], outer["cosine_null_other_positions"][:] = 0.003, -0.5
    outer["cosine"][:, 0] = -0.5
    assert judge(CLAIMS["updates descend the outer loss"], results, "laptop").status == NO_EFFECT


def test_a_lens_that_falls_by_rounding_does_not_improve() -> None:
    results = build_results(holds=True)
    results["logit_lens"]["loss"][:, 1] = np.linspace(1, 0.999, 5)
    assert judge(CLAIMS["the logit lens improves with depth"], results, "laptop").status == CONTRADICTED


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"opposition": (1, 2, 0.09)}, NO_EFFECT),  # one layer does not fall
        ({"opposition": (0, 3, -0.31)}, NO_EFFECT),  # one untrained layer is as low
        ({"opposition_null": (1, slice(None), -0.5)}, CONTRADICTED),  # any update of these values is as low
        ({"opposition": (1, 1, 0.4)}, CONTRADICTED),
    ],
)
def test_the_inner_loss_must_fall_in_every_layer_and_below_both_controls(changes, status) -> None:
    results = build_results(holds=True)
    for name, (step, layer, value) in changes.items():
        array = results["inner_linear"][name]
        array.loc[{"step": array["step"][step], "sublayer": "attention"}] = array.sel(
            step=array["step"][step], sublayer="attention"
        ).where(array["layer"] != layer if isinstance(layer, int) else False, value)
    assert judge(CLAIMS["inner loss falls over training"], results, "laptop").status == status


def test_clusters_by_generator_cite_the_companion_paper() -> None:
    sources = [claim.source for name, claim in CLAIMS.items() if name.startswith("clusters by generator")]
    assert len(sources) == 2
    assert all("arXiv:2402.12151" in source for source in sources)


def test_claims_use_no_objective_that_holds_by_construction_or_depends_on_norms() -> None:
    assert not any(word in name for name in CLAIMS for word in ("linear", "quadratic", "Hopfield"))


def test_claims_about_training_fail_if_the_untrained_model_is_equal() -> None:
    results = build_results(holds=True)
    for name, dataset in results.items():
        for array in dataset.values():
            if not name.endswith("loss_vs_baselines"):
                array[:, 0] = array[:, 1].values
    history = results[HISTORY_RESULT]
    history["top_by_layer_null_untrained"] = history["top_by_layer"]
    about_training = [name for name in JUDGED if "untrained" in CLAIMS[name].control.description]
    statuses = {name: judge(CLAIMS[name], results, "laptop").status for name in about_training}
    assert len(about_training) > 9
    assert SUPPORTED not in statuses.values(), statuses
