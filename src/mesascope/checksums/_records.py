"""Records: JSON objects that carry their own checksum, and the errors of damaged files."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FORMAT = 2  # version of the format of run directories; the first had checksums of checkpoints only
IDENTITY_KEYS = ("study", "scale", "cell")


class RunError(ValueError):
    """Raised when a run directory cannot be used or written; the message says why and what to do."""


class DamagedFile(RunError):  # noqa: N818  the name states the event
    """Raised when a file differs from its checksum; the message names the file."""


class OlderFormat(RunError):  # noqa: N818  the name states the event
    """Raised for a file of an earlier version of the format, which has no checksum."""


def identify_run(record: Mapping[str, Any]) -> dict[str, str]:
    """Return what tells a run from others: study, scale, cell, and when it was started.

    Args:
        record: The content of ``run.json``.

    Returns:
        Texts by name, which its manifests repeat.
    """
    provenance = record.get("provenance")
    started = provenance.get("started", "") if isinstance(provenance, Mapping) else ""
    return {**{key: str(record.get(key, "")) for key in IDENTITY_KEYS}, "started": str(started)}


def is_older_format(record: Mapping[str, Any]) -> bool:
    """Return whether a record was written before files had checksums.

    Args:
        record: The content of ``run.json``, with or without its checksum.
    """
    return "format" not in record and "sha256" not in record


def hash_file(file: Path) -> dict[str, str | int]:
    """Return the SHA-256 digest (hex) and the size in bytes of a file.

    Args:
        file: The file.
    """
    with file.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    return {"sha256": digest, "size": file.stat().st_size}


def hash_bytes(content: bytes | memoryview) -> dict[str, str | int]:
    """Return the SHA-256 digest (hex) and the size in bytes of the content of a file.

    Args:
        content: The bytes.
    """
    return {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}


def seal_record(record: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Add the format version, the kind and the checksum to a record.

    Args:
        record: JSON types, without numbers that are not finite.
        kind: What is recorded, such as ``run``; so that a record is not taken for one of another kind.

    Returns:
        The record with ``format`` and ``kind`` first and ``sha256`` last.
    """
    content = {"format": FORMAT, "kind": kind, **{k: v for k, v in record.items() if k != "format"}}
    return {**content, "sha256": _hash_values(content)}


def check_record(value: Any, kind: str, file: Path, hint: str) -> dict[str, Any]:
    """Return a record without its kind and its checksum, after verifying both.

    Args:
        value: The decoded content of the file.
        kind: The kind that it must have.
        file: Its path, for the message.
        hint: What to do if it is damaged.

    Returns:
        The record; ``format`` remains.

    Raises:
        DamagedFile: If it is no JSON object or differs from its checksum.
        OlderFormat: If it has neither a format version nor a checksum.
    """
    if not isinstance(value, dict):
        raise DamagedFile(f"{file} must be a JSON object, but is {describe_json_type(value)}; {hint}")
    if is_older_format(value):
        raise OlderFormat(f"{file} must have a checksum, but was written by an older version without one; {hint}")
    content = {key: item for key, item in value.items() if key != "sha256"}
    if value.get("sha256") != _hash_values(content):
        raise DamagedFile(f"{file} must match its checksum, but differs; {hint}")
    if content.pop("kind", None) != kind:
        raise DamagedFile(f"{file} must be the record of a {kind}, but is that of something else; {hint}")
    if content.get("format") != FORMAT:
        raise OlderFormat(f"{file} must have format {FORMAT}, but has {content.get('format')!r}; {hint}")
    return content


def check_origin(found: Mapping[str, Any], expected: Mapping[str, Any], file: Path, kind: str, hint: str) -> None:
    """Check that a verified record belongs to the place where it was found.

    Args:
        found: The record.
        expected: What it must say of its origin, such as ``run``, ``name`` or ``step``.
        file: Its path, for the message.
        kind: What it is, for the message.
        hint: What to do if it is that of another.

    Raises:
        DamagedFile: If it says anything else.
    """
    for key, value in expected.items():
        if found.get(key) != value:
            own, other = ("this run", "another") if key == "run" else (f"{key} {value!r}", repr(found.get(key)))
            raise DamagedFile(f"{file} must be the {kind} of {own}, but is that of {other}; {hint}")


def parse_json(content: bytes | str, file: Path, hint: str) -> Any:
    """Return decoded JSON.

    Args:
        content: The content of the file.
        file: Its path, for the message.
        hint: What to do if it is damaged.

    Raises:
        DamagedFile: If it is no JSON, or is nested too deeply.
    """
    try:
        return json.loads(content)
    except RecursionError as error:
        raise DamagedFile(f"{file} must be JSON, but is nested too deeply; {hint}") from error
    except ValueError as error:
        raise DamagedFile(f"{file} must be JSON, but cannot be read ({error}); {hint}") from error


def read_record(file: Path, kind: str, hint: str) -> dict[str, Any]:
    """Read a record and verify it.

    Args:
        file: The file.
        kind: The kind that it must have.
        hint: What to do if it is damaged.

    Returns:
        The record without its checksum.

    Raises:
        DamagedFile: If it is missing, cannot be read, or differs from its checksum.
        OlderFormat: If it has no checksum.
    """
    return check_record(parse_json(read_bytes(file, hint), file, hint), kind, file, hint)


def read_bytes(file: Path, hint: str) -> bytes:
    """Return the content of a file.

    Args:
        file: The file.
        hint: What to do if it cannot be read.

    Raises:
        DamagedFile: If it is missing or cannot be read.
    """
    try:
        return file.read_bytes()
    except FileNotFoundError as error:
        raise DamagedFile(f"{file} must exist, but is missing; {hint}") from error
    except OSError as error:
        raise DamagedFile(f"{file} must be readable, but is not: {error.strerror}; {hint}") from error


def describe_json_type(value: Any) -> str:
    """Return the JSON name of the type of a value.

    Args:
        value: The decoded value.

    >>> describe_json_type(None), describe_json_type([1]), describe_json_type(5)
    ('null', 'an array', 'a number')
    """
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _hash_values(content: Mapping[str, Any]) -> str:
    try:
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    except RecursionError:
        return ""  # too deep to be a record of ours: equal to no checksum
    return hashlib.sha256(text.encode()).hexdigest()
