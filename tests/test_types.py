"""The code of the README and the docs passes pyright and mypy where the package is installed from its wheel."""

import doctest
import json
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

from pages import blocks

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOT_OURS = 'Cannot access attribute "generate"'  # transformers declares it for a protocol that none of its models has
WRONG = """
import torch
import mesascope
from mesascope.models.load import load_pretrained

model, tokenizer = load_pretrained("model")
tokenizer("A text")
acts = mesascope.capture(model, torch.zeros(1, 4), tokenizer=tokenizer)
mesascope.show_text(acts, acts["resid_pre"], tokenizer)
acts.nonsense  # wrong
acts["resid_pre"].nonsense  # wrong
mesascope.capture(model, [[1, 2]], sites=3)  # wrong
_, optional = load_pretrained("model", require_tokenizer=False)
mesascope.show_text(acts, acts["resid_pre"], optional)  # wrong
"""
WRONG_LINES = [number for number, line in enumerate(WRONG.splitlines(), 1) if line.endswith("# wrong")]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """Return a folder with one module for each page, and an environment with the wheel and what it depends on."""
    folder = tmp_path_factory.mktemp("project")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    builder = venv.EnvBuilder()
    builder.create(folder / "env")
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder / "env")}))
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    (wheel,) = folder.glob("*.whl")
    with ZipFile(wheel) as archive:
        archive.extractall(packages)
    (folder / "pages").mkdir()
    for page in PAGES:
        if code := read_code(page):
            (folder / "pages" / f"{page.stem.replace('-', '_').lower()}.py").write_text(code, encoding="utf-8")
    (folder / "pages" / "wrong.py").write_text(WRONG, encoding="utf-8")
    return folder


def read_code(page: Path) -> str:
    """Return the Python of a page, with that of its sessions."""
    parser = doctest.DocTestParser()
    sessions = (example.source for block in blocks(page, "pycon") for example in parser.get_examples(block))
    return "\n".join([*blocks(page, "python"), *sessions])


def split_errors(errors: list[tuple[str, int, str]]) -> tuple[list[int], list[str]]:
    """Return the lines with errors of the module that is wrong, and the errors of all others."""
    wrong = {line for file, line, _ in errors if file == "wrong.py"}
    return sorted(wrong), [f"{file}:{line}: {text}" for file, line, text in errors if file != "wrong.py"]


def test_pyright_accepts_the_docs_and_finds_mistakes(project):
    config = {"include": ["pages"], "typeCheckingMode": "standard"}
    (project / "pyrightconfig.json").write_text(json.dumps(config), encoding="utf-8")
    python = sysconfig.get_path("scripts", "venv", {"base": str(project / "env")})
    command = [sys.executable, "-m", "pyright", "--outputjson", "-p", ".", "--pythonpath", f"{python}/python"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)["generalDiagnostics"]
    errors = [
        (Path(one["file"]).name, one["range"]["start"]["line"] + 1, one["message"])
        for one in found
        if one["severity"] == "error" and not one["message"].startswith(NOT_OURS)
    ]
    wrong, others = split_errors(errors)
    assert others == []
    assert wrong == WRONG_LINES


def test_mypy_accepts_the_docs_and_finds_mistakes(project):
    python = sysconfig.get_path("scripts", "venv", {"base": str(project / "env")})
    options = ["--allow-redefinition", "--python-executable", f"{python}/python"]  # pages use a name for several things
    command = [sys.executable, "-m", "mypy", *options, "--cache-dir", str(project / "cache"), "pages"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    pattern = r"^pages[/\\](\w+\.py):(\d+): error: (.*)$"
    errors = [(file, int(line), text) for file, line, text in re.findall(pattern, done.stdout, re.MULTILINE)]
    wrong, others = split_errors(errors)
    assert others == [], done.stderr
    assert wrong == WRONG_LINES
