"""The tutorial on circuits: its code is run in order, in an empty folder."""

import re
import shlex
from pathlib import Path

import pytest

from commands import call

PAGE = Path(__file__).parents[1] / "docs" / "circuit-tutorial.md"


@pytest.mark.slow
def test_the_tutorial_finds_the_known_circuit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    blocks = re.findall(r"^```(python|sh)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert [language for language, _ in blocks] == ["python", "python", "sh", "python", "sh"]
    for language, code in blocks:
        if language == "python":
            exec(compile(code, str(PAGE), "exec"), names)
            continue
        for line in code.splitlines():
            program, *words = shlex.split(line)
            assert program == "mesascope"
            assert call(*words, capsys=capsys, monkeypatch=monkeypatch)[0] == 0, line
    assert (tmp_path / "runs" / "circuit-affine-smoke" / "report.html").exists()
