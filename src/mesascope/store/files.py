"""Writes that a kill cannot spoil, and one clear line for what the operating system refuses."""

import errno
import fcntl
import json
import math
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

Say = Callable[[str], None]

DRAFT = ".tmp-"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class RunError(ValueError):
    """A run directory cannot be used or written as asked; one line says why and what to do."""


def ignore(*_: object) -> None:
    """A callback that does nothing."""


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary name whose file or folder takes the target's place; after an error nothing of it remains."""
    draft = target.parent / f"{DRAFT}{uuid.uuid4().hex[:8]}-{target.name}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        for file in [*draft.iterdir(), draft] if draft.is_dir() else [draft]:
            _sync(file)
        if target.is_dir():
            os.replace(target, draft.with_suffix(".old"))
        os.replace(draft, target)
        _sync(target.parent)
    except Exception as error:
        if isinstance(error, OSError) or "os error" in str(error):  # safetensors has its own exception
            raise RunError(why(target, error)) from error
        raise
    finally:
        remove(draft)
        remove(draft.with_suffix(".old"))


def make_folder(path: Path) -> None:
    """Make a folder that can be written, or say why not."""
    if path.exists() and not path.is_dir():
        raise RunError(f"a run directory must be a folder, but {path} is a file; choose another directory")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(why(path, error)) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise RunError(f"a run directory must be writable, but {path} is not; choose another directory")


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def why(path: Path, error: Exception) -> str:
    """One line for an error of the operating system at ``path``."""
    told = re.search(r"os error (\d+)", str(error))  # how safetensors says it
    number = error.errno if isinstance(error, OSError) else told and int(told[1])
    if number in _FULL:
        return f"the disk must have room for {path}, but is full; free some and run again: the run resumes"
    reason = (error.strerror if isinstance(error, OSError) else None) or error
    return f"a run directory must be writable, but {path} is not: {reason}; choose another directory"


def take(handle: IO[str], folder: Path, until: float) -> None:
    """Take an exclusive lock and leave our process id in the file."""
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if time.monotonic() > until:
                handle.seek(0)
                holder = handle.read().strip() or "unknown"
                raise RunError(
                    f"a run is written by one process at a time, but {folder} is in use by process {holder}; "
                    "wait for it, or choose another directory"
                ) from error
            time.sleep(0.05)
    handle.seek(0)
    handle.truncate()
    handle.write(str(os.getpid()))
    handle.flush()


def to_json(value: object) -> str:
    """JSON with sorted-as-given keys; see :meth:`Run.write_json`."""
    return json.dumps(_plain(value), indent=2, allow_nan=False) + "\n"


def read_json(file: Path) -> Any:
    """What a JSON file holds."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{file} must be there, but is missing; run the study first") from error
    except (OSError, ValueError) as error:
        raise RunError(
            f"{file} must be JSON, but cannot be read ({error}); restore it, or delete the folder and run again"
        ) from error


def _plain(value: Any) -> Any:
    """The same in JSON's types."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
