"""Models whose layers are read from files: the same numbers, in a part of the memory."""

import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import address_space
from mesascope import api, capture
from mesascope.activations.linear_inputs import sample_linear_inputs
from mesascope.activations.sites import UnsupportedModel
from mesascope.interventions import sweep, zero
from mesascope.models.load import ModelNotFound, load_pretrained
from mesascope.models.streaming.stream_layers import find_streamed_layers, find_streamed_weights
from mesascope.models.streaming.tensor_files import StoredTensor
from saved import save_tiny

X = torch.randint(0, 100, (2, 12), generator=torch.Generator().manual_seed(0))
SITES = ["resid_pre", "attn_out", "pattern", "z", "resid_post", "resid_pre_grad", "output"]
HELPER = Path(address_space.__file__)


@pytest.fixture(scope="module", params=[False, True], ids=["gpt2", "llama"])
def folder(request, tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("streamed"), grouped=request.param)


@pytest.fixture
def llama(tmp_path) -> Path:
    """A folder that a test may change."""
    return save_tiny(tmp_path, grouped=True)


def test_all_sites_edits_and_readouts_are_those_of_the_model_in_memory(folder):
    plain, streamed = load_pretrained(folder)[0], load_pretrained(folder, stream_layers=True)[0]
    acts, expected = capture(streamed, X, SITES), capture(plain, X, SITES)
    for site in SITES:
        assert torch.equal(acts[site], expected[site]), site
    assert torch.equal(acts.head_out(), expected.head_out())
    assert torch.equal(acts.readout.value_projection, expected.readout.value_projection)
    final = acts["resid_post"][0]
    assert torch.equal(acts.readout.compute_output(final), expected.readout.compute_output(final))
    effects = [sweep(model, X, zero("z"))["effect"].values for model in (streamed, plain)]
    assert np.array_equal(*effects)


def test_weights_of_layers_are_read_once_per_forward_pass_and_dropped(folder, monkeypatch):
    alive: dict[int, tuple[weakref.ref, int]] = {}
    most, read = 0, StoredTensor.read

    def read_and_watch(stored):
        nonlocal most
        values = read(stored)
        alive[len(alive)] = (weakref.ref(values.untyped_storage()), stored.num_bytes)
        most = max(most, sum(size for made, size in alive.values() if made() is not None))
        return values

    model = load_pretrained(folder, stream_layers=True)[0]
    weights = find_streamed_weights(model)
    assert weights is not None
    in_layer = [parameter.nbytes for parameter in model.get_submodule(find_streamed_layers(model)[0]).parameters()]
    capture(model, X, ["resid_pre", "resid_post", "output"])
    before = dict(weights.num_reads)
    monkeypatch.setattr(StoredTensor, "read", read_and_watch)
    capture(model, X, ["resid_pre", "resid_post", "output"])  # its structure is cached
    assert {weights.num_reads[key] - before[key] for key in weights} == {1}
    assert 0 < most < sum(in_layer)
    layers = find_streamed_layers(model)
    held = {name for name, parameter in model.named_parameters() if not parameter.is_meta}
    assert held == {name for name, _ in model.named_parameters() if not name.startswith(tuple(layers))}


def test_several_files_bfloat16_and_the_stored_type(tmp_path, llama):
    model = load_pretrained(llama)[0].to(torch.bfloat16)
    model.save_pretrained(tmp_path / "parts", max_shard_size="10KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    plain = load_pretrained(tmp_path / "parts", require_tokenizer=False, dtype="auto")[0]
    streamed = load_pretrained(tmp_path / "parts", require_tokenizer=False, dtype="auto", stream_layers=True)[0]
    assert streamed.dtype == torch.bfloat16
    single = load_pretrained(tmp_path / "parts", require_tokenizer=False, stream_layers=True)[0]
    assert single.dtype == torch.float32
    assert torch.equal(*(capture(each, X, ["resid_post"])["resid_post"] for each in (plain, streamed)))


def test_an_inspection_gives_the_same_numbers_without_the_control_of_random_weights(folder, tmp_path):
    options = {"tokens": 16, "sequences": 2, "analyses": ["norms", "logit_lens", "inner_outer"], "quiet": True}
    plain = api.inspect(str(folder), out=tmp_path / "plain", **options)
    streamed = api.inspect(str(folder), out=tmp_path / "streamed", stream_layers=True, **options)
    (skipped,) = streamed.read_json("model")["skipped"].items()
    assert skipped[0] == "control: random weights"
    assert "model of random weights in memory" in skipped[1]
    for name in ("norms", "logit_lens", "inner_outer"):
        compare_results(plain.read_results(name), streamed.read_results(name))
    assert "mean_null_random_weights" not in streamed.read_results("norms")
    assert streamed.record["stream_layers"] == "yes"


def compare_results(expected, found) -> None:
    assert {name for name in expected if "random_weights" not in str(name)} == set(found)
    for name, array in found.data_vars.items():
        if array.dtype.kind == "f":
            np.testing.assert_allclose(array, expected[name], rtol=1e-6, err_msg=str(name))


def test_linear_maps_are_refused(folder):
    with pytest.raises(UnsupportedModel, match="its weights are offloaded"):
        sample_linear_inputs(load_pretrained(folder, stream_layers=True)[0], X)


def test_files_that_change_are_noticed(llama):
    model = load_pretrained(llama, stream_layers=True)[0]
    file = llama / "model.safetensors"
    state = load_file(file)
    save_file({name: x + 1 for name, x in state.items()}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="must stay as it is while the model is in use, but has changed; load"):
        model(X)


def change_weights(folder: Path, change) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("model.layers.1.mlp.up_proj.weight"), r"layers.1.mlp.up_proj.weight is missing; load"),
        (lambda state: state.update({"model.norm.weight": torch.ones(3)}), r"norm.weight has shape \(3,\) instead of"),
        (lambda state: state["model.norm.weight"].fill_(torch.nan), "model.norm.weight has NaN in float32"),
        (
            lambda state: state.update({"model.layers.0.mlp.up_proj.weight": torch.ones(24, 16, dtype=torch.int8)}),
            "but model.layers.0.mlp.up_proj.weight has integers",
        ),
        (
            lambda state: state.update({"model.layers.2.mlp.up_proj.weight": torch.ones(24, 16)}),
            "leaves out 1 weights, such as model.layers.2",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(llama, change, message):
    change_weights(llama, change)
    with pytest.raises(ModelNotFound, match=message):
        load_pretrained(llama, stream_layers=True)


def test_tied_weights_that_differ_are_refused(llama):
    change_config(llama, tie_word_embeddings=True)
    with pytest.raises(ModelNotFound, match=r"tied weights of .* must be equal, but .*lm_head.weight.* differ"):
        load_pretrained(llama, stream_layers=True)


def test_a_truncated_file_is_refused(llama):
    file = llama / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ModelNotFound, match=r"model.safetensors is not a complete safetensors file: .* is incomplete"):
        load_pretrained(llama, stream_layers=True)
    file.write_bytes(b"\xff" * 64)
    with pytest.raises(ModelNotFound, match=r"model.safetensors is not a complete safetensors file: its header"):
        load_pretrained(llama, stream_layers=True)


def test_what_cannot_be_streamed_is_refused(llama, tmp_path, monkeypatch):
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ModelNotFound, match=r"layers of a \.gguf file cannot be streamed"):
        load_pretrained(tmp_path / "model.gguf", stream_layers=True)
    with pytest.raises(ValueError, match="stream_layers must be given with the name of a model, but got a model in"):
        api.inspect(load_pretrained(llama)[0], stream_layers=True, out=tmp_path / "no", quiet=True)
    with monkeypatch.context() as patched:
        patched.setattr("mesascope.models.load_errors.find_spec", lambda name: None)
        with pytest.raises(ModelNotFound, match=r"needs accelerate, .*; pip install 'mesascope\[stream\]'"):
            load_pretrained(llama, stream_layers=True)
    monkeypatch.setattr(LlamaForCausalLM, "_keep_in_fp32_modules_strict", ["norm"])
    with pytest.raises(ModelNotFound, match="some of its modules stay in float32"):
        load_pretrained(llama, dtype=torch.bfloat16, stream_layers=True)
    change_config(llama, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ModelNotFound, match="its weights are quantised, which streaming does not support"):
        load_pretrained(llama, stream_layers=True)


def save_wide(place: Path, width: int, layers: int) -> Path:
    """A Llama of few wide layers and a modest vocabulary."""
    torch.manual_seed(0)
    shape = {"hidden_size": width, "intermediate_size": 11 * width // 4, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8}
    LlamaForCausalLM(LlamaConfig(vocab_size=512, max_position_embeddings=64, **shape, **heads)).save_pretrained(place)
    return place


def inspect_apart(folder: Path, out: Path, megabytes: int, how: str) -> subprocess.CompletedProcess:
    """Run an inspection with so many megabytes of address space above those of an interpreter."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    words = [sys.executable, str(HELPER), str(folder), str(out), str(megabytes), how]
    return subprocess.run(words, env=environment, capture_output=True, text=True)


def check_in_address_space(folder: Path, tmp_path: Path, megabytes: int) -> None:
    streamed = inspect_apart(folder, tmp_path / "streamed", megabytes, "streamed")
    assert streamed.returncode == 0, streamed.stderr
    told = json.loads(streamed.stdout)
    assert told["peak"] <= megabytes
    assert told["most"] <= 12
    plain = api.inspect(
        str(folder), token_ids=address_space.IDS, out=tmp_path / "plain", analyses=address_space.ANALYSES, quiet=True
    )
    streamed = type(plain).open(tmp_path / "streamed")
    for name in address_space.ANALYSES:
        compare_results(plain.read_results(name), streamed.read_results(name))


needs_proc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc and limits address space")


@needs_proc
@pytest.mark.slow
def test_a_model_of_210_mb_is_inspected_in_less_address_space_than_it_needs_in_memory(tmp_path):
    check_in_address_space(save_wide(tmp_path / "model", 1024, 4), tmp_path, 640)


@needs_proc
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_model_of_1200_mb_is_inspected_in_700_mb_of_address_space(tmp_path):
    folder = save_wide(tmp_path / "model", 2048, 6)
    assert (folder / "model.safetensors").stat().st_size > 1.2e9
    check_in_address_space(folder, tmp_path, 700)
    assert inspect_apart(folder, tmp_path / "whole", 700, "whole").returncode != 0
