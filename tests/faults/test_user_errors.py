"""Bad input of other kinds is one clear line with exit code 2: study files, odd names, wrong types in JSON."""

import os

import pytest

from faults.written_runs import write_run
from mesascope import cli
from mesascope.progress import ProgressDisplay, StageProgressBar
from mesascope.studies import registry

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


def test_an_error_of_the_operating_system_without_a_number_is_one_line(command, monkeypatch):
    def fail(*_, **__):
        raise FileNotFoundError("a file must exist, but does not")

    monkeypatch.setattr("mesascope.api.run", fail)
    code, _, err = command("run", "affine")
    assert (code, err) == (2, "mesascope: a file must exist, but does not\n")


def test_exit_codes_are_as_documented():
    assert (cli.EXIT_OK, cli.EXIT_CONTRADICTED, cli.EXIT_DAMAGED, cli.EXIT_BAD_INPUT) == (0, 1, 1, 2)
    assert not os.environ.get("MESASCOPE_DEBUG")
