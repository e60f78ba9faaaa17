"""The package imports with exactly the dependencies that it declares."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement

SRC = Path(__file__).parents[1] / "src"
PROJECT = tomllib.loads((SRC.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = {
    "datasets",
    "figures",
    "gguf",
    "quantized",
    "ray",
    "serve",
    "slurm",
    "stream",
    "tensorboard",
    "umap",
}  # imported where they are used, never with the package
IMPORT_ALL = """
import importlib, pkgutil, sys
import mesascope
for module in pkgutil.walk_packages(mesascope.__path__, "mesascope."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(" ".join(sorted(name for name in sys.modules if "." not in name)))
"""


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared_closure() -> set[str]:
    """The distributions that `pip install mesascope` brings, with all that they require."""
    found, wanted = set(), [("mesascope", frozenset())]
    while wanted:
        name, extras = wanted.pop()
        if (name, extras) in found:
            continue
        found.add((name, extras))
        for line in metadata.requires(name) or []:
            requirement = Requirement(line)
            marker, environments = requirement.marker, [{"extra": extra} for extra in ("", *extras)]
            if marker is None or any(marker.evaluate({**default_environment(), **one}) for one in environments):
                wanted.append((normalized(requirement.name), frozenset(requirement.extras)))
    return {name for name, _ in found} - {"mesascope"}


def imported_modules() -> set[str]:
    """The top-level names of all modules that the package imports, wherever it does."""
    nodes = [node for file in SRC.rglob("*.py") for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    return {name.split(".")[0] for name in names} - {"mesascope"} - sys.stdlib_module_names


def test_every_imported_package_is_declared():
    lines = [*PROJECT["dependencies"], *(line for name in EXTRAS for line in PROJECT["optional-dependencies"][name])]
    declared = {normalized(Requirement(line).name) for line in lines}
    of_module = metadata.packages_distributions()
    missing = [
        module
        for module in sorted(imported_modules())
        if not declared & {normalized(name) for name in of_module.get(module, [module])}
    ]
    assert not missing, f"imported, but not declared in pyproject.toml: {', '.join(missing)}"


def test_the_readme_names_every_extra_of_users():
    text = (SRC.parent / "README.md").read_text(encoding="utf-8")
    users = set(PROJECT["optional-dependencies"]) - {"dev", "site"}
    assert not [name for name in sorted(users) if f"`{name}`" not in text]


def test_the_pinned_versions_are_allowed():
    pinned = dict(
        line.split()[0].split("==")
        for line in (SRC.parent / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line and not line.startswith("#")
    )
    pinned = {normalized(name): version for name, version in pinned.items()}
    lines = [*PROJECT["dependencies"], *(line for extra in PROJECT["optional-dependencies"].values() for line in extra)]
    requirements = [Requirement(line) for line in lines]
    refused = [str(one) for one in requirements if (v := pinned.get(normalized(one.name))) and v not in one.specifier]
    assert not refused


@pytest.mark.slow
def test_package_imports_with_its_declared_dependencies_alone(tmp_path):
    for name in declared_closure():
        for file in metadata.files(name) or []:
            top = file.parts[0]
            source, target = Path(str(metadata.distribution(name).locate_file(top))), tmp_path / top
            if top not in ("..", "__pycache__") and source.exists() and not target.exists():
                target.symlink_to(source)
    code = f"import sys; sys.path[:0] = [{str(SRC)!r}, {str(tmp_path)!r}]\n{IMPORT_ALL}"
    ran = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=250)
    assert ran.returncode == 0, ran.stderr
    modules = set(ran.stdout.split())
    assert "scipy" in modules
    assert not modules & {*EXTRAS, "starlette", "submitit", "uvicorn"}
