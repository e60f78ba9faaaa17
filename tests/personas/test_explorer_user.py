"""Somebody explores a language model with `mesascope serve`, and takes the code of a view away, by docs/explorer.md."""

import json
from functools import partial
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from saved import save_tiny
from served import request_view, serve

PROMPT = "The ferry at the wide and soft river"
SOURCE = "The ferry at the light and soft river"


def test_a_session_from_the_address_to_the_code_of_a_view(tmp_path: Path):
    """One server for the whole story."""
    folder = save_tiny(tmp_path)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(PROMPT, return_tensors="pt").input_ids
    logits = model(tokens).logits[0].detach()
    with serve(folder, output=tmp_path / "printed.txt") as address:
        ask = partial(request_view, address)

        # the user opens the page that the command has printed; without its token there is none
        with urlopen(address) as answer:
            assert "<title>" in answer.read().decode()
        with pytest.raises(HTTPError, match="403"):
            urlopen(address.partition("?")[0])

        # the user types a prompt, and looks at the tokens and at what the model predicts at every depth
        shown = ask("tokens", prompt=PROMPT)
        assert [token["text"].strip() for token in shown["tokens"]] == PROMPT.split()
        lens = ask("lens", prompt=PROMPT, position=4)
        assert len(lens["rows"]) == 3  # the embedding, and after each layer
        top = lens["rows"][-1]["top"][0]
        assert top["id"] == int(logits[4].argmax())
        assert top["probability"] == pytest.approx(float(logits[4].softmax(-1).max()), rel=1e-4)

        # the user clicks a head in the map of contributions, and switches it off
        attribution = ask("attribution", prompt=PROMPT, position=4)
        assert len(attribution["head"]) == len(attribution["head"][0]) == 2
        pattern = ask("pattern", prompt=PROMPT, layer=1, head=1)["pattern"]
        assert len(pattern) == len(PROMPT.split())
        assert sum(pattern[-1]) == pytest.approx(1, abs=1e-5)
        ablation = ask("ablation", prompt=PROMPT, heads=[[1, 1]], method="zero", position=4)

        # the user patches with a second prompt, in which one word differs
        patching = ask(
            "patching", prompt=PROMPT, source_prompt=SOURCE, site="resid_pre", layer=0, position=4, read_position=4
        )
        second = tokenizer(SOURCE, return_tensors="pt").input_ids
        expected = model(second).logits[0, 4].detach().softmax(-1)  # only that word differs up to there
        for row in patching["rows"]:
            assert row["after"] == pytest.approx(float(expected[row["id"]]), rel=1e-4)

        # a mistake is one line
        with pytest.raises(HTTPError) as refusal:
            ask("patching", prompt=PROMPT, source_prompt="The ferry", site="z", layer=0, position=0)
        assert json.load(refusal.value)["error"].startswith("both prompts must have as many tokens")

    # with the server gone, the copied code computes the same numbers
    space: dict = {}
    exec(compile(ablation["code"], "ablation", "exec"), space)
    for row in ablation["rows"]:
        assert float(space["after"][row["id"]]) == pytest.approx(row["after"], rel=1e-5)
    assert torch.is_tensor(space["after"])
