"""Opening a real language model on real prose, and a tiny one saved to a folder."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mesascope import api
from mesascope.models.load import ModelNotFound
from mesascope.store import RunError
from saved import save_tiny


@pytest.fixture
def folder(tmp_path) -> Path:
    return save_tiny(tmp_path)


def test_the_same_call_again_gives_the_same_numbers(folder, tmp_path):
    first = api.inspect(str(folder), tokens=32, out=tmp_path / "a", analyses=["norms"])
    again = api.inspect(str(folder), tokens=32, out=tmp_path / "b", analyses=["norms"])
    assert first.result_names() == ["norms", "text"]
    for name in ("norm", "mean_null_random_weights", "mean_null_positions_shuffled"):
        assert np.array_equal(first.read_results("norms")[name], again.read_results("norms")[name])


def test_what_was_stopped_goes_on_where_it_was(folder, tmp_path, monkeypatch):
    """Stages that are done are read from their files; only the rest is computed."""
    stages: list[str] = []

    def stop(what: str, done: int, total: int) -> None:
        stages.append(what)
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        api.inspect(
            str(folder), tokens=32, out=tmp_path / "a", analyses=["norms", "repeated_token_heads"], progress=stop
        )
    kept = sorted(file.name for file in (tmp_path / "a" / "parts").glob("*.part"))
    assert kept == ["main-norms.part", "main-repeated_token_heads.part"]
    before = {name: (tmp_path / "a" / "parts" / name).stat().st_mtime_ns for name in kept}
    run = api.inspect(str(folder), tokens=32, out=tmp_path / "a", analyses=["norms", "repeated_token_heads"])
    assert {name: (tmp_path / "a" / "parts" / name).stat().st_mtime_ns for name in kept} == before
    whole = api.inspect(str(folder), tokens=32, out=tmp_path / "b", analyses=["norms", "repeated_token_heads"])
    for name in ("norms", "repeated_token_heads"):
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
        analyses=["norms", "inner_linear", "repeated_token_heads"],
    )
    for name in ("norms", "inner_linear", "repeated_token_heads"):
        data = run.read_results(name)
        assert data["step"].values.tolist() == [20, 100]
        numbers = [array for array in data.data_vars.values() if "control_of" not in array.attrs and array.ndim > 1]
        assert all("step" in array.dims for array in numbers)
    mean = run.read_results("norms")["mean"]
    alone = api.inspect(str(tmp_path / "step20"), tokens=16, out=tmp_path / "alone", analyses=["norms"])
    assert np.array_equal(mean.sel(step=20), alone.read_results("norms")["mean"])
    assert not np.array_equal(mean.sel(step=20), mean.sel(step=100))


def test_steps_that_are_nowhere_or_alike_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="two have 7"):
        api.inspect("org/model", steps=["a7", "b7"], out=tmp_path / "no")
    with pytest.raises(ValueError, match="a step must be a folder"):
        api.inspect(str(folder), steps=["step1"], out=tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_another_models_run_in_the_same_place_is_refused(folder, tmp_path):
    api.inspect(str(folder), tokens=32, out=tmp_path / "a", analyses=["norms"])
    with pytest.raises(RunError, match="must be empty or hold the same run"):
        api.inspect(str(folder), tokens=16, out=tmp_path / "a", analyses=["norms"])


def test_what_was_measured_on_other_words_or_weights_is_not_taken_up(folder, tmp_path):
    place = written(tmp_path, TEN)
    api.inspect(str(folder), text=place, out=tmp_path / "a", analyses=["norms"])
    written(tmp_path, " ".join(reversed(TEN.split())))
    with pytest.raises(RunError, match="digest"):
        api.inspect(str(folder), text=place, out=tmp_path / "a", analyses=["norms"])
    written(tmp_path, TEN)
    save_tiny(tmp_path, seed=1)
    with pytest.raises(RunError, match="weights"):
        api.inspect(str(folder), text=place, out=tmp_path / "a", analyses=["norms"])


def test_an_earlier_checkpoint_that_was_exchanged_is_not_taken_up(tmp_path):
    steps = [str(save_tiny(tmp_path / place, seed)) for place, seed in (("a", 1), ("b", 2), ("c", 9))]
    first, second, other = (Path(step).rename(tmp_path / f"at{i}") for i, step in enumerate(steps))
    steps = [str(first), str(second)]
    api.inspect("tiny", steps=steps, tokens=16, out=tmp_path / "out", analyses=["norms"])
    first.rename(tmp_path / "gone")
    other.rename(first)
    with pytest.raises(RunError, match="weights"):
        api.inspect("tiny", steps=steps, tokens=16, out=tmp_path / "out", analyses=["norms"])


def test_bfloat16_is_measured_too(folder, tmp_path):
    run = api.inspect(
        str(folder),
        tokens=32,
        out=tmp_path / "a",
        dtype="bfloat16",
        analyses=["norms", "inner_quadratic"],
    )
    assert run.read_json("model")["dtype"] == "bfloat16"
    plain = api.inspect(str(folder), tokens=32, out=tmp_path / "b", analyses=["norms"])
    both = (one.read_results("norms")["mean"].values for one in (run, plain))
    assert np.allclose(*both, rtol=0.02)
    assert run.read_results("inner_quadratic")["cosine"].sel(sublayer="attention").notnull().all()


TEN = "to be or not to be that is the question"


def written(place: Path, words: str | bytes) -> Path:
    file = place / "text.txt"
    file.write_bytes(words if isinstance(words, bytes) else words.encode())
    return file


def test_a_text_of_ones_own_is_taken_as_long_as_it_is(folder, tmp_path):
    run = api.inspect(str(folder), text=written(tmp_path, TEN), out=tmp_path / "a", analyses=["norms"])
    told = run.record["text"]
    assert (told["source"], told["tokens"], told["sequences"]) == ("text.txt", 10, 1)
    assert Path(told["file"]).name == "text.txt"


@pytest.mark.parametrize(
    ("words", "tokens", "line"),
    [
        ("", None, "a text must have words, but .* is empty"),
        ("to", None, "the text must have 9 tokens or more, but has 1; use a longer text"),
        ("to be or", None, "the text must have 9 tokens or more, but has 3; use a longer text"),
        (TEN, 50, "the text must have 50 tokens or more, but has 10; use a longer text, or fewer --tokens"),
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
    run = api.inspect(str(folder), text=written(tmp_path, TEN * 50), out=tmp_path / "a", analyses=["norms"])
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
    with pytest.raises(
        ModelNotFound, match=r"nobody/nothing cannot be opened.*; check the name and the network"
    ) as error:
        api.inspect("nobody/nothing", out=tmp_path / "a")
    assert "\n" not in str(error.value)
