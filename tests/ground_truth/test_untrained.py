"""Untrained models are decoys of all head roles: where scores contain a random product of terms, roles are reported."""

import pytest
import torch

from mesascope.analyses import run_analyses, similarity
from mesascope.ground_truth.cases.untrained import HEADS, LAYERS
from mesascope.models.transformer import Decoder
from mesascope.testing import UNTRAINED_CASES

from .table import ROLE_DETECTORS, evaluate_untrained, format_untrained
from .test_evaluation import TEXT

SCALAR = next(case for case in UNTRAINED_CASES if case.name == "untrained, scalar terms")


def product_coefficients(model: Decoder) -> torch.Tensor:
    """The factor of the product of the two terms in the scores of layer 0, by head."""
    term = model.get_parameter("embed.weight")[:, 0]
    query, key = (
        (model.get_parameter(f"layers.0.attention.{name}.weight") @ term).unflatten(0, (HEADS, -1))
        for name in ("q_proj", "k_proj")
    )
    return (query * key).sum(-1)


def test_roles_of_untrained_heads_are_the_signs_of_random_products():
    signs, roles = [], []
    for draw in range(3):
        model = SCALAR.build_model(draw)
        assert isinstance(model, Decoder)
        found = run_analyses(model, SCALAR.sample_batch(draw), [similarity])["similarity"]
        roles += found["role"].sel(layer=0).values.tolist()
        signs += product_coefficients(model).sign().tolist()
    assert all(role in (0, sign) for role, sign in zip(roles, signs, strict=True))
    assert sum(role != 0 for role in roles) >= len(roles) / 2  # so the role alone is no evidence of training


def test_models_are_reproducible_and_do_not_change_the_global_generator():
    before = torch.random.get_rng_state()
    one, again, other = (SCALAR.build_model(draw).get_parameter("readout.weight") for draw in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert SCALAR.true_locations(0) == {}
    assert len(SCALAR.components(0)) == LAYERS * HEADS


@pytest.mark.slow
def test_page_lists_the_rates_of_all_roles():
    reports = evaluate_untrained(1)
    assert set(reports) == set(ROLE_DETECTORS)
    rows = [line.split(" | ") for line in format_untrained(reports).splitlines()[2:]]
    page = [line for line in TEXT.splitlines() if line.startswith("| untrained, ")]
    assert [line.split(" | ")[:3] for line in page] == [row[:3] for row in rows]
    for line in page:
        assert all(0 <= float(cell.strip(" |")) <= 1 for cell in line.split(" | ")[3:])
    (similar,) = [line for line in page if line.startswith("| untrained, scalar terms | similarity | attends to sim")]
    assert float(similar.split(" | ")[3]) > 0.2  # layer 0
