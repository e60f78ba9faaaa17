"""Views of the explorer as its page asks for them, and exports of a finished run, to put odd values in their place."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import mesascope
from faults.call_targets import Target
from faults.small_study import load_small_study
from mesascope.explorer import ExploredModel, create_app, explore_model, explore_task_model
from mesascope.explorer.requests import answer_request, find_views
from mesascope.models.transformer import Decoder, DecoderConfig
from mesascope.tasks.affine import Affine
from small_tokenizers import make_sentencepiece

PROMPTS = {"prompt": "a b c a b", "source_prompt": "b a c a b"}
REQUESTS = {  # all arguments of each view
    "tokens": {},
    "pattern": {"layer": 0, "head": 1},
    "lens": {"position": 1, "k": 2},
    "attribution": {"position": 1, "token": 5},
    "ablation": {"heads": [[0, 1], [1, 0]], "method": "mean", "position": 1, "k": 2},
    "patching": {"site": "z", "layer": 0, "position": 1, "head": 1, "read_position": 2, "k": 2},
}
SEQUENCES = {"prompt": "3; 1=0.5", "source_prompt": 4}
VECTOR_REQUESTS = {
    "terms": {},
    "pattern": {"layer": 0, "head": 1},
    "lens": {"position": 1},
    "objective": {"position": 1, "objective": "hopfield"},
    "attribution": {"position": 1, "coordinate": 0},
    "ablation": {"heads": [[0, 1], [1, 0]], "method": "mean"},
    "patching": {"site": "z", "layer": 0, "position": 1, "head": 1},
}


def build_explorer_targets() -> dict[str, Target]:
    """Return `explore_model`, the server, and every view; arguments travel as JSON, as from the page."""
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8, "intermediate_size": 8}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=400, max_position_embeddings=40, **shape)).eval()
    tokenizer = make_sentencepiece()
    subject = explore_model(model, tokenizer, "model")
    decoder = Decoder(DecoderConfig(d_in=1, d_out=1, num_hidden_layers=2, num_attention_heads=2, hidden_size=8)).eval()
    vectors = explore_task_model(decoder, Affine(length=6), "vectors")

    def explore_and_view(**arguments: Any) -> Any:
        return ask(explore_model(**arguments), "tokens", {"prompt": PROMPTS["prompt"]})

    return {
        "explore_model": Target(
            function=explore_and_view, arguments={"model": model, "tokenizer": tokenizer, "name": "model"}
        ),
        "create_app": Target(function=create_app, arguments={"subject": subject, "token": "token", "port": 8000}),
        "explore_task_model": Target(
            function=lambda **arguments: ask(explore_task_model(**arguments), "terms", {"prompt": 3}),
            arguments={"model": decoder, "task": Affine(length=6), "name": "vectors"},
        ),
        **{f"view {name}": _build_view(subject, name, PROMPTS, each) for name, each in REQUESTS.items()},
        **{
            f"view {name} of vectors": _build_view(vectors, name, SEQUENCES, each)
            for name, each in VECTOR_REQUESTS.items()
        },
        "body of a request": Target(
            function=lambda body: answer_request(subject, "tokens", str(body).encode()),
            arguments={"body": json.dumps({"prompt": "a b c"})},
        ),
    }


def _build_view(subject: ExploredModel, name: str, prompts: Mapping[str, Any], request: Mapping[str, Any]) -> Target:
    _, needed, optional = find_views(subject)[name]
    arguments = {key: value for key, value in prompts.items() if key in needed} | dict(request)
    assert set(arguments) == {*needed, *optional}
    return Target(function=lambda **given: ask(subject, name, given), arguments=arguments)


def ask(subject: ExploredModel, name: str, arguments: dict[str, Any]) -> Any:
    """Answer a request; values that JSON lacks travel as their text."""
    return answer_request(subject, name, json.dumps(arguments, default=str).encode())


def build_export_targets(folder: Path) -> dict[str, Target]:
    """Return the functions that take a finished run; what they write is below a folder."""
    path = folder / "exported"
    run = mesascope.run(load_small_study(), scale="smoke", seeds=1, out=path, device="cpu", quiet=True)

    return {
        "figures": Target(function=mesascope.figures, arguments={"run": run}),
        "tables": Target(function=mesascope.tables, arguments={"run": path}),
        "push": Target(function=push_nowhere, arguments={"run": run, "repo": "me/run", "private": True}),
    }


class EmptyHub:
    """The methods of HfApi that `mesascope.push` calls; nothing is sent."""

    def create_repo(self, repo: str, **options: Any) -> str:
        return repo

    def repo_info(self, repo: str, **options: Any) -> SimpleNamespace:
        return SimpleNamespace(private=True)

    def create_commit(self, repo: str, operations: list[Any], **options: Any) -> None:
        assert operations


def push_nowhere(**arguments: Any) -> str:
    """Call `mesascope.push` with a Hub that accepts every repository."""
    with mock.patch("huggingface_hub.HfApi", EmptyHub):
        return mesascope.push(**arguments)
