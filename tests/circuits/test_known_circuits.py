"""Circuits of models whose weights are set by hand: the known edges are found, those of the decoys are not.

The copying of the induction head has a gain of 8 logits, that of the decoys 1 at most, so that a decoy changes a
difference of two logits by 2 at most.
"""

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor

from cases import spread
from mesascope.circuits import attribute_edges, bootstrap_edges, measure_faithfulness, patch_edges, rank_edges
from mesascope.ground_truth.models.tokens import (
    BOS_TOKEN,
    HALF_LENGTH,
    TOKEN_MECHANISMS,
    VOCABULARY,
    build_planted_language_model,
    shuffle_heads,
)
from mesascope.interventions import Metric, logit_difference
from mesascope.models.transformer import Decoder

SEEDS = (0, 1, 2)
GAIN, DECOY_BOUND = 8.0, 2.0
Circuit = set[tuple[str, str]]


class Planted:
    """A model with its heads in random order, and the names of the two heads of its induction circuit."""

    def __init__(self, seed: int) -> None:
        heads = shuffle_heads(seed)
        self.model: Decoder = build_planted_language_model(seed, heads)
        self.previous, self.induction = (
            next(f"L{layer}.H{head}" for (layer, head), each in heads.items() if each is TOKEN_MECHANISMS[name])
            for name in ("previous token", "induction")
        )
        generator = torch.Generator().manual_seed(seed)
        halves = [torch.randperm(VOCABULARY - 1, generator=generator)[: 2 * HALF_LENGTH] + 1 for _ in range(2)]
        self.first, self.other = torch.stack(halves).split(HALF_LENGTH, dim=1)
        self.metric: Metric = logit_difference(self.first[:, 0], self.other[:, 0])
        self.clean = join(self.first, self.first)

    @property
    def circuit(self) -> Circuit:
        """The edges of the circuit between a sequence and one of other tokens."""
        return self.matching_edges | {("embedding", f"{self.induction}.q"), ("embedding", f"{self.induction}.v")}

    @property
    def matching_edges(self) -> Circuit:
        """The edges between a sequence and one whose first half has other tokens."""
        return {
            ("embedding", f"{self.previous}.v"),
            (self.previous, f"{self.induction}.k"),
            (self.induction, "output"),
        }


def join(first: Tensor, second: Tensor) -> Tensor:
    return torch.cat([torch.full((len(first), 1), BOS_TOKEN), first, second], 1)


def find_top(score: xr.DataArray, size: int) -> Circuit:
    senders, receivers = np.unravel_index(rank_edges(score)[:size], score.shape)
    return {
        (str(score["sender"].values[sender]), str(score["receiver"].values[receiver]))
        for sender, receiver in zip(senders, receivers, strict=True)
    }


def split_scores(score: xr.DataArray, circuit: Circuit) -> tuple[list[float], list[float]]:
    """Return the magnitudes of the edges of a circuit, and those of all other edges."""
    flat = {
        (str(sender), str(receiver)): abs(float(score.sel(sender=sender, receiver=receiver)))
        for sender in score["sender"].values
        for receiver in score["receiver"].values
    }
    inside = [flat.pop(edge) for edge in circuit]
    return inside, [value for value in flat.values() if np.isfinite(value)]


@pytest.fixture(params=spread(SEEDS, 1), ids="seed {}".format)
def planted(request: pytest.FixtureRequest) -> Planted:
    return Planted(request.param)


@pytest.mark.slow  # a run per edge; test_compiled_circuits.py patches edges of smaller models
def test_patching_finds_the_edges_between_other_tokens(planted: Planted):
    sample = slice(0, 1)  # a run per edge: one pair
    metric = logit_difference(planted.first[sample, 0], planted.other[sample, 0])
    counterfactual = join(planted.other, planted.other)[sample]
    effect = patch_edges(planted.model, planted.clean[sample], counterfactual, metric)["effect"]
    assert find_top(effect, 5) == planted.circuit
    inside, outside = split_scores(effect, planted.circuit)
    assert min(inside) == pytest.approx(GAIN, rel=0.01)
    assert max(outside) < DECOY_BOUND


def test_patching_finds_the_edges_of_the_match_where_only_the_match_changes(planted: Planted):
    """Query and copied token are the same in both runs: their edges have no effect."""
    counterfactual = join(planted.other, planted.first)
    edges = sorted(planted.circuit)
    effect = patch_edges(planted.model, planted.clean, counterfactual, planted.metric, edges)["effect"]
    assert find_top(effect, 3) == planted.matching_edges
    for sender, receiver in planted.circuit - planted.matching_edges:
        assert abs(float(effect.sel(sender=sender, receiver=receiver))) < 1e-4


def test_integrated_gradients_find_the_edges_of_the_match(planted: Planted):
    """The match ends on the path to the counterfactual, where the softmax is not saturated."""
    counterfactual = join(planted.other, planted.first)
    score = attribute_edges(planted.model, planted.clean, counterfactual, planted.metric, steps=5)["score"]
    assert find_top(score, 3) == planted.matching_edges
    assert max(split_scores(score, planted.matching_edges)[1]) < DECOY_BOUND


def test_one_gradient_misses_the_edges_of_a_saturated_softmax(planted: Planted):
    """With 32 nats to the next key, the gradient by queries and keys is 0."""
    counterfactual = join(planted.other, planted.first)
    score = attribute_edges(planted.model, planted.clean, counterfactual, planted.metric, steps=0)["score"]
    for sender, receiver in planted.matching_edges - {(planted.induction, "output")}:
        assert abs(float(score.sel(sender=sender, receiver=receiver))) < 1e-4
    assert (planted.induction, "output") in find_top(score, 1)


@pytest.mark.parametrize("steps", [0, 5])
def test_no_gradient_finds_queries_and_keys_that_change_together(planted: Planted, steps: int):
    """Both runs attend to the same position, and so do all runs between them: one of query and key alone would not."""
    counterfactual = join(planted.other, planted.other)
    score = attribute_edges(planted.model, planted.clean, counterfactual, planted.metric, steps=steps)["score"]
    found = {("embedding", f"{planted.induction}.v"), (planted.induction, "output")}
    assert find_top(score, 2) == found
    for sender, receiver in planted.circuit - found:
        assert abs(float(score.sel(sender=sender, receiver=receiver))) < 1e-2
    assert max(split_scores(score, planted.circuit)[1]) < DECOY_BOUND


def test_the_circuit_is_faithful_and_stable(planted: Planted):
    counterfactual = join(planted.other, planted.first)
    found = attribute_edges(planted.model, planted.clean, counterfactual, planted.metric, steps=5)
    total = int(found["score"].notnull().sum())
    curve = measure_faithfulness(
        planted.model,
        planted.clean,
        counterfactual,
        planted.metric,
        found["score"],
        fractions=[0, 3 / total, 1],
        random_draws=2,
    )
    assert curve["circuit_size"].values.tolist() == [0, 3, total]
    assert float(curve["faithfulness"][1]) == pytest.approx(1, abs=DECOY_BOUND / GAIN)
    assert abs(curve["random"].values[:, 1]).max() < DECOY_BOUND / GAIN
    stable = bootstrap_edges(found["score_by_sequence"], 3, draws=20)
    assert (stable["jaccard"] == 1).all()
