"""One run's directory."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Number
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from mesascope.store.checkpoints import MANIFEST, CheckpointDamaged, fingerprint, verified_or_removed, verify
from mesascope.store.files import DRAFT, RunError, Say, ignore, make_folder, read_json, remove, replacing, take, to_json
from mesascope.store.log import LOG_COLUMNS, Log, log_rows
from mesascope.store.provenance import code_digest, provenance

_FREE = {"seeds", "title", "about", "citation", "notes", "provenance"}  # may differ when a run is taken up


class Run:
    """One run's directory. Make it with :meth:`create` or :meth:`open`.

    Attributes:
        path: the directory.
        record: what ``run.json`` holds: the description, and ``provenance`` (versions, revision, platform, start).
        arm: whose models are meant: of the study's own setting, or of another that it trains beside.
    """

    def __init__(self, path: Path | str, record: Mapping[str, Any], arm: str = "") -> None:
        self.path = Path(path)
        self.record = dict(record)
        self.arm = arm

    @classmethod
    def create(cls, path: Path | str, description: Mapping[str, Any]) -> "Run":
        """Begin a run, or take up the one of the same description that is there already.

        Args:
            path: a directory, made if it is not there; empty, or this run's.
            description: study, scale, parameters, seeds: what JSON can hold. When a run is taken up, all must be
                the same but for ``seeds``, ``title``, ``about`` and ``citation``: their new values are written.

        Raises:
            RunError: a file is in the way, the place cannot be written, or it holds something else.
        """
        path, asked = Path(path), json.loads(to_json(description))
        make_folder(path)
        if (path / "run.json").exists():
            run = cls.open(path)
            _refuse_another(path, run.description, asked)
            record = {**run.record, **asked}
        else:
            _refuse_strangers(path)
            record = {**asked, "provenance": provenance()}
        run = cls(path, record)
        run.write_json("run", record)
        return run

    @classmethod
    def open(cls, path: Path | str) -> "Run":
        """Open a run that is there.

        Raises:
            RunError: there is none, or its ``run.json`` cannot be read.
        """
        file = Path(path) / "run.json"
        if not file.is_file():
            raise RunError(f"a run directory must hold run.json, but {path} has none; give the folder of a run")
        return cls(path, read_json(file))

    @property
    def description(self) -> dict[str, Any]:
        """What was asked for: everything in ``run.json`` but the provenance."""
        return {key: value for key, value in self.record.items() if key != "provenance"}

    @property
    def attributes(self) -> dict[str, str | int | float]:
        """The provenance as flat strings and numbers, as every result carries it."""
        flat = {**self.record, **self.record.get("provenance", {})}
        return {key: value for key, value in flat.items() if isinstance(value, str | int | float)}

    def note(self, lines: Sequence[str]) -> None:
        """Put remarks into ``run.json``, in place of those that are there."""
        self.record["notes"] = list(lines)
        self.write_json("run", self.record)

    @contextmanager
    def lock(self, part: str = "", *, wait: float = 10.0) -> Iterator[None]:
        """Be the only process that writes here; what a killed process left half-written is removed.

        Args:
            part: a folder inside the run, such as ``models/seed=0``; the run itself by default.
            wait: seconds; the children of a run that was just killed may need a moment to die.

        Raises:
            RunError: another process holds the lock for longer than that.
        """
        folder = self.path / part
        make_folder(folder)
        with (folder / ".lock").open("a+") as handle:
            take(handle, folder, time.monotonic() + wait)
            for place in (folder, folder / "results", folder / "parts"):
                for draft in place.glob(f"{DRAFT}*"):
                    remove(draft)
            yield

    def of(self, arm: str) -> "Run":
        """The same run, with the models of another setting that the study trains."""
        return Run(self.path, self.record, arm)

    def seed_path(self, seed: int) -> Path:
        """The folder of one seed's models and log."""
        return self.path / "models" / self.arm / f"seed={seed}"

    def checkpoint(self, seed: int, step: int) -> Path:
        """The folder of one checkpoint, its files verified.

        Raises:
            CheckpointDamaged: a file is missing, or is not what was written.
        """
        path = self.seed_path(seed) / f"step={step}"
        verify(path)
        return path

    def checkpoints(self, seed: int, say: Say = ignore) -> list[int]:
        """The steps whose checkpoints verify, in order; ``say`` hears of those that do not."""
        steps = []
        for path in self.seed_path(seed).glob("step=*"):
            try:
                steps.append(verify(path))
            except CheckpointDamaged as damage:
                say(str(damage))
        return sorted(steps)

    def resume_point(self, seed: int, due: Sequence[int], say: Say = ignore) -> Path | None:
        """The newest good checkpoint that has all those before it; damaged ones are named, and removed.

        Args:
            seed: whose checkpoints.
            due: the steps at which training leaves a checkpoint, in order.
            say: hears one line for each damaged checkpoint.
        """
        folder = self.seed_path(seed)
        good = [verified_or_removed(folder / f"step={step}", say) for step in due]
        complete = good.index(None) if None in good else len(good)
        for step in due[complete:]:  # later ones would hide that log and history were cut
            remove(folder / f"step={step}")
        rolling = verified_or_removed(folder / "resume", say)
        if rolling is not None and sum(step <= rolling for step in due) == complete:
            return folder / "resume"
        return folder / f"step={due[complete - 1]}" if complete else None

    def write_checkpoint(self, seed: int, step: int, fill: Callable[[Path], None], *, rolling: bool = False) -> Path:
        """Write a checkpoint: ``fill`` puts the files into a folder, which then takes its place with a manifest.

        Args:
            seed: whose.
            step: optimiser steps taken.
            fill: writes the files.
            rolling: put it into ``resume``, where the next one overwrites it.
        """
        target = self.seed_path(seed) / ("resume" if rolling else f"step={step}")
        with replacing(target) as draft:
            draft.mkdir()
            fill(draft)
            files = {file.name: fingerprint(file) for file in sorted(draft.iterdir())}
            (draft / MANIFEST).write_text(to_json({"step": step, "files": files}))
        return target

    def remove_resume(self, seed: int) -> None:
        """Remove the rolling checkpoint, once training is done."""
        remove(self.seed_path(seed) / "resume")

    def log(self, seed: int, keep: int) -> "Log":
        """The seed's ``log.csv``, cut to the lines of steps before ``keep`` and open for more."""
        return Log(self.seed_path(seed) / "log.csv", keep)

    def read_log(self, seed: int) -> dict[str, np.ndarray]:
        """The columns of the seed's ``log.csv`` by name; a torn last line is left out."""
        rows = log_rows(self.seed_path(seed) / "log.csv")
        table = np.array(rows, dtype=float).reshape(-1, len(LOG_COLUMNS))
        return dict(zip(LOG_COLUMNS, table.T, strict=True))

    def results(self) -> list[str]:
        """The names of the results that are there."""
        return sorted(file.stem for file in (self.path / "results").glob("*.nc"))

    def write_results(self, name: str, dataset: xr.Dataset) -> Path:
        """Write ``results/NAME.nc``; the run's provenance is added to its attributes.

        Raises:
            RunError: an attribute is no string or number, or the disk is full.
        """
        dataset = dataset.assign_attrs({**self.attributes, **dataset.attrs})
        for owner, attrs in (
            ("the dataset", dataset.attrs),
            *((f"{k!r}", v.attrs) for k, v in dataset.variables.items()),
        ):
            _refuse_rich(owner, attrs)
        target = self.path / "results" / f"{name}.nc"
        image = dataset.to_netcdf(engine="netcdf4")  # in memory: HDF5 crashes the process when a disk is full
        with replacing(target) as draft:
            draft.write_bytes(image)
        return target

    def read_results(self, name: str) -> xr.Dataset:
        """Read ``results/NAME.nc`` into memory.

        Raises:
            RunError: there is none, or it cannot be read.
        """
        file = self.path / "results" / f"{name}.nc"
        if not file.is_file():
            raise RunError(f"results must be one of {self.results()}, but got {name!r}")
        try:
            return xr.load_dataset(file, engine="netcdf4")
        except (OSError, RuntimeError) as error:
            raise RunError(f"results must be netCDF, but {file} cannot be read; delete it and run again") from error

    def keep(self, name: str, dataset: xr.Dataset) -> None:
        """Keep a part of what will be a result, so that a run that is stopped can go on."""
        image = dataset.assign_attrs({**dataset.attrs, "code": code_digest()}).to_netcdf(engine="netcdf4")
        with replacing(self.path / "parts" / f"{name}.nc") as draft:
            draft.write_bytes(image)

    def kept(self, name: str) -> xr.Dataset | None:
        """The part that was kept, if this very code kept one and it can be read."""
        try:
            part = xr.load_dataset(self.path / "parts" / f"{name}.nc", engine="netcdf4")
        except (OSError, RuntimeError):  # not there, or damaged in its head, or damaged further on
            return None
        return part if part.attrs.pop("code", None) == code_digest() else None

    def write_json(self, name: str, value: object) -> Path:
        """Write ``NAME.json``; numbers that are not finite become null, since JSON has none."""
        return self.write_text(f"{name}.json", to_json(value))

    def read_json(self, name: str) -> Any:
        """Read ``NAME.json``.

        Raises:
            RunError: it is not there, or is no JSON.
        """
        return read_json(self.path / f"{name}.json")

    def write_text(self, name: str, text: str) -> Path:
        """Write a text file, such as ``report.html``."""
        target = self.path / name
        with replacing(target) as draft:
            draft.write_text(text, encoding="utf-8")
        return target


def _refuse_another(path: Path, there: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raise if the run that is there was asked for with other numbers; seeds and prose may differ."""
    held, wanted = (_flat({k: v for k, v in value.items() if k not in _FREE}) for value in (there, asked))
    differing = [key for key in {**held, **wanted} if held.get(key) != wanted.get(key)][:3]
    if differing:
        told = ", ".join(f"{key} {held.get(key)!r} (now {wanted.get(key)!r})" for key in differing)
        raise RunError(
            f"{path} must be empty or hold this very run, but holds one with {told}; "
            "choose another directory, or delete this one"
        )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}.{key}".lstrip(".")).items()}


def _refuse_strangers(path: Path) -> None:
    """Raise if a folder without ``run.json`` holds anything of somebody else's."""
    others = sorted(item.name for item in path.iterdir() if item.name != ".lock" and not item.name.startswith(DRAFT))
    if others:
        raise RunError(
            f"a new run needs an empty folder, but {path} holds {', '.join(others[:3])}"
            f"{' and more' if len(others) > 3 else ''}; choose another directory"
        )


def _refuse_rich(owner: str, attrs: Mapping[Any, Any]) -> None:
    """Raise unless all attributes are strings or numbers, which any netCDF reader understands."""
    for key, value in attrs.items():
        if isinstance(value, bool) or not isinstance(value, str | Number):
            raise RunError(
                f"attributes of results must be strings or numbers, but {key!r} of {owner} is {value!r}; "
                "write it as a string"
            )
