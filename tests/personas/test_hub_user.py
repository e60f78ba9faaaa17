"""Somebody pushes a run to the Hub, and a colleague opens it with the lines of its card, by docs/exports.md.

The Hub is a fake without a network; what was pushed lies where a download of transformers would put it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from transformers import AutoConfig, AutoModel

import mesascope
from fake_hub import TOKEN, FakeHub
from mesascope.models.load import load_checkpoint
from mesascope.tasks.affine import Affine
from pages import blocks
from studies.small_study import SMALL_STUDY


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> mesascope.Run:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "small.py").write_text(SMALL_STUDY)
    return mesascope.run(str(folder / "small.py"), scale="smoke", seeds=1, out=folder / "run", quiet=True)


@pytest.fixture
def pushed(run: mesascope.Run, hub: type[FakeHub], command: Callable, tmp_path: Path, monkeypatch) -> Path:
    """The run was pushed; the value is the folder of the download."""
    monkeypatch.setattr(FakeHub, "private", True)
    code, out, err = command("push", run.path, "me/small", "--private")
    assert (code, out, err) == (0, "Pushed to https://huggingface.co/me/small\n", "")
    hub.fill_cache(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return Path(huggingface_hub.snapshot_download("me/small"))


def test_the_card_opens_what_it_describes(run: mesascope.Run, pushed: Path):
    """The colleague copies the code of the card."""
    card = pushed / "README.md"
    assert TOKEN not in card.read_text(encoding="utf-8")
    assert "It is worse than copying" in card.read_text(encoding="utf-8")
    space: dict[str, Any] = {}
    for block in blocks(card, "python"):
        exec(compile(block, "README.md", "exec"), space)
    assert space["run"].verdicts.equals(run.verdicts)
    last = sorted(run.seed_path(0).glob("step=*"))[-1]
    expected = load_checkpoint(last)
    inputs = Affine(length=5).sample(4, torch.Generator().manual_seed(0)).inputs
    assert torch.equal(space["model"](inputs).logits, expected(inputs).logits)


def test_every_checkpoint_opens_with_the_auto_classes(run: mesascope.Run, pushed: Path):
    for folder in sorted(run.seed_path(0).glob("step=*")):
        subfolder = folder.relative_to(run.path).as_posix()
        model = AutoModel.from_pretrained("me/small", subfolder=subfolder)
        assert type(model).__name__ == "Decoder"
        assert AutoConfig.from_pretrained("me/small", subfolder=subfolder).num_hidden_layers == 1
        for name, weight in load_checkpoint(folder).state_dict().items():
            assert torch.equal(model.state_dict()[name], weight), name
        batch = Affine(length=5).sample(4, torch.Generator().manual_seed(0))
        assert mesascope.capture(model.eval(), batch, ["pattern"])["pattern"].shape == (1, 4, 2, 5, 5)


def test_the_copy_is_a_run_like_any_other(run: mesascope.Run, pushed: Path, command: Callable):
    copy = mesascope.Run.open(pushed)
    assert copy["loss_vs_baselines"].equals(run["loss_vs_baselines"])
    assert copy.report().is_file()
    assert command("table", pushed)[1].splitlines()[1:] == [
        line.replace(str(run.path), str(pushed)) for line in command("table", run.path)[1].splitlines()[1:]
    ]
    code, out, _ = command("verify", pushed)  # by the page: it names the missing states of optimizers
    assert code == 1
    assert all("state.safetensors" in line for line in out.splitlines()[:-1])
