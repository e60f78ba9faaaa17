"""Atomic writes, file locks and one-line errors for failures of the file system."""

import errno
import json
import math
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from mesascope.checksums import MANIFEST, RunError, add_to_manifest, hash_bytes
from mesascope.folder_locks import HOLDER_FILE, LOCK_FILE

LogFn = Callable[[str], None]

TEMP_PREFIX = ".tmp-"
SYNC_FOLDER = ".sync"  # in the working copy of a run in shared storage
_DISK_FULL_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TOO_MANY_FILES_ERRORS = {errno.EMFILE, errno.ENFILE}  # the lock of every cell of a grid is an open file


def do_nothing(*_: object) -> None:
    """Do nothing: the default callback.

    Args:
        *_: Ignored.
    """


@contextmanager
def replace_atomically(target: Path) -> Iterator[Path]:
    """Write a file or folder atomically: yield a temporary path, which is synced to disk and renamed on exit.

    After an error the temporary path is removed and the target is unchanged.

    Args:
        target: The final path; its parent folder is created if needed.

    Returns:
        A context manager that yields the temporary path to write to.

    Raises:
        RunError: If the file system refuses the write.
    """
    draft = target.parent / f"{TEMP_PREFIX}{uuid.uuid4().hex[:8]}-{target.name}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        _move_draft(draft, target)
    except Exception as error:
        if isinstance(error, OSError) or "os error" in str(error):  # safetensors raises its own exception type
            raise RunError(describe_os_error(target, error)) from error
        raise
    finally:
        remove_path(draft)
        remove_path(draft.with_suffix(".old"))


def _move_draft(draft: Path, target: Path) -> None:
    """Sync a draft to disk, then rename it to the target."""
    for file in [*draft.iterdir(), draft] if draft.is_dir() else [draft]:
        _sync_to_disk(file)
    if target.is_dir():
        os.replace(target, draft.with_suffix(".old"))
    os.replace(draft, target)
    _sync_to_disk(target.parent)


def remove_drafts(folder: Path) -> None:
    """Remove the temporary paths that killed processes have left in a folder; no other process may write to it.

    Args:
        folder: A folder, which need not exist.
    """
    for draft in folder.glob(f"{TEMP_PREFIX}*"):
        remove_path(draft)


def make_writable_folder(path: Path) -> None:
    """Create a writable folder, or raise if that is not possible.

    Args:
        path: The folder; existing ones are accepted.

    Raises:
        RunError: If ``path`` is a file, cannot be created, or is not writable.
    """
    if path.exists() and not path.is_dir():
        raise RunError(f"a run directory must be a folder, but {path} is a file; choose another directory")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(describe_os_error(path, error)) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise RunError(f"a run directory must be writable, but {path} is not; choose another directory")


def remove_path(path: Path) -> None:
    """Remove a file or a folder if it exists.

    Args:
        path: The file or folder.
    """
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def describe_os_error(path: Path, error: Exception) -> str:
    """Describe a file system error in one line.

    Args:
        path: The path that could not be written.
        error: The exception, from Python or from safetensors.

    Returns:
        The message of a `RunError`.
    """
    match = re.search(r"os error (\d+)", str(error))  # the form used by safetensors
    number = error.errno if isinstance(error, OSError) else match and int(match[1])
    if number in _DISK_FULL_ERRORS:
        return f"the disk must have room for {path}, but is full; free some space and run again to resume"
    if number in _TOO_MANY_FILES_ERRORS:
        return (
            f"the process must be able to open {path}, but too many files are open, one for each cell of a grid; raise "
            "the limit (`ulimit -n`), or run fewer cells at once"
        )
    reason = (error.strerror if isinstance(error, OSError) else None) or error
    return f"a run directory must be writable, but {path} is not: {reason}; choose another directory"


@contextmanager
def hold_lock(folder: Path, timeout: float) -> Iterator[None]:
    """Hold an exclusive lock on a folder; other processes can read which process holds it.

    Args:
        folder: The folder.
        timeout: How long to wait for the lock, in seconds.

    Returns:
        A context manager that holds the lock.

    Raises:
        RunError: If another process still holds the lock after the timeout, or the folder cannot be written.
    """
    lock = FileLock(folder / LOCK_FILE)
    _acquire_lock(lock, folder, timeout)
    try:
        (folder / HOLDER_FILE).write_text(str(os.getpid()), encoding="utf-8")
        yield
    finally:
        lock.release()


def _acquire_lock(lock: FileLock, folder: Path, timeout: float) -> None:
    holder = folder / HOLDER_FILE
    try:
        lock.acquire(timeout=timeout, poll_interval=0.05)
    except Timeout as error:
        process = holder.read_text(encoding="utf-8").strip() if holder.exists() else "unknown"
        raise RunError(
            f"a run must be used by one process at a time, but {folder} is in use by process {process}; "
            "wait for it, or choose another directory"
        ) from error
    except OSError as error:
        raise RunError(describe_os_error(folder, error)) from error


def to_json(value: object) -> str:
    """Convert a value to JSON; keys keep their order and non-finite numbers become null.

    Args:
        value: Mappings, sequences, numpy values, paths and scalars, nested in any way.

    Returns:
        The JSON text, indented, with a newline at the end.
    """
    return json.dumps(to_json_types(value), indent=2, allow_nan=False) + "\n"


def write_atomically(target: Path, content: str | bytes) -> None:
    """Write a whole file atomically.

    Args:
        target: The file.
        content: Text, written as UTF-8, or bytes.

    Raises:
        RunError: If the file system refuses the write.
    """
    with replace_atomically(target) as draft:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)


def write_listed(target: Path, content: bytes, run: Mapping[str, str]) -> None:
    """Write a file whose checksum the manifest of its folder has.

    Args:
        target: The file.
        content: Its content.
        run: The identity of the run.

    Raises:
        RunError: If the file system refuses the write.
    """
    manifest = add_to_manifest(target.parent, run, target.name, hash_bytes(content))
    write_atomically(target.parent / MANIFEST, to_json(manifest))
    write_atomically(target, content)


def to_json_types(value: Any) -> Any:
    """Return a value as JSON types; numbers that are not finite become null.

    Args:
        value: Mappings, sequences, numpy values, paths and scalars, nested in any way.
    """
    if isinstance(value, Mapping):
        return {str(key): to_json_types(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_json_types(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return to_json_types(value.tolist())
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _sync_to_disk(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
