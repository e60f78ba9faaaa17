"""Concept erasure: nothing is left to linear probes, no affine map changes less, and a model loses what it uses."""

import pytest
import torch

from mesascope.activations import capture
from mesascope.interventions import log_probability, sweep
from mesascope.probes import Eraser, erase, fit_eraser, fit_probe, probe
from mesascope.ridge import decompose_features
from probes.planted_sequences import PlantedSequences, build_induction_model, previous_token, two_back, untouched


def draw_features(count: int = 300, size: int = 8, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated features of three classes, with means in two directions."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    means = torch.zeros(3, size, dtype=torch.float64)
    means[1, 0], means[2, 1] = 2.0, 1.5
    mixing = torch.randn(size, size, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    noise = torch.randn(count, size, generator=generator, dtype=torch.float64)
    return (noise + means[labels]) @ mixing, labels


def cross_covariance(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    z = torch.nn.functional.one_hot(labels).double()
    return (x - x.mean(0)).T @ (z - z.mean(0)) / len(x)


def test_nothing_is_left_to_linear_predictors():
    x, labels = draw_features()
    erased = fit_eraser(x, labels)(x)
    before, after = cross_covariance(x, labels).abs().max(), cross_covariance(erased, labels).abs().max()
    assert before > 0.1
    assert after < 1e-13 * x.abs().max()
    assert (fit_probe(x, labels).predict(x) == labels).double().mean() > 0.7
    fresh = fit_probe(erased, labels)  # in the sample itself: the frequencies of the classes, for all rows
    constant = labels.bincount().double() / len(labels)
    torch.testing.assert_close(
        fresh.compute_scores(erased).softmax(-1), constant.expand(len(x), 3), rtol=1e-3, atol=1e-3
    )
    assert fresh.weight.abs().max() < 1e-4
    z = torch.nn.functional.one_hot(labels).double()
    least_squares = decompose_features(erased).solve(z, -20.0).predict(erased)
    torch.testing.assert_close(least_squares, constant.expand(len(x), 3), rtol=0, atol=1e-9)


def test_a_probe_of_other_sequences_is_at_chance():
    x, labels = draw_features(800)
    types = torch.arange(800) % 40
    train, test = range(400), range(400, 800)
    before = probe(x, labels, types, train=train, test=test)
    after = probe(fit_eraser(x[:400], labels[:400])(x), labels, types, train=train, test=test)
    assert before["accuracy_low"] > before["majority_accuracy"]
    chance = float(labels[test].bincount().max()) / len(labels[test])
    assert after["accuracy_low"] < chance < after["accuracy_high"] + 0.02
    assert float(after["accuracy"]) < float(before["accuracy"]) - 0.3


def test_no_affine_map_that_erases_changes_less():
    x, labels = draw_features()
    eraser = fit_eraser(x, labels)
    change = (eraser(x) - x).square().sum(1).mean()
    covariance = cross_covariance(x, labels)
    orthogonal = torch.linalg.svd(covariance, full_matrices=False).U[:, :2]
    generator = torch.Generator().manual_seed(0)
    others = [orthogonal.T]
    for _ in range(20):  # maps I - U (B U)^-1 B erase for every B; near the best B as well as far from it
        noise = torch.randn(2, 8, generator=generator, dtype=torch.float64)
        others += [orthogonal.T + noise, eraser.read.T + 0.01 * noise * eraser.read.abs().mean()]
    for rows in others:
        matrix = orthogonal @ torch.linalg.inv(rows @ orthogonal) @ rows
        erased = x - (x - x.mean(0)) @ matrix.T
        assert cross_covariance(erased, labels).abs().max() < 1e-10
        assert (erased - x).square().sum(1).mean() > change
    projected = ((x - x.mean(0)) @ orthogonal @ orthogonal.T).square().sum(1).mean()
    assert projected > 1.05 * change


def test_erasure_is_a_projection_that_keeps_the_mean():
    x, labels = draw_features()
    eraser = fit_eraser(x, labels)
    erased = eraser(x)
    torch.testing.assert_close(eraser(erased), erased, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(erased.mean(0), x.mean(0))
    assert eraser.read.shape == (8, 2)  # three classes: two dimensions
    torch.testing.assert_close(eraser.write @ eraser.read, torch.eye(2, dtype=torch.float64))


def test_white_features_are_erased_by_the_orthogonal_projection():
    x, labels = draw_features()
    x = torch.linalg.svd(x - x.mean(0), full_matrices=False).U * len(x) ** 0.5
    orthogonal = torch.linalg.svd(cross_covariance(x, labels), full_matrices=False).U[:, :2]
    torch.testing.assert_close(fit_eraser(x, labels)(x), x - x @ orthogonal @ orthogonal.T)


def test_features_without_the_concept_stay_as_they_are():
    x, labels = draw_features()
    erased = fit_eraser(x, labels)(x)
    again = fit_eraser(erased, labels)
    torch.testing.assert_close(again(erased), erased, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_dependent_and_constant_features_are_erased_by_the_pseudo_inverse(dtype: torch.dtype):
    x, labels = draw_features()
    wide = torch.cat([x, x @ torch.ones(8, 3, dtype=x.dtype), torch.full((len(x), 1), 7.0)], 1).to(dtype)
    erased = fit_eraser(wide, labels)(wide)
    assert erased.dtype is dtype
    assert erased.isfinite().all()
    precision = 100 * torch.finfo(dtype).eps * float(wide.abs().max())
    assert cross_covariance(erased.double(), labels).abs().max() < precision
    torch.testing.assert_close(erased[:, -1], wide[:, -1])
    # the least change is least in every inner product, also in that of the wide features
    torch.testing.assert_close(erased[:, :8].double(), fit_eraser(x, labels)(x), rtol=1e-3, atol=1e5 * precision)


def test_a_model_loses_what_it_uses_and_nothing_else():
    model, fitted, scored = build_induction_model(), PlantedSequences(80, 0), PlantedSequences(16, 1)
    stream = capture(model, fitted.tokens, ["resid_post"], layers=[0])["resid_post"][0]
    metric = log_probability(scored.answer)
    where = {"layer": 0, "pos": slice(3, 7)}
    shuffled = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    variables = {"previous": previous_token, "two back": two_back, "random": lambda x: previous_token(x)[shuffled]}
    effects = {}
    for name, variable in variables.items():
        eraser = fit_eraser(stream[:, where["pos"]], variable(fitted.tokens)[:, where["pos"]])
        edit = erase("resid_post", eraser, where)
        effects[name] = sweep(model, scored.tokens, edit, axes=("layer",), metric=metric)["effect"].item()
    assert effects["previous"] < -5
    assert abs(effects["two back"]) < 0.05
    assert abs(effects["random"]) < 0.2


def test_nothing_is_changed_by_an_edit_but_the_activation():
    model, sequences = build_induction_model(), PlantedSequences(40, 0)
    stream = capture(model, sequences.tokens, ["resid_post"], layers=[0])["resid_post"][0]
    eraser = fit_eraser(stream, previous_token(sequences.tokens))
    edit = erase("resid_post", eraser, {"layer": 0})
    results = []

    def run() -> None:
        results.append(capture(model, sequences.tokens, ["resid_post"], layers=[0], edits=edit)["resid_post"][0])

    assert untouched(model, run)
    assert results[0].equal(eraser(stream))


X, Y = torch.randn(8, 3, 2, generator=torch.Generator().manual_seed(0)), torch.arange(24).reshape(8, 3) % 2
REFUSED = {
    "one class": ((X, Y * 0), "an eraser needs two classes and two sequences or more, but got 1 classes"),
    "one sequence": ((X[:1], Y[:1]), "an eraser needs two classes and two sequences or more, but got 2 classes and 1"),
    "NaN": ((X / 0 * 0, Y), "features must be finite"),
    "labels of wrong length": ((X, Y[:, :2]), r"labels must be one per row, \(8, 3\), or one per sequence, \(8,\)"),
    "too few rows": ((X.reshape(4, 12), Y[:4, 0].roll(1)), "an eraser needs more rows than the features have dim"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_erased_is_refused_by_name(name):
    arguments, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        fit_eraser(*arguments)
    assert len(str(caught.value).splitlines()) == 1


def test_edits_are_refused_by_name():
    eraser: Eraser = fit_eraser(X, Y)
    with pytest.raises(ValueError, match="a site must be one of"):
        erase("head_out", eraser)
    with pytest.raises(ValueError, match="must end in d_model or d_head to be erased from, but pattern"):
        erase("pattern", eraser)
    with pytest.raises(ValueError, match="features must have the 2 entries of the fit"):
        capture(build_induction_model(), PlantedSequences(2, 0).tokens, ["z"], edits=erase("z", eraser))
