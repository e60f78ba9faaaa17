"""Views in a notebook, of patterns, heads and text: their numbers, their isolation, and what a browser draws."""

import json
import math
import re
from base64 import b64decode
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

import mesascope
from browser import Browser
from mesascope import analyses
from mesascope.activations import Capture
from mesascope.activations.recording._captured import NotRecorded
from mesascope.models.transformer import Decoder, DecoderConfig
from mesascope.notebook_views import NotebookView
from mesascope.report.plotting.figure import Panel
from mesascope.report.single_panel import render_panel
from small_tokenizers import make_bytelevel

TEXTS = ["The cat </script><b>sat</b>", 'A "longer" text & <!-- more of it -->']
LAYERS, HEADS = 2, 3


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return make_bytelevel()


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 12, "intermediate_size": 8, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.5, **shape)).eval()


@pytest.fixture(scope="module")
def acts(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> Capture:
    return mesascope.capture(model, TEXTS, tokenizer=tokenizer, sites=["pattern"])


def read_data(view: NotebookView) -> dict[str, Any]:
    """The data of the panel, as the scripts of the view read them."""
    match = re.search(r'<script type="application/json">(.*?)</script>', view.html)
    assert match is not None
    return json.loads(match[1])


def test_patterns_are_those_of_the_capture(acts: Capture, tokenizer: PreTrainedTokenizerBase):
    data = read_data(mesascope.show_patterns(acts, tokenizer))
    _, batch, _, length, _ = acts["pattern"].shape
    assert data["shape"] == [1, LAYERS, HEADS, batch, length, length]
    assert data["top"] == 1
    shown = torch.tensor([torch.nan if value is None else value for value in data["values"]]) / 1000
    shown = shown.view(data["shape"])[0].permute(0, 2, 1, 3, 4)  # layer, batch, head, query, key
    assert acts.attention_mask is not None
    is_padding = ~acts.attention_mask.bool()[None, :, None, :, None].expand_as(shown)
    assert is_padding.any()
    assert torch.equal(shown.isnan(), is_padding)
    assert (shown - acts["pattern"])[~is_padding].abs().max() <= 0.00051
    for row, labels in enumerate(data["labels"]):
        real = int(acts.attention_mask[row].sum())
        assert labels["query"] == labels["key"]
        assert "".join(labels["query"][:real]).replace("␣", " ") == TEXTS[row]


def test_patterns_without_a_tokenizer_have_numbers(acts: Capture):
    data = read_data(mesascope.show_patterns(acts))
    assert data["labels"][0]["key"][:3] == ["0", "1", "2"]


@pytest.fixture(scope="module")
def scores(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> xr.Dataset:
    tokens = analyses.sample_repeated_tokens(
        torch.arange(len(tokenizer)), length=6, count=4, generator=torch.Generator().manual_seed(0)
    )
    return analyses.run_analyses(model, tokens, [analyses.repeated_token_heads])["repeated_token_heads"]


def decode_pattern(data: dict[str, Any]) -> torch.Tensor:
    """The causal patterns of a view of heads, (example, layer, head, query, key)."""
    patterns = data["patterns"]
    assert patterns["causal"]
    codes = torch.frombuffer(bytearray(b64decode(patterns["bytes"])), dtype=torch.uint8).double()
    weights = torch.where(codes > 0, patterns["top"] * ((codes - 1) / 254).square(), torch.nan)
    shape = patterns["shape"]
    full = torch.zeros(shape, dtype=torch.double)
    rows, columns = torch.tril_indices(shape[-2], shape[-1])
    full[..., rows, columns] = weights.view(*shape[:3], -1)
    return full


def test_scores_of_heads_are_those_of_the_analysis(
    scores: xr.Dataset, acts: Capture, tokenizer: PreTrainedTokenizerBase
):
    view = mesascope.show_heads(scores, acts, tokenizer)
    data = read_data(view)
    assert view.title == scores.attrs["title"]
    assert (data["layers"], data["heads"]) == (["0", "1"], ["0", "1", "2"])
    quantities = {one["name"]: one for one in data["quantities"]}
    for stat in scores["stat"].values:
        expected = scores["score"].sel(stat=stat).transpose("layer", "head").values.ravel()
        assert np.allclose(quantities[f"score: {stat}"]["values"], expected, rtol=1e-3, atol=1e-12)
    null = quantities["score: induction"]["controls"][0]
    assert np.allclose(null["mean"], scores["score_null"].sel(stat="induction").values.ravel(), rtol=1e-2, atol=1e-12)
    assert data["roles"] == scores["role"].values.ravel().tolist()
    shown, expected = decode_pattern(data), acts["pattern"].transpose(0, 1).double()
    assert acts.attention_mask is not None
    is_padding = ~acts.attention_mask.bool()[:, None, None, :, None].expand_as(shown)
    lower = torch.ones(shown.shape[-2:], dtype=torch.bool).tril()
    assert torch.equal(shown.isnan(), is_padding & lower)
    assert (shown - expected)[~is_padding & lower].abs().max() < 0.005
    real = int(acts.attention_mask[0].sum())
    assert "".join(data["patterns"]["labels"][0]["query"][:real]).replace("␣", " ") == TEXTS[0]


def test_heads_without_patterns_with_seeds_and_steps():
    values = np.arange(2 * 2 * 3 * 4.0).reshape(2, 2, 3, 4)  # seed, step, layer, head
    values[1, 1, 2, 3] = np.nan
    array = xr.DataArray(values, dims=("seed", "step", "layer", "head"), coords={"step": [0, 9]}, name="sink_score")
    view = mesascope.show_heads(array, height=99)
    data = read_data(view)
    assert view.title == "Sink score"
    assert data["patterns"] is None
    mean = np.nanmean(values[:, 1], axis=0).ravel().tolist()
    assert data["quantities"][0]["values"] == mean
    assert "At step 9" in data["quantities"][0]["description"]
    assert mesascope.show_heads(array.to_dataset(), title="mine").title == "mine"


def test_patterns_are_selected_and_cut_to_the_heads_with_scores(model: LlamaForCausalLM, acts: Capture):
    values = xr.DataArray(np.ones((1, HEADS)), dims=("layer", "head"), coords={"layer": [1]})
    data = read_data(mesascope.show_heads(values, acts))
    assert data["layers"] == ["1"]
    difference = decode_pattern(data)[:, 0] - acts["pattern"][1].double()
    assert difference.nan_to_num().abs().max() < 0.005
    long = mesascope.capture(model, torch.ones(2, 300, dtype=torch.long), ["pattern"])
    view = mesascope.show_heads(xr.DataArray(np.ones((LAYERS, HEADS)), dims=("layer", "head")), long)
    patterns = read_data(view)["patterns"]
    side = math.isqrt(150_000 // (LAYERS * HEADS))
    assert patterns["shape"] == [1, LAYERS, HEADS, side, side]
    assert (
        patterns["left_out"]
        == f"Showing the first 1 of 2 examples, the first {side} of 300 positions; the capture contains all."
    )
    assert len(view.html) < 300_000


def test_scores_of_other_axes_are_refused_by_name(
    scores: xr.Dataset, acts: Capture, tokenizer: PreTrainedTokenizerBase
):
    per_layer = xr.DataArray(np.ones((2, 3)), dims=("layer", "pos"), name="norm")
    with pytest.raises(ValueError, match=r"needs numbers with the axes layer and head, .* but got norm \(layer, pos\)"):
        mesascope.show_heads(per_layer)
    with pytest.raises(ValueError, match=r"but got norm \(layer, pos\), gqa \(layer, kv_head\)"):
        mesascope.show_heads(xr.Dataset({"norm": per_layer, "gqa": (("layer", "kv_head"), np.ones((2, 3)))}))
    with pytest.raises(ValueError, match="but got an empty Dataset"):
        mesascope.show_heads(xr.Dataset())
    with pytest.raises(ValueError, match=r"but got role \(layer, head\)"):
        mesascope.show_heads(scores[["role"]])
    with pytest.raises(ValueError, match="scores must be "):
        mesascope.show_heads(np.ones((2, 3)))  # type: ignore[arg-type]
    twice = xr.DataArray(np.ones((2, 3)), dims=("layer", "head"), coords={"layer": [4, 4]})
    with pytest.raises(ValueError, match="the labels of layer must differ, but some occur twice: 4, 4"):
        mesascope.show_heads(twice)
    other = xr.DataArray(np.ones((9, 2)), dims=("layer", "head"), coords={"head": [2, 3]})
    with pytest.raises(
        ValueError, match="heads of the scores are 2, 3, and those of the capture 0, 1, 2; pass a capture"
    ):
        mesascope.show_heads(other, acts)
    with pytest.raises(ValueError, match="but there is none; pass acts, or no tokenizer"):
        mesascope.show_heads(scores, tokenizer=tokenizer)


def test_views_are_isolated_and_escaped(acts: Capture, tokenizer: PreTrainedTokenizerBase, tmp_path: Path):
    loss = xr.DataArray(torch.rand(2, acts.inputs.shape[1]), dims=("batch", "pos"), name="<i>loss</i>")
    hostile = xr.DataArray(torch.rand(LAYERS, HEADS), dims=("layer", "head"), name="<i>score</i>")
    hostile = hostile.assign_coords(layer=["<i>0</i>", "</script>"]).assign_attrs(description="<i>&", units="<i>")
    views = [
        mesascope.show_patterns(acts, tokenizer),
        mesascope.show_heads(hostile),
        mesascope.show_heads(hostile.drop_vars("layer"), acts, tokenizer),
        mesascope.show_text(acts, loss, tokenizer, height=99),
    ]
    for view in views:
        assert len(view.html) < 300_000
        assert "<b>sat</b>" not in view.html
        assert "<i>" not in view.html
        assert "<!-- more" not in view.html
        assert not re.search(r"""(src|href)=["']?(http|//)""", view.html)
        assert "default-src 'none'" in view.html
        frame = view._repr_html_()
        assert frame.startswith('<iframe sandbox="allow-scripts" title=')
        assert frame.count("<") == frame.count(">") == 2  # the frame alone: its document is one quoted attribute
        document = re.search(r'srcdoc="([^"]*)"', frame)
        assert document is not None
        assert unescape(document[1]) == view.html == view.save(tmp_path / "view.html").read_text(encoding="utf-8")
        assert len(repr(view)) < 120
    assert "height: 99px" in frame


def test_text_is_coloured_by_the_values(acts: Capture, tokenizer: PreTrainedTokenizerBase):
    length = acts.inputs.shape[1]
    values = xr.DataArray(
        torch.arange(2.0 * 2 * length).view(2, 2, length).numpy(),
        dims=("layer", "batch", "pos"),
        coords={"layer": ["embedding", "after 0"]},
        name="loss_by_position",
        attrs={"units": "nat"},
    )
    values[1, 1, 3] = float("nan")
    view = mesascope.show_text(acts, values, tokenizer)
    data = read_data(view)
    assert view.title == "Loss by position"
    assert data["values"][0][1] == list(range(length, 2 * length))
    assert data["values"][1][1][3] is None
    assert (data["slide"], data["options"], data["units"]) == ("layer", ["embedding", "after 0"], "nat")
    one = read_data(mesascope.show_text(acts.inputs[:1], torch.ones(1, length), tokenizer, title="mine"))
    assert one["values"] == [[[1] * length]]
    assert one["rows"] == data["rows"][:1]
    alone = read_data(mesascope.show_text(acts.inputs[:1], values[0, 0], tokenizer))
    assert alone["values"][0] == [list(range(length))]


def test_wrong_input_is_refused(acts: Capture, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase):
    length = acts.inputs.shape[1]
    with pytest.raises(NotRecorded, match="'pattern' was not recorded"):
        mesascope.show_patterns(mesascope.capture(model, acts.inputs, ["z"]))
    limited = mesascope.capture(model, acts.inputs, ["pattern"], queries=[4, 5])
    with pytest.raises(ValueError, match=rf"all {length} queries, but the capture has 2; call capture without queries"):
        mesascope.show_patterns(limited, tokenizer)
    vectors = mesascope.capture(Decoder(DecoderConfig(d_in=1, d_out=1)), torch.ones(1, 4, 1), ["pattern"])
    with pytest.raises(ValueError, match=r"names tokens \(batch, pos\), but the inputs have shape \(1, 4, 1\)"):
        mesascope.show_patterns(vectors, tokenizer)
    with pytest.raises(ValueError, match=rf"2 sequences of {length} positions, .* but got .*'pos': {length - 1}"):
        mesascope.show_text(acts, torch.ones(2, length - 1), tokenizer)
    with pytest.raises(ValueError, match="2 sequences"):
        mesascope.show_text(acts, xr.DataArray(torch.ones(length), dims="pos"), tokenizer)
    with pytest.raises(ValueError, match=r"the axes batch and pos, but got shape \(3,\)"):
        mesascope.show_text(acts, torch.ones(3), tokenizer)
    with pytest.raises(ValueError, match="height must be 1 or more pixels, but got 0"):
        mesascope.show_patterns(acts, height=0)
    with pytest.raises(ValueError, match="kind attention, tokens, explorer, but got 'figure'"):
        render_panel(Panel(kind="figure", title="", caption=""))


READ = """
  document.querySelector('[aria-label^="layer 1, head 2"]')?.click();
  const heads = [...document.querySelectorAll(".headmap button")], canvas = document.querySelector(".opened canvas");
  const head = heads.length ? [document.querySelector(".opened h3").textContent, heads[5].style.background !== "",
    document.querySelector(".known td:nth-child(2)").textContent, canvas.getAttribute("aria-label")] : [];
  const colours = [...document.querySelectorAll(".t")].map(one => one.style.background);
  return [document.querySelector("h4")?.textContent, new Set(colours).size, ...head];
"""


@pytest.mark.needs_chromium
def test_views_are_drawn_in_a_browser(
    acts: Capture, scores: xr.Dataset, tokenizer: PreTrainedTokenizerBase, browser: Browser
):
    values = torch.arange(2.0 * acts.inputs.shape[1]).view(2, -1)
    patterns, text = mesascope.show_patterns(acts, tokenizer), mesascope.show_text(acts, values, tokenizer)
    heads = mesascope.show_heads(scores, acts, tokenizer)
    frames = "".join(view._repr_html_() for view in (patterns, heads, text))
    pages = {
        "patterns": patterns.html,
        "heads": heads.html,
        "text": text.html,
        "notebook": f"<!doctype html><title>notebook</title><body>{frames}</body>",
    }
    seen = {}
    for name, page in pages.items():
        seen[name], console = browser.look(page, READ)
        assert console == [], name
    assert seen["patterns"] == ["Layer 1, head 2", 0]
    _, _, *head = seen["heads"]
    score = scores["score"].isel(stat=0).values[1, 2]
    assert head[:2] == ["Layer 1, head 2", True]
    assert float(head[2]) == pytest.approx(score, rel=0.01)
    assert head[3].startswith("Attention of layer 1, head 2")
    label, colours = seen["text"]
    assert label is None
    assert colours > 10
