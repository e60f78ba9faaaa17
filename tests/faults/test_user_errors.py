"""Bad input of other kinds is one clear line with exit code 2: study files, odd names, wrong types in JSON."""

import json
import os
import shutil
from pathlib import Path

import pytest

from commands import call
from mesascope import cli
from mesascope.checksums import identify_run, seal_record
from mesascope.progress import ProgressDisplay, StageProgressBar
from mesascope.report import NO_CHECKSUMS
from mesascope.store.user_code import hash_user_code
from mesascope.studies import registry
from mesascope.studies.base import Study
from mesascope.studies.cells import load_cells


@pytest.fixture
def command(capsys, monkeypatch):
    def run(*words: str | Path):
        return call(*map(str, words), capsys=capsys, monkeypatch=monkeypatch)

    return run


STUDY_FILES = {
    "SyntaxError": ("x = (\nSTUDY = 1\n", r"fails at line 1 with SyntaxError"),
    "NameError": ("x = 1\nSTUDY = Studie()\n", "fails at line 2 with NameError: name 'Studie' is not defined"),
    "ImportError": ("import no_such_package\n", "fails at line 1 with ModuleNotFoundError: No module named"),
    "no name": (
        "from mesascope.studies.base import Study\nSTUDY = Study(title='t')\n",
        "fails at line 2 with TypeError",
    ),
    "exit": ("import sys\nsys.exit(0)\n", "fails at line 2 with SystemExit: 0"),
    "null bytes": ("x = 1\0\n", "fails"),
    "another type": ("STUDY = 5\n", "STUDY must be a mesascope.studies.base.Study, but in "),
    "no study": ("x = 5\n", "the file of a study must define STUDY"),
    "markup": ("raise ValueError('[/red] [bold] :bug:')\n", "ValueError: [/red] [bold] :bug:"),
}


@pytest.mark.parametrize(("text", "message"), STUDY_FILES.values(), ids=STUDY_FILES)
@pytest.mark.parametrize(
    "words", [["run", "FILE", "--scale", "smoke"], ["show", "FILE"], ["cite", "FILE"]], ids=" ".join
)
def test_a_study_file_that_fails_is_one_line(command, tmp_path, monkeypatch, text, message, words):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "my_study.py"
    file.write_text(text)
    code, _, err = command(*(word.replace("FILE", str(file)) for word in words))
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert not (tmp_path / "runs").exists()


def test_a_study_file_in_a_folder_with_brackets_is_found(command, tmp_path):
    file = tmp_path / "a[1]" / "my_study[2].py"
    file.parent.mkdir()
    file.write_text("from mesascope.studies.affine.study import STUDY")
    assert command("show", file)[0] == 0
    code, _, err = command("run", f"{file}[heads=3]")
    assert (code, err.count("\n")) == (2, 1)
    assert "a level of heads must be one of" in err


def test_the_traceback_of_a_study_file_is_shown_on_request(command, tmp_path, monkeypatch):
    file = tmp_path / "my_study.py"
    file.write_text("x = 1\nSTUDY = Studie()\n")
    monkeypatch.setenv("MESASCOPE_DEBUG", "1")
    with pytest.raises(registry.InvalidStudyFile) as caught:
        command("show", file)
    assert isinstance(caught.value.__cause__, NameError)


ODD_NAMES = ["[/x]", "[bold]", "[/x].py", ":bug:", "\\", "[link=a]b[/link]", "x[y", "[]"]


@pytest.mark.parametrize("name", ODD_NAMES)
@pytest.mark.parametrize(
    "words",
    [
        ["{}"],
        ["run", "{}"],
        ["show", "{}"],
        ["cite", "{}"],
        ["report", "{}"],
        ["verify", "{}"],
        ["compare", "{}", "{}"],
    ],
    ids=lambda words: words[0],
)
def test_a_name_that_looks_like_markup_is_printed_as_it_is(command, tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = command(*(word.format(name) for word in words))
    assert code == 2
    assert name in err + out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["[/x]", ":bug:"])
def test_a_run_in_a_folder_that_looks_like_markup_is_listed_compared_and_reported(command, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    row = {"name": "[/a]", "statement": "[/b]", "status": "[/c]", "value": None, "control": 1.0, "source": "[/d]"}
    folder = tmp_path / name.replace("/", "∕")
    write_run(folder, {"study": "[/s]", "scale": "[/t]", "seeds": [0]}, [row])
    for words in (["runs", tmp_path], ["list", tmp_path], ["compare", folder, folder], ["report", folder]):
        code, out, err = command(*words)
        assert (code, err) == (0, "")
        assert "[/c]" in out or words[0] == "list"
    assert f"{folder}/report.html" in out
    assert command("runs", tmp_path / name)[1] == f"no runs in {tmp_path / name}/\n"


def test_progress_prints_names_as_they_are(capsys, monkeypatch):
    from rich.console import Console

    for terminal in (False, True):
        console = Console(force_terminal=terminal, width=200, highlight=False)
        with ProgressDisplay(console) as display:
            display.start_stage("[/a]", ["[/b]"])
            display.update_part(0, 1, 1, 0.5)
            display.log_message("[/c]")
        with StageProgressBar(console) as bar:
            bar("[/d]", 0, 2)
        out = capsys.readouterr().out
        assert all(name in out for name in ("[/a]", "[/b]", "[/c]", "[/d]"))


def write_run(folder: Path, record: dict, verdicts: object, *, older: bool = False) -> None:
    """Write the record and the verdicts of a run with valid checksums, or without any."""
    folder.mkdir(parents=True)
    text = json.dumps(verdicts)
    (folder / "verdicts.json").write_text(text)
    (folder / "run.json").write_text(json.dumps(record if older else seal_record(record, "run")))
    if not older:
        from mesascope.checksums import add_to_manifest, hash_bytes

        manifest = add_to_manifest(folder, identify_run(record), "verdicts.json", hash_bytes(text.encode()))
        (folder / "manifest.json").write_text(json.dumps(manifest))


WRONG_TYPES = ["5", "[1]", "null", '"text"', "[[]]", "true", "[" * 100_000, "{", "", '{"a": 1}', '[{"status": 1}]']


@pytest.mark.parametrize("text", WRONG_TYPES, ids=lambda text: text[:16])
@pytest.mark.parametrize("older", [False, True], ids=["with checksums", "older"])
def test_wrong_types_in_verdicts_are_one_line(command, tmp_path, text, older):
    folder = tmp_path / "run"
    write_run(folder, {"study": "affine", "scale": "smoke", "seeds": [0]}, [], older=older)
    (folder / "verdicts.json").write_text(text)
    for words in (["compare", folder, folder], ["report", folder]):
        code, _, err = command(*words)
        assert code == 2
        lines = [line for line in err.splitlines() if NO_CHECKSUMS not in line]
        assert len(lines) == 1
        assert "verdicts.json" in lines[0]
    code, out, _ = command("runs", tmp_path)
    assert code == 0
    assert "unreadable" in out or text == '[{"status": 1}]'
    assert command("list", tmp_path)[0] == 0


@pytest.mark.parametrize("text", [*WRONG_TYPES, '{"study": 5, "sha256": ""}'], ids=lambda text: text[:16])
def test_wrong_types_in_the_record_are_one_line(command, tmp_path, text):
    folder = tmp_path / "run"
    write_run(folder, {"study": "affine", "scale": "smoke", "seeds": [0]}, [])
    (folder / "run.json").write_text(text)
    for words in (
        ["report", folder],
        ["compare", folder, folder],
        ["verify", folder],
        ["run", "affine", "--out", folder],
    ):
        code, _, err = command(*words)
        if text == '{"a": 1}' and words[0] in ("report", "compare"):
            assert code == 0, "that may be an older run"
            continue
        assert (code, err.count("\n")) == (2, 1)
        assert str(folder) in err


def test_a_list_with_damaged_verdicts_does_not_show_them(command, tmp_path):
    row = {"name": "a", "statement": "A.", "status": "supported", "source": "", "value": 1.0, "control": 0.0}
    write_run(tmp_path / "run", {"study": "affine", "scale": "paper", "seeds": [0]}, [row])
    shown = str(tmp_path / "run") + ": 1 supported"
    assert shown in command("list", tmp_path)[1]
    file = tmp_path / "run" / "verdicts.json"
    file.write_text(file.read_text().replace("supported", "contradicted"))
    assert "contradicted\n" not in command("runs", tmp_path)[1]
    assert str(tmp_path / "run") not in command("list", tmp_path)[1]


def test_a_run_of_an_earlier_version_is_read_with_a_line_and_not_resumed(command, tmp_path):
    folder = tmp_path / "run"
    write_run(folder, {"study": "affine", "scale": "smoke", "seeds": [0]}, [], older=True)
    code, _, err = command("report", folder)
    assert (code, err) == (0, f"mesascope: {NO_CHECKSUMS}\n")
    assert "without checksums" in command("runs", tmp_path)[1]
    code, _, err = command("verify", folder)
    assert (code, err.count("\n")) == (2, 1)
    assert "must have checksums, but was written by an older version" in err
    assert [cell.path for cell in load_cells(folder)] == [folder]


@pytest.mark.parametrize("key", ["study", "seeds", "parameters", "citation", "factors", "provenance", "notes", "text"])
@pytest.mark.parametrize("value", [5, None, [[1]], {"a": {"b": 1}}, "text"], ids=str)
def test_a_record_of_an_earlier_version_with_odd_values_gives_no_traceback(command, tmp_path, key, value):
    folder = tmp_path / "run"
    write_run(folder, {"study": "affine", "scale": "smoke", "seeds": [0], key: value}, [], older=True)
    code, _, err = command("report", folder)
    assert code in (0, 2)
    assert err.count("\n") == 1 + (code == 2)


def test_an_error_of_the_operating_system_without_a_number_is_one_line(command, monkeypatch):
    def fail(*_, **__):
        raise FileNotFoundError("a file must exist, but does not")

    monkeypatch.setattr("mesascope.api.run", fail)
    code, _, err = command("run", "affine")
    assert (code, err) == (2, "mesascope: a file must exist, but does not\n")


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


def test_exit_codes_are_as_documented():
    assert (cli.EXIT_OK, cli.EXIT_CONTRADICTED, cli.EXIT_DAMAGED, cli.EXIT_BAD_INPUT) == (0, 1, 1, 2)
    assert not os.environ.get("MESASCOPE_DEBUG")
