"""Somebody who has used TransformerLens opens a GPT-2, by docs/transformerlens.md.

They know the names of hooks, `run_with_cache`, `run_with_hooks` and activation patching, and check every answer with
hooks of PyTorch on the model that transformers has loaded.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

import mesascope
from mesascope.analyses import decompose_logits, logit_lens, repeated_token_heads, run_analyses, sample_repeated_tokens
from mesascope.interventions import apply_edits, logit_difference, patch, zero
from mesascope.models.load import load_pretrained
from plain_hooks import change_input, record_inputs, record_outputs
from saved import save_tiny

PAGE = Path(__file__).parents[2] / "docs" / "transformerlens.md"
CLEAN = "The ferry at the wide and soft river"
CORRUPTED = "The ferry at the light and soft river"
LAYERS, HEADS, WIDTH = 2, 2, 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def model(folder: Path) -> GPT2LMHeadModel:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def tokenizer(folder: Path):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokens(tokenizer) -> Tensor:
    return tokenizer(CLEAN, return_tensors="pt").input_ids


@pytest.fixture(scope="module")
def corrupted(tokenizer) -> Tensor:
    return tokenizer(CORRUPTED, return_tensors="pt").input_ids


def test_the_model_is_that_of_transformers(folder, model, tokenizer, tokens):
    """`HookedTransformer.from_pretrained` and `to_tokens`."""
    opened, its_tokenizer = load_pretrained(str(folder))
    assert type(opened) is GPT2LMHeadModel
    assert its_tokenizer is not None
    assert its_tokenizer.get_vocab() == tokenizer.get_vocab()
    acts = mesascope.capture(opened, [CLEAN], tokenizer=its_tokenizer, sites=["logits"])
    assert torch.equal(acts.inputs, tokens)
    assert torch.equal(acts["logits"], model(tokens).logits)


def rows_of_hooks() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Every hook of the table "Names of activations", with its site and the axes of the site."""
    table = PAGE.read_text(encoding="utf-8").split("## Names of activations")[1].split("\n## ")[0]
    for row in re.findall(r"^\| `.*\|$", table, re.MULTILINE):
        hook_cell, site_cell, _, axes = row.strip("|").split("|")
        hooks = [name for name in re.findall(r"`([^`]+)`", hook_cell) if "hook_" in name]
        sites = re.findall(r"`([^`]+)`", site_cell)
        if "the same without" in site_cell:
            sites = [hook.removeprefix("hook_") for hook in hooks]
        for number, hook in enumerate(hooks if axes.strip() else ()):
            yield hook, sites[number if len(sites) == len(hooks) else 0], tuple(axes.split())


HOOKS = list(rows_of_hooks())


def test_the_table_of_hooks_is_read():
    assert len(HOOKS) == 16
    assert ("attn.hook_rot_q", "query", ("layer", "batch", "head", "pos", "d_head")) in HOOKS
    assert ("hook_mlp_out", "mlp_out", ("layer", "batch", "pos", "d_model")) in HOOKS


@pytest.mark.parametrize(("hook", "site", "axes"), HOOKS, ids=lambda value: value if isinstance(value, str) else "")
def test_the_name_of_a_hook_leads_to_its_site(model, tokens, hook, site, axes):
    """They write the name that they know, read what to write instead, and get the axes of the table."""
    name = hook if hook.startswith("ln_final") else f"blocks.1.{hook}"
    with pytest.raises(ValueError, match=r"write '|record '") as refusal:
        mesascope.capture(model, tokens, [name])
    if site == "acts.head_out()":
        assert "record 'z', and call head_out()" in str(refusal.value)
        assert mesascope.capture(model, tokens, ["z"]).head_out().ndim == len(axes)
        return
    assert f"write '{site}'" in str(refusal.value)
    acts = mesascope.capture(model, tokens, [site], layers=[1])
    assert acts.to_xarray(site).dims == axes
    assert axes[0] != "layer" or ("layers=[1]" in str(refusal.value) and len(acts[site]) == 1)


@pytest.mark.parametrize("hook", ["hook_embed", "hook_pos_embed"])
def test_the_embedding_is_the_first_residual_stream(model, tokens, hook):
    with pytest.raises(ValueError, match=r"write 'resid_pre', and select layer 0 with layers=\[0\]"):
        mesascope.capture(model, tokens, [hook])
    embedding = mesascope.capture(model, tokens, ["resid_pre"], layers=[0])["resid_pre"][0]
    embed, positions = model.transformer.wte, model.transformer.wpe
    assert torch.equal(embedding, embed(tokens) + positions(torch.arange(tokens.shape[1])))


@pytest.mark.parametrize(("norm", "stream"), [("ln1", "resid_pre"), ("ln2", "resid_mid")])
@pytest.mark.parametrize("name", ["scale", "normalized"])
def test_norms_inside_of_layers_are_no_sites(model, tokens, norm, stream, name):
    line = f"write '{stream}', which the norm reads; hook_{name} of it is no site"
    with pytest.raises(ValueError, match=line):
        mesascope.capture(model, tokens, [f"blocks.1.{norm}.hook_{name}"])


def test_a_capture_asked_for_a_hook_names_its_site(model, tokens):
    acts = mesascope.capture(model, tokens, ["z"])
    with pytest.raises(KeyError, match="write 'z', whose first axis is the layer"):
        acts["blocks.0.attn.hook_z"]
    with pytest.raises(KeyError, match=r"recorded are z; pass it to capture"):
        acts["blocks.0.hook_resid_pre"]


def test_the_cache_has_the_activations_of_hooks_of_pytorch(model, tokens):
    """`run_with_cache`, compared with forward hooks on the modules of GPT-2."""
    sites = ["resid_pre", "resid_post", "attn_out", "mlp_out", "query", "key", "value", "z", "mlp_hidden", "final_norm"]
    acts = mesascope.capture(model, tokens, sites)
    blocks = model.transformer.h

    def run() -> None:
        model(tokens)

    assert torch.equal(acts["resid_pre"], record_inputs(blocks, run))
    assert torch.equal(acts["resid_post"], record_outputs(blocks, run))
    assert torch.equal(acts["attn_out"], record_outputs([block.attn.c_proj for block in blocks], run))
    assert torch.equal(acts["mlp_out"], record_outputs([block.mlp for block in blocks], run))
    assert torch.equal(acts["mlp_hidden"], record_inputs([block.mlp.c_proj for block in blocks], run))
    assert torch.equal(acts["z"].flatten(-2), record_inputs([block.attn.c_proj for block in blocks], run))
    assert torch.equal(acts["final_norm"], record_outputs([model.transformer.ln_f], run)[0])
    joined = record_outputs([block.attn.c_attn for block in blocks], run).unflatten(-1, (3, HEADS, -1))
    for number, site in enumerate(("query", "key", "value")):
        assert torch.equal(acts[site], joined[..., number, :, :].transpose(2, 3))


def test_results_of_heads_sum_to_the_attention_output(model, tokens):
    """`stack_head_results`; the bias of the projection belongs to no head."""
    acts = mesascope.capture(model, tokens, ["z", "attn_out"])
    bias = torch.stack([block.attn.c_proj.bias for block in model.transformer.h])[:, None, None]
    assert torch.allclose(acts.head_out().sum(2) + bias, acts["attn_out"], atol=1e-6)
    assert acts.readout.output_projection.shape == (LAYERS, HEADS, WIDTH // HEADS, WIDTH)
    assert acts.readout.value_projection.shape == (LAYERS, HEADS, WIDTH, WIDTH // HEADS)


def zero_second_head(z: Tensor) -> Tensor:
    z[..., WIDTH // HEADS :] = 0
    return z


def test_an_ablated_head_is_that_of_a_hook_of_pytorch(model, tokens):
    """`run_with_hooks` with a function that sets `hook_z` of one head to zero."""
    head = {"layer": 1, "head": 1}
    edit = mesascope.Edit(site="z", where=head, fn=torch.zeros_like)
    ablated = mesascope.capture(model, tokens, ["logits"], edits=[edit])["logits"]
    with change_input(model.transformer.h[1].attn.c_proj, zero_second_head):
        expected = model(tokens).logits
    assert torch.equal(ablated, expected)
    assert not torch.equal(ablated, model(tokens).logits)  # no hook is left, and none must be reset
    assert torch.equal(mesascope.capture(model, tokens, ["logits"], edits=zero("z", head))["logits"], expected)


def test_an_ablated_model_generates(model, tokens):
    """`with model.hooks(...): model.generate(...)`."""
    prompt = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    with apply_edits(model, zero("z", {"layer": 1, "head": 1})):
        edited = model.generate(**prompt, **options)
    with change_input(model.transformer.h[1].attn.c_proj, zero_second_head):
        expected = model.generate(**prompt, **options)
    assert torch.equal(edited, expected)


def test_patching_agrees_with_a_loop_over_hooks(model, tokens, corrupted):
    """`get_act_patch_resid_pre`, by hand and by `patch`."""
    right, wrong = int(tokens[0, -1]), int(corrupted[0, 4])
    results = patch(model, corrupted, tokens, logit_difference(right, wrong), "resid_pre", axes=("layer", "pos"))
    assert results["recovered"].dims == ("layer", "pos")
    clean = record_inputs(model.transformer.h, lambda: model(tokens))

    def measure(inputs: Tensor) -> float:
        last = model(inputs).logits[0, -1].detach()
        return float(last[right] - last[wrong])

    best, base = measure(tokens), measure(corrupted)
    for layer, block in enumerate(model.transformer.h):
        for pos in range(tokens.shape[1]):

            def put_clean(stream: Tensor, layer: int = layer, pos: int = pos) -> Tensor:
                stream[:, pos] = clean[layer][:, pos]
                return stream

            with change_input(block, put_clean):
                expected = (measure(corrupted) - base) / (best - base)
            assert float(results["recovered"].sel(layer=layer, pos=pos)) == pytest.approx(expected, abs=1e-3)
    assert float(results["recovered"].sel(layer=0, pos=4)) == pytest.approx(1, abs=1e-3)  # the word that differs
    by_head = patch(model, corrupted, tokens, logit_difference(right, wrong), "z", axes=("layer", "head"))
    assert by_head["recovered"].sizes == {"layer": LAYERS, "head": HEADS}


def test_the_logit_lens_is_the_norm_and_the_unembedding(model, tokens):
    """`accumulated_resid(apply_ln=True) @ W_U`, and attribution of a logit to heads."""
    acts = mesascope.capture(model, tokens, ["resid_pre", "attn_out", "mlp_out", "resid_post", "z", "logits"])
    by_layer = acts.readout.compute_output(acts["resid_post"])
    assert torch.allclose(by_layer, model.lm_head(model.transformer.ln_f(acts["resid_post"])), atol=1e-6)
    loss = run_analyses(model, tokens, [logit_lens])["logit_lens"]["loss"]
    shifted = by_layer[:, 0, :-1].flatten(0, 1), tokens[0, 1:].repeat(LAYERS)
    expected = torch.nn.functional.cross_entropy(*shifted, reduction="none").view(LAYERS, -1).mean(1)
    assert torch.allclose(torch.tensor(loss.values[1:]).float(), expected, atol=1e-5)
    last = torch.tensor([tokens.shape[1] - 1])
    parts = decompose_logits(acts, torch.tensor([0]), last, tokens=tokens[:, -1])
    assert parts.head.shape == (LAYERS, HEADS, 1)
    assert float(parts.total_logit) == pytest.approx(float(acts["logits"][0, -1, tokens[0, -1]]), abs=1e-5)


def test_heads_are_detected_with_their_nulls(model):
    """`head_detector.detect_head`: with random weights, no head repeats what came before."""
    generator = torch.Generator().manual_seed(0)
    repeated = sample_repeated_tokens(torch.arange(1, 200), length=16, count=8, generator=generator)
    heads = run_analyses(model, repeated, [repeated_token_heads])["repeated_token_heads"]
    induction = heads.sel(stat="induction")
    assert {"score", "score_null", "score_null_no_repetition", "role"} <= set(induction)
    assert not any("induction" in str(role) for role in induction["role"].values.flat)
