"""Trails of parameters: identities between what is measured, planted growth that must be found, and decoys."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch

from mesascope.analyses import CheckpointSeries, parameter_norms
from mesascope.analyses.training.parameter_norms import (
    ALL_PARAMETERS,
    WITHOUT_EMBEDDINGS,
    fit_curves,
    fit_norm_exponent,
)
from mesascope.axes import AXES
from mesascope.models.transformer import Decoder, DecoderConfig
from small import llama

STEPS = tuple(range(0, 100, 10))
SHAPE = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 16, "norm": "layer"}


def decoder(**options) -> Decoder:
    torch.manual_seed(0)
    return Decoder(DecoderConfig(vocab_size=7, **SHAPE | options)).double()


def trail(
    moved: Callable[[int, torch.Tensor], torch.Tensor], model=None, steps: tuple[int, ...] = STEPS
) -> CheckpointSeries:
    """Checkpoints whose parameters are a function of the step and of those at first."""
    start = model or decoder()

    def load(step: int):
        found = copy.deepcopy(start)
        with torch.no_grad():
            for parameter, first in zip(found.parameters(), start.parameters(), strict=True):
                parameter.copy_(moved(step, first))
        return found

    return CheckpointSeries(steps=steps, load=load)


def wandering(size: float, seed: int = 0) -> Callable[[int, torch.Tensor], torch.Tensor]:
    """Steps of one size in random directions: the same at every call."""

    def moved(step: int, first: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed + first.numel())
        noise = torch.randn(step // 10 + 1, *first.shape, generator=generator, dtype=first.dtype)
        return first + size * noise[1:].sum(0)

    return moved


def turning(step: int, first: torch.Tensor) -> torch.Tensor:
    """Every pair of neighbouring numbers turned by one angle more at each step: of one norm at all steps."""
    if first.numel() % 2:
        return first
    a, b = first.flatten().unflatten(0, (-1, 2)).unbind(-1)
    angle = torch.tensor(0.01 * step, dtype=first.dtype)
    return torch.stack([angle.cos() * a - angle.sin() * b, angle.sin() * a + angle.cos() * b], -1).view_as(first)


def aligned(curve: Callable[[float], float]) -> Callable[[int, torch.Tensor], torch.Tensor]:
    return lambda step, first: curve(step) * first


WAYS = {"wandering": wandering(0.02), "turning": turning, "aligned": aligned(lambda t: 1 + 0.02 * t)}


@pytest.mark.parametrize("way", WAYS)
def test_norm_update_and_alignment_belong_together(way):
    """|theta'|^2 = |theta|^2 (1 + 2 u a + u^2), and the cosine of both is (1 + u a) / sqrt(1 + 2 u a + u^2)."""
    found = parameter_norms(trail(WAYS[way]))
    norm, size, alignment = (found[name].values for name in ("norm", "update", "alignment"))
    grown = 1 + 2 * size[1:] * alignment[1:] + size[1:] ** 2
    inside = found["norm"].sel(stat=WITHOUT_EMBEDDINGS).values
    assert norm.shape == (10, 2)
    assert inside[1:] ** 2 == pytest.approx(inside[:-1] ** 2 * grown)
    assert found["cosine"].values[1:] == pytest.approx((1 + size[1:] * alignment[1:]) / grown**0.5)


def test_norms_are_those_of_the_tensors():
    model = decoder()
    found = parameter_norms(trail(aligned(lambda t: 1.0 + t), model)).isel(step=0)
    names = {name: each.double().norm().item() ** 2 for name, each in model.named_parameters()}
    ends = ("embed", "position_embed", "readout")
    inside = sum(each for name, each in names.items() if not name.startswith(ends))
    assert float(found["norm"].sel(stat=ALL_PARAMETERS)) == pytest.approx(sum(names.values()) ** 0.5)
    assert float(found["norm"].sel(stat=WITHOUT_EMBEDDINGS)) == pytest.approx(inside**0.5)
    for layer in (0, 1):
        own = sum(each for name, each in names.items() if name.startswith(f"layers.{layer}."))
        assert float(found["norm_by_layer"].sel(layer=layer)) == pytest.approx(own**0.5)


@pytest.mark.parametrize("power", [0.5, 1.0, 0.25, 1.7])
def test_planted_growth_is_found_with_its_power(power):
    found = parameter_norms(trail(aligned(lambda t: 1 + 0.3 * t**power)))
    assert float(found["exponent"]) == pytest.approx(power)
    best = {0.5: "√t", 1.0: "t", 0.25: "⁴√t"}
    r_squared = found["r_squared"]
    for each, name in best.items():
        assert (float(r_squared.sel(_curve=name)) > 1 - 1e-9) == (each == power)
    assert float(found["log_growth_std"]) == pytest.approx(0, abs=1e-12)
    assert found["cosine"].values[1:] == pytest.approx(1)
    assert found["alignment"].values[1:] == pytest.approx(1)


def test_what_turns_does_not_grow():
    """Decoy: updates as large as those of something that grows."""
    found = parameter_norms(trail(turning))
    assert found["update"].values[1:].min() > 0.05
    assert np.isnan(float(found["exponent"]))
    assert np.isnan(found["r_squared"].values).all()
    assert abs(found["alignment"].values[1:]).max() < 0.06
    assert abs(found["log_growth"]).max() < 1e-12


def test_what_wanders_is_not_aligned_and_grows_as_it_must():
    """Control: the square of the norm of a random walk is a line, whatever it starts from."""
    found = parameter_norms(trail(wandering(0.02), decoder(hidden_size=64)))
    assert abs(found["alignment"].values[1:]).max() < 0.05
    square = found["norm"].sel(stat=WITHOUT_EMBEDDINGS).values ** 2
    assert np.corrcoef(np.array(STEPS), square)[0, 1] > 0.999


def test_nothing_that_moves_has_no_direction():
    found = parameter_norms(trail(lambda step, first: first))
    assert np.isnan(found["alignment"].values).all()
    assert found["cosine"].values[1:] == pytest.approx(1)
    assert np.isnan(float(found["exponent"]))


def test_growth_of_matrices_is_told_one_by_one():
    model = decoder()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    faster = "layers.1.mlp.up_proj.weight"
    found = parameter_norms(
        trail(lambda t, first: first * (1 + t * (0.03 if names[id(first)] == faster else 0.01)), model)
    )
    log_growth = found["log_growth"]
    assert float(log_growth.sel(layer=1, map="mlp.up_proj")) == pytest.approx(np.log(1 + 90 * 0.03))
    others = log_growth.where((log_growth["layer"] != 1) | (log_growth["map"] != "mlp.up_proj"))
    assert float(others.max()) == pytest.approx(np.log(1.9)) == pytest.approx(float(others.min()))
    assert float(found["log_growth_std"]) == pytest.approx(log_growth.values.std())


def test_fits_begin_where_they_are_told_to():
    """A curve that falls before step 30 and grows as the square root after it."""
    bent = trail(aligned(lambda t: 3 + 0.2 * max(t, 30) ** 0.5 + 0.05 * max(30 - t, 0)))
    assert float(parameter_norms(bent, early=1 / 3)["exponent"]) == pytest.approx(0.5)
    assert float(parameter_norms(bent)["r_squared"].sel(_curve="√t")) < 0.9
    assert float(parameter_norms(bent, early=1 / 3)["log_growth"].max()) == pytest.approx(
        np.log((3 + 0.2 * 90**0.5) / (3 + 0.2 * 30**0.5))
    )


def test_exponential_decay_is_told_by_its_own_curve():
    t = np.arange(0.0, 8.0) * 50
    found = fit_curves(t, 5 - np.exp(-t / 50))
    assert max(found, key=lambda name: found[name]) == "e^-t"
    assert fit_norm_exponent(t[1:], np.log(t[1:])) == 0.01


def test_other_models_have_layers_too():
    found = parameter_norms(trail(aligned(lambda t: 1 + t), llama()))
    assert found.sizes["layer"] == 3
    assert "self_attn.q_proj" in found["map"].values
    assert {dim for dim in found.dims if dim not in AXES} == {"_curve"}


def test_too_few_checkpoints_are_refused():
    with pytest.raises(ValueError, match=r"a fit needs at least four checkpoints, but 3 are left after early=0\.75 of"):
        parameter_norms(trail(turning), early=0.75)
