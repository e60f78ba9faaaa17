"""The README and the docs stay true: their code runs, their commands work, their links lead somewhere."""

import ast
import importlib
import inspect
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


def exported_names(module) -> set[str]:
    """The names that type checkers let others import: defined, imported under their own name by ``as``, or listed."""
    names = set(getattr(module, "__all__", ()))
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.ImportFrom | ast.Import):
            names |= {alias.name for alias in node.names if alias.asname == alias.name}
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        else:
            names |= {
                part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
            }
    return names


def test_type_checkers_accept_the_imports_in_the_docs():
    trees = [ast.parse(block) for page in PAGES for block in blocks(page, "python")]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    wanted = {(node.module, alias.name) for node in nodes for alias in node.names}
    wanted = {(name, part) for name, part in wanted if name.startswith("mesascope.")}
    modules = {name: importlib.import_module(name) for name, _ in wanted}
    plain = {(name, part) for name, part in wanted if not hasattr(modules[name], "__path__")}
    assert plain
    assert not sorted(f"{name}.{part}" for name, part in plain if part not in exported_names(modules[name]))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_inside_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_ci_calls_what_the_readme_names():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "make test" in blocks(ROOT / "README.md", "console")[0]
    called = re.findall(r"^make .*$", script, re.MULTILINE)
    assert called == ["make test", "make test-newest"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(one in readme for one in called)


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples_run(example, tmp_path, monkeypatch, capsys):
    assert len(example.read_text(encoding="utf-8").splitlines()) < 60
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out
