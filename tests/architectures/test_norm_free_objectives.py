"""The quadratic objective and the Hopfield energy: identities, and what is left of them without the norm of tokens."""

import pytest
import torch
from torch.testing import assert_close

from mesascope.activations import UnsupportedModel
from mesascope.analyses.inner_objectives import objectives
from mesascope.analyses.inner_objectives.sublayer import Sublayer
from mesascope.models.transformer import Decoder, DecoderConfig

from .families import make, tokens
from .test_inner import FAMILIES, at_every_sublayer, measured


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_of_quadratic_is_heads_times_representation_minus_what_is_mixed(family):
    def check(at: Sublayer) -> None:
        with torch.enable_grad():
            z = at.x.clone().requires_grad_()
            value = objectives.quadratic.value_fn(z, at)
            (gradient,) = torch.autograd.grad(value.sum(), z)
        heads = at.pattern.shape[1]
        assert_close(gradient, heads * at.x - (at.u - at.output_bias), rtol=1e-4, atol=1e-4)
        offered = torch.einsum("bhkd,hdm->bhkm", at.values, at.output_projection)
        away = (at.x[:, None, :, None] - offered[:, :, None]).square().sum(-1)
        assert_close(value, (at.pattern * away).sum((1, 3)) / 2, rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            change = objectives.quadratic.value_fn(at.x + at.u, at) - value
        norms = heads / 2 * ((at.x + at.u).square().sum(-1) - at.x.square().sum(-1)) - at.u.square().sum(-1)
        assert_close(change, norms + (at.u * at.output_bias).sum(-1), rtol=1e-4, atol=1e-4)

    at_every_sublayer(make(family), tokens(), check, names=("attention",), queries=[2, 5])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_alignment_is_what_opposite_values_of_the_same_norms_take_away(family):
    def check(at: Sublayer) -> None:
        opposite = Sublayer(view=at.view, name="attention")
        opposite.__dict__["head_mixes"] = -at.head_mixes
        value, other = (objectives.quadratic.value_fn(at.x, each) for each in (at, opposite))
        found = objectives.quadratic.compute_quantities(at)["alignment"]
        assert_close(found, 1 - value / ((value + other) / 2), rtol=1e-3, atol=1e-5)

    at_every_sublayer(make(family), tokens(), check, names=("attention",), queries=[2, 5])
    found = measured(make(family), tokens(), objectives.quadratic)
    assert found["alignment"].attrs.get("tautology") is None
    assert "norms" in found["descends"].attrs["tautology"]
    assert "alignment_null" in found


def hopfield_network(update: float = 1.0, norm: str = "none") -> Decoder:
    """One head without positions whose keys, queries and values are the stream, and its update a multiple of them."""
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1, "positions": "none"}
    model = Decoder(DecoderConfig(vocab_size=50, norm=norm, **shape)).eval()
    attention = model.layers[0].attention
    with torch.no_grad():
        model.embed.weight.normal_()
        for module in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
            module.weight.copy_(torch.eye(8))
        attention.o_proj.weight.mul_(update)
    return model


def test_the_alignment_is_1_where_values_are_the_stream_and_minus_1_where_they_oppose_it():
    """Planted: all tokens of a sequence are the same. Decoy: the same values, rotated by 90 degrees."""
    same = torch.tensor([[7] * 9, [8] * 9])
    for sign in (1.0, -1.0):
        found = measured(hopfield_network(sign), same, objectives.quadratic)["alignment"]
        assert float(found.sel(layer=0, sublayer="attention")) == pytest.approx(sign, abs=1e-5)
    decoy = hopfield_network()
    with torch.no_grad():
        quarter_turn = torch.block_diag(*[torch.tensor([[0.0, -1.0], [1.0, 0.0]])] * 4)
        decoy.layers[0].attention.o_proj.weight.copy_(quarter_turn)
    found = measured(decoy, same, objectives.quadratic)["alignment"]
    assert float(found.sel(layer=0, sublayer="attention")) == pytest.approx(0.0, abs=1e-6)


def test_a_hopfield_network_descends_its_energy_and_its_opposite_climbs_it():
    for sign in (0.1, -0.1):
        found = measured(hopfield_network(sign), tokens(), objectives.hopfield).sel(layer=0, sublayer="attention")
        assert float(found["cosine"]) == pytest.approx(1.0 if sign > 0 else -1.0, abs=1e-5)
        assert float(found["step_size"]) == pytest.approx(sign, rel=1e-4)
        assert float(found["descends"]) == (1.0 if sign > 0 else 0.0)


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_the_hopfield_energy_of_a_normalised_stream_does_not_depend_on_norms(norm):
    def check(at: Sublayer) -> None:
        value, larger = (objectives.hopfield.value_fn(scale * at.x, at) for scale in (1, 3))
        assert_close(larger, value, rtol=1e-4, atol=1e-4)
        assert (value[:, 1:] != 0).all()

    at_every_sublayer(hopfield_network(norm=norm), tokens(), check, names=("attention",))


def test_hopfield_s_gradient_moves_towards_keys_and_its_energy_is_ramsauer_s_without_the_norm():
    """One head without norm or positions: the new state is the attention over the stored patterns."""

    def check(at: Sublayer) -> None:
        scale = at.queries.shape[-1] ** -0.5
        with torch.enable_grad():
            z = at.x.clone().requires_grad_()
            value = objectives.hopfield.value_fn(z, at)
            (gradient,) = torch.autograd.grad(value.sum(), z)
            again = at.compute_query(z)
            scores = (again @ at.keys.mT * scale).masked_fill(~at.visible_keys[:, None], -torch.inf)
            published = -scores.logsumexp(-1).sum(1) / scale + z.square().sum(-1) / 2
            log_keys = at.visible_keys.sum(-1).double().log().float()
            energy = published - z.square().sum(-1) / 2 + at.pattern.shape[1] * log_keys / scale
            (expected,) = torch.autograd.grad(energy.sum(), z)
            (pull,) = torch.autograd.grad((at.pattern @ at.keys * at.compute_query(z)).sum(), z)
        assert_close(value, energy, rtol=1e-4, atol=1e-4)
        assert_close(gradient, expected, rtol=1e-4, atol=1e-4)
        assert_close(gradient, -pull, rtol=1e-3, atol=1e-3)

    for family in FAMILIES:
        at_every_sublayer(make(family), tokens(), check, names=("attention",), queries=[1, 4, 6])


def test_hopfield_is_refused_where_scores_are_more_than_products():
    with pytest.raises(UnsupportedModel, match="softmax of the scaled scores differs"):
        measured(make("gemma2"), tokens(), objectives.hopfield)
