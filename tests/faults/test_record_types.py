"""Wrong types in the JSON files of a run are one clear line with exit code 2."""

import pytest

from faults.written_runs import write_run
from mesascope.report import NO_CHECKSUMS
from mesascope.studies.cells import load_cells

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
