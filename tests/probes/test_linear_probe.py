"""Linear probes: identities, control tasks that memorise, chance on noise, known contents of a planted model."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from mesascope.activations import NotRecorded, capture
from mesascope.probes import draw_control_labels, fit_probe, probe, probe_site
from mesascope.probes._intervals import binomial_interval
from mesascope.probes._rows import collect_rows, split_sequences
from probes.planted_sequences import (
    PREVIOUS_HEAD,
    TWO_BACK_HEAD,
    PlantedSequences,
    build_induction_model,
    previous_token,
    two_back,
    untouched,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def integers(high: int, *shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


def test_the_fit_is_that_of_scikit_learn():
    x = normal(60, 4)
    labels = (x[:, :2] + normal(60, 2, seed=2)).argmax(1) + 2 * (x[:, 2] > 1)
    fitted = fit_probe(x, labels)
    variance = float((x - x.mean(0)).square().mean())
    reference = LogisticRegression(C=1 / (10**fitted.log10_penalty * variance * len(x)), tol=1e-8, max_iter=10_000)
    reference.fit(x.numpy(), labels.numpy())
    expected = torch.from_numpy(reference.predict_log_proba(x.numpy()))
    torch.testing.assert_close(fitted.compute_scores(x).log_softmax(-1), expected, rtol=1e-3, atol=1e-3)
    assert fitted.classes.tolist() == [0, 1, 2, 3]


def test_the_fit_does_not_depend_on_the_basis_or_the_unit():
    x = normal(40, 3)
    labels = (x[:, 0] + 0.5 * normal(40, seed=2)) > 0
    rotation = torch.linalg.qr(normal(3, 3, seed=3)).Q
    first, second = fit_probe(x, labels), fit_probe(1e3 * x @ rotation + 7, labels)
    assert first.log10_penalty == second.log10_penalty
    scores = [one.log_softmax(-1) for one in (first.compute_scores(x), second.compute_scores(1e3 * x @ rotation + 7))]
    torch.testing.assert_close(*scores, rtol=1e-3, atol=1e-3)


def test_the_penalty_is_chosen_by_left_out_sequences():
    x = normal(40, 30)
    assert fit_probe(x, integers(2, 40)).log10_penalty >= 0  # noise
    assert fit_probe(x, x[:, 0] > 0).log10_penalty < 0
    copies = torch.stack([x, x], 1)  # a left-out row whose copy is in the fit would hide that it is noise
    assert fit_probe(copies, integers(2, 40)).log10_penalty >= 0
    assert fit_probe(copies.flatten(0, 1), integers(2, 40).repeat_interleave(2)).log10_penalty < 0


def test_directions_of_rounding_do_not_count():
    labels = integers(2, 40)
    x = torch.cat([normal(40, 2), 1e-12 * labels[:, None].double()], 1).float() + 1
    fitted = fit_probe(x, labels)
    assert (fitted.predict(x) == labels).double().mean() < 0.9
    constant = fit_probe(torch.ones(6, 2), [0, 1, 1, 0, 1, 1])
    assert constant.predict(torch.ones(2, 2)).tolist() == [1, 1]


def test_noise_is_at_chance_and_a_feature_is_found():
    tokens, labels = integers(12, 60, 3), integers(2, 60, 3, seed=3)
    noise = probe(normal(60, 3, 5), labels, tokens)
    assert noise["accuracy_low"] < 0.5 < noise["accuracy_high"]
    signal = probe(torch.cat([normal(60, 3, 5), 9.0 * labels[..., None]], -1), labels, tokens, control_draws=3)
    assert float(signal["accuracy"]) == float(signal["macro_f1"]) == 1
    assert float(signal["selectivity"]) > 0.3
    assert signal["control_accuracy"].sizes == {"draw": 3}
    assert float(signal["majority_accuracy"]) < 0.65


def test_scores_are_those_of_scikit_learn():
    x, labels = normal(60, 2), integers(4, 60, seed=3)
    found = probe(x, labels, torch.arange(60) % 9, train=range(30), test=range(30, 60))
    predicted = fit_probe(x[:30], labels[:30]).predict(x[30:])
    assert float(found["macro_f1"]) == pytest.approx(f1_score(labels[30:], predicted, average="macro"))
    assert float(found["accuracy"]) == pytest.approx(float((predicted == labels[30:]).double().mean()))


def test_a_probe_that_memorises_types_is_not_selective():
    tokens = integers(8, 60, 3)
    one_hot = torch.nn.functional.one_hot(tokens).double()
    found = probe(one_hot, tokens % 2, tokens)
    assert float(found["accuracy"]) == 1
    assert abs(float(found["selectivity"])) < 0.01


def test_control_labels_are_a_function_of_the_type_with_the_distribution_of_the_labels():
    types, labels = torch.arange(3000) % 1500, (torch.arange(3000) % 10 == 0).long()
    control = draw_control_labels(types, labels, torch.Generator().manual_seed(0))
    assert control[:1500].equal(control[1500:])
    assert float(control.double().mean()) == pytest.approx(0.1, abs=0.03)


def test_the_interval_counts_sequences():
    assert binomial_interval(0.9, 20) == pytest.approx((0.68302, 0.98765), abs=1e-4)  # tables of Clopper & Pearson
    assert binomial_interval(0.0, 20)[0] == 0
    labels = integers(2, 40, 50)
    found = probe(normal(40, 50, 2), labels, integers(9, 40, 50, seed=4))
    assert float(found["accuracy_high"] - found["accuracy_low"]) > 0.35  # 20 sequences, not 1,000 rows
    assert (int(found["num_train_sequences"]), int(found["num_test_sequences"])) == (20, 20)


def test_training_and_test_sequences_are_disjoint():
    rows = collect_rows(normal(9, 2, 3), integers(2, 9))
    train, test = split_sequences(rows, None, None, torch.Generator().manual_seed(0))
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(9))
    chosen = split_sequences(rows, [0, 1, 2], None, torch.Generator())
    assert [one.tolist() for one in chosen] == [[0, 1, 2], [3, 4, 5, 6, 7, 8]]
    with pytest.raises(ValueError, match="must be disjoint, but sequence 2 is in both"):
        split_sequences(rows, [0, 1, 2], [2, 3], torch.Generator())


def test_contents_of_a_planted_model_are_found_where_they_are():
    model, sequences = build_induction_model(), PlantedSequences(60, 0)
    acts = capture(model, sequences.tokens, ["resid_pre", "z"])
    own, previous = sequences.tokens, previous_token(sequences.tokens)
    position = {"positions": range(3, 7), "types": own}
    found = probe_site(acts, "z", previous, layers=[0], heads=[PREVIOUS_HEAD, TWO_BACK_HEAD, 0], **position)
    assert found["accuracy"].dims == ("layer", "head")
    assert found["accuracy"].values[0, 0] == 1
    assert found["accuracy"].values[0, 2] < 0.4
    decoy = probe_site(acts, "z", two_back(own), layers=[0], heads=[TWO_BACK_HEAD], **position)
    assert decoy["accuracy"].item() == 1  # the information is there, though nothing reads it
    assert decoy["selectivity"].item() > 0.3
    embedding = probe_site(acts, "resid_pre", own, layers=[0], **position)
    assert embedding["accuracy"].item() == 1
    assert embedding["selectivity"].item() < 0.1
    direct = probe(acts["z"][0, :, 3:7, PREVIOUS_HEAD], previous[:, 3:7], own[:, 3:7])
    assert all(np.array_equal(direct[name], found[name][0, 0]) for name in direct)


def test_results_are_labelled_and_nothing_is_changed():
    model, sequences = build_induction_model(), PlantedSequences(12, 0)
    acts = capture(model, sequences.tokens, ["z"])
    results = []
    labels = previous_token(sequences.tokens)
    options = {"layers": [0], "heads": [PREVIOUS_HEAD], "positions": [3, 4]}
    assert untouched(model, lambda: results.append(probe_site(acts, "z", labels, **options)))
    assert all(one.attrs["units"] and one.attrs["description"] for one in results[0].data_vars.values())


def test_padding_does_not_count():
    tokens, noise = integers(5, 20, 4), normal(20, 4, 3)
    labels = integers(2, 20, 4, seed=2)
    mask = torch.ones(20, 4, dtype=torch.long)
    mask[:, 0] = 0
    spoiled = noise.clone()
    spoiled[:, 0] = torch.nan
    found, expected = probe(spoiled, labels, tokens, mask=mask), probe(noise[:, 1:], labels[:, 1:], tokens[:, 1:])
    assert found.equals(expected)


X, Y, T = normal(8, 2, 3), torch.arange(16).reshape(8, 2) % 2, torch.arange(16).reshape(8, 2) % 5
REFUSED = {
    "one class": ((X, torch.zeros(8, 2).long(), T), {}, "training labels must have two classes or more"),
    "one sequence": ((X, Y, T), {"train": [0]}, "there must be two training sequences or more, but there are 1"),
    "no test sequences": ((X, Y, T), {"train": range(8)}, "there must be two test sequences or more"),
    "NaN": ((X / 0 * 0, Y, T), {}, "features must be finite, but 48 of their entries are not"),
    "labels of wrong length": ((X, Y[:7], T), {}, r"labels must be one per row, \(8, 2\)"),
    "real labels": ((X, X[..., 0], T), {}, "labels must be integers"),
    "texts": ((X, ["a"] * 8, T), {}, "labels must be integers"),
    "types of wrong length": ((X, Y, T[:7]), {}, "types must be one per row"),
    "one type": ((X, Y, T * 0), {}, "a control task needs two token types"),
    "no control": ((X, Y, T), {"control_draws": 0}, "control_draws must be 1 or more"),
    "one fold": ((X, Y, T), {"folds": 1}, "cross-validation needs two folds"),
    "unknown sequence": ((X, Y, T), {"test": [3, 80]}, "test must be different indices"),
    "four axes": ((X[None], Y, T), {}, r"features must be \(batch, feature\) or \(batch, pos, feature\)"),
    "a mask of other numbers": ((X, Y, T), {"mask": Y * 2}, "mask must be 1 in the rows that count"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_probed_is_refused_by_name(name):
    arguments, options, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        probe(*arguments, **options)
    assert len(str(caught.value).splitlines()) == 1


def test_what_is_not_in_a_capture_is_refused_by_name():
    tokens = PlantedSequences(8, 0).tokens
    acts = capture(build_induction_model(), tokens, ["z", "pattern"])
    with pytest.raises(ValueError, match="a site must be one of"):
        probe_site(acts, "head_out", tokens)
    with pytest.raises(ValueError, match="must be within layers and end in d_model or d_head, but pattern"):
        probe_site(acts, "pattern", tokens)
    with pytest.raises(NotRecorded, match="'resid_post' was not recorded"):
        probe_site(acts, "resid_post", tokens)
    for name, value in (("layers", [2]), ("heads", [13]), ("positions", [8]), ("positions", [1, 1])):
        with pytest.raises(ValueError, match=rf"^{name} must be .*but got 1\.5"):
            probe_site(acts, "z", tokens, **{name: 1.5})
        with pytest.raises(ValueError, match=f"^{name} must be different ones of"):
            probe_site(acts, "z", tokens, **{name: value})
