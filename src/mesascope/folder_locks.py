"""Names of the files that lock a folder, and the question which process holds a lock."""

import fcntl
import os
from pathlib import Path

LOCK_FILE, HOLDER_FILE = ".lock", ".lock-holder"


def find_lock_holder(folder: Path) -> str | None:
    """Return the process that holds the lock of a folder, without taking the lock.

    Args:
        folder: The folder.

    Returns:
        The number of the process, which may run on another machine, or ``unknown``; None if the folder is not locked.
    """
    try:
        handle = os.open(folder / LOCK_FILE, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # which the process that holds the lock makes fail
    except BlockingIOError:
        return _read_holder(folder)
    finally:
        os.close(handle)
    return None


def _read_holder(folder: Path) -> str:
    try:
        return (folder / HOLDER_FILE).read_text(encoding="utf-8").strip() or "unknown"
    except OSError:
        return "unknown"
