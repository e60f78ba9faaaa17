"""Spectra: the identity, planted alignments, decoys without any, and what must be refused."""

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.integrate import quad
from torch import nn

from mesascope.activations import UnsupportedModel
from mesascope.activations.linear_inputs import sample_linear_inputs
from mesascope.activations.recording.linear_recorder import LinearModuleSample, LinearModuleSamples
from mesascope.activations.structure._linear_modules import LinearModule
from mesascope.analyses.stream.input_spectra import decompose_gram_matrix, effective_rank, spectra_of_samples
from mesascope.axes import AXES
from mesascope.models.transformer import Decoder, DecoderConfig

SHAPES = [(40, 24), (24, 24), (10, 24)]  # taller than wide, square, and wide, with a null space


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def steep(d_out: int, d_in: int) -> torch.Tensor:
    """A matrix whose singular values fall by a factor of 20."""
    left, _, right = torch.linalg.svd(gaussian(d_out, d_in, seed=5), full_matrices=False)
    return left * torch.linspace(2.0, 0.1, len(right), dtype=torch.float64) @ right


def sampled(weight: torch.Tensor, x: torch.Tensor, observed: torch.Tensor | None = None) -> LinearModuleSamples:
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    module.weight.data = weight
    one = LinearModule(layer=0, name="w", module=module, transposed=False, same_input_as="w")
    observed = (x @ weight.T).square().sum(-1) if observed is None else observed
    return LinearModuleSamples(
        samples=(LinearModuleSample(linear=one, inputs=x, output_sq_norms=observed),),
        layers=(0,),
        excluded={},
        num_tokens=9,
    )


def measured(weight: torch.Tensor, x: torch.Tensor, **options: int) -> xr.Dataset:
    return spectra_of_samples(sampled(weight, x), **options).isel(layer=0, map=0)


def turned(x: torch.Tensor, seed: int) -> torch.Tensor:
    """Vectors after one rotation, drawn evenly from all."""
    q, r = torch.linalg.qr(gaussian(x.shape[1], x.shape[1], seed=seed))
    return x @ (q * r.diagonal().sign()).T


def aligned(weight: torch.Tensor, tokens: int = 30) -> torch.Tensor:
    """Inputs along the first right singular vector alone, of several lengths and signs."""
    _, _, right = torch.linalg.svd(weight)
    return gaussian(tokens, 1, seed=2) * right[0]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_vector_s_length_is_what_the_spectrum_says(shape):
    weight, x = steep(*shape), gaussian(50, shape[1], seed=1)
    spectrum = decompose_gram_matrix(weight)
    torch.testing.assert_close(
        spectrum.compute_energies(x) @ spectrum.eigenvalues, (x @ weight.T).square().sum(-1), rtol=1e-10, atol=0
    )
    torch.testing.assert_close(spectrum.compute_energies(x).sum(-1), x.square().sum(-1), rtol=1e-10, atol=0)
    whole = torch.linalg.eigvalsh(weight.T @ weight).flip(0)
    torch.testing.assert_close(spectrum.eigenvalues, whole, rtol=1e-10, atol=1e-12)
    assert float(measured(weight, x)["identity_error"]) < 1e-10


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=["64", "32"])
@pytest.mark.parametrize("settings", [{"d_in": 2, "d_out": 2}, {"vocab_size": 20, "norm": "layer"}], ids=["v", "t"])
def test_the_identity_holds_in_our_decoder(dtype, rounding, settings):
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(hidden_size=16, intermediate_size=40, **settings)).to(dtype)
    vectors = gaussian(4, 10, 2).to(dtype)
    x = torch.randint(0, 20, (4, 10), generator=generator()) if model.config.vocab_size else vectors
    found = spectra_of_samples(sample_linear_inputs(model, x))
    assert found["identity_error"].sizes == {"layer": 3, "map": 6}
    assert float(found["identity_error"].max()) < rounding


@pytest.mark.parametrize("shape", SHAPES)
def test_isotropic_inputs_have_the_share_of_the_dimensions_and_gain_one(shape):
    weight = steep(*shape)
    exact = measured(weight, 3 * torch.eye(shape[1], dtype=torch.float64))
    np.testing.assert_allclose(exact["energy"], exact["energy_null"], rtol=1e-9)
    assert float(exact["gain"]) == pytest.approx(1.0, abs=1e-12)
    many = measured(weight, gaussian(4000, shape[1], seed=1))
    np.testing.assert_allclose(many["energy"], many["energy_null"], rtol=0.15)
    assert float(many["gain_null_low"]) < float(many["gain"]) < float(many["gain_null_high"])


@pytest.mark.parametrize("shape", SHAPES)
def test_inputs_along_the_first_singular_vector_are_found_there(shape):
    weight = steep(*shape)
    found = measured(weight, aligned(weight))
    values = torch.linalg.svdvals(weight).square()
    assert float(found["gain"]) == pytest.approx(float(values[0] / (values.sum() / shape[1])), rel=1e-9)
    assert float(found["energy"][0]) == pytest.approx(1.0, abs=1e-9)
    assert float(found["gain"]) > float(found["gain_null_high"])
    assert float(found["input_rank"]) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_inputs_turned_at_random_are_not_aligned(shape):
    weight = steep(*shape)
    gains = [measured(weight, turned(aligned(weight), seed)) for seed in range(40)]
    within = [float(each["gain_null_low"]) <= float(each["gain"]) <= float(each["gain_null_high"]) for each in gains]
    assert all(within)


def test_the_band_is_that_of_real_rotations():
    weight, x = steep(10, 24), gaussian(30, 24, seed=1) * torch.linspace(0.1, 3, 24, dtype=torch.float64)
    found = measured(weight, x)
    total = weight.square().sum() / 24 * x.square().sum()
    gains = torch.stack([(turned(x, seed) @ weight.T).square().sum() / total for seed in range(3000)])
    assert float(gains.mean()) == pytest.approx(1.0, abs=4 * float(gains.std()) / 3000**0.5)
    assert float(found["gain_null_high"]) == pytest.approx(1 + 4 * float(gains.std()), rel=0.05)
    assert float(found["gain_null_high"]) - 1 == pytest.approx(4 * float(gains.std()), rel=0.06)


def test_inputs_in_the_null_space_are_lost_and_said_to_be_there():
    weight = steep(12, 24)
    _, _, right = torch.linalg.svd(weight)
    found = measured(weight, gaussian(20, 12, seed=3) @ right[12:])
    assert float(found["gain"]) < 1e-20
    assert float(found["energy"][:12].sum()) < 1e-20
    np.testing.assert_allclose(found["energy"][12:], 1 / 12, rtol=1e-9)
    assert float(found["gain"]) < float(found["gain_null_low"])


def test_a_matrix_of_lower_rank_than_its_shape_obeys_the_identity():
    weight = gaussian(10, 3) @ gaussian(3, 24, seed=1)
    found = measured(weight, gaussian(30, 24, seed=2))
    assert float(found["identity_error"]) < 1e-10
    assert float(found["energy"].sum()) == pytest.approx(1.0, abs=1e-10)
    assert int((found["eigenvalue"] > 1e-12).sum()) == 3


def test_a_map_that_is_zero_has_no_gain_and_one_of_one_coordinate_has_gain_one():
    nothing = measured(torch.zeros(5, 24, dtype=torch.float64), gaussian(30, 24))
    assert bool(nothing["gain"].isnull())
    assert bool(nothing["effective_rank"].isnull())
    one = measured(gaussian(5, 1), gaussian(30, 1))
    assert float(one["gain"]) == pytest.approx(float(one["gain_null_low"])) == pytest.approx(1.0)


def test_the_bins_hold_equally_many_directions_largest_first():
    found = measured(steep(100, 70), gaussian(10, 70))
    assert found.sizes["eigen"] == 32
    count = found["energy_null"] * 70
    assert set(np.round(count.values).tolist()) == {2.0, 3.0}
    assert float(count.sum()) == pytest.approx(70)
    assert (np.diff(found["eigenvalue"]) < 0).all()
    assert float((found["eigenvalue"] * found["energy_null"]).sum()) == pytest.approx(1.0)
    assert measured(steep(100, 70), gaussian(10, 70), bins=5).sizes["eigen"] == 5


def test_effective_rank_of_known_spectra():
    assert float(effective_rank(torch.ones(7))) == pytest.approx(7)
    assert float(effective_rank(torch.tensor([5.0, 0, 0]))) == pytest.approx(1)
    decaying = measured(steep(40, 24), gaussian(10, 24))
    assert 1 < float(decaying["effective_rank"]) < 24


def test_the_effective_rank_of_random_weights_is_marchenko_and_pastur_s():
    width, ratio = 400, 0.5
    low, high = (1 - ratio**0.5) ** 2, (1 + ratio**0.5) ** 2

    def entropy(value: float) -> float:  # of value / width, under the limiting density
        density = ((high - value) * (value - low)) ** 0.5 / (2 * np.pi * ratio * value)
        return -density * value * np.log(value)

    expected = width * np.exp(quad(entropy, low, high)[0])
    found = float(measured(gaussian(800, width), gaussian(10, width, seed=1))["effective_rank"])
    assert found == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("tokens", [60, 2000])
def test_the_rank_of_the_inputs_is_not_made_small_by_few_tokens(tokens):
    isotropic = measured(steep(40, 100), gaussian(tokens, 100, seed=1))
    assert float(isotropic["input_rank"]) == pytest.approx(100, rel=0.2)
    few = measured(steep(40, 100), gaussian(tokens, 5, seed=1) @ gaussian(5, 100, seed=2) / 10)
    assert float(few["input_rank"]) < 6


def test_weights_that_changed_since_the_model_ran_are_refused():
    weight, x = steep(10, 24), gaussian(30, 24)
    with pytest.raises(UnsupportedModel, match="the prediction from the spectrum of W, but for w of layer 0"):
        spectra_of_samples(sampled(1.01 * weight, x, (x @ weight.T).square().sum(-1)))


def test_every_number_says_what_it_is_and_every_control_whose_it_is():
    found = spectra_of_samples(sampled(steep(40, 24), gaussian(30, 24)))
    assert found.attrs["tokens"] == 9
    for name, array in found.data_vars.items():
        assert array.attrs["units"], name
        assert array.attrs["description"], name
        assert set(array.dims) <= AXES, name
        assert array.attrs.get("control_of", "gain") in found.data_vars
    assert found["energy"].dims == ("layer", "map", "eigen")
    assert found["map"].values.tolist() == ["w"]
