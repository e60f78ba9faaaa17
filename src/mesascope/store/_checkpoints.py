"""Checkpoints with a manifest of sizes and SHA-256 digests, so that damaged files are detected and named."""

import hashlib
import json
from pathlib import Path

from mesascope.store._files import LogFn, RunError, remove_path, to_json

MANIFEST = "checkpoint.json"


class CheckpointDamaged(RunError):  # noqa: N818  the name states the event
    """Raised when a checkpoint does not match its manifest; the message names the file and the reason."""


def verify_checkpoint(path: Path) -> int:
    """Verify a checkpoint against its manifest.

    Args:
        path: The checkpoint folder.

    Returns:
        The optimizer step of the checkpoint.

    Raises:
        CheckpointDamaged: If the manifest is unreadable, or a file is missing or differs from it.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        files, step = manifest["files"], int(manifest["step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointDamaged(f"{path / MANIFEST} must list the checkpoint's files, but cannot be read") from error
    for name, expected in files.items():
        _verify_file(path / name, expected)
    return step


def _verify_file(file: Path, expected: dict[str, str | int]) -> None:
    if not file.is_file():
        raise CheckpointDamaged(f"{file} must exist, but is missing")
    if file.stat().st_size != expected["size"]:
        raise CheckpointDamaged(f"{file} must have {expected['size']} bytes, but has {file.stat().st_size}")
    if _checksum_file(file) != expected:
        raise CheckpointDamaged(f"{file} must match its manifest, but its SHA-256 differs")


def write_manifest(path: Path, step: int) -> None:
    """Write the manifest of all files in a checkpoint folder.

    Args:
        path: The checkpoint folder.
        step: The optimizer step of the checkpoint.
    """
    files = {file.name: _checksum_file(file) for file in sorted(path.iterdir())}
    (path / MANIFEST).write_text(to_json({"step": step, "files": files}))


def verify_or_remove(path: Path, log: LogFn) -> int | None:
    """Verify a checkpoint and remove it if it is damaged.

    Args:
        path: The checkpoint folder.
        log: Receives one line if the checkpoint is removed.

    Returns:
        The optimizer step, or None if the checkpoint does not exist or was damaged.
    """
    if not path.exists():
        return None
    try:
        return verify_checkpoint(path)
    except CheckpointDamaged as damage:
        log(f"{damage}; this checkpoint is removed, and training resumes from the previous one")
        remove_path(path)
        return None


def _checksum_file(file: Path) -> dict[str, str | int]:
    """Return the SHA-256 digest (hex) and the size in bytes of a file."""
    with file.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    return {"sha256": digest, "size": file.stat().st_size}
