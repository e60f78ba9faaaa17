"""A run follows edits of the user's code, and names damage to what it wrote."""

import os
import shutil
from pathlib import Path

from mesascope.store.user_code import hash_user_code
from mesascope.studies import registry
from mesascope.studies.base import Study

USER_CODE = """
import dataclasses
from helper_of_a_user import SHIFT, twice as again

SCALE = 2.0
OTHER = 3.0  # names nothing above

def double(x):
    return SCALE * x + SHIFT

def unused():
    return OTHER

@dataclasses.dataclass(frozen=True)
class Rule:
    size: int = 1

    def apply(self, x):
        return again(double(x))
"""
HELPER = "SHIFT = 1.0\nOTHER = 1.0\n\ndef twice(x):\n    return 2 * x\n"


def hash_of_rule(folder: Path, monkeypatch, text: str = USER_CODE, helper: str = HELPER) -> str:
    """The digest of the code of a rule, which a user's file and a helper beside it define."""
    import importlib
    import sys

    folder.mkdir(exist_ok=True)
    (folder / "rule_of_a_user.py").write_text(text)
    (folder / "helper_of_a_user.py").write_text(helper)
    monkeypatch.syspath_prepend(str(folder))
    for name in ("rule_of_a_user", "helper_of_a_user"):
        sys.modules.pop(name, None)
    return hash_user_code({"task": [importlib.import_module("rule_of_a_user").Rule()]})


def test_the_digest_of_a_users_code_follows_what_a_value_depends_on(tmp_path, monkeypatch):
    changes = {
        "none": (USER_CODE, HELPER, True),
        "comment": (USER_CODE.replace("  # names nothing above", "  # nothing"), HELPER, True),
        "unused": (USER_CODE.replace("OTHER = 3.0", "OTHER = 4.0"), HELPER, True),
        "constant": (USER_CODE.replace("SCALE = 2.0", "SCALE = 2.5"), HELPER, False),
        "function": (USER_CODE.replace("SCALE * x", "SCALE + x"), HELPER, False),
        "class": (USER_CODE.replace("size: int = 1", "size: int = 2"), HELPER, False),
        "function of another file": (USER_CODE, HELPER.replace("2 * x", "3 * x"), False),
        "constant of another file": (USER_CODE, HELPER.replace("SHIFT = 1.0", "SHIFT = 2.0"), False),
        "unused in another file": (USER_CODE, HELPER.replace("OTHER = 1.0", "OTHER = 2.0"), True),
    }
    first = hash_of_rule(tmp_path / "first", monkeypatch)
    assert len(first) == 16
    module_code = USER_CODE.replace(
        "from helper_of_a_user import SHIFT, twice as again", "import helper_of_a_user as h"
    )
    module_code = module_code.replace("SHIFT", "h.SHIFT").replace("again", "h.twice")
    by_module = [
        hash_of_rule(tmp_path / f"module {shift}", monkeypatch, module_code, HELPER.replace("SHIFT = 1.0", shift))
        for shift in ("SHIFT = 1.0", "SHIFT = 2.0")
    ]
    assert len({first, *by_module}) == 3
    for number, (name, (text, helper, same)) in enumerate(changes.items()):
        assert (hash_of_rule(tmp_path / str(number), monkeypatch, text, helper) == first) == same, name


def test_the_package_itself_is_no_users_code():
    study = registry.load_study("affine")
    assert isinstance(study, Study)
    assert hash_user_code(study.main.task, study.main.analyses, study.main.scales) == ""


OWN_STUDY = """
from dataclasses import dataclass, replace
import torch
import xarray as xr
from mesascope.analyses import analysis
from mesascope.axes import to_data_array
from mesascope.models.config import DecoderConfig
from mesascope.studies.affine.study import STUDY as AFFINE, make_affine_training
from mesascope.studies.base import Condition, ScaleConfig
from mesascope.tasks.affine import Affine

FACTOR = 1.0
SIZE = 0.5

@dataclass(frozen=True, kw_only=True)
class Mine(Affine):
    def sample(self, n, generator):
        batch = super().sample(n, generator)
        return replace(batch, inputs=SIZE * batch.inputs)

@analysis(title="Size", description="Mean size", sites=["resid_pre"])
def mean_size(acts):
    value = FACTOR * acts["resid_pre"].abs().mean((1, 2, 3))
    return xr.Dataset({"size": to_data_array(value, "layer", units="1", description="mean size")})

SHAPE = {"d_in": 1, "d_out": 1, "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2}
TRAINING = {name: ScaleConfig(training=make_affine_training(2, checkpoints=2), sequences=8) for name in AFFINE.seeds}
STUDY = replace(
    AFFINE, name="own", claims=(), seeds=dict.fromkeys(TRAINING, 1), factors=(), grid={},
    conditions=(Condition(task=Mine(length=5), model=DecoderConfig(**SHAPE), scales=TRAINING, analyses=(mean_size,)),),
)
"""


def test_an_edited_study_file_is_analysed_again_and_a_changed_task_is_not_mixed(command, tmp_path):
    file, out = tmp_path / "own.py", tmp_path / "run"
    file.write_text(OWN_STUDY)
    words = ["run", file, "--scale", "smoke", "--on", "serial", "--out", out]

    def read() -> list[float]:
        from mesascope.store import Run

        return Run.open(out).read_results("mean_size")["size"].values.ravel().tolist()

    assert command(*words)[0] == 0
    first, weights = read(), (out / "models" / "seed=0" / "step=2" / "model.safetensors").stat().st_mtime_ns
    written = file.stat()
    file.write_text(OWN_STUDY.replace("FACTOR = 1.0", "FACTOR = 2.0"))
    os.utime(file, ns=(written.st_atime_ns, written.st_mtime_ns))  # the size is the same, too
    assert command(*words)[0] == 0
    assert read() == [2 * value for value in first]
    assert (out / "models" / "seed=0" / "step=2" / "model.safetensors").stat().st_mtime_ns == weights
    file.write_text(OWN_STUDY.replace("SIZE = 0.5", "SIZE = 0.25"))
    code, _, err = command(*words)
    assert (code, err.splitlines()[-1].count("must be trained with one configuration, but holds another code")) == (
        2,
        1,
    )
    assert read() == [2 * value for value in first]


def test_damaged_logs_and_settings_of_a_finished_run_are_named(command, tmp_path):
    file, out = tmp_path / "own.py", tmp_path / "run"
    file.write_text(OWN_STUDY)
    words = ["run", file, "--scale", "smoke", "--on", "serial", "--out", out]
    assert command(*words)[0] == 0
    for name in ("log.csv", "training.json", "log.json"):
        victim = out / "models" / "seed=0" / name
        whole = victim.read_bytes()
        victim.write_bytes(whole.replace(b"0", b"1"))
        for again in (words, ["verify", out], ["report", out]):
            code, printed, err = command(*again)
            assert code == {"run": 2, "verify": 1, "report": 2}[str(again[0])], (name, again)
            assert "delete" in printed + err
            assert str(out / "models" / "seed=0") in printed + err
        victim.write_bytes(whole)
    shutil.rmtree(out / "models" / "seed=0")
    assert command(*words)[0] == 0
    assert command("verify", out)[0] == 0
