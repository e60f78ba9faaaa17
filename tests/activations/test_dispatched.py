"""Models that accelerate has dispatched over memory and disk: the same numbers as in memory, or a refusal by name."""

import gc
from pathlib import Path

import accelerate
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import small
from mesascope import api, capture
from mesascope.activations.linear_inputs import sample_linear_inputs
from mesascope.activations.sites import UnsupportedModel
from mesascope.circuits import attribute_edges
from mesascope.interventions import logit_difference, patch, sweep, zero
from mesascope.models.load import ModelNotFound, load_pretrained
from mesascope.models.weight_checks import hash_weights
from saved import save_tiny

X = torch.randint(0, 20, (2, 12), generator=torch.Generator().manual_seed(0))
SITES = ["resid_pre", "attn_out", "pattern", "z", "resid_post", "resid_pre_grad", "output"]
DEVICE_MAP = {
    "model.embed_tokens": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.layers.2": "disk",
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
    "lm_head": "cpu",
}


def dispatch_in_memory(place: Path):
    return accelerate.dispatch_model(small.llama(), DEVICE_MAP, main_device="cpu", offload_dir=place / "offloaded")


def load_with_device_map(place: Path):
    small.llama().save_pretrained(place / "saved")
    model = AutoModelForCausalLM.from_pretrained(
        place / "saved", device_map=DEVICE_MAP, offload_folder=place / "offloaded", dtype=torch.float32
    )
    return model.eval()


def open_with_device_map(place: Path):
    small.llama().save_pretrained(place / "saved")
    return load_pretrained(place / "saved", require_tokenizer=False, device_map=DEVICE_MAP)[0]


def dispatch_everything(place: Path):
    """All weights on the disk, also those of the embedding."""
    return accelerate.disk_offload(small.llama(), offload_dir=place / "offloaded", execution_device=torch.device("cpu"))


@pytest.fixture(params=[dispatch_in_memory, open_with_device_map, dispatch_everything])
def dispatched(request, tmp_path):
    return request.param(tmp_path)


def test_sites_gradients_edits_and_readouts_are_those_of_the_model_in_memory(dispatched):
    plain = small.llama()
    for _ in range(2):
        acts, expected = capture(dispatched, X, SITES), capture(plain, X, SITES)
        for site in SITES:
            assert torch.equal(acts[site], expected[site]), site
    assert all(parameter.requires_grad for parameter in dispatched.parameters()), "as before"
    logits = [one.readout.compute_output(one["resid_post"][0]) for one in (acts, expected)]
    assert torch.equal(*logits)
    assert torch.allclose(acts.head_out(), expected.head_out(), atol=1e-6)
    sweeps = [sweep(model, X, zero("z"))["effect"].values for model in (dispatched, plain)]
    assert np.array_equal(*sweeps)
    metric = logit_difference(torch.tensor([1, 2]), torch.tensor([3, 4]))
    patched = [patch(model, X, X.flip(1), metric, "resid_post")["effect"].values for model in (dispatched, plain)]
    assert np.array_equal(*patched)


def test_a_circuit_is_that_of_the_model_in_memory(tmp_path):
    metric = logit_difference(torch.tensor([1, 2]), torch.tensor([3, 4]))
    models = load_with_device_map(tmp_path), small.llama()
    edges = [attribute_edges(model, X, X.flip(1), metric, steps=0)["score"].values for model in models]
    assert np.array_equal(*edges, equal_nan=True)
    assert np.nanmax(np.abs(edges[1])) > 0


@pytest.mark.slow
def test_an_inspection_gives_the_same_numbers(dispatched, tmp_path):
    options = {"token_ids": X, "analyses": ["norms", "logit_lens", "inner_outer"], "quiet": True}
    plain = api.inspect(small.llama(), out=tmp_path / "plain", **options)
    run = api.inspect(dispatched, out=tmp_path / "run", **options)
    facts = run.read_json("model")
    assert facts["device"] == "cpu"
    assert list(facts["skipped"]) == ["control: random weights"]
    for name in ("norms", "logit_lens", "inner_outer"):
        found, expected = run.read_results(name), plain.read_results(name)
        assert {one for one in expected if "random_weights" not in str(one)} == set(found)
        for variable, array in found.data_vars.items():
            if array.dtype.kind == "f":
                np.testing.assert_allclose(array, expected[variable], rtol=1e-6, err_msg=str(variable))


def test_weights_on_the_disk_count_in_the_identity_of_a_model(tmp_path):
    plain, changed = small.llama(), small.llama()
    changed.model.layers[2].mlp.up_proj.weight.data[0, 0] += 1
    hashes = []
    for number, model in enumerate((plain, changed)):
        hashes.append(hash_weights(model))
        folder = tmp_path / str(number)
        offloaded = accelerate.dispatch_model(model, DEVICE_MAP, main_device="cpu", offload_dir=folder)
        assert hash_weights(offloaded) == hashes[-1]
    assert hashes[0] != hashes[1]


def test_weights_on_the_disk_that_are_not_numbers_are_refused(tmp_path):
    model = small.llama()
    model.model.layers[2].mlp.up_proj.weight.data[0, 0] = torch.nan
    model = accelerate.dispatch_model(model, DEVICE_MAP, main_device="cpu", offload_dir=tmp_path / "offloaded")
    with pytest.raises(ValueError, match=r"layers\.2\.mlp\.up_proj\.weight has NaN"):
        api.inspect(model, token_ids=X, analyses=["norms"], out=tmp_path / "run", quiet=True)


def test_inputs_of_linear_modules_on_the_disk_are_refused(dispatched):
    with pytest.raises(UnsupportedModel, match="its weights are offloaded"):
        sample_linear_inputs(dispatched, X, layers=[1, 2])


def test_what_exceeds_the_memory_is_read_from_a_folder_that_is_removed_with_the_model(tmp_path, monkeypatch):
    folder = save_tiny(tmp_path, grouped=True)
    offloaded = tmp_path / "offloaded"
    offloaded.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(offloaded))
    plain = load_pretrained(folder)[0]
    layer = sum(parameter.nbytes for parameter in plain.model.layers[0].parameters())
    limit = sum(parameter.nbytes for parameter in plain.parameters()) - layer
    monkeypatch.setattr("transformers.integrations.accelerate.accelerate_max_memory", lambda given: {"cpu": limit})
    model = load_pretrained(folder, device_map="auto")[0]
    assert any(parameter.is_meta for parameter in model.parameters())
    tokens = torch.randint(0, 100, (2, 12), generator=torch.Generator().manual_seed(0))
    assert torch.equal(*(capture(each, tokens, ["resid_post"])["resid_post"] for each in (model, plain)))
    assert list(offloaded.iterdir())
    del model
    gc.collect()
    assert not list(offloaded.iterdir())
    options = {"analyses": ["norms"], "tokens": 16, "sequences": 1, "quiet": True, "device_map": "auto"}
    run = api.inspect(str(folder), out=tmp_path / "run", **options)
    assert list(run.read_json("model")["skipped"]) == ["control: random weights"]
    assert run.record["device_map"] == "auto"


def test_wrong_use_of_a_device_map_is_refused(tmp_path):
    folder = save_tiny(tmp_path, grouped=True)
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ValueError, match=r"device_map must be auto, balanced, .* but got 'disk'"):
        load_pretrained(folder, device_map="disk")
    with pytest.raises(ModelNotFound, match=r"a \.gguf file cannot be spread by a device_map"):
        load_pretrained(tmp_path / "model.gguf", device_map="auto")
    with pytest.raises(ModelNotFound, match="need no device_map; omit one of both"):
        load_pretrained(folder, device_map="auto", stream_layers=True)
    with pytest.raises(ValueError, match="device_map must be given with the name of a model"):
        api.inspect(small.llama(), device_map="auto", token_ids=X, out=tmp_path / "run", quiet=True)
