"""Checkpoints with a manifest, so that a damaged one is known by name."""

import hashlib
import json
from pathlib import Path

from mesascope.store.files import RunError, Say, remove

MANIFEST = "checkpoint.json"


class CheckpointDamaged(RunError):  # noqa: N818  it says what happened
    """A checkpoint is not what its manifest says; names the file and the reason."""


def verify(path: Path) -> int:
    """Check a checkpoint against its manifest, and give its step.

    Raises:
        CheckpointDamaged: names the file and the reason.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        files, step = manifest["files"], int(manifest["step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointDamaged(f"{path / MANIFEST} must list the checkpoint's files, but cannot be read") from error
    for name, written in files.items():
        file = path / name
        if not file.is_file():
            raise CheckpointDamaged(f"{file} must be there, but is missing")
        if file.stat().st_size != written["size"]:
            raise CheckpointDamaged(f"{file} must have {written['size']} bytes, but has {file.stat().st_size}")
        if fingerprint(file) != written:
            raise CheckpointDamaged(f"{file} must be as it was written, but its SHA-256 differs")
    return step


def verified_or_removed(path: Path, say: Say) -> int | None:
    """The checkpoint's step, or None if it is not there or was damaged."""
    if not path.exists():
        return None
    try:
        return verify(path)
    except CheckpointDamaged as damage:
        say(f"{damage}; this checkpoint is removed and trained again from the one before")
        remove(path)
        return None


def fingerprint(file: Path) -> dict[str, str | int]:
    """Size in bytes and SHA-256."""
    with file.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    return {"sha256": digest, "size": file.stat().st_size}
