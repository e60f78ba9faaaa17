"""The README and the docs stay true: their code runs, their commands work, their links lead somewhere."""

import re
import runpy
from pathlib import Path

import pytest

from pages import blocks

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITH_COMMANDS = {"circuit-tutorial.md", "exports.md"}  # test_circuit_tutorial.py and test_end_to_end.py run theirs


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in WITH_COMMANDS], ids=lambda page: page.name)
def test_python_in_the_docs_runs(page):
    space: dict[str, object] = {}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), space)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_inside_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_ci_calls_what_the_readme_names():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.search(r"^make test$", script, re.MULTILINE)
    assert "make test" in blocks(ROOT / "README.md", "console")[0]


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples_run(example, tmp_path, monkeypatch, capsys):
    assert len(example.read_text(encoding="utf-8").splitlines()) < 60
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out
