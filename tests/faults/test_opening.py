"""Folders that are not quite models: what is refused says why; what can be opened is opened."""

import json
import os
from pathlib import Path

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2Model,
    T5Config,
    T5ForConditionalGeneration,
)

from commands import call
from faults.hostile_models import add_code
from faults.test_tokens import make_llama, save_both
from mesascope import api
from mesascope.models._size_limit import limit_model_size
from mesascope.models._weight_files import StoredWeights
from mesascope.models.load import ModelNotFound, load_checkpoint, load_pretrained
from mesascope.models.load_errors import BrokenModelError, describe_error, silence_panics
from mesascope.models.transformer import Decoder, DecoderConfig
from small_tokenizers import make_bytelevel

SMALL = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "vocab_size": 20, "bos_token_id": 0}


def edit_config(folder: Path, **values: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_weights_of_another_shape_are_named_with_both_shapes(tmp_path):
    tokenizer = make_bytelevel()
    save_both(tmp_path, tokenizer)
    edit_config(tmp_path, vocab_size=len(tokenizer) - 4)
    with pytest.raises(ModelNotFound, match=r"has 2 mismatched keys, such as lm_head.weight of shape \(300, 16\) in"):
        load_pretrained(tmp_path)


def test_a_checkpoint_of_another_shape_is_refused(tmp_path):
    Decoder(DecoderConfig(vocab_size=5, hidden_size=8, num_attention_heads=2)).save_pretrained(tmp_path)
    edit_config(tmp_path, vocab_size=6)
    with pytest.raises(ModelNotFound, match=r"mismatched keys, such as \S+ of shape \(5, 8\)"):
        load_checkpoint(tmp_path)
    edit_config(tmp_path, hidden_size=10**9)
    with pytest.raises(ModelNotFound, match=r"config\.json must fit the weight files, which hold"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (lambda: GPT2ForSequenceClassification(GPT2Config(**SMALL, pad_token_id=0)), "is a model for another task"),
        (lambda: GPT2Model(GPT2Config(**SMALL)), r"GPT2Model \(gpt2\) is a backbone without the head"),
        (
            lambda: T5ForConditionalGeneration(T5Config(vocab_size=20, d_model=8, d_ff=8, num_layers=1, num_heads=2)),
            r"T5ForConditionalGeneration \(t5\) is an encoder-decoder",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_models_of_other_kinds_are_named(tmp_path, model, line):
    model().save_pretrained(tmp_path)
    with pytest.raises(ModelNotFound, match=line) as caught:
        load_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_code_of_a_folder_runs_only_when_trusted(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "model"
    save_both(folder, make_bytelevel())
    code = "from transformers import LlamaConfig, LlamaForCausalLM\n"
    code += f"open({str(tmp_path / 'marker')!r}, 'w').close()\n"
    code += "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
    code += "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    (folder / "own_code.py").write_text(code)
    auto_map = {"AutoConfig": "own_code.OwnConfig", "AutoModelForCausalLM": "own_code.OwnForCausalLM"}
    edit_config(folder, model_type="own", auto_map=auto_map, architectures=["OwnForCausalLM"])
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question"))
    for command in ("inspect", "which-algorithm"):
        code, _, err = call(command, str(folder), capsys=capsys, monkeypatch=monkeypatch)
        assert code == 2
        assert "needs Python code of its own" in " ".join(err.split())
        assert "--trust-remote-code" in err
    assert not (tmp_path / "marker").exists()
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    model, tokenizer = load_pretrained(folder, trust_remote_code=True)
    assert type(model).__name__ == "OwnForCausalLM"
    assert tokenizer is not None
    assert (tmp_path / "marker").exists()


def test_code_for_the_tokenizer_alone_does_not_run(tmp_path):
    folder = tmp_path / "model"
    save_both(folder, make_bytelevel())
    from random import Random

    add_code(
        {"auto_map": {"AutoTokenizer": ["own_code.Own", None]}, "tokenizer_class": "Own"}, "tokenizer_config.json"
    )(folder, Random(0))
    with pytest.raises(ModelNotFound, match=r"tokenizer_config\.json is not a usable tokenizer"):
        load_pretrained(folder)
    assert not list(tmp_path.rglob("code-has-run"))


def test_the_tokenizer_of_a_training_lies_above_its_checkpoints(tmp_path):
    tokenizer = make_bytelevel()
    tokenizer.save_pretrained(tmp_path)
    make_llama(tokenizer).save_pretrained(tmp_path / "checkpoint-10")
    _, found = load_pretrained(tmp_path / "checkpoint-10")
    assert found is not None
    assert len(found) == len(tokenizer)
    make_llama(tokenizer, rows=50).save_pretrained(tmp_path / "checkpoint-20")
    assert load_pretrained(tmp_path / "checkpoint-20", require_tokenizer=False)[1] is None  # not that of this model
    with pytest.raises(ModelNotFound, match=r"its folders checkpoint-10, checkpoint-20 have one; give one of them"):
        load_pretrained(tmp_path)


def test_a_broken_tokenizer_is_named_and_no_panic_is_printed(tmp_path, capfd):
    save_both(tmp_path, make_bytelevel())
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelNotFound, match=r"tokenizer\.json is not a usable tokenizer: ") as caught:
        load_pretrained(tmp_path)
    assert "\n" not in str(caught.value)

    class PanicException(BaseException):
        pass

    def panic() -> None:
        with silence_panics():
            os.write(2, b"thread panicked\n")
            raise PanicException

    with pytest.raises(PanicException):
        panic()
    with silence_panics():
        os.write(2, b"kept\n")
    assert capfd.readouterr().err == "kept\n"


def test_a_model_that_needs_more_than_the_free_memory_is_refused():
    stored = StoredWeights(tensors=1, elements=10**13, num_bytes=10**12)
    for dtype, needed in ((torch.float32, "40000.0"), ("auto", "1000.0")):
        with (
            pytest.raises(BrokenModelError, match=f"need {needed} GB of memory"),
            limit_model_size(stored, dtype, quantized=False),
        ):
            pytest.fail("nothing is built")


def test_buffers_and_many_small_tensors_are_counted_only_while_a_model_is_declared():
    stored = StoredWeights(tensors=1, elements=10, num_bytes=10)
    with limit_model_size(stored, torch.float32, quantized=True), torch.device("meta"):
        torch.nn.Linear(1000, 1000)
        with pytest.raises(BrokenModelError, match=r"Linear\.weight of shape \(10000000, 1000\)"):
            torch.nn.Linear(1000, 10_000_000)
        with pytest.raises(BrokenModelError, match="its buffers need"):
            torch.nn.Module().register_buffer("mask", torch.zeros(10**6, 10**6))
    with torch.device("meta"):
        torch.nn.Linear(1000, 10_000_000)
    with limit_model_size(stored, torch.float32, quantized=False):
        torch.nn.Linear(4000, 3000)  # in memory already


def test_a_file_inside_a_folder_is_refused(tmp_path):
    save_both(tmp_path, make_bytelevel())
    with pytest.raises(ModelNotFound, match=rf"config\.json is another file; give its folder {tmp_path}"):
        load_pretrained(tmp_path / "config.json")
    with pytest.raises(ModelNotFound, match="cannot be read: "):
        load_pretrained("~nobody-of-this-name/model")
    with pytest.raises(ModelNotFound, match="cannot be read: File name too long"):
        load_pretrained("a" * 5000)


def test_the_traceback_is_shown_on_request(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MESASCOPE_DEBUG", "1")
    with pytest.raises(ModelNotFound) as caught:
        call("inspect", str(tmp_path), capsys=capsys, monkeypatch=monkeypatch)
    assert isinstance(caught.value.__cause__, BrokenModelError)


def test_reasons_are_one_line():
    assert describe_error(ValueError("Validation error:\n  TypeError: not an int\nmore")) == (
        "Validation error: TypeError: not an int"
    )
    assert describe_error(KeyError("a")) == "KeyError: 'a'"
    assert describe_error(AssertionError()) == "AssertionError"
    assert len(describe_error(ValueError("a" * 1000))) < 320


def test_a_model_in_memory_is_inspected_as_from_its_folder(tmp_path):
    tokenizer = make_bytelevel()
    model = save_both(tmp_path / "model", tokenizer)
    settings = {"tokens": 16, "sequences": 1, "analyses": ["norms"]}
    model.train().get_decoder().eval()
    modes = [module.training for module in model.modules()]
    run = api.inspect(model, tokenizer=tokenizer, out=tmp_path / "a", **settings)
    assert [module.training for module in model.modules()] == modes
    same = api.inspect(str(tmp_path / "model"), out=tmp_path / "b", **settings)
    assert run.read_results("norms")["norm"].equals(same.read_results("norms")["norm"])
    assert run.record["dtype"] == "float32"
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    with pytest.raises(ValueError, match="weights"):
        api.inspect(model, tokenizer=tokenizer, out=tmp_path / "a", **settings)
    for arguments, line in (
        ((torch.nn.Linear(1, 1),), "a model must be a name, a folder or a PreTrainedModel"),
        (("some/model",), "a tokenizer must be given with a model in memory only"),
    ):
        with pytest.raises(ValueError, match=line):
            api.inspect(*arguments, tokenizer=tokenizer, out=tmp_path / "c", **settings)
    with pytest.raises(ValueError, match="a model in memory; omit the steps"):
        api.inspect(model, tokenizer=tokenizer, out=tmp_path / "c", steps=["step1"], **settings)
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(ModelNotFound, match=r"lm_head\.weight has NaN"):
        api.inspect(model, tokenizer=tokenizer, out=tmp_path / "c", **settings)
