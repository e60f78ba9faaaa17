"""Every instrument finds the mechanism that was planted in head 0, and sees none in its decoys and in noise."""

import pytest
import torch

from mesascope.analyses import copying, measure_all, position, similarity
from mesascope.ground_truth.models.vectors import MECHANISMS, planted
from mesascope.tasks.affine import Affine
from mesascope.tasks.base import Batch

LIKES = {"unlike": -1, "like, subtracted": 1, "like, added": 1}
COPIES = dict.fromkeys(MECHANISMS, 1) | {
    "like, subtracted": -1,
    "constant": 0,
    "position written": 0,
    "stream alone": 0,
}
LOOKS = {
    "previous": "previous",
    "two back": "two back",
    "copying": "self",
    "constant": "self",
    "position written": "self",
}


def affine() -> Batch:
    return Affine().sample(256, torch.Generator().manual_seed(0))


def independent() -> Batch:
    x = torch.randn(256, 21, 1, generator=torch.Generator().manual_seed(5))
    return Batch(inputs=x[:, :-1], targets=x[:, 1:], weight=torch.ones(256, 20))


@pytest.mark.parametrize("sequences", [affine, independent], ids=["affine", "independent"])
@pytest.mark.parametrize("name", MECHANISMS)
def test_what_is_planted_is_found_and_nothing_else(name, sequences):
    found = measure_all(planted(name), sequences(), [similarity, copying, position])
    assert found["similarity"]["role"][0].values.tolist() == [LIKES.get(name, 0), 0, 0, 0]
    assert found["copying"]["role"][0].values.tolist() == [COPIES[name], 0, 0, 0]
    looks = found["position"]["score"][0]
    scores = ["first", "self", "previous", "two back"]
    strong = {(head, score) for head in range(4) for score in scores if looks.sel(head=head, stat=score) > 0.9}
    assert strong == ({(0, LOOKS[name])} if name in LOOKS else set())


def test_place_alone_is_taken_for_similarity_only_where_position_is_not_held_fixed():
    """The trap: in a converging sequence the far-back keys are the unlike ones."""
    found = measure_all(planted("far back"), affine(), [similarity])["similarity"]
    assert found["over_keys"][0, 0] < -0.8
    assert found["interaction"][0, 0] == 0


def test_a_taste_for_large_keys_is_no_similarity():
    """The other trap: the raw correlation moves with the key alone; the interaction does not."""
    found = measure_all(planted("large keys"), affine(), [similarity])["similarity"]
    assert abs(float(found["fixed_position"][0, 0])) > 0.01
    assert abs(float(found["interaction"][0, 0])) < 1e-6


def test_the_gain_is_the_one_that_was_set():
    found = measure_all(planted("like, subtracted"), independent(), [copying])["copying"]
    assert float(found["gain"][0, 0]) == pytest.approx(-0.5, abs=1e-3)
    assert float(found["explained"][0, 0]) == pytest.approx(1.0, abs=1e-3)


def test_an_unknown_mechanism_is_refused():
    with pytest.raises(ValueError, match="must be one of previous, copying"):
        planted("telepathy")
