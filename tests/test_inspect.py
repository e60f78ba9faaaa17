"""Opening a real language model on real prose, and a tiny one saved to a folder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from mesascope import api
from mesascope.inspection import NAMES, prose
from mesascope.measures import objectives
from mesascope.models.load import ModelNotFound, load_pretrained, untrained
from mesascope.store import Run, RunError

ONE_WORKER = pytest.mark.xdist_group("everything")  # which makes what all of them look at once


def save_tiny(place: Path, seed: int = 0) -> Path:
    """A tiny GPT-2 with a word tokenizer, as somebody might have saved it."""
    words = sorted(set(prose()[:20_000].split()))
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<unk>", *words])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=len(words) + 1, n_embd=16, n_layer=2, n_head=2, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(place / "tiny")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(place / "tiny")
    return place / "tiny"


@pytest.fixture
def folder(tmp_path) -> Path:
    return save_tiny(tmp_path)


@pytest.fixture(scope="module")
def everything(tmp_path_factory) -> Run:
    """All measures with all controls on the tiny model."""
    place = tmp_path_factory.mktemp("everything")
    return api.inspect(str(save_tiny(place, seed=7)), tokens=32, sequences=3, out=place / "out")


@ONE_WORKER
def test_every_measure_is_there_and_nothing_was_left_out(everything):
    expected = {f"inner_{one.name}" for one in objectives.OBJECTIVES} | set(NAMES) - {"inner"} | {"text"}
    assert set(everything.results()) == expected
    facts = everything.read_json("model")
    assert facts["left out"] == {}
    assert facts["class"] == "GPT2LMHeadModel"
    assert everything.read_results("text")["token"].values[0, 0] == prose().split()[0]
    assert everything.read_results("norms")["norm"].sizes == {"layer": 3, "batch": 3, "pos": 32}


@ONE_WORKER
def test_every_curve_has_its_controls_in_draws(everything):
    for name, variable, kinds in (
        ("norms", "mean", {"random weights", "positions shuffled"}),
        ("logit_lens", "loss", {"random weights", "positions shuffled"}),
        ("affine_lens", "loss", {"random weights", "positions shuffled"}),
        ("position", "score", {"random weights", "positions shuffled", "uniform attention"}),
        ("inner_quadratic", "cosine", {"random weights", "positions shuffled", "keys shuffled"}),
        ("inner_outer", "cosine", {"random weights", "positions shuffled", "keys shuffled"}),
        ("inner_readout", "before", {"random weights", "positions shuffled"}),
        ("spectra", "effective_rank", {"random weights"}),
        ("token_attribution", "head_contribution", {"random weights", "positions shuffled"}),
        ("token_similarity", "partial", {"random weights", "positions shuffled"}),
        ("roles", "score", {"random weights", "keys shuffled", "no repetition"}),
        ("token_copying", "score", {"random weights"}),
    ):
        data = everything.read_results(name)
        controls = {
            array.attrs["control"]: array
            for array in data.data_vars.values()
            if array.attrs.get("control_of") == variable and "control" in array.attrs
        }
        assert kinds <= set(controls), name
        for kind in kinds & {"random weights", "positions shuffled"}:
            assert {str(d) for d in controls[kind].dims} == {"draw", *map(str, data[variable].dims)}, (name, kind)
            assert "headline" not in controls[kind].attrs


@ONE_WORKER
def test_the_untrained_model_is_another_one_and_the_same_for_the_same_seed(everything):
    model, _ = load_pretrained(everything.record["model"])
    make = untrained(model)
    first, again, other = make(0), make(0), make(1)
    pairs = list(zip(first.parameters(), again.parameters(), other.parameters(), model.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _, _ in pairs)
    assert any(not torch.equal(a, c) for a, _, c, _ in pairs)
    assert any(not torch.equal(a, d) for a, _, _, d in pairs)
    loss = everything.read_results("logit_lens")["loss"]
    assert float(loss[-1]) != float(everything.read_results("logit_lens")["loss_random_weights"][0, -1])


@ONE_WORKER
def test_the_page_is_drawn(everything):
    page = (everything.path / "report.html").read_text(encoding="utf-8")
    for heading in ("Logit lens", "Where heads look", "Inner objective: quadratic", "Gram spectra"):
        assert heading in page


def test_the_same_call_again_gives_the_same_numbers(folder, tmp_path):
    first = api.inspect(str(folder), tokens=32, out=tmp_path / "a", measures=["norms"])
    again = api.inspect(str(folder), tokens=32, out=tmp_path / "b", measures=["norms"])
    assert first.results() == ["norms", "text"]
    for name in ("norm", "mean_random_weights", "mean_positions_shuffled"):
        assert np.array_equal(first.read_results("norms")[name], again.read_results("norms")[name])


def test_what_was_stopped_goes_on_where_it_was(folder, tmp_path, monkeypatch):
    """Stages that are done are read from their files; only the rest is computed."""
    stages: list[str] = []

    def stop(what: str, done: int, total: int) -> None:
        stages.append(what)
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        api.inspect(str(folder), tokens=32, out=tmp_path / "a", measures=["norms", "roles"], progress=stop)
    kept = sorted(file.name for file in (tmp_path / "a" / "parts").glob("*.nc"))
    assert kept == ["main-norms.nc", "main-roles.nc"]
    before = {name: (tmp_path / "a" / "parts" / name).stat().st_mtime_ns for name in kept}
    run = api.inspect(str(folder), tokens=32, out=tmp_path / "a", measures=["norms", "roles"])
    assert {name: (tmp_path / "a" / "parts" / name).stat().st_mtime_ns for name in kept} == before
    whole = api.inspect(str(folder), tokens=32, out=tmp_path / "b", measures=["norms", "roles"])
    for name in ("norms", "roles"):
        assert run.read_results(name).equals(whole.read_results(name))


def test_checkpoints_over_time_give_every_measure_the_axis_step(tmp_path):
    for step, seed in ((100, 1), (20, 2)):
        save_tiny(tmp_path / f"step={step}", seed)
    steps = ["step=100/tiny", str(tmp_path / "step=20" / "tiny")]
    with pytest.raises(ValueError, match="a step must have a number in its name"):
        api.inspect(str(tmp_path), steps=steps, out=tmp_path / "no")
    for step in (100, 20):
        (tmp_path / f"step={step}" / "tiny").rename(tmp_path / f"step{step}")
    run = api.inspect(
        str(tmp_path),
        steps=["step100", str(tmp_path / "step20")],
        tokens=16,
        out=tmp_path / "out",
        measures=["norms", "inner", "roles"],
    )
    for name in ("norms", "inner_linear", "inner_readout", "roles"):
        data = run.read_results(name)
        assert data["step"].values.tolist() == [20, 100]
        numbers = [array for array in data.data_vars.values() if "control_of" not in array.attrs and array.ndim > 1]
        assert all("step" in array.dims for array in numbers)
    mean = run.read_results("norms")["mean"]
    alone = api.inspect(str(tmp_path / "step20"), tokens=16, out=tmp_path / "alone", measures=["norms"])
    assert np.array_equal(mean.sel(step=20), alone.read_results("norms")["mean"])
    assert not np.array_equal(mean.sel(step=20), mean.sel(step=100))


def test_steps_that_are_nowhere_or_alike_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="two have 7"):
        api.inspect("org/model", steps=["a7", "b7"], out=tmp_path / "no")
    with pytest.raises(ValueError, match="a step must be a folder"):
        api.inspect(str(folder), steps=["step1"], out=tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_another_models_run_in_the_same_place_is_refused(folder, tmp_path):
    api.inspect(str(folder), tokens=32, out=tmp_path / "a", measures=["norms"])
    with pytest.raises(RunError, match="must be empty or hold this very run"):
        api.inspect(str(folder), tokens=16, out=tmp_path / "a", measures=["norms"])


def test_what_was_measured_on_other_words_or_weights_is_not_taken_up(folder, tmp_path):
    place = written(tmp_path, TEN)
    api.inspect(str(folder), text=place, out=tmp_path / "a", measures=["norms"])
    written(tmp_path, " ".join(reversed(TEN.split())))
    with pytest.raises(RunError, match="digest"):
        api.inspect(str(folder), text=place, out=tmp_path / "a", measures=["norms"])
    written(tmp_path, TEN)
    save_tiny(tmp_path, seed=1)
    with pytest.raises(RunError, match="weights"):
        api.inspect(str(folder), text=place, out=tmp_path / "a", measures=["norms"])


def test_an_earlier_checkpoint_that_was_exchanged_is_not_taken_up(tmp_path):
    steps = [str(save_tiny(tmp_path / place, seed)) for place, seed in (("a", 1), ("b", 2), ("c", 9))]
    first, second, other = (Path(step).rename(tmp_path / f"at{i}") for i, step in enumerate(steps))
    steps = [str(first), str(second)]
    api.inspect("tiny", steps=steps, tokens=16, out=tmp_path / "out", measures=["norms"])
    first.rename(tmp_path / "gone")
    other.rename(first)
    with pytest.raises(RunError, match="weights"):
        api.inspect("tiny", steps=steps, tokens=16, out=tmp_path / "out", measures=["norms"])


def test_bfloat16_is_measured_too(folder, tmp_path):
    run = api.inspect(
        str(folder), tokens=32, out=tmp_path / "a", dtype="bfloat16", measures=["norms", "inner", "roles"]
    )
    assert run.read_json("model")["dtype"] == "bfloat16"
    plain = api.inspect(str(folder), tokens=32, out=tmp_path / "b", measures=["norms"])
    both = (one.read_results("norms")["mean"].values for one in (run, plain))
    assert np.allclose(*both, rtol=0.02)
    assert run.read_results("inner_quadratic")["cosine"].sel(sublayer="attention").notnull().all()


TEN = "to be or not to be that is the question"


def written(place: Path, words: str | bytes) -> Path:
    file = place / "text.txt"
    file.write_bytes(words if isinstance(words, bytes) else words.encode())
    return file


def test_a_text_of_ones_own_is_taken_as_long_as_it_is(folder, tmp_path):
    run = api.inspect(str(folder), text=written(tmp_path, TEN), out=tmp_path / "a", measures=["norms"])
    told = run.record["text"]
    assert (told["source"], told["tokens"], told["sequences"]) == ("text.txt", 10, 1)
    assert Path(told["file"]).name == "text.txt"


@pytest.mark.parametrize(
    ("words", "tokens", "line"),
    [
        ("", None, "a text must have words, but .* is empty"),
        ("to", None, "the text must have 9 tokens or more, but has 1; give a longer text"),
        ("to be or", None, "the text must have 9 tokens or more, but has 3; give a longer text"),
        (TEN, 50, "the text must have 50 tokens or more, but has 10; give a longer text, or fewer --tokens"),
        (TEN * 20, 65, "tokens must fit into the model's context of 64, but got 65"),
        (b"to be \xff or not", None, "a text must be UTF-8, but .* is not .byte 6 is 0xff."),
    ],
)
def test_a_text_that_cannot_be_used_gets_one_line(folder, tmp_path, words, tokens, line):
    with pytest.raises(ValueError, match=line) as error:
        api.inspect(str(folder), text=written(tmp_path, words), tokens=tokens, out=tmp_path / "b")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "b").exists()


def test_a_text_longer_than_the_context_is_cut(folder, tmp_path):
    run = api.inspect(str(folder), text=written(tmp_path, TEN * 50), out=tmp_path / "a", measures=["norms"])
    assert run.record["text"]["tokens"] == 4 * 64
    assert run.record["text"]["sequences"] == 4


def test_a_folder_without_a_tokenizer_and_one_with_a_pickle_get_one_line(folder, tmp_path):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ValueError, match="a model must come with its tokenizer to read text"):
        api.inspect(str(folder), out=tmp_path / "a")
    weights = folder / "model.safetensors"
    torch.save({"a": torch.ones(1)}, folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ModelNotFound, match="a model must be a Hugging Face name, a folder with safetensors") as error:
        api.inspect(str(folder), out=tmp_path / "a")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "a").exists()


def test_a_hub_name_that_is_not_there_gets_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFound, match=r"nothing cannot be opened.*; check the name") as error:
        api.inspect("nobody/nothing", out=tmp_path / "a")
    assert "\n" not in str(error.value)
