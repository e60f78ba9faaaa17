"""Claims on dynamic halting are supported by results that agree with them, and not by others."""

from collections.abc import Mapping

import pytest
import xarray as xr

from mesascope.studies.dynamic_halt import study, study_logic
from mesascope.studies.dynamic_halt.accuracy import MODEL
from mesascope.studies.dynamic_halt.halting_steps import DEPTH, DEPTH_AT_LENGTH, EXPECTED, TAKEN
from mesascope.studies.dynamic_halt.models import (
    ABLATIONS,
    DECODER,
    EXPRESSION_MODELS,
    FIXED,
    FLIP_FLOP_MODELS,
    GUT,
    GUTLB,
    NO_GATE,
    NO_GLOBAL,
    NO_TRANSITION,
    TITLES,
    TLB,
    UT,
)
from mesascope.studies.dynamic_halt.readers import FLIP_FLOP, LIST_OPS, LOGIC, name_condition
from mesascope.studies.dynamic_halt.shifts import (
    DENSE,
    DOUBLE_LENGTH,
    LONGER,
    MORE_OPERATORS,
    SPARSE,
    TRAINING,
    WIDER,
)
from mesascope.studies.dynamic_halt.step_limits import OTHER, OWN
from mesascope.studies.verdicts import judge
from mesascope.tasks.expressions.list_ops import SHALLOW
from mesascope.tasks.expressions.logical_inference import INDEPENDENT
from mesascope.tasks.flip_flop import LAST_BIT, MAJORITY

from .seed_results import stack_seeds, stack_steps

CLAIMS = {claim.name: claim for claim in study.STUDY.claims}
LEARNED = "flip-flop: the last written bit is read"
TLB_DOUBLE, TLB_SPARSE, GUTLB_DOUBLE = (
    f"flip-flop: {kind} on {shift}"
    for kind, shift in (("TLB", DOUBLE_LENGTH), ("TLB", SPARSE), ("GUTLB", DOUBLE_LENGTH))
)
GUT_LONGER, GUT_WIDER = (f"ListOps: GUT on {shift}" for shift in (LONGER, WIDER))
ABLATION_NAMES = {kind: f"ListOps: {TITLES[kind]}" for kind in ABLATIONS}
USED, RISE, RISE_AT_LENGTH = "halting is used", "steps rise with depth", "steps rise with depth at equal length"
SAVED = "halting saves steps against a model without halting"
SAVED_DYNAMICALLY = "halting saves steps against a constant number of steps"
OWN_STEPS = "each sequence gets the steps that it needs"


def accuracy_results(baselines: Mapping[str, float], **by_distribution: float) -> xr.Dataset:
    """Make results of `shifted_answer_accuracy`, at the last step."""
    names = {"training": TRAINING, "dense": DENSE, "sparse": SPARSE, "double": DOUBLE_LENGTH}
    names |= {"longer": LONGER, "wider": WIDER, "more": MORE_OPERATORS}
    accuracy = {names[name]: value for name, value in by_distribution.items()}
    values = [[[value, *baselines.values()] for value in accuracy.values()]]
    coords = {"step": [100], "distribution": list(accuracy), "predictor": [MODEL, *baselines]}
    return xr.Dataset({"accuracy": stack_seeds(values, *coords, **coords)})


def flip_flop_results(training=0.997, double=0.8, sparse=0.9) -> xr.Dataset:
    baselines = {LAST_BIT: 0.6, MAJORITY: 0.67}
    return accuracy_results(baselines, training=training, dense=0.99, sparse=sparse, double=double)


def list_ops_results(training=0.9, longer=0.6, wider=0.6) -> xr.Dataset:
    return accuracy_results({SHALLOW: 0.67}, training=training, longer=longer, wider=wider)


def nested_results(model=0.7, baseline=SHALLOW) -> xr.Dataset:
    """Make results of `answer_accuracy`."""
    coords = {"step": [0, 100], "predictor": [MODEL, baseline]}
    return xr.Dataset({"nested_accuracy": stack_seeds([[0.1, 0.3], [model, 0.3]], *coords, **coords)})


def step_results(own=0.9, other=0.8, mean=2.5, enough=4.0) -> xr.Dataset:
    """Make results of `step_limits`."""
    coords = {"step": [100], "stat": [OWN, OTHER]}
    return xr.Dataset(
        {
            "accuracy": stack_seeds([[own, other]], *coords, **coords),
            "mean_steps": stack_seeds([mean], "step", step=[100]),
            "enough_steps": stack_seeds([enough], "step", step=[100]),
        }
    )


def depth_results(trained=0.6, at_length=0.4, untrained=0.1) -> xr.Dataset:
    """Make results of `halting_steps`."""
    axes = {"stat": [TAKEN, EXPECTED], "_correlated_with": [DEPTH, DEPTH_AT_LENGTH]}
    before, after = [[0.0, 0.0], [-untrained] * 2], [[trained, at_length], [0.0, 0.0]]
    return xr.Dataset({"depth_correlation": stack_steps(before, after, *axes, **axes)})


def name_result(task: str, kind: str, analysis: str) -> str:
    return f"{name_condition(task, kind)}_{analysis}".lstrip("_")


def accuracy_name(task: str, kind: str) -> str:
    return name_result(task, kind, "shifted_answer_accuracy")


RESULTS: Mapping[str, xr.Dataset] = {
    **{accuracy_name(FLIP_FLOP, kind): flip_flop_results() for kind in FLIP_FLOP_MODELS},
    **{accuracy_name(FLIP_FLOP, kind): flip_flop_results(double=0.95, sparse=0.99) for kind in (TLB, GUTLB)},
    **{accuracy_name(LIST_OPS, kind): list_ops_results(0.8, 0.5, 0.5) for kind in EXPRESSION_MODELS},
    **{accuracy_name(LIST_OPS, kind): list_ops_results() for kind in (GUT, FIXED)},
    **{name_result(LIST_OPS, kind, "answer_accuracy"): nested_results() for kind in EXPRESSION_MODELS},
    "halting_steps": depth_results(),
    "step_limits": step_results(),
    name_result(LIST_OPS, FIXED, "step_limits"): step_results(mean=5.0),
}
OPPOSING_RESULTS: Mapping[str, Mapping[str, xr.Dataset]] = {
    LEARNED: {accuracy_name(FLIP_FLOP, UT): flip_flop_results(training=0.95)},
    TLB_DOUBLE: {accuracy_name(FLIP_FLOP, TLB): flip_flop_results(double=0.85)},
    TLB_SPARSE: {accuracy_name(FLIP_FLOP, TLB): flip_flop_results(sparse=0.93)},
    GUTLB_DOUBLE: {accuracy_name(FLIP_FLOP, GUTLB): flip_flop_results(double=0.85)},
    GUT_LONGER: {accuracy_name(LIST_OPS, UT): list_ops_results(longer=0.7)},
    GUT_WIDER: {accuracy_name(LIST_OPS, UT): list_ops_results(wider=0.7)},
    **{ABLATION_NAMES[kind]: {accuracy_name(LIST_OPS, kind): list_ops_results(0.95, 0.7, 0.7)} for kind in ABLATIONS},
    USED: {"step_limits": step_results(mean=4.8)},
    RISE: {"halting_steps": depth_results(trained=0.1, untrained=0.4)},
    RISE_AT_LENGTH: {"halting_steps": depth_results(at_length=0.1, untrained=0.4)},
    SAVED: {name_result(LIST_OPS, FIXED, "step_limits"): step_results(enough=1.0)},
    SAVED_DYNAMICALLY: {"step_limits": step_results(enough=1.0)},
    OWN_STEPS: {"step_limits": step_results(own=0.8, other=0.9)},
}


def judge_claim(name: str, **changes: xr.Dataset) -> str:
    return judge(CLAIMS[name], {**RESULTS, **changes}, "paper").status


@pytest.mark.parametrize("name", CLAIMS)
def test_claims_are_supported_by_agreeing_results_and_not_by_others(name):
    is_check = CLAIMS[name].kind == "check"
    assert judge_claim(name) == ("holds" if is_check else "supported")
    assert judge_claim(name, **OPPOSING_RESULTS[name]) == ("fails" if is_check else "contradicted")


def test_small_differences_have_no_effect():
    assert judge_claim(GUT_WIDER, **{accuracy_name(LIST_OPS, UT): list_ops_results(wider=0.595)}) == "no effect"
    perfect = {accuracy_name(FLIP_FLOP, kind): flip_flop_results(sparse=0.996) for kind in (TLB, DECODER)}
    assert judge_claim(TLB_SPARSE, **perfect) == "no effect"
    assert judge_claim(OWN_STEPS, step_limits=step_results(own=0.9, other=0.9)) == "no effect"


def test_claims_are_not_judged_where_the_task_is_not_learned():
    def find_unlearned(**changes: xr.Dataset) -> set[str]:
        return {name for name in CLAIMS if judge_claim(name, **changes) == "not learned"}

    on_gut = {*ABLATION_NAMES.values(), RISE, RISE_AT_LENGTH, SAVED, SAVED_DYNAMICALLY, OWN_STEPS}
    for kind, names in ((GUT, {*on_gut, GUT_LONGER, GUT_WIDER}), (UT, {GUT_LONGER, GUT_WIDER}), (FIXED, {SAVED})):
        assert find_unlearned(**{name_result(LIST_OPS, kind, "answer_accuracy"): nested_results(0.35)}) == names
    better = list_ops_results(training=0.95)  # than GUT, which then saves nothing at equal accuracy
    assert find_unlearned(**{accuracy_name(LIST_OPS, FIXED): better}) == {SAVED}
    assert find_unlearned(**{accuracy_name(FLIP_FLOP, DECODER): flip_flop_results(0.9)}) == {TLB_DOUBLE, TLB_SPARSE}


def test_sparse_sequences_are_judged_at_paper_scale_only():
    assert {name for name, claim in CLAIMS.items() if "laptop" not in claim.scales} == {TLB_SPARSE}


def test_an_ablation_is_judged_on_all_distributions():
    assert set(ABLATION_NAMES) == {NO_GATE, NO_GLOBAL, NO_TRANSITION}
    mixed = {accuracy_name(LIST_OPS, NO_GATE): list_ops_results(0.8, 0.7, 0.6)}
    assert judge_claim(ABLATION_NAMES[NO_GATE], **mixed) == "no effect"


@pytest.mark.parametrize("scale", ["laptop", "paper"])
def test_ablations_differ_from_gut_in_one_field(scale):
    def read_fields(task: str, kind: str) -> dict:
        return study.STUDY.condition(name_condition(task, kind)).model_at(scale).to_dict()

    changed = {NO_GATE: "gate", NO_GLOBAL: "halt", NO_TRANSITION: "transition"}
    for task in (FLIP_FLOP, LIST_OPS):
        full = read_fields(task, GUT)
        assert (full["gate"], full["halt"], full["transition"]) == (True, "global", True)
        for kind, field in changed.items():
            other = read_fields(task, kind)
            assert [name for name in full if full[name] != other[name]] == [field]
    assert read_fields(LIST_OPS, FIXED)["halting_penalty"] == 0
    assert read_fields(FLIP_FLOP, TLB)["max_iterations"] == 1


def test_logical_inference_is_judged_at_paper_scale_only():
    (claim,) = study_logic.STUDY.claims
    results = {
        accuracy_name(LOGIC, kind): accuracy_results({INDEPENDENT: 0.5}, training=0.9, more=value)
        for kind, value in ((GUT, 0.8), (UT, 0.7))
    }
    results |= {name_result(LOGIC, kind, "answer_accuracy"): nested_results(baseline=INDEPENDENT) for kind in (GUT, UT)}
    assert judge(claim, results, "laptop").status == "not tested at this scale"
    assert judge(claim, results, "paper").status == "supported"
