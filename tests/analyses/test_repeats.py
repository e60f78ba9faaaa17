"""What heads do when a token comes again: found where weights were set by hand, in sequences of no special kind."""

import pytest
import torch
import xarray as xr

from mesascope.analyses import label_head_roles, natural_induction, run_analyses
from mesascope.ground_truth.models.tokens import (
    PLANTED_HEADS,
    TOKEN_DECOYS,
    TOKEN_MECHANISMS,
    VOCABULARY,
    build_planted_language_model,
)
from mesascope.tasks.base import Batch
from mesascope.testing import check_analysis


def sequences(count: int = 24) -> torch.Tensor:
    """Twelve tokens drawn again and again, so that most come again, at any distance."""
    generator = torch.Generator().manual_seed(0)
    allowed = torch.stack([torch.randperm(VOCABULARY - 1, generator=generator)[:12] + 1 for _ in range(count)])
    return allowed.gather(1, torch.randint(12, (count, 33), generator=generator))


@pytest.fixture(scope="module")
def found() -> xr.Dataset:
    return run_analyses(build_planted_language_model(), sequences(), [natural_induction])["natural_induction"]


def test_induction_and_duplicate_token_heads_are_found(found):
    role = label_head_roles({"natural_induction": found})
    for name in ("induction", "duplicate token"):
        heads = {place for place, each in PLANTED_HEADS.items() if each is TOKEN_MECHANISMS[name]}
        assert {place for place in PLANTED_HEADS if name in role[place].item()} == heads


def test_a_head_that_looks_as_far_back_whatever_stands_there_has_its_null(found):
    for name, stat in {
        "as far back as induction": "induction",
        "as far back as a duplicate": "duplicate token",
    }.items():
        (place,) = (place for place, each in PLANTED_HEADS.items() if each is TOKEN_DECOYS[name][1])
        here = found.sel(stat=stat).isel(layer=place[0], head=place[1])
        assert abs(float(here["score"] - here["score_null"])) < 0.1


def test_it_conforms():
    tokens = sequences(4)
    check_analysis(
        natural_induction,
        build_planted_language_model(),
        Batch(inputs=tokens, targets=tokens, weight=torch.ones(tokens.shape)),
    )


def test_what_it_cannot_judge_is_refused():
    with pytest.raises(ValueError, match=r"two sequences of tokens or more, but got \(1, 33\)"):
        run_analyses(build_planted_language_model(), sequences(1), [natural_induction])
    with pytest.raises(ValueError, match=r"needs tokens that recur, but none does in these sequences"):
        run_analyses(build_planted_language_model(), torch.arange(20).reshape(2, 10), [natural_induction])


def test_names_join_what_instruments_found():
    sign = xr.DataArray([[1, 0, -1, 0]], dims=("layer", "head"))
    stats = ["first", "self", "previous", "two back", "entropy", "non-uniform"]
    score = xr.DataArray(
        [[[0.1, 0.1, 0.8, 0.0, 0.9, 0.9], [0.25] * 6, [0.3, 0.31, 0, 0, 1, 1], [0.9, 0, 0, 0, 0, 0]]],
        dims=("layer", "head", "stat"),
        coords={"stat": stats},
    )
    position = xr.Dataset({"score": score, "score_null": score * 0 + 0.2})
    names = label_head_roles({"value_copying": xr.Dataset({"role": sign}), "positional_attention": position})
    assert names.values.tolist() == [["copying, previous", "", "subtracting, self", "first"]]
    with pytest.raises(ValueError, match=r"must come from an analysis that reports roles, but got norms"):
        label_head_roles({"norms": position})
