"""Auto classes of transformers, model cards, and `mesascope push` against a fake of the Hub."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mesascope
from fake_hub import TOKEN, FakeHub
from mesascope.models.load import load_checkpoint
from mesascope.store import Run, RunError
from studies.small_study import SMALL_STUDY

MAX_IMPORT_SECONDS = 0.3
IMPORTS = {
    "mesascope first": "import mesascope\nassert not {'torch', 'transformers'} & set(sys.modules)",
    "transformers first": "from transformers import AutoModelForCausalLM\nimport mesascope",
}
LOAD = """
assert "mesascope.models.transformer" not in sys.modules  # imported when a model is loaded
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
assert type(model).__name__ == "Decoder" and type(AutoModel.from_config(model.config)) is type(model)
from mesascope.models.recurrent.config import RecurrentConfig
from mesascope.models.encoder_decoder.config import EncoderDecoderConfig
for config in (RecurrentConfig, EncoderDecoderConfig):
    assert AutoConfig.for_model(config.model_type, vocab_size=8).__class__ is config
print(sum(weight.double().sum().item() for weight in model.parameters()))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of one seed in two cells."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "small.py").write_text(SMALL_STUDY)
    path = folder / "run"
    return mesascope.run(str(folder / "small.py"), scale="smoke", seeds=1, out=path, vary={"heads": ["2", "1"]})


def list_checkpoints(run: Run) -> list[Path]:
    return sorted(run.seed_path(0).glob("step=*"))


@pytest.mark.parametrize("order", ["mesascope first", pytest.param("transformers first", marks=pytest.mark.slow)])
def test_a_checkpoint_is_loaded_by_the_auto_class_after_importing_mesascope(run: Run, order: str):
    folder = list_checkpoints(run)[-1]
    code = f"import sys\n{IMPORTS[order]}{LOAD}"
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = sum(weight.double().sum().item() for weight in load_checkpoint(folder).parameters())
    assert float(done.stdout) == pytest.approx(expected, rel=1e-12)


def test_importing_mesascope_is_fast():
    code = "import time; began = time.process_time(); import mesascope; print(time.process_time() - began)"
    taken = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(3)
    ]
    assert min(taken) < MAX_IMPORT_SECONDS


def test_every_checkpoint_has_a_model_card(run: Run):
    for folder in list_checkpoints(run):
        card = (folder / "README.md").read_text(encoding="utf-8")
        step = folder.name.partition("=")[2]
        assert card.startswith("---\nlibrary_name: mesascope\nlicense: mit\n")
        for line in ("- study: small", "- scale: smoke", "- seed: 0", f"- training steps: {step}", "- license: MIT"):
            assert f"\n{line}" in card
        assert "Affine(length=5" in card


def test_a_run_is_pushed_without_the_state_of_the_optimizer(run: Run, hub: type[FakeHub], command):
    code, printed, err = command("push", run.path, "me/affine")
    assert (code, printed, err) == (0, "Pushed to https://huggingface.co/me/affine\n", "")
    (created, name, options), (committed, again, files) = hub.calls
    assert (created, name, committed, again) == ("create_repo", "me/affine", "create_commit", "me/affine")
    assert options == {"private": None, "repo_type": "model", "exist_ok": True}
    last = list_checkpoints(run)[-1].name
    cell = "cells/heads=1,rate=usual"
    assert {
        *("README.md", "run.json", "verdicts.json", "report.html", "results/loss_vs_baselines.nc"),
        *(f"models/seed=0/{last}/{name}" for name in ("config.json", "model.safetensors", "README.md")),
        *(f"{cell}/verdicts.json", f"{cell}/models/seed=0/{last}/model.safetensors", "models/seed=0/log.csv"),
    } <= set(files)
    assert not [name for name in files if "state.safetensors" in name or "parts/" in name or "/." in f"/{name}"]
    assert all(Path(file) == run.path / name for name, file in files.items() if name != "README.md")
    card = files["README.md"].decode()
    assert f'from_pretrained("me/affine", subfolder="models/seed=0/{last}")' in card
    assert "It is worse than copying" in card
    assert TOKEN not in card


def test_a_copy_of_what_was_pushed_opens(run: Run, hub: type[FakeHub], tmp_path: Path):
    mesascope.push(run, "me/affine")
    hub.write_last_commit(tmp_path)
    copy = Run.open(tmp_path)
    assert copy.verdicts.equals(run.verdicts)
    assert copy["loss_vs_baselines"].equals(run["loss_vs_baselines"])
    folder = list_checkpoints(copy)[-1]
    first, second = (load_checkpoint(path).state_dict() for path in (folder, list_checkpoints(run)[-1]))
    assert all(torch.equal(first[name], second[name]) for name in second)


@pytest.mark.parametrize("name", ["", "a/b/c", "-me/run"])
def test_an_invalid_name_of_a_repository_is_refused(run: Run, hub: type[FakeHub], name: str):
    with pytest.raises(ValueError, match=f"^repo must be a name such as me/affine, but got '{name}': "):
        mesascope.push(run, name)
    assert hub.calls == []


def test_a_private_push_refuses_a_public_repository(run: Run, hub: type[FakeHub], monkeypatch):
    with pytest.raises(RunError, match="the repository must be private, but me/affine exists and is public"):
        mesascope.push(run, "me/affine", private=True)
    assert [name for name, *_ in hub.calls] == ["create_repo"]
    monkeypatch.setattr(FakeHub, "private", True)
    mesascope.push(run, "me/affine", private=True)
    assert hub.calls[-2][2]["private"] is True
    assert hub.calls[-1][0] == "create_commit"


def test_an_error_of_the_hub_is_one_line_without_the_token(run: Run, hub: type[FakeHub], command, monkeypatch):
    monkeypatch.setattr(FakeHub, "error", PermissionError(f"401 for\nBearer {TOKEN}"))
    code, printed, err = command("push", run.path, "me/affine")
    assert (code, printed, err.count("\n")) == (2, "", 1)
    assert "answered PermissionError: 401 for Bearer ***; check the name" in err
    assert TOKEN not in err
    assert hub.calls == []


def test_what_cannot_be_shared_is_refused_before_anything_is_sent(
    run: Run, hub: type[FakeHub], tmp_path: Path, command
):
    unfinished = Run.create(tmp_path / "unfinished", {"study": "mine"})
    assert "must be a finished run, but has no report" in command("push", unfinished.path, "me/affine")[2]
    assert "must hold run.json" in command("push", tmp_path, "me/affine")[2]
    code, _, err = command("push", run.path, "me/bad name")
    assert (code, err.count("\n")) == (2, 1)
    file = run.path / "results/loss_vs_baselines.nc"
    content = file.read_bytes()
    try:
        file.write_bytes(content[:-1])
        assert "every file must be intact to be shared, but 1 are not" in command("push", run.path, "me/affine")[2]
    finally:
        file.write_bytes(content)
    assert hub.calls == []
