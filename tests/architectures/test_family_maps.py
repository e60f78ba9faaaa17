"""Linear maps and their spectra in families of transformers: every map is found, and obeys its identity."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mesascope.activations.linear_inputs import sample_linear_inputs
from mesascope.analyses.stream.input_spectra import spectra_of_samples

from .families import make, tokens

ATTENTION = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
MLP = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
KNOWN = {
    "llama": ATTENTION + MLP,
    "gemma2": ATTENTION + MLP,
    "cohere": ATTENTION + MLP,
    "gpt2": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
    "gpt_neox": ["attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"],
    "phi3": ["self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"],
    "opt": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "fc1", "fc2"],
    "mixtral": [*ATTENTION, "mlp.gate"],
}


@pytest.mark.parametrize("family", KNOWN)
def test_the_maps_of_a_family_give_the_product_of_their_matrix_with_what_was_taken(family):
    model, given = make(family), {}
    for module in model.modules():
        module.register_forward_hook(lambda module, args, out: given.update({module: (args, out)}))
    sampled = sample_linear_inputs(model, tokens())
    assert [each.linear.name for each in sampled.samples if each.linear.layer == 1] == KNOWN[family]
    for sample in sampled.samples:
        (read,), out = given[sample.linear.module]
        out = out[0] if isinstance(out, tuple) else out
        assert isinstance(sample.linear.module, nn.Linear) != sample.linear.transposed or family == "mixtral"
        product = read @ sample.linear.weight.T + (0 if sample.linear.bias is None else sample.linear.bias)
        assert_close(product, out, rtol=1e-4, atol=1e-4)
        assert_close(sample.inputs, read.flatten(0, -2), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("family", "dtype", "rounding"),
    [(family, torch.float32, 1e-4) for family in KNOWN]
    + [(family, torch.float64, 1e-10) for family in KNOWN if family != "mixtral"],  # torch has no such experts
)
def test_lengths_are_what_the_spectrum_says(family, dtype, rounding):
    found = spectra_of_samples(sample_linear_inputs(make(family).to(dtype), tokens(), batch_size=2))
    assert found["gain"].notnull().all()
    assert float(found["identity_error"].max()) < rounding
    np.testing.assert_allclose(found["predicted_norm"], found["observed_norm"], rtol=rounding)
    np.testing.assert_allclose(found["energy"].sum("eigen"), 1.0, rtol=rounding)


def test_experts_are_named_with_the_reason():
    sampled = sample_linear_inputs(make("mixtral"), tokens())
    assert list(sampled.excluded) == [(0, "mlp.experts"), (1, "mlp.experts")]
    assert "not one weight matrix" in sampled.excluded[1, "mlp.experts"]
    assert "layer 1, mlp.experts: it holds" in spectra_of_samples(sampled).attrs["excluded_modules"]


def test_a_layer_that_lacks_a_map_has_no_number_and_no_other_is_moved():
    """The first layer of this family has a dense MLP, the second one experts."""
    gain = spectra_of_samples(sample_linear_inputs(make("deepseek_v3"), tokens()))["gain"]
    assert gain.sel(map="mlp.down_proj").isnull().values.tolist() == [False, True]
    assert gain.sel(map="mlp.shared_experts.down_proj").isnull().values.tolist() == [True, False]
    assert gain.sel(map="self_attn.o_proj").notnull().all()
