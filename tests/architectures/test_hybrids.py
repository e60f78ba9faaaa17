"""A hybrid is opened with everything: streams at all layers, attention where there is some."""

import pytest
import torch

from mesascope.activations import attention_layers
from mesascope.inspection._passes import PASSES, InspectionInputs

from .tiny import VOCABULARY, build


@pytest.mark.parametrize("kind", ["jamba", "granitemoehybrid"])
def test_parts_of_an_inspection_look_at_the_layers_that_have_what_they_need(kind):
    model = build(kind)
    ids = torch.randint(0, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(0))
    some, depth = attention_layers(model, ids), model.config.num_hidden_layers
    assert 0 < len(some) < depth
    material, found = InspectionInputs(token_ids=ids, allowed_tokens=torch.arange(VOCABULARY)), {}
    for part in PASSES:
        wanted = [
            one
            for name, one in part.analyses.items()
            if name in ("norms", "logit_lens", "positional_attention", "repeated_token_heads")
        ]
        found |= part.run(model, material, wanted) if wanted else {}
    assert found["norms"].sizes["layer"] == found["logit_lens"].sizes["layer"] == depth + 1
    assert (
        found["positional_attention"].layer.values.tolist()
        == found["repeated_token_heads"].layer.values.tolist()
        == some
    )
