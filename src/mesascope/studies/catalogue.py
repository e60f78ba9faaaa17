"""Which studies and tasks there are, read from their files without running them: listing needs no torch."""

import ast
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
TASKS = FOLDER.parent / "tasks"


class UnknownStudy(ValueError):  # noqa: N818  it says what happened
    """There is no study of this name."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A study or a task as its file names it.

    Attributes:
        kind: ``study`` or ``task``.
        name: how it is called.
        title: one line.
        file: where it is written.
    """

    kind: str
    name: str
    title: str
    file: Path


def studies() -> list[Entry]:
    """All studies: the files beside this one that hold a ``STUDY``."""
    found = [_study(file) for file in sorted(FOLDER.glob("*.py"))]
    return [entry for entry in found if entry is not None]


def tasks() -> list[Entry]:
    """All tasks: the final classes in the files of the tasks package."""
    return [entry for file in sorted(TASKS.glob("*.py")) for entry in _tasks(file)]


def find(name: str) -> Entry:
    """The study of this name, or in this file.

    Raises:
        UnknownStudy: neither; the line lists the studies there are.
    """
    if name.endswith(".py"):
        entry = _study(Path(name)) if Path(name).is_file() else None
        if entry is None:
            raise UnknownStudy(f"a study's file must exist and hold STUDY = ..., but {name} does not")
        return entry
    known = {entry.name: entry for entry in studies()}
    if name not in known:
        raise UnknownStudy(
            f"a study must be one of {', '.join(known)}, or a .py file that holds STUDY, but got {name!r}"
        )
    return known[name]


def load(name: str):
    """Import a study; this imports torch.

    Args:
        name: of a study, or a ``.py`` file that holds ``STUDY``.

    Returns:
        The :class:`mesascope.studies.base.Study`.
    """
    entry = find(name)
    if entry.file.parent == FOLDER:
        return importlib.import_module(f"mesascope.studies.{entry.file.stem}").STUDY
    return _load_file(entry.file.resolve()).STUDY


def _load_file(file: Path):
    """A user's file as a module, under a name that child processes can find again."""
    name = f"mesascope_user_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UnknownStudy(f"a study's file must be Python, but {file} is not")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _study(file: Path) -> Entry | None:
    """What a file says of the study it holds, if it holds one."""
    for node in _parsed(file, "STUDY"):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and _names(node) == ["STUDY"]:
            given = {k.arg: k.value.value for k in node.value.keywords if isinstance(k.value, ast.Constant)}
            return Entry(kind="study", name=str(given["name"]), title=str(given["title"]), file=file)
    return None


def _parsed(file: Path, word: str) -> list[ast.stmt]:
    """The statements of a file that has this word in it; none of another, which need not be parsed."""
    text = file.read_text(encoding="utf-8")
    return ast.parse(text).body if word in text else []


def _names(node: ast.Assign) -> list[str]:
    """The names that an assignment binds."""
    return [target.id for target in node.targets if isinstance(target, ast.Name)]


def _tasks(file: Path) -> Iterator[Entry]:
    """The final classes of a file, with the first sentence of what they say of themselves."""
    for node in _parsed(file, "@final"):
        if isinstance(node, ast.ClassDef) and any(getattr(d, "id", "") == "final" for d in node.decorator_list):
            title = (ast.get_docstring(node) or "").split("\n")[0]
            yield Entry(kind="task", name=node.name, title=title, file=file)
