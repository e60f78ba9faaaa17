"""Which studies and tasks there are, read from their files without running them: listing needs no torch."""

import ast
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
        paper: who wrote what a study re-runs, and when.
        minutes: what a study costs on two cores, by scale.
    """

    kind: str
    name: str
    title: str
    file: Path
    paper: str = ""
    minutes: Mapping[str, float] = field(default_factory=dict)


def studies() -> list[Entry]:
    """All studies: the files beside this one that hold a ``STUDY``."""
    found = [_study(file) for file in sorted(FOLDER.glob("*/*.py"))]
    return [entry for entry in found if entry is not None]


def tasks() -> list[Entry]:
    """All tasks: the final classes in the files of the tasks package."""
    return [entry for file in sorted([*TASKS.glob("*.py"), *FOLDER.glob("*/*.py")]) for entry in _tasks(file)]


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
    if entry.file.parent.parent == FOLDER:
        return importlib.import_module(f"mesascope.studies.{entry.file.parent.name}.{entry.file.stem}").STUDY
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
    """What a file says of the study it holds, if it holds one; what it does not say, the study that it varies does."""
    statements = _parsed(file, "STUDY")
    for node in statements:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and _names(node) == ["STUDY"]:
            base = _varied(node.value, file)
            given = _constants(node.value)
            calls = [one for each in statements for one in ast.walk(each) if isinstance(one, ast.Call | ast.Dict)]
            return Entry(
                kind="study",
                name=str(given["name"]),
                title=str(given["title"]),
                file=file,
                paper=next(_papers(calls), base.paper if base else ""),
                minutes={**(base.minutes if base else {}), **dict(_costs(calls))},
            )
    return None


def _varied(call: ast.Call, file: Path) -> Entry | None:
    """The study that ``replace(other.STUDY, ...)`` starts from, where other is a file beside this one or of ours."""
    match call.args[:1]:
        case [ast.Attribute(value=ast.Name(id=module), attr="STUDY")]:
            places = (folder / f"{module}.py" for folder in (file.parent, FOLDER, FOLDER / module))
            return next((_study(place) for place in places if place.is_file()), None)
    return None


def _papers(calls: list[ast.Call | ast.Dict]) -> Iterator[str]:
    """Who wrote what is cited, and when, in a few words."""
    for call in calls:
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "Citation":
            given = _constants(call)
            names = [one.split(",")[0] for one in str(given["authors"]).split(" and ")]
            yield f"{names[0]} et al. {given['year']}" if len(names) > 2 else f"{' & '.join(names)} {given['year']}"


def _costs(calls: list[ast.Call | ast.Dict]) -> Iterator[tuple[str, float]]:
    """Minutes by scale, from ``{"laptop": Scale(..., minutes=5.0)}``."""
    for scales in calls:
        if isinstance(scales, ast.Dict):
            for key, value in zip(scales.keys, scales.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(value, ast.Call):
                    minutes = _constants(value).get("minutes")
                    if isinstance(minutes, int | float):
                        yield str(key.value), float(minutes)


def _constants(call: ast.Call) -> dict[str | None, Any]:
    """The arguments of a call that are written out."""
    return {given.arg: given.value.value for given in call.keywords if isinstance(given.value, ast.Constant)}


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
