"""Quantised models: the same checks as in float32, real numbers where weights are read, and refusals by name."""

import json
from pathlib import Path

import accelerate
import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    TorchAoConfig,
)

from mesascope import UnsupportedModel, api, capture
from mesascope.activations.linear_inputs import sample_linear_inputs
from mesascope.circuits import attribute_edges
from mesascope.interventions import logit_difference, patch, zero
from mesascope.models.load import ModelNotFound, load_pretrained
from mesascope.models.quantized.weights import dequantize_weight, describe_quantization, is_quantized
from mesascope.models.weight_checks import check_weight_values, hash_weights
from saved import save_tiny

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the libraries, when they are imported
X = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(0))
SITES = ["resid_pre", "attn_out", "pattern", "z", "mlp_hidden", "mlp_out", "resid_post", "output"]
LLAMA_SHAPE = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA_SHAPE, num_hidden_layers=2, num_key_value_heads=2)),
    "qwen": lambda: Qwen2ForCausalLM(Qwen2Config(**LLAMA_SHAPE, num_hidden_layers=2, num_key_value_heads=2)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=64, n_layer=2, n_head=4, n_positions=64)),
}
LIBRARIES = {"int8": "torchao", "int4": "torchao", "nf4": "bitsandbytes"}
LARGEST_ERRORS = {"int8": 0.02, "int4": 0.2, "nf4": 0.2}  # of logits, relative to those of float32


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    places = {}
    for name, make in MODELS.items():
        torch.manual_seed(0)
        places[name] = tmp_path_factory.mktemp("models") / name
        make().save_pretrained(places[name])
    return places


def load(folder: Path, **options: object):
    return load_pretrained(folder, require_tokenizer=False, **options)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("quantize", "name"),
    [
        ("int8", "llama"),
        ("int4", "llama"),
        ("int8", "qwen"),
        ("nf4", "llama"),
        ("nf4", "gpt2"),
    ],
)
def test_a_quantised_model_passes_the_checks_of_float32(folders, quantize, name):
    pytest.importorskip(LIBRARIES[quantize])
    model = load(folders[name], quantize=quantize)
    assert is_quantized(model)
    assert LIBRARIES[quantize] in str(describe_quantization(model))
    with torch.no_grad():
        own = model(X, output_hidden_states=True)
        plain = load(folders[name])(X).logits
    error = ((own.logits - plain).norm() / plain.norm()).item()
    assert 0 < error < LARGEST_ERRORS[quantize]
    acts = capture(model, X, SITES)
    assert torch.equal(acts["output"], own.logits)
    assert torch.equal(acts["resid_pre"], torch.stack(own.hidden_states[:2]))
    total = acts["resid_pre"] + acts["attn_out"] + acts["mlp_out"]
    assert torch.allclose(total, acts["resid_post"], atol=1e-6)
    heads = acts.head_out().sum(2) + acts.readout.output_bias[:, None, None]
    assert torch.allclose(heads, acts["attn_out"], atol=1e-6)
    check_interventions(model, make_dequantized(model, load(folders[name])))
    check_linear_modules(model)


def make_dequantized(model, plain):
    """A model without packed weights, whose matrices are those that the integers stand for."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and is_quantized(module):
            weight = plain.get_submodule(name).weight
            matrix = dequantize_weight(module, "weight")
            weight.data.copy_(matrix.T if type(plain.get_submodule(name)).__name__ == "Conv1D" else matrix)
    return plain


def check_interventions(model, dequantized) -> None:
    """An edit is a plain hook; the last stream is the whole metric; a circuit is that of the dequantised model."""
    first_mlp = next(module for name, module in model.named_modules() if name.endswith(".0.mlp"))
    edited = capture(model, X, ["output"], edits=[zero("mlp_out", {"layer": 0})])["output"]
    handle = first_mlp.register_forward_hook(lambda module, args, output: torch.zeros_like(output))
    with torch.no_grad():
        expected = model(X).logits
    handle.remove()
    assert torch.equal(edited, expected)
    metric = logit_difference(torch.tensor([1, 2]), torch.tensor([3, 4]))
    patched = patch(model, X, X.flip(1), metric, "resid_post")
    assert float(patched["recovered"].isel(layer=-1, pos=-1)) == pytest.approx(1, abs=1e-4)
    scores, others = (attribute_edges(each, X, X.flip(1), metric, steps=1)["score"] for each in (model, dequantized))
    largest = float(others.max())
    assert largest > 0
    np.testing.assert_allclose(scores, others, atol=1e-4 * largest)


def check_linear_modules(model) -> None:
    """The matrices that analyses read are those by which the modules multiply, and their gradient is the transpose."""
    samples = sample_linear_inputs(model, X)
    assert not samples.excluded
    for sample in samples.samples:
        linear = sample.linear
        assert linear.weight.dtype == torch.float32
        expected = sample.inputs @ linear.weight.T
        norms = expected.double().square().sum(1)
        assert torch.allclose(norms, sample.output_sq_norms, rtol=1e-4)
    acts = capture(model, X, ["resid_pre", "resid_pre_grad"])
    embedded = model.get_input_embeddings()(X).detach().requires_grad_()
    if model.config.model_type == "gpt2":
        return  # positions are added to the embeddings
    logits = model(inputs_embeds=embedded).logits[:, :-1]
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), X[:, 1:].flatten(), reduction="sum")
    (gradient,) = torch.autograd.grad(loss, embedded)
    assert torch.allclose(acts["resid_pre_grad"][0], gradient, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_a_saved_quantised_folder_gives_the_same_logits(folders, tmp_path, quantize):
    pytest.importorskip(LIBRARIES[quantize])
    model = load(folders["llama"], quantize=quantize)
    with torch.no_grad():
        expected = model(X).logits
    model.save_pretrained(tmp_path)
    assert "quantization_config" in json.loads((tmp_path / "config.json").read_text())
    again = load(tmp_path)
    assert torch.equal(capture(again, X, ["output"])["output"], expected)
    assert hash_weights(again) == hash_weights(model)
    with pytest.raises(ModelNotFound, match=rf"stored quantised by {LIBRARIES[quantize]} already; omit quantize"):
        load(tmp_path, quantize=quantize)
    with pytest.raises(ModelNotFound, match="quantised, which streaming does not support"):
        load(tmp_path, stream_layers=True)
    with pytest.raises(ModelNotFound, match="quantised weights cannot be spread by a device_map"):
        load(tmp_path, device_map="auto")


@pytest.mark.slow
def test_scales_count_in_checks_and_in_the_identity_of_a_model(folders):
    pytest.importorskip("torchao")
    model = load(folders["llama"], quantize="int8")
    before = hash_weights(model)
    capture(model, X, ["resid_post"])
    scale = model.model.layers[0].mlp.up_proj.weight.scale
    scale.data.mul_(2)
    assert hash_weights(model) != before
    with torch.no_grad():
        assert torch.equal(capture(model, X, ["output"])["output"], model(X).logits)
    scale.data[0] = torch.nan
    with pytest.raises(ModelNotFound, match=r"layers\.0\.mlp\.up_proj\.weight has NaN"):
        check_weight_values("it", model)


@pytest.mark.slow
def test_weights_that_are_offloaded_as_well(folders):
    pytest.importorskip("torchao")
    plain = load(folders["llama"], quantize="int8")
    offloaded = accelerate.cpu_offload(load(folders["llama"], quantize="int8"), execution_device=torch.device("cpu"))
    acts, expected = (capture(model, X, ["attn_out", "z", "output"]) for model in (offloaded, plain))
    assert torch.equal(acts["output"], expected["output"])
    assert torch.equal(acts.head_out(), expected.head_out())
    assert hash_weights(offloaded) == hash_weights(plain)
    with pytest.raises(
        UnsupportedModel, match=r"quantised weight of model\.layers\.0\.self_attn\.q_proj .* is offloaded"
    ):
        capture(offloaded, X, ["resid_pre_grad"])


@pytest.mark.slow
def test_quantised_activations_have_no_gradient_and_no_linear_maps(folders):
    quantization = pytest.importorskip("torchao.quantization")
    config = TorchAoConfig(quantization.Int8DynamicActivationInt8WeightConfig())
    model = load(folders["llama"], quantize=config)
    with torch.no_grad():
        assert torch.equal(capture(model, X, ["output"])["output"], model(X).logits)
    with pytest.raises(UnsupportedModel, match=r"layers\.0\.self_attn\.q_proj of .* has no gradient, or another one"):
        capture(model, X, ["resid_pre_grad"])
    with pytest.raises(UnsupportedModel, match="its output is not its weight times its input"):
        sample_linear_inputs(model, X)


@pytest.mark.slow
def test_an_inspection_names_the_quantisation(folders, tmp_path):
    pytest.importorskip("torchao")
    options = {"token_ids": X, "analyses": ["norms"], "quiet": True, "out": tmp_path / "run"}
    run = api.inspect(str(folders["llama"]), quantize="int8", **options)
    assert run.record["quantize"] == "int8"
    facts = run.read_json("model")
    assert facts["quantization"].startswith("torchao Int8Tensor, ")
    assert facts["skipped"] == {
        "control: random weights": "it would be a model whose weights are not quantised, but those of this model are"
    }
    assert facts["quantization"] in (run.path / "report.html").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="quantize must be given with the name of a model, but got a model in memory"):
        api.inspect(load(folders["llama"]), quantize="int8", **options)


@pytest.mark.slow
def test_a_search_for_a_circuit_names_the_quantisation(tmp_path):
    pytest.importorskip("torchao")
    words = "the of and to is in".split()
    pairs = [
        {"clean": f"{a} {b} {a}", "counterfactual": f"{a} {c} {a}", "answer": f" {b}", "wrong_answer": f" {c}"}
        for a, b, c in zip(words, words[1:], words[2:], strict=False)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)) + "\n")
    options = {"pairs": tmp_path / "pairs.jsonl", "size": 5, "steps": 0, "quiet": True}
    run = api.circuit(save_tiny(tmp_path, grouped=True), quantize="int8", out=tmp_path / "run", **options)
    assert run.record["quantize"] == "int8"
    assert run.read_json("model")["quantization"].startswith("torchao Int8Tensor, ")
    assert "--quantize int8" in (run.path / "report.html").read_text(encoding="utf-8")


def test_wrong_use_is_refused(folders, tmp_path):
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ModelNotFound, match=r"of a \.gguf file are quantised already, .*; omit quantize"):
        load(tmp_path / "model.gguf", quantize="int8")
    with pytest.raises(ModelNotFound, match="read from files whenever they run cannot be quantised; omit one"):
        load(folders["llama"], quantize="int8", stream_layers=True)
    with pytest.raises(ValueError, match=r"quantize must be int8, int4 or nf4, .* but got 'int3'"):
        load(folders["llama"], quantize="int3")
    with pytest.raises(ModelNotFound, match=r"need float32, bfloat16 or float16, but the dtype is torch\.float64"):
        load(folders["llama"], quantize="int8", dtype=torch.float64)


@pytest.mark.slow
def test_a_model_without_modules_to_quantise_is_refused(folders):
    pytest.importorskip("torchao")
    with pytest.raises(ModelNotFound, match="GPT2LMHeadModel has no linear module that can be quantised in this way"):
        load(folders["gpt2"], quantize="int8")


@pytest.mark.parametrize(("quantize", "package"), LIBRARIES.items())
def test_a_missing_package_is_named(folders, monkeypatch, quantize, package):
    monkeypatch.setattr("mesascope.models.load_errors.find_spec", lambda name: None)
    with pytest.raises(ModelNotFound, match=rf"{package} need {package} and accelerate, .*'mesascope\[quantized\]'"):
        load(folders["llama"], quantize=quantize)


@pytest.mark.slow
def test_a_kernel_without_gradient_is_refused(folders):
    """On processors with AVX512-BF16, bitsandbytes packs weights when they first run, and loses gradients then."""
    library = pytest.importorskip("bitsandbytes")
    if not library.functional.has_avx512bf16():
        pytest.skip("this processor has no AVX512-BF16, so that bitsandbytes does not pack weights for it")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(folders["llama"], quantization_config=config, dtype=torch.float32)
    for _ in range(2):  # before and after the weights are packed
        with pytest.raises(UnsupportedModel, match="kernel for this processor has no gradient; set support_avx512bf16"):
            capture(model.eval(), X, ["resid_pre_grad"])
        with torch.no_grad():
            expected = model(X).logits
        assert torch.equal(capture(model, X, ["output"])["output"], expected)
    with pytest.raises(UnsupportedModel, match="has packed its 4-bit weight for a kernel of this processor"):
        sample_linear_inputs(model, X)
    with pytest.raises(ValueError, match="must be readable as numbers, but bitsandbytes has packed"):
        dequantize_weight(model.model.layers[0].self_attn.q_proj, "weight")


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        {"bnb_4bit_quant_type": "fp4"},
        {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
        {"bnb_4bit_quant_type": "nf4", "bnb_4bit_quant_storage": torch.bfloat16},
    ],
)
def test_other_layouts_of_four_bits(folders, layout):
    pytest.importorskip("bitsandbytes")
    model = load(folders["llama"], quantize=BitsAndBytesConfig(load_in_4bit=True, **layout))
    with torch.no_grad():
        expected = model(X).logits
    assert torch.equal(capture(model, X, ["resid_pre_grad", "output"])["output"], expected)
    samples = sample_linear_inputs(model, X)
    assert len(samples.samples) == 14
    assert not samples.excluded


@pytest.mark.slow
def test_products_in_another_precision_are_not_linear(folders):
    pytest.importorskip("bitsandbytes")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    model = load(folders["llama"], quantize=config)
    with pytest.raises(UnsupportedModel, match="quantise weights only, and compute in the dtype of"):
        capture(model, X, ["resid_pre_grad"])
    with pytest.raises(UnsupportedModel, match="its output is not its weight times its input"):
        sample_linear_inputs(model, X)


@pytest.mark.slow
def test_llm_int8_is_captured_and_is_not_linear(folders):
    pytest.importorskip("bitsandbytes")
    model = load(folders["llama"], quantize=BitsAndBytesConfig(load_in_8bit=True))
    assert describe_quantization(model).startswith("bitsandbytes LLM.int8, ")
    with torch.no_grad():
        assert torch.equal(capture(model, X, ["output"])["output"], model(X).logits)
    with pytest.raises(UnsupportedModel, match="the output projection is not linear"):
        capture(model, X, ["z", "attn_out"]).head_out()
