"""Does something at the n-th change of the file system below a folder, by a hook on Python's audit events."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}
REMOVALS = {"os.remove", "os.rmdir"}
Action = Callable[[str, str], None]  # receives the event and the path


class FileEvents:
    """Counts the changes of files below a folder, and calls an action from one of them on.

    Audit hooks cannot be removed, so this belongs in a process of its own.

    Args:
        folder: Only files below it are counted.
        first: The number of the first change at which the action is called, from 0.
        action: Called before each change from the first one on; what it raises, the changing call raises.
    """

    def __init__(self, folder: Path, first: int, action: Action) -> None:
        self.folder, self.first, self.action, self.count = str(folder), first, action, 0
        sys.addaudithook(self._receive)

    def _receive(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in CHANGES or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        path = os.fsdecode(arguments[0])
        if not path.startswith(self.folder) or (event == "open" and not _writes(arguments)):
            return
        number, self.count = self.count, self.count + 1
        if number >= self.first:
            self.action(event, path)


def _writes(arguments: tuple[Any, ...]) -> bool:
    """Whether a call of ``open`` or ``os.open`` may change a file."""
    mode, flags = arguments[1], arguments[2]
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
