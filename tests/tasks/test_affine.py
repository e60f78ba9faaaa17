"""The recurrences obey their rule, and every oracle is what it says."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mesascope.tasks import baselines
from mesascope.tasks.affine import Affine, Polynomial
from mesascope.tasks.distributions import Normal, Uniform

TASKS = [
    Affine(),
    Affine(spectral_radius=Uniform(1.0, 1.3), length=12),
    Affine(dim=2, matrix="dense"),
    Affine(dim=2, matrix="dense", unit_rms=True),
    Affine(dim=4, matrix="orthogonal"),
    Affine(dim=8, matrix="diagonal", length=24),
    Polynomial(degree=2),
    Polynomial(degree=3),
]


def draw(task, n=256, seed=0):
    return task.sample(n, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_every_term_follows_from_the_one_before(task):
    batch = draw(task)
    follows = torch.einsum("bpf,bfo->bpo", task.compute_features(batch.inputs.double()), batch.latents["rule"].double())
    scale = batch.targets.abs().max()
    assert torch.allclose(follows.float(), batch.targets, atol=1e-5 * float(scale))
    assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1])


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_least_squares_and_closed_form_are_exact_once_the_rule_is_determined(task):
    # float64 terms: rounding them to float32 would be amplified by ill-conditioned sequences
    rule, start = task.sample_rules(64, torch.Generator().manual_seed(1))
    terms = [start.double()]
    for _ in range(task.identified_from + 4):
        terms.append(torch.einsum("bf,bfo->bo", task.compute_features(terms[-1][:, None])[:, 0], rule.double()))
    x = torch.stack(terms, 1)
    known, target = x[:, :-1], x[:, 1:]
    error = (baselines.predict_least_squares(known, task.compute_features(known)) - target).norm(dim=-1)
    before = error[:, 1 : task.identified_from].median()
    after = error[:, task.identified_from :].median()
    assert after < 1e-5 * before  # 8 dimensions: rounding times the condition number, which processors share unevenly
    exact = (baselines.predict_closed_form(known, task.compute_features(known)) - target).norm(dim=-1)[
        :, task.identified_from
    ]
    assert exact.median() < 1e-5 * before


def test_least_squares_is_numpys_at_every_position():
    batch = draw(Affine(dim=2, matrix="dense"), n=3)
    task = Affine(dim=2, matrix="dense")
    found = baselines.predict_least_squares(batch.inputs, task.compute_features(batch.inputs))
    for row in range(3):
        for place in range(3, 12):
            phi = task.compute_features(batch.inputs)[row].double().numpy()
            rule = np.linalg.lstsq(phi[:place], batch.inputs[row, 1 : place + 1].double().numpy(), rcond=None)[0]
            assert np.allclose(found[row, place], phi[place] @ rule, atol=1e-3)


def test_closed_form_is_the_three_term_identity():
    batch = draw(Affine(spectral_radius=Uniform(0.4, 0.9)))
    x = batch.inputs.double()
    last, step, before = x[:, 2:], x[:, 2:] - x[:, 1:-1], x[:, 1:-1] - x[:, :-2]
    identity = last + step.square() / before
    early = slice(0, 4)
    found = baselines.predict_closed_form(x, Affine().compute_features(x))[:, 2:]
    assert torch.allclose(found[:, early], identity[:, early], rtol=1e-4, atol=1e-4)


def test_ridge_solves_its_normal_equations_and_gradient_descent_tends_to_least_squares():
    task = Affine(spectral_radius=Uniform(0.5, 1.0))
    batch = draw(task, n=8)
    x, phi = batch.inputs, task.compute_features(batch.inputs)
    place, penalty = 6, 0.1
    known, following = phi[:, :place].double(), x[:, 1 : place + 1].double()
    gram = known.mT @ known + penalty * torch.eye(2, dtype=torch.float64)
    by_hand = (phi[:, place, None].double() @ torch.linalg.solve(gram, known.mT @ following))[:, 0]
    assert torch.allclose(baselines.predict_ridge(x, phi, penalty)[:, place].double(), by_hand, atol=1e-5)
    target = baselines.predict_least_squares(x, phi)[:, place]
    descent = baselines.predict_gradient_descent(x, phi, (1, 4, 16, 4000))
    gaps = [(one[:, place] - target).norm() for one in descent]
    assert gaps[0] > gaps[1] > gaps[2] > gaps[3]
    assert gaps[3] < 1e-2 * gaps[0]


def test_one_step_of_gradient_descent_from_zero_is_the_scaled_moment():
    task = Affine()
    batch = draw(task, n=4)
    x, phi = batch.inputs.double(), task.compute_features(batch.inputs).double()
    place = 5
    moment = phi[:, :place].mT @ x[:, 1 : place + 1]
    curvature = torch.linalg.eigvalsh(phi[:, :place].mT @ phi[:, :place])[:, -1, None, None]
    by_hand = (phi[:, place, None] @ (moment / curvature))[:, 0]
    assert torch.allclose(baselines.predict_gradient_descent(x, phi, [1])[0][:, place], by_hand)


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_oracles_never_look_ahead(task):
    batch = draw(task, n=16)
    changed = batch.inputs.clone()
    changed[:, 6:] = 7.0
    for name, prediction in task.baselines(batch).items():
        other = task.baselines(type(batch)(inputs=changed, targets=batch.targets, weight=batch.weight))[name]
        assert torch.equal(prediction[:, :6], other[:, :6]), name


@pytest.mark.parametrize("matrix", ["diagonal", "orthogonal", "dense"])
@pytest.mark.parametrize("dim", [1, 3, 8])
def test_the_spectral_radius_is_what_was_asked_for(matrix, dim):
    task = Affine(dim=dim, matrix=matrix, spectral_radius=Uniform(0.7, 0.7))
    rule, _ = task.sample_rules(64, torch.Generator().manual_seed(0))
    radius = torch.linalg.eigvals(rule[:, 1:].mT).abs().amax(-1)
    assert torch.allclose(radius, torch.full_like(radius, 0.7), atol=1e-4)
    if dim == 1:
        assert {float(s) for s in rule[:, 1].sign().unique()} == {-1.0, 1.0}
    if matrix == "orthogonal":
        square = rule[:, 1:] @ rule[:, 1:].mT
        assert torch.allclose(square, 0.49 * torch.eye(dim).expand_as(square), atol=1e-4)


def all_terms(batch):
    return torch.cat([batch.inputs, batch.targets[:, -1:]], dim=1)


def test_sequences_of_unit_rms_are_the_same_sequences_divided_by_their_root_mean_square():
    task = Affine(dim=2, matrix="dense", length=12, spectral_radius=Uniform(0.0, 1.2))
    plain, scaled = draw(task), draw(replace(task, unit_rms=True))
    rms = all_terms(plain).double().square().mean((1, 2), keepdim=True).sqrt().float()
    assert rms.max() > 10 * rms.min()
    assert torch.allclose(all_terms(scaled), all_terms(plain) / rms, rtol=1e-4, atol=1e-5)
    assert torch.allclose(all_terms(scaled).square().mean((1, 2)), torch.ones(len(rms)), atol=1e-4)
    assert torch.equal(plain.latents["rule"][:, 1:], scaled.latents["rule"][:, 1:])  # A
    assert torch.equal(plain.weight, scaled.weight)


def test_few_sequences_dominate_the_error_of_copying_unless_their_root_mean_square_is_1():
    task = Affine(dim=2, matrix="dense")
    shares = []
    for each in (task, replace(task, unit_rms=True)):
        batch = draw(each, n=4096)
        error = each.loss(batch.inputs, batch)[:, each.identified_from :].sum(1).sort(descending=True).values
        shares.append(float(error[:41].sum() / error.sum()))
    assert shares[0] > 0.4 > shares[1]


def test_sequences_of_zeros_stay_zero_with_unit_rms():
    batch = draw(Affine(unit_rms=True, offset=Uniform(0.0, 0.0), start=Uniform(0.0, 0.0)), n=4)
    assert (all_terms(batch) == 0).all()


def test_only_sequences_of_unit_rms_are_tested_on_terms_of_any_size():
    plain = Affine(dim=2, matrix="dense")
    shifts = dict(replace(plain, unit_rms=True).distribution_shifts())
    assert shifts.pop("terms of any size") == plain
    assert all(task.unit_rms for task in shifts.values())
    assert set(shifts) == set(plain.distribution_shifts())


def test_polynomials_stay_in_bounds_and_reach_chaos():
    batch = draw(Polynomial(degree=3, coefficient_norm=Uniform(1.0, 1.0)), n=2000)
    assert batch.targets.abs().max() <= 1.0
    late = batch.targets[:, -1] - batch.targets[:, -2]
    assert (late.abs() > 0.1).float().mean() > 0.2


def test_the_same_generator_gives_the_same_sequences_and_another_others():
    task = Affine()
    assert torch.equal(draw(task, seed=3).inputs, draw(task, seed=3).inputs)
    assert not torch.equal(draw(task, seed=3).inputs, draw(task, seed=4).inputs)


def test_positions_without_a_determined_rule_have_the_stated_weight():
    batch = draw(Affine(dim=2, matrix="dense", unidentified_weight=0.25))
    assert torch.equal(batch.weight[0, :5], torch.tensor([0.25, 0.25, 0.25, 1.0, 1.0]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Affine(dim=9), r"dim must lie in 1\.\.8, but got 9"),
        (lambda: Affine(length=3), "length must be at least 4"),
        (lambda: Affine(unidentified_weight=2.0), r"must lie in \[0, 1\]"),
        (lambda: Polynomial(degree=4), "degree must be 2 or 3"),
        (lambda: Polynomial(coefficient_norm=Uniform(0.5, 1.5)), "stay bounded"),
        (lambda: Uniform(1.0, 0.0), "low must not exceed high"),
    ],
)
def test_what_cannot_be_sampled_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_normal_draws_have_their_spread():
    drawn = Normal(3.0).sample((20_000,), torch.Generator().manual_seed(0))
    assert 2.9 < drawn.std() < 3.1


def test_a_matrix_that_happens_to_be_zero_stays_so(monkeypatch):
    """A uniform draw is exactly 0 once in sixteen million, which a long run sees."""
    monkeypatch.setattr(Affine, "_sample_matrices", lambda task, n, _: torch.zeros(n, task.dim, task.dim))
    for dim in (1, 2):
        batch = draw(Affine(dim=dim), n=4)
        assert batch.inputs.isfinite().all()
        assert (batch.latents["rule"][:, 1:] == 0).all()


@pytest.mark.parametrize("n", [-1, 10**30, 1.5, None])
def test_a_number_of_sequences_that_cannot_be_drawn_is_named(n):
    with pytest.raises(ValueError, match=r"^n must be (from .* to .*|an integer), but got") as caught:
        Affine().sample(n, torch.Generator())
    assert len(str(caught.value).splitlines()) == 1
