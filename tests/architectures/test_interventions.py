"""A sweep gives in every architecture what one edit per forward pass gives."""

from dataclasses import replace as with_other

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations import Edit, UnsupportedModel, capture
from mesascope.interventions import attribution_patch, logit_difference, patch, path_patch, replace, sweep, zero

from . import families
from .tiny import build, every_type

SITE = "mlp_out"
PLACES = (0, 4, 8)


def tokens(seed: int) -> Tensor:
    return torch.randint(3, 20, (3, 9), generator=torch.Generator().manual_seed(seed))


def metric(prediction: Tensor) -> Tensor:
    return prediction[:, -1, 5] - prediction[:, -1, 7]


def hold(model: PreTrainedModel, site: str) -> None:
    """Patch every position of every layer at once, and some of them alone."""
    edit = replace(site, capture(model, tokens(1), [site]))
    found = sweep(model, tokens(0), edit, ("layer", "pos"), metric)
    size = float(found["effect"].std())
    for layer in range(found.sizes["layer"]):
        for pos in PLACES:
            alone = with_other(edit, where={"layer": layer, "pos": pos})
            prediction = capture(model, tokens(0), ["output"], edits=[alone], check=False)["output"]
            assert float(metric(prediction).double().mean()) == pytest.approx(
                float(found["value"][layer, pos]), abs=1e-4 * size + 1e-6
            ), (layer, pos)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_of_every_family(family):
    hold(families.make(family), SITE)


@pytest.mark.slow
def test_of_every_type_that_has_the_site_in_all_layers():
    held = []
    for kind in every_type():
        try:
            model = build(kind).eval()
        except Exception:  # what cannot be built says so in the table of architectures
            continue
        try:
            capture(model, tokens(1), [SITE])
        except (UnsupportedModel, TypeError, ValueError, RuntimeError):
            continue
        hold(model, SITE)
        held.append(kind)
    assert len(held) > 100


def test_layers_that_lack_the_site_are_left_out():
    hybrid = build("jamba").eval()
    with pytest.raises(UnsupportedModel, match="lacks it in layers"):
        capture(hybrid, tokens(0), ["z"])
    metric = logit_difference(3, 4)
    assert sweep(hybrid, tokens(0), zero("z"), ("layer", "head"), metric)["layer"].values.tolist() == [1, 3]
    found = patch(hybrid, tokens(0), tokens(1), metric, "z", ("layer", "head"))
    assert found["layer"].values.tolist() == [1, 3]
    one = patch(hybrid, tokens(0), tokens(1), metric, "z", ("head",), where={"layer": -1})
    torch.testing.assert_close(one["value"].values, found["value"].sel(layer=3).values, atol=1e-6, rtol=1e-6)
    estimate = attribution_patch(hybrid, tokens(0), zero("z"), ("layer", "head"), metric)["estimate"]
    assert estimate["layer"].values.tolist() == [1, 3]


HELD = ("attn_out", "mlp_out")


def put(site: str, layer: int, value: Tensor) -> Edit:
    return Edit(site=site, where={"layer": layer}, source={layer: value}, fn=lambda old, new: new)


def hold_paths(model: PreTrainedModel) -> None:
    """What a head of the first layer sends is what edits give that hold every write on the way, one path at a time."""
    ours = capture(model, tokens(0), [*HELD, "output"])
    theirs = capture(model, tokens(1), ["z"])
    count, head = len(ours.layers), theirs["z"].shape[3] - 1
    sent = replace("z", theirs, {"layer": 0, "head": head})
    for receiver in ("output", "query", "mlp_out"):
        depth = count if receiver == "output" else 1
        places = {(site, layer) for site in HELD for layer in range(min(depth + 1, count))}
        held = [put(*place, ours[place[0]][place[1]]) for place in places - {("attn_out", 0), (receiver, depth)}]
        second = capture(model, tokens(0), [receiver], edits=[sent, *held], check=False)[receiver]
        if depth < count:
            edit = put(receiver, depth, second[depth])
            second = capture(model, tokens(0), ["output"], edits=[edit], check=False)["output"]
        at = None if depth == count else {"layer": depth}
        found = path_patch(
            model, tokens(0), tokens(1), metric, receiver=receiver, receiver_where=at, where={"layer": 0}
        )
        size = float(metric(ours["output"]).std())
        value = float(found["value"].sel(layer=0, head=head))
        assert value == pytest.approx(float(metric(second).double().mean()), abs=1e-4 * size + 1e-6), receiver


OFTEN = ("gemma2", "cohere", "granite", "phi3", "mixtral")  # post-norms, parallel, gains, fused, experts


@pytest.mark.filterwarnings("ignore::mesascope.activations.EditHadNoEffect")
@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name in OFTEN else pytest.mark.slow) for name in families.FAMILIES]
)
def test_paths_of_every_family(family):
    hold_paths(families.make(family))


JUMPING = ("mixtral", "qwen3_moe", "olmoe", "deepseek_v3")  # routers pick other experts on the way


@pytest.mark.filterwarnings("ignore::mesascope.activations.EditHadNoEffect")
@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=() if name in OFTEN else pytest.mark.slow)
        for name in families.FAMILIES
        if name not in JUMPING
    ],
)
def test_gradients_along_the_way_of_every_family(family):
    """They sum to what replacing the whole layer does."""
    model = families.make(family)
    for site in ("resid_pre", "attn_out"):
        other = replace(site, capture(model, tokens(1), [site]))
        found = attribution_patch(model, tokens(0), other, ("layer",), metric, steps=24, compare=True)
        assert float(abs(found["error"]).max()) < 0.05 * float(abs(found["effect"]).max()), site


def test_layers_of_another_kind_on_the_way_are_refused_by_name():
    hybrid = build("jamba").eval()
    with pytest.raises(
        UnsupportedModel, match=r"lacks attn_out in layers \[2\] \(the layer has no softmax .* through='all'"
    ):
        path_patch(hybrid, tokens(0), tokens(1), logit_difference(3, 4))
    found = path_patch(hybrid, tokens(0), tokens(1), logit_difference(3, 4), where={"layer": 3})
    assert found["layer"].values.tolist() == [3]
    whole = path_patch(hybrid, tokens(0), tokens(1), logit_difference(3, 4), through="all")
    plain = patch(hybrid, tokens(0), tokens(1), logit_difference(3, 4), "z", ("layer", "head"))
    assert (whole["value"] == plain["value"]).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::mesascope.activations.EditHadNoEffect")
def test_paths_of_every_type_whose_writes_are_known():
    held = []
    for kind in every_type():
        try:
            model = build(kind).eval()
            capture(model, tokens(1), [*HELD, "z", "query"])
        except Exception:  # what cannot be built or captured says so in the table of architectures
            continue
        hold_paths(model)
        held.append(kind)
    assert len(held) > 100
