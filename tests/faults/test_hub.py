"""Models on the Hub: checked like folders, with a time limit; no test asks the network."""

import socket
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from faults.test_opening import edit_config
from faults.test_tokens import save_both
from mesascope.models import _hub, load
from mesascope.models._tokenizer import load_model_tokenizer
from mesascope.models.load import ModelNotFound, load_pretrained
from mesascope.models.load_errors import BrokenModelError
from small_tokenizers import make_bytelevel


def cache_model(hub: Path, name: str) -> Path:
    """Put a model into a cache of the Hub, as if it had been downloaded."""
    commit = "0123456789" * 4
    folder = hub / f"models--{name.replace('/', '--')}"
    save_both(folder / "snapshots" / commit, make_bytelevel())
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    return folder / "snapshots" / commit


def test_a_hub_name_is_checked_like_a_folder(tmp_path, monkeypatch):
    snapshot = cache_model(tmp_path, "some/model")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model, tokenizer = load_pretrained("some/model")
    assert tokenizer is not None
    assert load.weights_fingerprint("some/model", model) == snapshot.name
    edit_config(snapshot, hidden_size=10**9)
    with pytest.raises(ModelNotFound, match=r"some/model cannot be opened: config\.json must fit the weight files"):
        load_pretrained("some/model")
    (snapshot / "config.json").write_text("{")
    with pytest.raises(ModelNotFound, match=r"config\.json must be a JSON object.*; check the name and the network"):
        load_pretrained("some/model")


def test_a_tokenizer_is_downloaded_after_the_weights(tmp_path, monkeypatch):
    options = {"trust_remote_code": False}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = cache_model(tmp_path, "some/model")
    files = [file for file in snapshot.iterdir() if file.name.startswith("tokenizer")]
    contents = {file: file.read_bytes() for file in files}
    for file in files:
        file.unlink()
    assert load_model_tokenizer("some/model", snapshot, 300, "main", options) is None
    original = AutoTokenizer.from_pretrained

    def download(*arguments: object, **settings: object) -> object:
        for file, content in contents.items():
            file.write_bytes(content)
        return original(*arguments, **settings)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", download)
    found = load_model_tokenizer("some/model", snapshot, 300, "main", options)
    assert found is not None
    assert len(found) == 300
    contents[snapshot / "tokenizer.json"] = b"{"
    with pytest.raises(BrokenModelError, match=r"tokenizer\.json is not a usable tokenizer"):
        load_model_tokenizer("some/model", snapshot, 300, "main", options)


def test_the_hub_has_a_time_limit(monkeypatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()

        def connect(*_: object, **__: object) -> None:
            with socket.create_connection(silent.getsockname()) as asked:
                asked.settimeout(3)
                asked.recv(1)

        monkeypatch.setattr(_hub, "cached_file", connect)
        monkeypatch.setattr(_hub, "LOOKUP_SECONDS", 0.1)
        with pytest.raises(ModelNotFound, match=r"nobody/model cannot be opened: the Hub did not answer within 0\.1 s"):
            load_pretrained("nobody/model")
