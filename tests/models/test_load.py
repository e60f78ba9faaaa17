"""Opening models: quietly, completely, never from a pickle."""

from importlib import util
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from gguf_files import write_gguf
from mesascope.models import load_errors
from mesascope.models.config import DecoderConfig
from mesascope.models.load import ModelNotFound, load_checkpoint, load_pretrained
from mesascope.models.transformer import Decoder


@pytest.fixture
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def test_a_folder_opens_bit_for_bit_and_in_the_asked_dtype(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    llama.save_pretrained(tmp_path)
    model, tokenizer = load_pretrained(tmp_path, require_tokenizer=False)
    ids = torch.arange(5)[None]
    assert tokenizer is None
    assert not model.training
    assert torch.equal(model(ids).logits, llama(ids).logits)
    assert load_pretrained(tmp_path, dtype=torch.bfloat16, require_tokenizer=False)[0].dtype == torch.bfloat16


def test_our_own_checkpoints_open_too(tmp_path: Path) -> None:
    Decoder(DecoderConfig(vocab_size=5, hidden_size=8, num_attention_heads=2)).save_pretrained(tmp_path)
    assert isinstance(load_pretrained(tmp_path, require_tokenizer=False)[0], Decoder)


def test_a_tokenizer_is_required_by_default(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    llama.save_pretrained(tmp_path)
    with pytest.raises(ModelNotFound, match=r"cannot be opened: it has no tokenizer; .* require_tokenizer=False"):
        load_pretrained(tmp_path)


def test_missing_weights_are_refused(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    llama.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"num_hidden_layers": 1', '"num_hidden_layers": 2'))
    with pytest.raises(ModelNotFound, match=r"but it has 9 missing keys, such as model\.layers\.1"):
        load_pretrained(tmp_path)


def test_pickles_are_never_opened(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    llama.config.save_pretrained(tmp_path)
    torch.save(llama.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelNotFound, match=r"a folder with safetensors, or a .gguf file, but .* cannot be opened"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "but ./nowhere does not exist; check the path"),
        ("/no/where", "but /no/where does not exist; check the path"),
        ("nobody/nothing", "must be a Hugging Face name, .* but nobody/nothing cannot be opened"),
        ("/no/where.gguf", "a .gguf file must exist, but /no/where.gguf does not exist"),
    ],
)
def test_what_is_not_there_is_one_line(name: str, message: str) -> None:
    with pytest.raises(ModelNotFound, match=message) as caught:
        load_pretrained(name)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"must be a folder with config\.json"):
        load_checkpoint(tmp_path)
    DecoderConfig(vocab_size=5).save_pretrained(tmp_path)
    with pytest.raises(ModelNotFound, match=r"must have a complete model\.safetensors, but"):
        load_checkpoint(tmp_path)


def test_torn_weights_are_one_line(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    for model, opener in ((llama, load_pretrained), (Decoder(DecoderConfig(vocab_size=5)), load_checkpoint)):
        folder = tmp_path / type(model).__name__
        model.save_pretrained(folder)
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-50])
        with pytest.raises(ModelNotFound, match=r"(?i)cannot be opened|complete model"):
            opener(folder)


def test_gguf_without_its_packages_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(load_errors, "find_spec", lambda name: None if name == "gguf" else util.find_spec("json"))
    with pytest.raises(ModelNotFound, match=r"needs gguf, which is not installed; pip install 'mesascope\[gguf\]'"):
        load_pretrained(tmp_path / "a.gguf")


def test_a_broken_gguf_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(load_errors, "find_spec", lambda name: util.find_spec("json"))
    with pytest.raises(ModelNotFound, match=r"a\.gguf cannot be opened"):
        load_pretrained(tmp_path / "a.gguf")


def test_loading_is_silent_and_leaves_bars_as_they_were(
    llama: LlamaForCausalLM, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    llama.save_pretrained(tmp_path)
    logging.enable_progress_bar()
    level = logging.get_verbosity()
    try:
        capfd.readouterr()
        load_pretrained(tmp_path, require_tokenizer=False)
        assert capfd.readouterr() == ("", "")
        assert logging.is_progress_bar_enabled()
        assert logging.get_verbosity() == level
    finally:
        logging.disable_progress_bar()


@torch.no_grad()
def test_a_published_model_may_carry_more_than_is_used_but_nothing_less(
    llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    llama.save_pretrained(tmp_path)
    file, ids = tmp_path / "model.safetensors", torch.arange(5)[None]
    weights = load_file(file)
    save_file({**weights, "model.spare": torch.ones(2)}, file, {"format": "pt"})
    model, _ = load_pretrained(tmp_path, require_tokenizer=False)
    assert torch.equal(model(ids).logits, llama(ids).logits)
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ModelNotFound, match=r"1 missing keys, such as model\.layers\.0\.mlp\.up_proj\.weight"):
        load_pretrained(tmp_path)


def test_a_gguf_is_parsed_once_and_gives_what_transformers_reads(
    llama: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "a.gguf", llama)
    names, parsed = gguf.get_tensor_name_map, []

    class Counting(gguf.GGUFReader):
        def __init__(self, place: Path) -> None:
            parsed.append(place)
            super().__init__(place)

    monkeypatch.setattr(gguf, "GGUFReader", Counting)
    plain = LlamaForCausalLM.from_pretrained(tmp_path, gguf_file="a.gguf", dtype=torch.float32)
    slowly = len(parsed)
    model, tokenizer = load_pretrained(tmp_path / "a.gguf", require_tokenizer=False)
    assert (slowly, len(parsed)) == (2, 3)
    assert tokenizer is None
    assert model.state_dict().keys() == plain.state_dict().keys() == llama.state_dict().keys()
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in model.state_dict().items())
    assert torch.equal(model.get_input_embeddings().weight, llama.get_input_embeddings().weight)
    load_pretrained(tmp_path / "a.gguf", require_tokenizer=False)
    assert len(parsed) == 4  # nothing is kept: the file may be another by now
    assert gguf.get_tensor_name_map is names
