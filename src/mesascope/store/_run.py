"""The directory of one run: its record, checkpoints, logs and results."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr

from mesascope.argument_types import validate_arguments
from mesascope.checksums import FORMAT, RESTORE_HINT, read_run_record, read_verdict_rows
from mesascope.folder_locks import HOLDER_FILE, LOCK_FILE
from mesascope.formulas import render_plain
from mesascope.store._files import (
    SYNC_FOLDER,
    TEMP_PREFIX,
    RunError,
    hold_lock,
    make_writable_folder,
    remove_drafts,
    to_json,
)
from mesascope.store._run_models import RunModels
from mesascope.store._run_results import RunResults
from mesascope.store.provenance import collect_provenance
from mesascope.summaries import Summarised, Summary

RUN_LOCK_WAIT = 10.0  # seconds; then another process uses the run
JOB_LOCK_WAIT = 120.0  # of one seed: a file server keeps the lock of a machine that is gone for a while
_MUTABLE_KEYS = set("seeds title description citation cell factors notes provenance".split())  # may differ on resuming


class Run(RunModels, RunResults, Summarised):
    """The directory of one run. Use :meth:`create` or :meth:`open` to construct it.

    ``run["similarity"]`` is the result of that name, ``run.verdicts`` the table of verdicts.

    Attributes:
        path: The directory.
        record: The content of ``run.json``: the description, and ``provenance`` (versions, revision, platform, start).
        condition: The condition whose models are accessed; empty for the main condition of the study.
    """

    @classmethod
    @validate_arguments
    def create(cls, path: Path | str, description: Mapping[str, Any]) -> "Run":
        """Create a run, or resume the run of the same description that already exists.

        Args:
            path: A directory; it is created if needed, and must be empty or hold the same run.
            description: Study, scale, parameters and seeds, in JSON types. When a run is resumed, everything must be
                equal except ``seeds``, texts and the names of factors, whose new values are stored.

        Returns:
            The run.

        Raises:
            RunError: If ``path`` is a file, is not writable, or holds something else.
        """
        path, requested = Path(path), json.loads(to_json(description))
        make_writable_folder(path)
        record = cls._resume_record(path, requested) if (path / "run.json").exists() else _new_record(path, requested)
        run = cls(path, record)
        run.write_record("run", record, "run")
        return run

    @classmethod
    def _resume_record(cls, path: Path, requested: Mapping[str, Any]) -> dict[str, Any]:
        run = cls.open(path)
        if not run.has_checksums:
            raise RunError(
                f"{path / 'run.json'} must have a checksum to be resumed, but was written by an older version without "
                f"one, or replaced; {RESTORE_HINT}"
            )
        _check_same_description(path, run.description, requested)
        return {**run.record, **requested}

    @classmethod
    @validate_arguments
    def open(cls, path: Path | str) -> "Run":
        """Open an existing run.

        Args:
            path: The directory of the run.

        Returns:
            The run.

        Raises:
            RunError: If there is no run, or its ``run.json`` cannot be read.
        """
        return cls(path, read_run_record(Path(path)))

    def __getitem__(self, name: str) -> xr.Dataset:
        """Return a result; the same as :meth:`read_results`."""
        return self.read_results(name)

    def _ipython_key_completions_(self) -> list[str]:
        return self.result_names()

    @property
    def verdicts(self) -> pd.DataFrame:
        """The verdicts on the claims of a study, one row each, with the fields of ``Verdict`` as columns.

        Raises:
            RunError: If the run has no verdicts, or they are damaged.
        """
        return pd.DataFrame(read_verdict_rows(self.path))

    def report(self) -> Path:
        """Return the path of the report, a page for a browser.

        Raises:
            RunError: If it has not been written.
        """
        file = self.path / "report.html"
        if not file.is_file():
            raise RunError(
                f"{self.path} must have a report, but has none; write it with `mesascope report {self.path}`"
            )
        return file

    def summarise(self) -> Summary:
        """Return the verdicts of the run, or the names of its results if it has none; links to its report."""
        report = self.path / "report.html"
        title = f"Run of {self.record.get('study')}"
        title += f" at {self.record['scale']} scale: {self.path}" if self.record.get("scale") else f": {self.path}"
        header, rows = ("result",), [(name,) for name in self.result_names()]
        if (self.path / "verdicts.json").exists():
            header = ("verdict", "claim", "value", "control")
            rows = [_format_verdict(row) for row in read_verdict_rows(self.path)]
        return Summary(title=title, header=header, rows=rows, link=report if report.is_file() else None)

    @property
    def description(self) -> dict[str, Any]:
        """The requested parameters: ``run.json`` without the provenance."""
        return {key: value for key, value in self.record.items() if key not in ("provenance", "format")}

    def write_notes(self, lines: Sequence[str]) -> None:
        """Store remarks in ``run.json``, replacing earlier ones.

        Args:
            lines: One remark per line.
        """
        self.record["notes"] = list(lines)
        self.write_record("run", self.record, "run")

    @contextmanager
    def exclusive_lock(self, subfolder: str = "", *, wait: float | None = None) -> Iterator[None]:
        """Hold an exclusive lock on a folder and remove temporary files of killed processes.

        Args:
            subfolder: A folder inside the run, such as ``models/seed=0``; the run itself by default.
            wait: How long to wait for the lock, in seconds; by default 10 for the run itself, and 120 for a folder
                inside it, which a job of a process that was killed may hold until it has ended too.

        Returns:
            A context manager that holds the lock.

        Raises:
            RunError: If another process holds the lock for longer than ``wait``.
        """
        folder = self.path / subfolder
        make_writable_folder(folder)
        default = JOB_LOCK_WAIT if subfolder else RUN_LOCK_WAIT
        with hold_lock(folder, default if wait is None else wait):
            for directory in (folder, folder / "results", folder / "parts"):
                remove_drafts(directory)
            yield

    def for_condition(self, condition: str) -> "Run":
        """Return the same run, with access to the models of another condition.

        Args:
            condition: The name of a condition of the study; empty for the main one.

        Returns:
            A run of the same directory.
        """
        return Run(self.path, self.record, condition)


def _format_verdict(row: Mapping[str, Any]) -> tuple[str, ...]:
    numbers = (row.get("value"), row.get("control"))
    statement = render_plain(str(row["statement"]))
    return str(row["status"]), statement, *("-" if one is None else f"{one:.3g}" for one in numbers)


def _new_record(path: Path, requested: Mapping[str, Any]) -> dict[str, Any]:
    _check_empty_folder(path)
    return {"format": FORMAT, **requested, "provenance": collect_provenance()}


def _check_same_description(path: Path, existing: Mapping[str, Any], requested: Mapping[str, Any]) -> None:
    """Raise if an existing run has another description; seeds and texts may differ."""
    old, new = (
        _flatten_mapping({k: v for k, v in value.items() if k not in _MUTABLE_KEYS}) for value in (existing, requested)
    )
    differing = [key for key in {**old, **new} if old.get(key) != new.get(key)][:3]
    if differing:
        changes = ", ".join(f"{key} {old.get(key)!r} (now {new.get(key)!r})" for key in differing)
        raise RunError(
            f"{path} must be empty or hold the same run, but holds one with {changes}; "
            "choose another directory, or delete this one"
        )


def _flatten_mapping(value: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to one with dotted keys."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {
        k: v for key, item in value.items() for k, v in _flatten_mapping(item, f"{prefix}.{key}".lstrip(".")).items()
    }


def _check_empty_folder(path: Path) -> None:
    """Raise if a folder without ``run.json`` holds other files."""
    others = sorted(
        item.name
        for item in path.iterdir()
        if item.name not in (LOCK_FILE, HOLDER_FILE, SYNC_FOLDER) and not item.name.startswith(TEMP_PREFIX)
    )
    if others:
        raise RunError(
            f"a new run must have an empty folder, but {path} holds {', '.join(others[:3])}"
            f"{' and more' if len(others) > 3 else ''}; choose another directory"
        )
