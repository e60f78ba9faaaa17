"""The benchmark of edge scores, on a tiny model: it reads the results that mesascope gives today."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mesascope.circuits import attribute_edges
from mesascope.interventions import logit_difference
from mesascope.models.load import load_pretrained
from saved import save_tiny

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def circuit_scores():
    sys.path.insert(0, str(BENCHMARKS))
    import circuit_scores

    yield circuit_scores
    sys.path.remove(str(BENCHMARKS))


@pytest.mark.parametrize("method", ["eap", "eap-ig"])
def test_scores_of_batches_are_those_of_all_pairs(circuit_scores, tmp_path, method):
    folder, draw = save_tiny(tmp_path, grouped=True), torch.Generator().manual_seed(0)
    clean, counterfactual = torch.randint(1, 50, (2, 4, 8), generator=draw)
    answer, wrong_answer = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    pairs = circuit_scores.Pairs(clean=clean, counterfactual=counterfactual, answer=answer, wrong_answer=wrong_answer)
    scores = circuit_scores.prepare_mesascope(folder, pairs)[method]()
    model, _ = load_pretrained(folder, require_tokenizer=False)
    steps = 0 if method == "eap" else circuit_scores.STEPS
    metric = logit_difference(answer, wrong_answer)
    expected = attribute_edges(model, clean, counterfactual, metric, steps=steps)
    np.testing.assert_allclose(scores.values, expected["score"].values, rtol=1e-4, atol=1e-6)
    assert scores.senders == expected["sender"].values.tolist()
    assert scores.receivers == expected["receiver"].values.tolist()
    np.testing.assert_allclose(scores.ends, [expected["clean"].values, expected["ablated"].values], rtol=1e-5)
