"""A sweep gives in every architecture what one edit per forward pass gives."""

from dataclasses import replace as with_other

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.capturing import UnsupportedModel, capture
from mesascope.interventions import attribution_patch, logit_difference, patch, replace, sweep, zero

from . import families
from .tiny import TYPES, build

SITE = "mlp_write"
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
            prediction = capture(model, tokens(0), ["prediction"], edits=[alone], check=False)["prediction"]
            assert float(metric(prediction).double().mean()) == pytest.approx(
                float(found["value"][layer, pos]), abs=1e-4 * size + 1e-6
            ), (layer, pos)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_of_every_family(family):
    hold(families.make(family), SITE)


@pytest.mark.slow
def test_of_every_type_that_has_the_site_in_all_layers():
    held = []
    for kind in TYPES:
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
        capture(hybrid, tokens(0), ["head_out"])
    metric = logit_difference(3, 4)
    assert sweep(hybrid, tokens(0), zero("head_out"), ("layer", "head"), metric)["layer"].values.tolist() == [1, 3]
    found = patch(hybrid, tokens(0), tokens(1), metric, "head_out", ("layer", "head"))
    assert found["layer"].values.tolist() == [1, 3]
    one = patch(hybrid, tokens(0), tokens(1), metric, "head_out", ("head",), where={"layer": -1})
    torch.testing.assert_close(one["value"].values, found["value"].sel(layer=3).values, atol=1e-6, rtol=1e-6)
    estimate = attribution_patch(hybrid, tokens(0), zero("head_out"), ("layer", "head"), metric)["estimate"]
    assert estimate["layer"].values.tolist() == [1, 3]
