"""Reading of ``run.json`` and ``verdicts.json``, verified, without importing torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mesascope.checksums._files import read_listed
from mesascope.checksums._records import (
    DamagedFile,
    RunError,
    check_record,
    describe_json_type,
    identify_run,
    is_older_format,
    parse_json,
    read_bytes,
)

RESTORE_HINT = "restore it, or delete the folder and run again"
VERDICTS_HINT = "run the study again to judge its claims again"


def read_run_record(folder: Path) -> dict[str, Any]:
    """Read ``run.json``; that of an earlier version has no checksum, and no key ``format`` either.

    Args:
        folder: The directory of the run.

    Returns:
        The record.

    Raises:
        RunError: If it is missing or damaged.
    """
    file = folder / "run.json"
    if not file.is_file():
        raise RunError(f"a run directory must hold run.json, but {folder} has none; give the folder of a run")
    value = parse_json(read_bytes(file, RESTORE_HINT), file, RESTORE_HINT)
    if not isinstance(value, dict):
        raise DamagedFile(f"{file} must be a JSON object, but is {describe_json_type(value)}; {RESTORE_HINT}")
    return value if is_older_format(value) else check_record(value, "run", file, RESTORE_HINT)


def read_verdict_rows(folder: Path, record: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Read ``verdicts.json``.

    Args:
        folder: The directory of the run.
        record: The content of its ``run.json``, if it has been read.

    Returns:
        One row per verdict.

    Raises:
        RunError: If the verdicts or the record are missing or damaged.
    """
    record = read_run_record(folder) if record is None else record
    file = folder / "verdicts.json"
    older = is_older_format(record)
    content = read_bytes(file, VERDICTS_HINT) if older else read_listed(file, identify_run(record), VERDICTS_HINT)
    rows = parse_json(content, file, VERDICTS_HINT)
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "status" in row for row in rows):
        raise DamagedFile(f"{file} must be a list of verdicts, but is not; {VERDICTS_HINT}")
    return rows
