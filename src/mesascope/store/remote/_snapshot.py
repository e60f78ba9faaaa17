"""Snapshots of the files of a run that may be written meanwhile: staged unit by unit, and verified."""

import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mesascope.checksums import RunError, hash_file
from mesascope.store._files import remove_path
from mesascope.store._verify import verify_run
from mesascope.store.remote._fetch import list_files

_SEED = re.compile(r"((?:cells/[^/]+/)?)models/(?:[^/]+/)?seed=\d+/")
_REPLACED_WHOLE = {".safetensors", ".nc", ".part"}  # never changed in place, so that a hard link is a copy
_APPENDED = re.compile(r"/log\.csv$|/history/")  # staged after the records that cover them, which may cover less
MAX_STAGINGS = 4  # of a unit that changes while it is staged
Signature = tuple[int, int, int]


@dataclass(kw_only=True)
class Snapshot:
    """Verified copies of those files of a run that may have changed.

    Attributes:
        staged: The copies, with their checksums, by path in the run.
        units: The signatures of all files, by unit; a unit has the same ones as long as none of its files is written.
        held_back: Units that could not be copied whole, with the reason.
    """

    staged: dict[str, tuple[Path, dict[str, str | int]]] = field(default_factory=dict)
    units: dict[str, dict[str, Signature]] = field(default_factory=dict)
    held_back: dict[str, str] = field(default_factory=dict)


def take_snapshot(folder: Path, stage: Path, earlier: Mapping[str, Mapping[str, Signature]]) -> Snapshot:
    """Copy the units of a run that have changed, and verify each copy.

    A unit is the folder of one seed, or everything else. A job writes the folder of a seed at any time, so its copy is
    verified like a run, and taken again if it is not whole.

    Args:
        folder: The run.
        stage: An empty folder on the same disk.
        earlier: The signatures of an earlier snapshot, whose units are not copied again.

    Returns:
        The snapshot.
    """
    snapshot = Snapshot()
    for number, unit in enumerate(sorted(_list_units(folder))):  # "" is first: results are never newer than models
        problem = ""
        for attempt in range(MAX_STAGINGS):
            signatures = _list_units(folder).get(unit, {})
            if earlier.get(unit) == signatures:
                snapshot.units[unit] = signatures
                break
            target = stage / f"{number}-{attempt}"
            problem = _stage_unit(folder, unit, signatures, target)
            if not problem:
                paths = {path: target / _staged_path(unit, path) for path in signatures}
                snapshot.staged |= {path: (file, hash_file(file)) for path, file in paths.items()}
                snapshot.units[unit] = signatures
                break
            remove_path(target)
        else:
            snapshot.held_back[unit] = problem
    return snapshot


def _list_units(folder: Path) -> dict[str, dict[str, Signature]]:
    """Return the signatures of all files by unit and path."""
    units: dict[str, dict[str, Signature]] = {}
    for file in list_files(folder):
        path = file.relative_to(folder).as_posix()
        match = _SEED.match(path)
        try:
            status = file.stat()
        except FileNotFoundError:
            continue  # replaced or removed since it was listed
        units.setdefault(match[0] if match else "", {})[path] = (status.st_size, status.st_mtime_ns, status.st_ino)
    return units


def _stage_unit(folder: Path, unit: str, paths: Iterable[str], target: Path) -> str:
    """Copy the files of a unit and verify the copy as a run; return the first problem, or an empty text."""
    match = _SEED.match(unit)
    origin = folder / match[1] if match else folder
    try:
        if match:
            _copy_file(origin / "run.json", target / "run.json")
        for path in sorted(paths, key=lambda path: bool(_APPENDED.search(path))):
            _copy_file(folder / path, target / _staged_path(unit, path))
        return next(iter(verify_run(target).problems), "").replace(f"{target}", f"{origin}")
    except FileNotFoundError as error:
        return f"{error.filename} must exist, but is missing"
    except RunError as error:
        return str(error).replace(f"{target}", f"{origin}")


def _staged_path(unit: str, path: str) -> str:
    """Return where a file is staged: models of a cell are those of a run of their own."""
    match = _SEED.match(unit)
    return path.removeprefix(match[1]) if match else path


def _copy_file(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix in _REPLACED_WHOLE and not _APPENDED.search(f"/{file.as_posix()}"):
        try:
            os.link(file, target)
            return
        except FileNotFoundError:
            raise
        except OSError:
            pass  # a file system without hard links
    shutil.copyfile(file, target)
