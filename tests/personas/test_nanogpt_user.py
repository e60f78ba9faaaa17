"""Somebody with a GPT in one file: a `.pt` checkpoint as nanoGPT writes it, by docs/your-own-model.md."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

import mesascope
from mesascope.interventions import sweep, zero
from plain_hooks import change_input, record_outputs
from plain_modules import HandMadeAttention, SmallGPT, logits_of_gpt

pytestmark = pytest.mark.slow

TEXT = "to be or not to be, that is the question: " * 4
LETTERS = sorted(set(TEXT))
STEPS = 30


def encode(text: str) -> Tensor:
    return torch.tensor([LETTERS.index(letter) for letter in text])


def build_gpt() -> SmallGPT:
    return SmallGPT(vocabulary=len(LETTERS))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What train.py leaves after some steps: the weights of a compiled model, the optimizer, and settings."""
    torch.manual_seed(0)
    gpt = build_gpt()
    optimizer = torch.optim.AdamW(gpt.parameters(), lr=1e-2)
    tokens = encode(TEXT).unfold(0, 33, 8)
    for _ in range(STEPS):
        optimizer.zero_grad()
        _, loss = gpt(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        optimizer.step()
    file = tmp_path_factory.mktemp("out-shakespeare-char") / "ckpt.pt"
    content = {
        "model": {f"_orig_mod.{name}": weight for name, weight in gpt.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "model_args": {"n_layer": 3, "n_head": 4, "n_embd": 16, "block_size": 64, "bias": True, "dropout": 0.0},
        "iter_num": STEPS,
        "best_val_loss": loss.detach(),
        "config": {"out_dir": "out-shakespeare-char", "compile": True},
    }
    torch.save(content, file)
    return file


@pytest.fixture(scope="module")
def gpt(checkpoint: Path) -> SmallGPT:
    """The checkpoint by way of safetensors, with the lines of the page."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["model"]
    state = {name.removeprefix("_orig_mod."): weight.clone() for name, weight in state.items()}
    file = checkpoint.with_name("gpt.safetensors")
    save_file(state, file)
    gpt = build_gpt()
    gpt.load_state_dict(load_file(file))
    return gpt.eval()


@pytest.fixture(scope="module")
def model(gpt: SmallGPT):
    return mesascope.wrap(gpt, forward=logits_of_gpt, context_length=64, untrained=lambda seed: build_gpt())


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return encode(TEXT)[: 2 * 48].view(2, 48)


def test_a_pt_file_is_no_model_of_the_command_line(checkpoint: Path, command: Callable):
    """What one tries first; it is refused in one line."""
    code, out, err = command("inspect", checkpoint)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "a pickle, which is never read; save its weights as safetensors" in err
    assert "mesascope.wrap" in err


def test_the_weights_are_those_of_the_checkpoint(checkpoint: Path, gpt: SmallGPT, tokens: Tensor):
    saved = torch.load(checkpoint, weights_only=True)
    _, loss = gpt(tokens[:, :-1], tokens[:, 1:])
    assert loss < 2.0 < float(np.log(len(LETTERS)))  # it has learned something
    assert saved["iter_num"] == STEPS
    assert gpt.lm_head.weight is gpt.transformer["wte"].weight  # tied again, as in the class


def test_without_a_forward_function_the_module_is_refused_with_what_to_do(gpt: SmallGPT, tokens: Tensor):
    """Like nanoGPT, it returns logits and loss, and the logits of the last position only."""
    with pytest.raises(ValueError, match=r"every position.*pass forward= to wrap"):
        mesascope.capture(mesascope.wrap(gpt), tokens)


def test_every_site_is_there_and_the_module_is_unchanged(gpt: SmallGPT, model, tokens: Tensor):
    acts = mesascope.capture(model, tokens, ["pattern", "z", "attn_out", "resid_post", "logits"])
    assert acts["pattern"].shape == (3, 2, 4, 48, 48)  # layer, batch, head, query, key
    assert torch.equal(acts["logits"], logits_of_gpt(gpt, tokens))
    blocks = gpt.transformer["h"]
    assert torch.equal(acts["resid_post"], record_outputs(blocks, lambda: gpt(tokens, tokens)))
    assert torch.equal(acts["attn_out"], record_outputs([b.attn for b in blocks], lambda: gpt(tokens, tokens)))
    assert len(repr(acts)) < 2000


def test_heads_are_ablated_one_by_one(gpt: SmallGPT, model, tokens: Tensor):
    """The effect of one head on the loss is that of a zero in front of `c_proj`."""
    effects = sweep(model, tokens, zero("z"))["effect"]
    assert effects.sizes == {"layer": 3, "head": 4}

    def measure_loss() -> float:
        logits = logits_of_gpt(gpt, tokens).detach()
        return float(functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()))

    def zero_head(z: Tensor) -> Tensor:
        z[..., 4:8] = 0
        return z

    intact = measure_loss()
    with change_input(gpt.transformer["h"][2].attn.c_proj, zero_head):
        ablated = measure_loss()
    assert float(effects.sel(layer=2, head=1)) == pytest.approx(ablated - intact, abs=1e-5)
    assert abs(effects).max() > 0.01


def test_the_module_is_inspected_on_its_own_tokens(model, tokens: Tensor, tmp_path: Path):
    """Without a tokenizer, and with random weights as the control."""
    np.save(tmp_path / "val.npy", tokens.numpy())
    names = ["norms", "logit_lens", "repeated_token_heads"]
    run = mesascope.inspect(model, token_ids=tmp_path / "val.npy", analyses=names, out=tmp_path / "run", quiet=True)
    assert run.result_names() == sorted([*names, "text"])
    lens = run["logit_lens"]
    assert "loss_null_random_weights" in lens
    assert float(lens["loss"][-1]) < float(lens["loss_null_random_weights"].isel(layer=-1).mean())
    assert run.report().stat().st_size > 10_000


def test_attention_in_operations_of_its_own_has_the_residual_stream(gpt: SmallGPT, tokens: Tensor):
    """nanoGPT without flash attention: the user names the blocks, and what cannot be intercepted is refused by name."""
    slow = SmallGPT(HandMadeAttention, vocabulary=len(LETTERS)).eval()
    slow.load_state_dict(gpt.state_dict())
    blocks = slow.transformer["h"]
    model = mesascope.wrap(slow, forward=logits_of_gpt, layers=blocks, attention="attn", context_length=64)
    acts = mesascope.capture(model, tokens, ["resid_post", "attn_out", "logits"])
    assert torch.allclose(acts["logits"], logits_of_gpt(gpt, tokens), atol=1e-4)
    assert torch.equal(acts["resid_post"], record_outputs(blocks, lambda: slow(tokens, tokens)))
    with pytest.raises(mesascope.UnsupportedModel, match="pattern must exist in every requested layer"):
        mesascope.capture(model, tokens, ["pattern"])
