"""The directory of one run: its record, checkpoints, logs and results."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Number
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from mesascope.store._checkpoints import MANIFEST, CheckpointDamaged, checksum_file, verify_checkpoint, verify_or_remove
from mesascope.store._files import (
    HOLDER_FILE,
    LOCK_FILE,
    TEMP_PREFIX,
    LogFn,
    RunError,
    do_nothing,
    hold_lock,
    make_writable_folder,
    read_json,
    remove_path,
    replace_atomically,
    to_json,
)
from mesascope.store._log import LOG_COLUMNS, TrainingLog, read_log_rows
from mesascope.store.provenance import collect_provenance, hash_source_code

_MUTABLE_KEYS = {"seeds", "title", "description", "citation", "notes", "provenance"}  # may differ when a run is resumed


class Run:
    """The directory of one run. Use :meth:`create` or :meth:`open` to construct it.

    Attributes:
        path: The directory.
        record: The content of ``run.json``: the description, and ``provenance`` (versions, revision, platform, start).
        condition: The condition whose models are accessed; empty for the main condition of the study.
    """

    def __init__(self, path: Path | str, record: Mapping[str, Any], condition: str = "") -> None:
        self.path = Path(path)
        self.record = dict(record)
        self.condition = condition

    @classmethod
    def create(cls, path: Path | str, description: Mapping[str, Any]) -> "Run":
        """Create a run, or resume the run of the same description that already exists.

        Args:
            path: A directory; it is created if needed, and must be empty or hold the same run.
            description: Study, scale, parameters and seeds, in JSON types. When a run is resumed, everything must be
                equal except ``seeds``, ``title``, ``about`` and ``citation``, whose new values are stored.

        Returns:
            The run.

        Raises:
            RunError: If ``path`` is a file, is not writable, or holds something else.
        """
        path, requested = Path(path), json.loads(to_json(description))
        make_writable_folder(path)
        if (path / "run.json").exists():
            run = cls.open(path)
            _check_same_description(path, run.description, requested)
            record = {**run.record, **requested}
        else:
            _check_empty_folder(path)
            record = {**requested, "provenance": collect_provenance()}
        run = cls(path, record)
        run.write_json("run", record)
        return run

    @classmethod
    def open(cls, path: Path | str) -> "Run":
        """Open an existing run.

        Args:
            path: The directory of the run.

        Returns:
            The run.

        Raises:
            RunError: If there is no run, or its ``run.json`` cannot be read.
        """
        file = Path(path) / "run.json"
        if not file.is_file():
            raise RunError(f"a run directory must hold run.json, but {path} has none; give the folder of a run")
        return cls(path, read_json(file))

    @property
    def description(self) -> dict[str, Any]:
        """The requested parameters: ``run.json`` without the provenance."""
        return {key: value for key, value in self.record.items() if key != "provenance"}

    @property
    def provenance_attrs(self) -> dict[str, str | int | float]:
        """The record and its provenance as flat strings and numbers, stored with every result."""
        flat = {**self.record, **self.record.get("provenance", {})}
        return {key: value for key, value in flat.items() if isinstance(value, str | int | float)}

    def write_notes(self, lines: Sequence[str]) -> None:
        """Store remarks in ``run.json``, replacing earlier ones.

        Args:
            lines: One remark per line.
        """
        self.record["notes"] = list(lines)
        self.write_json("run", self.record)

    @contextmanager
    def exclusive_lock(self, subfolder: str = "", *, wait: float = 10.0) -> Iterator[None]:
        """Hold an exclusive lock on a folder and remove temporary files of killed processes.

        Args:
            subfolder: A folder inside the run, such as ``models/seed=0``; the run itself by default.
            wait: How long to wait for the lock, in seconds.

        Returns:
            A context manager that holds the lock.

        Raises:
            RunError: If another process holds the lock for longer than ``wait``.
        """
        folder = self.path / subfolder
        make_writable_folder(folder)
        with hold_lock(folder, wait):
            for directory in (folder, folder / "results", folder / "parts"):
                for temp_path in directory.glob(f"{TEMP_PREFIX}*"):
                    remove_path(temp_path)
            yield

    def for_condition(self, condition: str) -> "Run":
        """Return the same run, with access to the models of another condition.

        Args:
            condition: The name of a condition of the study; empty for the main one.

        Returns:
            A run of the same directory.
        """
        return Run(self.path, self.record, condition)

    def seed_path(self, seed: int) -> Path:
        """Return the folder of one seed's checkpoints and log.

        Args:
            seed: The training replicate.

        Returns:
            The folder; it may not exist yet.
        """
        return self.path / "models" / self.condition / f"seed={seed}"

    def verified_checkpoint(self, seed: int, step: int) -> Path:
        """Return the folder of one checkpoint after verifying its files.

        Args:
            seed: The training replicate.
            step: Optimizer steps taken.

        Returns:
            The checkpoint folder.

        Raises:
            CheckpointDamaged: If a file is missing or differs from the manifest.
        """
        path = self.seed_path(seed) / f"step={step}"
        verify_checkpoint(path)
        return path

    def list_checkpoints(self, seed: int, log: LogFn = do_nothing) -> list[int]:
        """Return the steps of all valid checkpoints, in ascending order.

        Args:
            seed: The training replicate.
            log: Receives one line for each damaged checkpoint.

        Returns:
            Optimizer steps.
        """
        steps = []
        for path in self.seed_path(seed).glob("step=*"):
            try:
                steps.append(verify_checkpoint(path))
            except CheckpointDamaged as damage:
                log(str(damage))
        return sorted(steps)

    def find_resume_point(self, seed: int, checkpoint_steps: Sequence[int], log: LogFn = do_nothing) -> Path | None:
        """Find the newest valid checkpoint that has all earlier ones before it; damaged ones are removed.

        Args:
            seed: The training replicate.
            checkpoint_steps: The steps at which training saves a checkpoint, in ascending order.
            log: Receives one line for each damaged checkpoint.

        Returns:
            The checkpoint folder, or None if there is none.
        """
        folder = self.seed_path(seed)
        valid_steps = [verify_or_remove(folder / f"step={step}", log) for step in checkpoint_steps]
        num_valid = valid_steps.index(None) if None in valid_steps else len(valid_steps)
        for step in checkpoint_steps[
            num_valid:
        ]:  # log and history are truncated, so later checkpoints no longer match them
            remove_path(folder / f"step={step}")
        rolling = verify_or_remove(folder / "resume", log)
        if rolling is not None and sum(step <= rolling for step in checkpoint_steps) == num_valid:
            return folder / "resume"
        return folder / f"step={checkpoint_steps[num_valid - 1]}" if num_valid else None

    def write_checkpoint(
        self, seed: int, step: int, write_files: Callable[[Path], None], *, rolling: bool = False
    ) -> Path:
        """Write a checkpoint and its manifest atomically.

        Args:
            seed: The training replicate.
            step: Optimizer steps taken.
            write_files: Called with a temporary folder, into which it writes the files.
            rolling: Write to ``resume``, which the next rolling checkpoint overwrites.

        Returns:
            The checkpoint folder.

        Raises:
            RunError: If the file system refuses.
        """
        target = self.seed_path(seed) / ("resume" if rolling else f"step={step}")
        with replace_atomically(target) as temp_path:
            temp_path.mkdir()
            write_files(temp_path)
            files = {file.name: checksum_file(file) for file in sorted(temp_path.iterdir())}
            (temp_path / MANIFEST).write_text(to_json({"step": step, "files": files}))
        return target

    def remove_resume(self, seed: int) -> None:
        """Remove the rolling checkpoint; called at the end of training.

        Args:
            seed: The training replicate.
        """
        remove_path(self.seed_path(seed) / "resume")

    def open_log(self, seed: int, keep_steps: int) -> "TrainingLog":
        """Open the ``log.csv`` of a seed for appending, truncated to the steps before ``keep_steps``.

        Args:
            seed: The training replicate.
            keep_steps: Lines of this step and later ones are removed.

        Returns:
            The log, a context manager.
        """
        return TrainingLog(self.seed_path(seed) / "log.csv", keep_steps)

    def read_log(self, seed: int) -> dict[str, np.ndarray]:
        """Read the columns of a seed's ``log.csv``; a torn last line is ignored.

        Args:
            seed: The training replicate.

        Returns:
            One array per column: step, loss, learning rate, gradient norm, seconds.
        """
        rows = read_log_rows(self.seed_path(seed) / "log.csv")
        table = np.array(rows, dtype=float).reshape(-1, len(LOG_COLUMNS))
        return dict(zip(LOG_COLUMNS, table.T, strict=True))

    def result_names(self) -> list[str]:
        """Return the names of all stored results, sorted."""
        return sorted(file.stem for file in (self.path / "results").glob("*.nc"))

    def write_results(self, name: str, dataset: xr.Dataset) -> Path:
        """Write ``results/NAME.nc``, with the provenance of the run as attributes.

        Args:
            name: The name of the result.
            dataset: The result.

        Returns:
            The path of the file.

        Raises:
            RunError: If an attribute is neither a string nor a number, or the disk is full.
        """
        dataset = dataset.assign_attrs({**self.provenance_attrs, **dataset.attrs})
        for owner, attrs in (
            ("the dataset", dataset.attrs),
            *((f"{k!r}", v.attrs) for k, v in dataset.variables.items()),
        ):
            _check_attrs(owner, attrs)
        target = self.path / "results" / f"{name}.nc"
        image = dataset.to_netcdf(engine="netcdf4")  # in memory: HDF5 crashes the process when a disk is full
        with replace_atomically(target) as temp_path:
            temp_path.write_bytes(image)
        return target

    def read_results(self, name: str) -> xr.Dataset:
        """Read ``results/NAME.nc`` into memory.

        Args:
            name: The name of the result.

        Returns:
            The dataset.

        Raises:
            RunError: If there is no such result, or it cannot be read.
        """
        file = self.path / "results" / f"{name}.nc"
        if not file.is_file():
            raise RunError(f"results must be one of {self.result_names()}, but got {name!r}")
        try:
            return xr.load_dataset(file, engine="netcdf4")
        except (OSError, RuntimeError) as error:
            raise RunError(f"results must be netCDF, but {file} cannot be read; delete it and run again") from error

    def save_partial(self, name: str, dataset: xr.Dataset) -> None:
        """Save a partial result, so that a stopped run can resume from it.

        Args:
            name: The name of the partial result.
            dataset: The partial result.
        """
        image = dataset.assign_attrs({**dataset.attrs, "code": hash_source_code()}).to_netcdf(engine="netcdf4")
        with replace_atomically(self.path / "parts" / f"{name}.nc") as temp_path:
            temp_path.write_bytes(image)

    def load_partial(self, name: str) -> xr.Dataset | None:
        """Load a partial result that was saved by the same code version.

        Args:
            name: The name of the partial result.

        Returns:
            The dataset, or None if it is missing, damaged, or from another code version.
        """
        try:
            part = xr.load_dataset(self.path / "parts" / f"{name}.nc", engine="netcdf4")
        except (OSError, RuntimeError):  # missing, or a damaged header, or damaged data
            return None
        return part if part.attrs.pop("code", None) == hash_source_code() else None

    def write_json(self, name: str, value: object) -> Path:
        """Write ``NAME.json``; numbers that are not finite become null, since JSON has none.

        Args:
            name: The file name without its extension.
            value: Any value that `to_json` accepts.

        Returns:
            The path of the file.
        """
        return self.write_text(f"{name}.json", to_json(value))

    def read_json(self, name: str) -> Any:
        """Read ``NAME.json``.

        Args:
            name: The file name without its extension.

        Returns:
            The decoded value.

        Raises:
            RunError: If the file is missing or is not valid JSON.
        """
        return read_json(self.path / f"{name}.json")

    def write_text(self, name: str, text: str) -> Path:
        """Write a text file such as ``report.html``.

        Args:
            name: The file name.
            text: The content, written as UTF-8.

        Returns:
            The path of the file.
        """
        target = self.path / name
        with replace_atomically(target) as temp_path:
            temp_path.write_text(text, encoding="utf-8")
        return target


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
        if item.name not in (LOCK_FILE, HOLDER_FILE) and not item.name.startswith(TEMP_PREFIX)
    )
    if others:
        raise RunError(
            f"a new run must have an empty folder, but {path} holds {', '.join(others[:3])}"
            f"{' and more' if len(others) > 3 else ''}; choose another directory"
        )


def _check_attrs(owner: str, attrs: Mapping[Any, Any]) -> None:
    """Raise unless all attributes are strings or numbers, which every netCDF reader understands."""
    for key, value in attrs.items():
        if isinstance(value, bool) or not isinstance(value, str | Number):
            raise RunError(
                f"attributes of results must be strings or numbers, but {key!r} of {owner} is {value!r}; "
                "write it as a string"
            )
