"""The registry of studies and tasks. Names and summaries come from a generated file, so that they need no torch.

``python -m mesascope.studies.registry`` writes the file again (``make index``); a test compares it with the code.
"""

import importlib
import importlib.util
import json
import pkgutil
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any

from mesascope.studies.cell_names import parse_cell, split_reference
from mesascope.studies.summary import StudySummary, parse_summary, summarize_study

if TYPE_CHECKING:
    from mesascope.studies.base import Study

VALUE_PREFIX = "value:"  # of the reference of a study that is neither in the package nor in a file
_values: dict[str, "Study"] = {}
INDEX = Path(__file__).parent / "index.json"
PACKAGES = ("mesascope.studies", "mesascope.tasks")
ENTRY_POINT_GROUP = "mesascope.studies"


class UnknownStudy(ValueError):  # noqa: N818  it says what happened
    """There is no study of this name."""


class InvalidStudyFile(ValueError):  # noqa: N818  it says what happened
    """The file of a study cannot be run; the message names the line and the error."""


class InvalidStudyPackage(ValueError):  # noqa: N818  it says what happened
    """The study of an installed package cannot be loaded; the message names the package and the error."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A study or a task in the index.

    Attributes:
        kind: ``study`` or ``task``.
        name: its name.
        title: one line.
        module: where it is defined.
        paper: authors and year of the paper that a study re-runs.
        minutes: what a study costs on two cores, by scale.
        summary: of a study; none of a task.
    """

    kind: str
    name: str
    title: str
    module: str
    paper: str = ""
    minutes: Mapping[str, float] = field(default_factory=dict)
    summary: StudySummary | None = None


def list_studies() -> list[Entry]:
    """Return all studies, by name of their module."""
    return [entry for entry in _read_index() if entry.kind == "study"]


def list_tasks() -> list[Entry]:
    """Return all tasks, by name of their module."""
    return [entry for entry in _read_index() if entry.kind == "task"]


def load_study(name: str) -> "Study":
    """Import a study; this imports torch.

    Args:
        name: of a study of the package, or of an entry point of an installed package in the group
            ``mesascope.studies``, or a ``.py`` file that holds ``STUDY``; ``NAME[FACTOR=LEVEL,...]`` is a study in one
            cell of its factors.

    Returns:
        the study.

    Raises:
        UnknownStudy: there is no such study; the message lists those there are.
        InvalidStudyFile: the file cannot be run, or its ``STUDY`` is no study.
        InvalidStudyPackage: an installed package cannot be imported, or its entry point is no study.
        ValueError: the study has no such factor or level.
    """
    name, cell = split_reference(name)
    study = _load_file(name) if name.endswith(".py") else _load_named(name)
    return study.at_cell(parse_cell(cell)) if cell else study


@contextmanager
def hold_value(study: "Study") -> Iterator[str]:
    """Let `load_study` return a study that is a value, in this process and inside the ``with`` block.

    Args:
        study: the study.

    Yields:
        its reference, to be passed to `load_study`.
    """
    reference = f"{VALUE_PREFIX}{study.name}"
    _values[reference] = study
    try:
        yield reference
    finally:
        del _values[reference]


def load_summary(name: str) -> StudySummary:
    """Return the summary of a study; for a study of the package this imports no torch.

    Args:
        name: of a study, or a ``.py`` file that holds ``STUDY``.

    Returns:
        the summary.

    Raises:
        UnknownStudy: there is no such study; the message lists those there are.
    """
    entry = next((one for one in list_studies() if one.name == name), None)
    return entry.summary if entry and entry.summary else summarize_study(load_study(name))


def build_index() -> list[Entry]:
    """Import all studies and tasks of the package and return their entries."""
    modules = [module for package in PACKAGES for module in _import_all(package)]
    studies = [_study_entry(module.STUDY, module.__name__) for module in modules if hasattr(module, "STUDY")]
    tasks = [_task_entry(cls) for module in modules for cls in vars(module).values() if _is_task_of(cls, module)]
    return [*studies, *tasks]


def write_index() -> None:
    """Write the index file again."""
    from mesascope.store import write_atomically  # imports much that `mesascope list` does not need

    rows = [asdict(entry) for entry in build_index()]
    write_atomically(INDEX, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")


def _read_index() -> list[Entry]:
    rows = json.loads(INDEX.read_text(encoding="utf-8"))
    return [Entry(**{**row, "summary": row["summary"] and parse_summary(row["summary"])}) for row in rows]


def list_installed_studies() -> list[EntryPoint]:
    """Return the studies of installed packages: their entry points in the group ``mesascope.studies``, by name.

    An entry point with the name of a study of this package is left out.
    """
    own = {entry.name for entry in list_studies()}
    points = [point for point in entry_points(group=ENTRY_POINT_GROUP) if point.name not in own]
    return sorted(points, key=lambda point: point.name)


def _load_named(name: str) -> "Study":
    """Return a study that is a value, or import one of this package or of an installed one."""
    if name in _values:
        return _values[name]
    entries = {entry.name: entry for entry in list_studies()}
    if name in entries:
        return importlib.import_module(entries[name].module).STUDY
    points = {point.name: point for point in list_installed_studies()}
    if name in points:
        return _load_entry_point(points[name])
    raise UnknownStudy(
        f"a study must be one of {', '.join([*entries, *points])}, or a .py file that defines STUDY, but got {name!r}"
    )


def _load_entry_point(point: EntryPoint) -> "Study":
    """Import the study of an installed package."""
    package = point.dist.name if point.dist else point.value
    try:
        study = point.load()
    except Exception as error:  # any error of another package
        raise InvalidStudyPackage(
            f"the study {point.name!r} of {package} must be importable, but fails with "
            f"{type(error).__name__}: {error}; set MESASCOPE_DEBUG=1 to see the traceback"
        ) from error
    if not isinstance(study, importlib.import_module("mesascope.studies.base").Study):
        raise InvalidStudyPackage(
            f"the study {point.name!r} of {package} must be a mesascope.studies.base.Study, but {point.value} is of "
            f"type {type(study).__name__}"
        )
    return study


def _import_all(package: str) -> list[ModuleType]:
    root = importlib.import_module(package)
    names = sorted(info.name for info in pkgutil.walk_packages(root.__path__, f"{package}."))
    return [importlib.import_module(name) for name in names]


def _study_entry(study: "Study", module: str) -> Entry:
    return Entry(
        kind="study",
        name=study.name,
        title=study.title,
        module=module,
        paper=study.citation.short,
        minutes=dict(study.minutes),
        summary=summarize_study(study),
    )


def _is_task_of(cls: Any, module: ModuleType) -> bool:
    final = isinstance(cls, type) and getattr(cls, "__final__", False) and cls.__module__ == module.__name__
    return final and issubclass(cls, importlib.import_module("mesascope.tasks.base").Task)


def _task_entry(task: type) -> Entry:
    return Entry(
        kind="task", name=task.__name__, title=(task.__doc__ or "").strip().split("\n")[0], module=task.__module__
    )


class _SourceLoader(SourceFileLoader):
    """Compiles the file anew: kept bytecode is that of an earlier text if both have one size and one second."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _load_file(name: str) -> "Study":
    """Load a user's file as a module, under a name that child processes can find again."""
    file = Path(name)
    if not file.is_file():
        raise UnknownStudy(f"the file of a study must exist, but {name} does not exist; check the path")
    module_name = f"mesascope_user_{file.stem}"
    if file.suffix != ".py":
        raise UnknownStudy(f"the file of a study must be Python, but {name} is not")
    loader = _SourceLoader(module_name, str(file.resolve()))
    spec = ModuleSpec(module_name, loader, origin=loader.path)
    spec.has_location = True
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        loader.exec_module(module)
    except (Exception, SystemExit) as error:  # any error of the user's code
        del sys.modules[module_name]
        raise InvalidStudyFile(
            f"the file of a study must run, but {name} {_locate_error(error, file)}; correct it, or set "
            "MESASCOPE_DEBUG=1 to see the traceback"
        ) from error
    if not hasattr(module, "STUDY"):
        raise UnknownStudy(f"the file of a study must define STUDY = ..., but {name} does not")
    if not isinstance(module.STUDY, importlib.import_module("mesascope.studies.base").Study):
        raise InvalidStudyFile(
            f"STUDY must be a mesascope.studies.base.Study, but in {name} it is of type {type(module.STUDY).__name__}"
        )
    return module.STUDY


def _locate_error(error: BaseException, file: Path) -> str:
    """Return the last line of the file that an error came from, and the error."""
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file.resolve())
    ]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    where = f"fails at line {line}" if line else "fails"
    return f"{where} with {type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}"


if __name__ == "__main__":
    write_index()
