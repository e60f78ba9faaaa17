"""Scores of clusterings: the same as others compute them, by counting, and at chance where labels say nothing."""

from itertools import combinations

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, v_measure_score
from sklearn.metrics.cluster import contingency_matrix, pair_confusion_matrix

from mesascope.activations import NotRecorded, capture
from mesascope.analyses import clusters, run_analyses
from mesascope.analyses.stream.clusters import (
    LAST_POSITION_REDUCTIONS,
    SCORE_DESCRIPTIONS,
    k_means,
    score_clustering,
    stream_at_position,
)
from mesascope.analyses.stream.probes import stream_by_depth
from mesascope.models.transformer import Decoder, DecoderConfig
from mesascope.tasks.base import Batch
from mesascope.testing import check_analysis

ADJUSTED = ("adjusted_mutual_information", "adjusted_rand_index")


def model():
    torch.manual_seed(0)
    config = DecoderConfig(vocab_size=8, hidden_size=16, num_attention_heads=4, max_position_embeddings=8)
    return Decoder(config).eval()


def batch(rows=96, length=6, **latents):
    tokens = torch.randint(0, 8, (rows, length + 1), generator=torch.Generator().manual_seed(1))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    kinds = {"last token": inputs, "next token": targets, "generator": tokens[:, :1].expand(rows, length)}
    return Batch(inputs=inputs, targets=targets, weight=torch.ones(rows, length), latents=latents or kinds)


def labelings(count=60):
    random = np.random.default_rng(0)
    for _ in range(count):
        n = int(random.integers(2, 60))
        yield (random.integers(0, random.integers(1, n + 1), n) for _ in range(2))


def by_counting(truth, found) -> dict[str, float]:
    """Pairwise and B-cubed F1, by looking at every pair and at every member."""
    n = len(truth)
    pairs = [(truth[i] == truth[j], found[i] == found[j]) for i, j in combinations(range(n), 2)]
    hits, missed = pairs.count((True, True)), pairs.count((True, False)) + pairs.count((False, True))
    precision = recall = 0.0
    for i in range(n):
        alike, beside = truth == truth[i], found == found[i]
        precision += (alike & beside).sum() / beside.sum() / n
        recall += (alike & beside).sum() / alike.sum() / n
    return {
        "pairwise_f1": 2 * hits / (2 * hits + missed) if hits + missed else 1.0,
        "bcubed_f1": 2 * precision * recall / (precision + recall),
    }


def test_scores_are_those_of_others_and_of_counting():
    for truth, found in labelings():
        table = contingency_matrix(truth, found)
        (_, false), (missed, hit) = pair_confusion_matrix(truth, found)
        expected = {
            **by_counting(truth, found),
            "v_measure": v_measure_score(truth, found),
            "adjusted_mutual_information": adjusted_mutual_info_score(truth, found),
            "adjusted_rand_index": adjusted_rand_score(truth, found),
            "purity": table.max(0).sum() / len(truth),
        }
        got = score_clustering(truth, found)
        assert got == pytest.approx(expected, abs=1e-12)
        if hit + false + missed:
            assert got["pairwise_f1"] == pytest.approx(2 * hit / (2 * hit + false + missed))


def test_names_of_clusters_do_not_matter():
    for truth, found in labelings(20):
        renamed = np.random.default_rng(1).permutation(100)
        assert score_clustering(truth, renamed[truth]) == pytest.approx(dict.fromkeys(SCORE_DESCRIPTIONS, 1.0))
        assert score_clustering(renamed[truth], found) == pytest.approx(score_clustering(truth, found))


def test_one_cluster_and_singletons():
    one, each, halves = np.zeros(40, int), np.arange(40), np.arange(40) % 2
    for same in (one, each):
        assert score_clustering(same, same) == dict.fromkeys(SCORE_DESCRIPTIONS, 1.0)
    assert score_clustering(halves, one) == pytest.approx(
        {
            "pairwise_f1": 2 * 380 / (780 + 380),
            "bcubed_f1": 2 / 3,
            "v_measure": 0.0,
            "adjusted_mutual_information": 0.0,
            "adjusted_rand_index": 0.0,
            "purity": 0.5,
        },
        abs=1e-9,
    )
    apart = score_clustering(halves, each)
    assert (apart["pairwise_f1"], apart["purity"], apart["adjusted_rand_index"]) == (0.0, 1.0, 0.0)
    assert apart["bcubed_f1"] == pytest.approx(2 * 0.05 / 1.05)


def test_permuted_labels_are_at_chance():
    found = run_analyses(model(), batch(384), [clusters.using(draws=8)])["clusters"]
    truth = batch(384).categorical_latents["next token"][:, -1].numpy()
    sorted_ = k_means(stream_at_position(capture(model(), batch(384)), -1)[-1].double().numpy(), 8)
    random = np.random.default_rng(5)
    further = [score_clustering(random.permutation(truth), sorted_) for _ in range(50)]
    for name in SCORE_DESCRIPTIONS:
        here = found[f"{name}_null"].sel(stat="next token", layer="after 2")
        usual, spread = np.mean([one[name] for one in further]), np.std([one[name] for one in further])
        assert float(abs(here.mean() - usual)) < 4 * spread / 8**0.5
        if name in ADJUSTED:
            assert float(abs(found[f"{name}_null"]).max()) < 0.06
    assert float(found["purity_null"].mean()) > 0.15  # not 0: it is not corrected for chance
    assert float(found["pairwise_f1_null"].mean()) > 0.1


def test_what_stands_in_the_vector_is_found_and_what_does_not_is_not():
    data = check_analysis(clusters, model(), batch())
    here = data.sel(layer="embedding")
    assert float(here["adjusted_rand_index"].sel(stat="last token")) == pytest.approx(1.0)
    assert float(here["purity"].sel(stat="last token")) == pytest.approx(1.0)
    assert float(abs(here["adjusted_rand_index"].sel(stat=["next token", "generator"])).max()) < 0.06
    assert data["layer"].values.tolist() == ["embedding", "after 0", "after 1", "after 2"]
    assert data["clusters"].values.tolist() == [8, 8, 8]
    for name in SCORE_DESCRIPTIONS:
        assert data[name].dims == ("layer", "stat")
        assert data[f"{name}_null"].dims == ("draw", "layer", "stat")
        assert data[f"{name}_null"].attrs["control_of"] == name
    assert data.attrs["analysis"] == "clusters"


def test_labels_position_and_seed_can_be_chosen():
    recorded = capture(model(), batch(), ["resid_pre", "resid_post"])
    torch.testing.assert_close(stream_at_position(recorded, 2), stream_by_depth(recorded)[:, :, 2])
    early = clusters(recorded, position=0, labels=("generator",))
    assert early["stat"].values.tolist() == ["generator"]
    assert float(early["pairwise_f1"].min()) == pytest.approx(1.0)  # the first token is the generator
    assert early["pairwise_f1"].sizes == {"layer": 4, "stat": 1}
    kept = capture(model(), batch(), [], reduce=LAST_POSITION_REDUCTIONS, batch_size=10)
    for position in (-1, -2, 4):
        torch.testing.assert_close(stream_at_position(kept, position), stream_at_position(recorded, position))
    other = clusters(recorded, seed=1)
    assert not other["pairwise_f1_null"].equals(clusters(recorded)["pairwise_f1_null"])


def test_vectors_that_are_all_the_same_are_one_cluster():
    assert set(k_means(np.ones((30, 4)), 5)) == {0}


def test_some_layers_only():
    recorded = capture(model(), batch(), [], reduce=LAST_POSITION_REDUCTIONS, layers=[1])
    assert clusters(recorded)["layer"].values.tolist() == ["before 1", "after 1"]


def test_what_cannot_be_scored_is_refused():
    recorded = capture(model(), batch(), [], reduce=LAST_POSITION_REDUCTIONS)
    with pytest.raises(ValueError, match=r"needs a capture of a Batch with labels.* no batch"):
        clusters(capture(model(), batch().inputs, [], reduce=LAST_POSITION_REDUCTIONS))
    with pytest.raises(ValueError, match=r"needs a capture of a Batch with labels.* no such latents"):
        clusters(capture(model(), batch(size=torch.ones(96)), [], reduce=LAST_POSITION_REDUCTIONS))
    with pytest.raises(ValueError, match=r"labels must be among those of the batch \(last token, .*\), but got seed"):
        clusters(recorded, labels=("seed",))
    with pytest.raises(ValueError, match="at least two sequences per label, but 12 have 7 labels of 'next token'"):
        clusters(capture(model(), batch(12), [], reduce=LAST_POSITION_REDUCTIONS))
    with pytest.raises(ValueError, match="position must lie within 6 positions, but got 6"):
        clusters(recorded, position=6)
    with pytest.raises(ValueError, match="only the last 2 positions were; capture resid_pre and resid_post too"):
        clusters(recorded, position=0)
    with pytest.raises(ValueError, match="draws of clusters must be 1 or more, but got 0"):
        clusters(recorded, draws=0)
    with pytest.raises(NotRecorded, match="resid_pre_ending"):
        clusters(capture(model(), batch(), ["pattern"]))
