"""Checkpoints with a manifest of sizes and SHA-256 digests, so that damaged files are detected and named."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mesascope.checksums import DamagedFile, check_origin, hash_file, read_record, seal_record
from mesascope.store._files import LogFn, remove_path, to_json

CHECKPOINT_FILE = "checkpoint.json"


class CheckpointDamaged(DamagedFile):
    """Raised when a checkpoint does not match its manifest; the message names the file and the reason."""


def verify_checkpoint(path: Path, identity: Mapping[str, Any] | None = None) -> int:
    """Verify a checkpoint against its manifest.

    Args:
        path: The checkpoint folder.
        identity: What the manifest must say of its origin (study, condition, seed, step); not checked if None.

    Returns:
        The optimizer step of the checkpoint.

    Raises:
        CheckpointDamaged: If the manifest is damaged, or a file is missing or differs from it.
        DamagedFile: If it is the checkpoint of another training or step.
        RunError: If it is that of an earlier version.
    """
    hint = f"delete {path} and run again to train from the checkpoint before it"
    try:
        manifest = read_record(path / CHECKPOINT_FILE, "checkpoint", hint)
        files, step = manifest["files"], int(manifest["step"])
    except DamagedFile as error:
        raise CheckpointDamaged(str(error)) from error
    check_origin(manifest, identity or {}, path, "checkpoint", hint)
    for name, expected in files.items():
        _verify_file(path / name, expected, hint)
    return step


def _verify_file(file: Path, expected: dict[str, str | int], hint: str) -> None:
    if not file.is_file():
        raise CheckpointDamaged(f"{file} must exist, but is missing; {hint}")
    if file.stat().st_size != expected["size"]:
        raise CheckpointDamaged(f"{file} must have {expected['size']} bytes, but has {file.stat().st_size}; {hint}")
    if hash_file(file) != expected:
        raise CheckpointDamaged(f"{file} must match its manifest, but its SHA-256 differs; {hint}")


def write_manifest(path: Path, identity: Mapping[str, Any]) -> None:
    """Write the manifest of all files in a checkpoint folder.

    Args:
        path: The checkpoint folder.
        identity: Study, condition, seed and step of the checkpoint.
    """
    files = {file.name: hash_file(file) for file in sorted(path.iterdir())}
    (path / CHECKPOINT_FILE).write_text(to_json(seal_record({**identity, "files": files}, "checkpoint")))


def verify_or_remove(path: Path, identity: Mapping[str, Any], log: LogFn) -> int | None:
    """Verify a rolling checkpoint and remove it if it is damaged.

    Args:
        path: The checkpoint folder.
        identity: Study, condition and seed of the checkpoint.
        log: Receives one line if the checkpoint is removed.

    Returns:
        The optimizer step, or None if the checkpoint does not exist or was damaged.

    Raises:
        RunError: If it is the checkpoint of another training.
    """
    if not path.exists():
        return None
    try:
        return verify_checkpoint(path, identity)
    except CheckpointDamaged as damage:
        log(f"{str(damage).partition(';')[0]}; it is removed, and training resumes from the checkpoint before it")
        remove_path(path)
        return None
