"""Claims on syntactic transformations are supported by results that agree with them, and not by others."""

from collections.abc import Mapping

import numpy as np
import pytest
import xarray as xr

from mesascope.studies.syntactic_transformations import study
from mesascope.studies.syntactic_transformations.prefix_transfer import (
    PRECISION,
    RANDOM,
    RECALL,
    RULES,
    SCRATCH,
    TUNED,
    F,
)
from mesascope.studies.syntactic_transformations.transformation_accuracy import OTHER, OWN, SEEN, UNSEEN
from mesascope.studies.verdicts import judge

from .seed_results import stack_seeds, stack_steps

CLAIMS = {claim.name: claim for claim in study.STUDY.claims}
TRANSFORMED, APPLIED, LOOKS_UP, NO_POSITIONS, EVERY_LABEL, NEEDED, SPECIFIC, FEW, TUNING, AGAIN, READ = CLAIMS
LABELS = list(study.TASK.labels.names)


def match_results(seen=0.99, unseen=0.97, other=0.05) -> xr.Dataset:
    """Make results of `transformation_accuracy`."""
    coords = {"distribution": [SEEN, UNSEEN], "predictor": [OWN, OTHER]}
    return xr.Dataset(
        {"exact_match": stack_steps([[0.0, 0.0]] * 2, [[seen, other], [unseen, other]], *coords, **coords)}
    )


def lookup_results(score=0.95, untrained=0.1, null=0.3, lowest=0.9) -> xr.Dataset:
    """Make results of `rule_lookup`: the second head of the second layer looks up rules."""

    def place(value: float) -> np.ndarray:
        heads = np.zeros((2, 2))
        heads[1, 1] = value
        return heads

    by_label = [place(score)[..., None] * np.ones(len(LABELS)) for _ in range(2)]
    by_label[0] = np.full((2, 2, len(LABELS)), untrained)
    by_label[1][..., -1] = place(lowest)
    axes = ("layer", "head")
    return xr.Dataset(
        {
            "score": stack_steps(place(untrained), place(score), *axes),
            "score_null": stack_steps(place(untrained), place(null), *axes),
            "label_score": stack_steps(*by_label, *axes, "_label", _label=LABELS),
        }
    )


def masking_results(lost=0.8, other=0.1, label=0.7, other_label=0.2) -> xr.Dataset:
    """Make results of `lookup_masking`."""
    values = {"lost": lost, "lost_null": other, "label_lost": label, "label_lost_null": other_label}
    return xr.Dataset({name: stack_seeds([value], "step", step=[100]) for name, value in values.items()})


def transfer_results(tuned=0.9, scratch=0.2, random=0.1, lost=0.7, other=0.1, f=0.8, shuffled=0.2) -> xr.Dataset:
    """Make results of `prefix_transfer`."""
    predictors = {"step": [100], "predictor": [TUNED, SCRATCH, RANDOM, RULES]}
    stats = {"step": [100], "stat": [PRECISION, RECALL, F]}
    return xr.Dataset(
        {
            "exact_match": stack_seeds([[tuned, scratch, random, 0.95]], *predictors, **predictors),
            "lost": stack_seeds([lost], "step", step=[100]),
            "lost_null": stack_seeds([other], "step", step=[100]),
            "readout": stack_seeds([[1.0, 1.0, f]], *stats, **stats),
            "readout_null": stack_seeds([[1.0, 1.0, shuffled]], *stats, **stats),
        }
    )


RESULTS: Mapping[str, xr.Dataset] = {
    "transformation_accuracy": match_results(),
    "rule_lookup": lookup_results(),
    "lookup_masking": masking_results(),
    "prefix_transfer": transfer_results(),
}
OPPOSING_RESULTS: Mapping[str, Mapping[str, xr.Dataset]] = {
    TRANSFORMED: {"transformation_accuracy": match_results(seen=0.8)},
    APPLIED: {"transformation_accuracy": match_results(unseen=0.8)},
    LOOKS_UP: {"rule_lookup": lookup_results(score=0.6)},
    NO_POSITIONS: {"rule_lookup": lookup_results(score=0.85, null=0.98)},
    EVERY_LABEL: {"rule_lookup": lookup_results(lowest=0.5)},
    NEEDED: {"lookup_masking": masking_results(other=0.5)},
    SPECIFIC: {"lookup_masking": masking_results(other_label=0.9)},
    FEW: {"prefix_transfer": transfer_results(scratch=0.98)},
    TUNING: {"prefix_transfer": transfer_results(random=0.98)},
    AGAIN: {"prefix_transfer": transfer_results(other=0.9)},
    READ: {"prefix_transfer": transfer_results(shuffled=0.95)},
}


def judge_claim(name: str, **changes: xr.Dataset) -> str:
    return judge(CLAIMS[name], {**RESULTS, **changes}, "paper").status


@pytest.mark.parametrize("name", CLAIMS)
def test_claims_are_supported_by_agreeing_results_and_not_by_others(name):
    assert judge_claim(name) == "supported"
    assert judge_claim(name, **OPPOSING_RESULTS[name]) == "contradicted"


def test_small_differences_have_no_effect():
    assert judge_claim(NEEDED, lookup_masking=masking_results(lost=0.3, other=0.1)) == "no effect"  # 3 times as much
    assert judge_claim(FEW, prefix_transfer=transfer_results(scratch=0.89)) == "no effect"
    assert judge_claim(SPECIFIC, lookup_masking=masking_results(other_label=0.69)) == "no effect"


def test_mechanisms_are_not_judged_in_models_that_have_not_learned_the_task():
    unlearned = match_results(seen=0.9)
    names = {name for name in CLAIMS if judge_claim(name, transformation_accuracy=unlearned) == "not learned"}
    assert names == set(CLAIMS) - {TRANSFORMED, APPLIED}
    assert judge_claim(LOOKS_UP, transformation_accuracy=match_results(unseen=0.1)) == "supported"


def test_claims_on_heads_that_do_not_exist_are_not_supported():
    missing = masking_results(*[float("nan")] * 4)
    assert {judge_claim(name, lookup_masking=missing) for name in (NEEDED, SPECIFIC)} == {"inconclusive"}


def test_rules_share_parts_with_rules_only():
    """A label of a rule is another vector than a word with this label, so that heads must learn to match them."""
    task = study.TASK
    parts = dict(zip(task.texts, study.list_token_parts(task), strict=True))
    assert parts["al:rev"][0] == parts["al:concat-rel"][0] != parts["ar:rev"][0]
    assert parts["al:rev"][1] == parts["bl:rev"][1]
    rules, others = (
        {part for text, one in parts.items() if (":" in text) is is_rule for part in one} for is_rule in (True, False)
    )
    assert not rules & others
    assert len({tuple(one) for one in parts.values()}) == task.vocab_size
