"""Inner objectives: their identities in real architectures, their control, planted descent and a decoy."""

import pytest
import torch
import xarray as xr
from torch.testing import assert_close

from mesascope.activations import LayerReduction, capture
from mesascope.analyses import inner, objective
from mesascope.analyses.inner_objectives import objectives
from mesascope.analyses.inner_objectives.sublayer import Sublayer
from mesascope.models.transformer import Decoder, DecoderConfig

from .families import make, tokens

FAMILIES = ("llama", "gpt2", "gpt_neox", "phi")
SITES = ("resid_pre", "attn_out", "mlp_out", "pattern", "value", "key", "query", "attn_scores")


def measured(model, x, one, queries=None, **options) -> xr.Dataset:
    measure = inner(one)
    recorded = capture(model, x, measure.sites, reduce=measure.reductions, queries=queries, **options)
    return measure(recorded)


def at_every_sublayer(model, x, read, names=("attention", "mlp"), queries=None) -> None:
    """Call a check with every sublayer of a model."""

    def see(view):
        for name in names:
            read(Sublayer(view=view, name=name))
        return {"seen": torch.ones(len(view.inputs))}

    sites = tuple(site for site in SITES if site != "mlp_out" or "mlp" in names)
    how = LayerReduction(sites=sites, fn=see, axes={"seen": ("batch",)})
    layers = model.config.num_hidden_layers
    assert capture(model, x, [], reduce={"seen": how}, queries=queries)["seen"].shape == (layers, len(x))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_of_linear_is_the_attention_update(family):
    def check(at: Sublayer) -> None:
        with torch.enable_grad():
            z = at.x.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(objectives.linear.value_fn(z, at).sum(), z)
        assert_close(-gradient, at.u, rtol=0, atol=0)
        found = objectives.linear.compute_quantities(at)
        assert_close(found["after"] - found["before"], -at.u.square().sum(-1), rtol=1e-4, atol=1e-4)

    at_every_sublayer(make(family), tokens(), check, queries=[0, 3, 7])
    found = measured(make(family), tokens(), objectives.linear)
    assert "always" in found.attrs["tautology"]
    assert found["cosine"].attrs["tautology"]
    assert (abs(found["cosine"] - 1) < 1e-6).all()
    assert found["opposition"].attrs.get("tautology") is None


def test_the_update_of_unshuffled_keys_is_the_attention_s_own():
    """The control is built from parts; with every key in its place the parts must give the real update."""

    def check(at: Sublayer) -> None:
        stay = torch.arange(at.visible_keys.shape[-1]).expand(at.visible_keys.shape)
        assert_close(Sublayer(view=at.view, name="attention", key_order=stay).u, at.u, rtol=1e-4, atol=1e-5)
        for other in at.with_shuffled_keys(2, seed=0):
            assert other.key_order is not None
            assert_close(other.key_order.sort(-1).values, stay, rtol=0, atol=0)
            assert_close(other.pattern.sum(-1), at.pattern.sum(-1))
            assert (other.pattern.sum(1)[~at.visible_keys] == 0).all()
            assert not torch.equal(other.u, at.u)

    for family in FAMILIES:
        at_every_sublayer(make(family), tokens(), check, names=("attention",))


@pytest.mark.parametrize("precise", [False, True])
def test_one_step_of_the_fast_weight_is_linear_attention(precise):
    torch.manual_seed(0)
    model = Decoder(
        DecoderConfig(d_in=2, d_out=2, hidden_size=16, num_attention_heads=4, num_key_value_heads=2, attention="linear")
    )
    x = torch.randn(3, 9, 2)
    model, x = (model.double(), x.double()) if precise else (model, x)
    found = measured(model, x, objectives.fast_weight)
    assert_close(
        torch.from_numpy(found["unexplained"].sel(sublayer="attention").values),
        torch.zeros(3).double(),
        rtol=0,
        atol=1e-6,
    )
    step = found["step_size"].sel(sublayer="attention")
    assert (abs(step - 1) < 1e-5).all()
    softmax = measured(make("llama"), tokens(), objectives.fast_weight)
    assert (softmax["unexplained"].sel(sublayer="attention") > 0.01).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_readout_after_the_last_layer_is_the_loss_and_its_gradient_the_model_s(family):
    model, x = make(family), tokens()
    found = measured(model, x, objectives.readout)
    with torch.no_grad():
        loss = model(x, labels=x).loss
    each = torch.nn.functional.cross_entropy(model(x).logits[:, :-1].mT, x[:, 1:], reduction="none")
    assert_close(each.mean(), loss)
    end = each[:, 1:].mean().item()  # the first token is a sink
    if family in ("phi", "gpt_neox"):  # both sublayers read the same stream
        assert_close(*torch.from_numpy(found["before"].values).unbind(-1))
    else:
        assert found["after"].values[-1, 1] == pytest.approx(end, rel=1e-4)


def test_outer_holds_the_mlp_against_the_gradient_behind_the_attention():
    model, x = make("llama"), tokens()
    seen = {}

    def keep(view):
        at = Sublayer(view=view, name="mlp")
        seen[view.layer] = at.loss_gradient.clone()
        return {"seen": torch.ones(len(view.inputs))}

    sites = ("resid_pre", "attn_out", "mlp_out", "resid_pre_grad", "attn_out_grad")
    capture(model, x, [], reduce={"seen": LayerReduction(sites=sites, fn=keep, axes={"seen": ("batch",)})})
    kept = capture(model, x, ["attn_out_grad"])
    for layer, gradient in seen.items():
        assert_close(gradient, kept["attn_out_grad"][layer])
    found = measured(model, x, objectives.outer)
    assert found["cosine"].notnull().all()
    assert (found["unexplained"] <= 1).all()
    assert set(found.data_vars) >= {"cosine", "cosine_null", "cosine_at_sinks"}
    assert "before" not in found


def test_outer_is_held_against_updates_from_elsewhere():
    model, x = make("llama"), tokens()
    kept = capture(model, x, ["attn_out", "resid_pre_grad"])
    found = measured(model, x, objectives.outer)
    half = x.shape[1] // 2
    for layer, (update, gradient) in enumerate(zip(kept["attn_out"], kept["resid_pre_grad"], strict=True)):
        other = torch.cat([update[:, -half:], update[:, :-half]], dim=1)
        by_hand = torch.cosine_similarity(other.double(), -gradient.double(), dim=-1)[:, 1:-1].mean()
        told = float(found["cosine_null_other_positions"].sel(layer=layer, sublayer="attention"))
        assert told == pytest.approx(float(by_hand), abs=1e-6)
    assert found["cosine_null_other_positions"].attrs["control_of"] == "cosine"


@objective(
    title="pull",
    description="Half of the squared distance from where the update leads.",
    sites=("pattern", "value"),
    sublayers=("attention",),
)
def pull(z, at):
    return (z - at.x - at.u).square().sum(-1) / 2


@objective(
    title="push",
    description="What any update climbs: half of the squared distance from where it came.",
    sublayers=("attention",),
)
def push(z, at):
    return -(z - at.x - at.u).square().sum(-1) / 2


def test_an_objective_of_one_s_own_is_found_descending_and_its_opposite_climbing():
    """Planted: every update goes to the minimum in one step. Decoy: the same function upside down."""
    down, up = measured(make("llama"), tokens(), pull), measured(make("llama"), tokens(), push)
    attention = {"sublayer": "attention"}
    assert (down["descends"].sel(attention) == 1).all()
    assert (abs(down["cosine"].sel(attention) - 1) < 1e-6).all()
    assert (abs(down["step_size"].sel(attention) - 1) < 1e-5).all()
    assert (up["descends"].sel(attention) == 0).all()
    assert (abs(up["cosine"].sel(attention) + 1) < 1e-6).all()
    assert down["cosine"].sel(sublayer="mlp").isnull().all()
    assert down["cosine_null"].dims == ("draw", "layer", "sublayer")
    assert "cosine_null" not in up  # it asks for no pattern, so it has no control of the keys


def test_every_objective_gives_its_quantities_with_micro_batches_alike():
    for one in objectives.OBJECTIVES:
        whole, parts = (
            measured(make("llama"), tokens(), one, queries=[0, 2, 5], batch_size=size) for size in (None, 1)
        )
        for name in one.quantities:
            assert whole[name].dims == ("layer", "sublayer")
            assert whole[name].attrs["description"]
            assert_close(
                torch.from_numpy(whole[name].values),
                torch.from_numpy(parts[name].values),
                rtol=1e-3,
                atol=1e-5,
                equal_nan=True,
            )
            assert whole[name].sel(sublayer="attention").notnull().all(), (one.name, name)


def test_the_parabola_of_the_fast_weight_is_its_loss():
    """The loss after the best step, written out key by key."""

    def check(at: Sublayer) -> None:
        found = objectives.fast_weight.compute_quantities(at)
        keys, values = at.keys.double(), at.values.double()
        seen = at.visible_keys.double()
        step = torch.einsum("bhkd,bhke,bqk->bhqde", keys, values, seen)
        linear = torch.einsum("bhqd,bhqde->bhqe", at.queries.double(), step)
        best = (linear * at.head_mixes).sum(-1) / linear.square().sum(-1)
        misses = torch.einsum("bhkd,bhqde->bhqke", keys, best[..., None, None] * step) - values[:, :, None]
        loss = torch.einsum("bhqke,bqk->bhq", misses.square(), seen) / 2
        assert_close(found["step_size"], best.mean(1), rtol=1e-4, atol=1e-5)
        assert_close(found["after"], loss.mean(1), rtol=1e-4, atol=1e-5)

    for family in FAMILIES:
        at_every_sublayer(make(family), tokens(), check, names=("attention",), queries=[1, 4, 6])
