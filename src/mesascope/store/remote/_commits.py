"""Commits: numbered records of all files of a run, of which the newest whole one is the state of the run."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mesascope.checksums import RunError, check_record, parse_json, seal_record
from mesascope.store._files import do_nothing, to_json
from mesascope.store.remote._address import StorageError
from mesascope.store.remote._bucket import Bucket

COMMITS, FILES = "commits", "files"
_COMMIT_KEY = re.compile(rf"{COMMITS}/(\d{{8}})\.json")
_DIGEST = re.compile(r"[0-9a-f]{64}")
MAX_LISTINGS, MAX_READINGS = 4, 3  # before a commit is taken for damaged: it may be removed, or read in part
_HINT = "synchronise the run again from the machine that has its working copy"


@dataclass(frozen=True, kw_only=True)
class Commit:
    """The state of a run in shared storage.

    Attributes:
        number: The number of the commit, from 1.
        session: The writer: random digits, new for every process that writes.
        files: Size, SHA-256 and the name of the object of each file, by its path in the run.
    """

    number: int
    session: str
    files: Mapping[str, Mapping[str, Any]]

    @property
    def key(self) -> str:
        """The name of its object."""
        return format_commit_key(self.number)

    @property
    def objects(self) -> set[str]:
        """The names of the objects of its files."""
        return {entry["object"] for entry in self.files.values()}

    def encode(self) -> bytes:
        """Return the content of its object, which carries its own checksum."""
        return to_json(seal_record(self.as_json(), "commit")).encode()

    def as_json(self) -> dict[str, Any]:
        """Return its fields in JSON types."""
        return {"number": self.number, "session": self.session, "files": {k: dict(v) for k, v in self.files.items()}}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], source: Path) -> "Commit":
        """Return a commit from its verified fields.

        Args:
            value: The fields.
            source: Where they were read, for the message.

        Raises:
            RunError: If a path leaves the folder of the run, or a field is missing.
        """
        try:
            files = {str(path): _check_entry(str(path), entry) for path, entry in value["files"].items()}
            return cls(number=int(value["number"]), session=str(value["session"]), files=files)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunError(f"{source} must list files inside of the run, but does not ({error}); {_HINT}") from error


def format_commit_key(number: int) -> str:
    """Return the name of the object of a commit.

    Args:
        number: Its number.
    """
    return f"{COMMITS}/{number:08d}.json"


def list_commit_numbers(bucket: Bucket) -> list[int]:
    """Return the numbers of all commits that are stored, whole or torn, the newest first.

    Args:
        bucket: The objects of a run.
    """
    matches = map(_COMMIT_KEY.fullmatch, bucket.list_keys(COMMITS))
    return sorted((int(match[1]) for match in matches if match), reverse=True)


def read_newest_commit(bucket: Bucket, log: Callable[[str], None] = do_nothing) -> Commit | None:
    """Read the newest commit that is whole. A commit is whole or torn as its checksum says.

    Args:
        bucket: The objects of a run.
        log: Receives one line for each newer commit that is torn.

    Returns:
        The commit; None if there is none.

    Raises:
        StorageError: If there are commits, but none is whole.
    """
    for _ in range(MAX_LISTINGS):
        numbers = list_commit_numbers(bucket)
        commit, torn = _find_whole_commit(bucket, numbers)
        if commit is not None:
            for number in torn:
                log(f"{bucket.url}/{format_commit_key(number)} is not whole; the commit before it is used")
            return commit
        if not numbers:
            return None
    raise StorageError(f"a run must have a whole commit, but {bucket.url} has only damaged ones; {_HINT}")


def _find_whole_commit(bucket: Bucket, numbers: Sequence[int]) -> tuple[Commit | None, list[int]]:
    """Return the first whole commit, and the numbers of those before it that are stored but not whole."""
    torn = []
    for number in numbers:
        commit = read_commit(bucket, number)
        if commit is not None:
            return commit, torn
        torn += [number] if bucket.read(format_commit_key(number)) is not None else []  # else removed meanwhile
    return None, torn


def read_commit(bucket: Bucket, number: int) -> Commit | None:
    """Read and verify one commit.

    Args:
        bucket: The objects of a run.
        number: Its number.

    Returns:
        The commit; None if it is missing, torn or damaged.
    """
    source = Path(format_commit_key(number))
    for _ in range(MAX_READINGS):
        content = bucket.read(format_commit_key(number))
        if content is None:
            return None
        try:
            value = check_record(parse_json(content, source, _HINT), "commit", source, _HINT)
            commit = Commit.from_json(value, source)
        except RunError:
            continue
        return commit if commit.number == number else None
    return None


def _check_entry(path: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entry of a file; names that could leave a folder are refused."""
    for name, first in ((path, ""), (str(entry["object"]), FILES)):
        parts = PurePosixPath(name).parts
        plain = "/".join(parts) == name and not any(part.startswith(".") for part in parts) and "\\" not in name
        if not parts or not plain or (first and parts[0] != first):
            raise ValueError(f"the name {json.dumps(name)[:100]}")
    if not _DIGEST.fullmatch(entry["sha256"]) or not isinstance(entry["size"], int):
        raise ValueError(f"the checksum of {json.dumps(path)[:100]}")
    return {"sha256": entry["sha256"], "size": entry["size"], "object": entry["object"]}
