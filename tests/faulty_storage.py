"""Shared storage in memory whose calls fail as they do on a network: before, after or in the middle of their effect."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

PROTOCOL = "faulty"
WRITES = ("put_file", "pipe_file")
READS = ("cat_file", "get_file")
KINDS = ("timeout", "answer lost", "error 500", "torn", "torn in silence")


@dataclass
class Faults:
    """What fails: the call of this index, counted from 0, and all later ones if it is an outage."""

    kind: str = ""
    index: int = -1
    is_outage: bool = False
    calls: int = 0
    names: tuple[str, ...] = ()

    def count_call(self, name: str) -> bool:
        """Count a call, and return whether it fails."""
        fails = bool(self.kind) and (self.calls == self.index or (self.is_outage and self.calls > self.index))
        self.calls, self.names = self.calls + 1, (*self.names, name)
        return fails


class FaultyStorage(MemoryFileSystem):
    """A file system in memory; `faults` says which of its calls fail, and how."""

    protocol = PROTOCOL
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    faults: ClassVar[Faults] = Faults()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path.replace(f"{PROTOCOL}://", "memory://"))

    def find(self, path: str, **options: Any) -> Any:
        return self._call("find", path, **options)

    def cat_file(self, path: str, **options: Any) -> Any:
        return self._call("cat_file", path, **options)

    def get_file(self, rpath: str, lpath: str, **options: Any) -> Any:
        return self._call("get_file", rpath, lpath, **options)

    def put_file(self, lpath: str, rpath: str, **options: Any) -> Any:
        return self._call("put_file", lpath, rpath, **options)

    def pipe_file(self, path: str, value: bytes, **options: Any) -> Any:
        return self._call("pipe_file", path, value, **options)

    def rm_file(self, path: str) -> Any:
        return self._call("rm_file", path)

    def _call(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Call the method of memory, with the effect of the fault that is due."""
        method, faults = getattr(super(), name), self.faults
        fails = faults.count_call(name)
        faults_before, FaultyStorage.faults = faults, Faults()  # the methods of memory call each other
        try:
            if not fails or (faults.kind.startswith("torn") and name not in WRITES + READS):
                return method(*arguments, **options)
            return self._fail(faults.kind, name, method, *arguments, **options)
        finally:
            FaultyStorage.faults = faults_before

    def _fail(self, kind: str, name: str, method: Any, *arguments: Any, **options: Any) -> Any:
        if kind == "error 500":
            raise OSError(5, "We encountered an internal error with SECRET. Please try again.")
        if kind == "timeout":
            raise TimeoutError("https://user:SECRET@host")
        answer = method(*arguments, **options)
        if kind == "answer lost":
            raise TimeoutError("https://user:SECRET@host")
        if name == "cat_file":
            return answer[: len(answer) // 2]
        if name == "get_file":
            content = Path(arguments[1]).read_bytes()
            Path(arguments[1]).write_bytes(content[: len(content) // 2])
        else:
            path = self._strip_protocol(arguments[1] if name == "put_file" else arguments[0])
            content = self.store[path].getvalue()
            self.store[path].seek(0)
            self.store[path].truncate(len(content) // 2)
        if kind == "torn":
            raise ConnectionResetError("SECRET")
        return answer


@contextmanager
def inject(kind: str = "", index: int = -1, *, is_outage: bool = False) -> Iterator[Faults]:
    """Let one call fail, or also all later ones; yields the count of calls."""
    FaultyStorage.faults = faults = Faults(kind=kind, index=index, is_outage=is_outage)
    try:
        yield faults
    finally:
        FaultyStorage.faults = Faults()


def empty_storage() -> None:
    """Remove all objects."""
    fsspec.register_implementation(PROTOCOL, FaultyStorage, clobber=True)
    FaultyStorage.store.clear()
    FaultyStorage.pseudo_dirs[:] = [""]
    with suppress(KeyError):
        FaultyStorage.clear_instance_cache()
