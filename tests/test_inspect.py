"""Opening a real language model on real prose, and a tiny one saved to a folder."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from mesascope import api
from mesascope.inspection import prose
from mesascope.models.load import load_pretrained
from mesascope.store import RunError

GGUF = Path(__file__).parents[1] / ".models" / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A tiny GPT-2 with a word tokenizer, as somebody might have saved it."""
    words = sorted(set(prose()[:20_000].split()))
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<unk>", *words])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(words) + 1, n_embd=16, n_layer=2, n_head=2, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "tiny")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_a_folder_is_opened_measured_and_reported(folder, tmp_path):
    run = api.inspect(str(folder), tokens=32, out=tmp_path / "out", device="cpu")
    assert run.results() == ["logit_lens", "norms", "position"]
    norms = run.read_results("norms")
    assert norms["norm"].dims == ("layer", "batch", "pos")
    assert norms["token"].values[0, 0] == prose().split()[0]
    model, _ = load_pretrained(folder)
    ids = torch.tensor([[model.config.vocab_size - 1]])
    assert model(ids).logits.shape[-1] == model.config.vocab_size
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert "Logit lens" in page
    assert "Where heads look" in page


def test_the_same_call_again_gives_the_same_numbers(folder, tmp_path):
    first = api.inspect(str(folder), tokens=32, out=tmp_path / "a", measures=["norms"], device="cpu")
    again = api.inspect(str(folder), tokens=32, out=tmp_path / "b", measures=["norms"], device="cpu")
    assert first.results() == ["norms"]
    assert np.array_equal(first.read_results("norms")["norm"], again.read_results("norms")["norm"])


def test_another_models_run_in_the_same_place_is_refused(folder, tmp_path):
    api.inspect(str(folder), tokens=32, out=tmp_path / "a", measures=["norms"], device="cpu")
    with pytest.raises(RunError, match="must be empty or hold this very run"):
        api.inspect(str(folder), tokens=16, out=tmp_path / "a", measures=["norms"], device="cpu")


def test_a_text_of_ones_own_and_one_that_is_too_short(folder, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be that is the question", encoding="utf-8")
    run = api.inspect(str(folder), text=text, tokens=10, out=tmp_path / "a", measures=["norms"], device="cpu")
    assert run.record["text"] == {"source": "text.txt", "tokens": 10}
    with pytest.raises(ValueError, match="the text must have 50 tokens, but has 10"):
        api.inspect(str(folder), text=text, tokens=50, out=tmp_path / "b", device="cpu")
    assert not (tmp_path / "b").exists()


@pytest.mark.needs_smollm2
def test_smollm2_is_opened_on_real_prose(tmp_path):
    if not GGUF.exists():
        pytest.skip("make models fetches it")
    run = api.inspect(str(GGUF), tokens=128, out=tmp_path / "smol", device="cpu")
    lens = run.read_results("logit_lens")
    assert lens["loss"].sizes == {"layer": 31}
    assert float(lens["loss"][-1]) < 4.0 < float(lens["loss"][0])  # it reads English; the embedding does not
    norms = run.read_results("norms")
    assert float(norms["first_token"].max()) > 20 * float(norms["mean"].max())  # the first token is a sink
    scores = run.read_results("position")["score"]
    assert float(scores.sel(stat="first").mean()) > 0.3
    assert float(scores.sel(stat="previous").max()) > 0.5  # there is a previous-token head
    assert json.loads((run.path / "model.json").read_text())["parameters"] > 1e8
