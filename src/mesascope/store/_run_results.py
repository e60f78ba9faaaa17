"""Results of a run, and partial results from which a stopped run resumes."""

from collections.abc import Mapping
from numbers import Number
from pathlib import Path
from typing import Any

import xarray as xr

from mesascope.checksums import (
    RunError,
    add_header,
    check_origin,
    read_bytes,
    read_listed,
    read_manifest,
    split_header,
)
from mesascope.store._files import LogFn, do_nothing, write_atomically, write_listed
from mesascope.store._interrupts import delay_interrupts
from mesascope.store._run_files import RunFiles
from mesascope.store.provenance import hash_source_code


class RunResults(RunFiles):
    """The results of a run, as netCDF files."""

    def result_names(self) -> list[str]:
        """Return the names of all stored results, sorted."""
        return sorted(file.stem for file in (self.path / "results").glob("*.nc"))

    def listed_results(self) -> list[str]:
        """Return the names of the results that the manifest lists, of which a file may be missing.

        Returns:
            The names; empty if there is no manifest, or it is damaged, which reading any result then reports.
        """
        try:
            return [Path(name).stem for name in read_manifest(self.path / "results", self.identity, "")]
        except RunError:
            return []

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
        _check_attrs("the dataset", dataset.attrs)
        for variable_name, variable in dataset.variables.items():
            _check_attrs(f"{variable_name!r}", variable.attrs)
        target = self.path / "results" / f"{name}.nc"
        image = encode_netcdf(dataset)  # in memory: HDF5 crashes the process when a disk is full
        write_listed(target, image, self.identity)
        return target

    def read_results(self, name: str) -> xr.Dataset:
        """Read ``results/NAME.nc`` into memory.

        Args:
            name: The name of the result.

        Returns:
            The dataset.

        Raises:
            RunError: If there is no such result, or it is damaged.
        """
        file = self.path / "results" / f"{name}.nc"
        if not file.is_file():
            raise RunError(f"results must be one of {self.result_names()}, but got {name!r}")
        hint = "run again to analyse it again"
        content = read_listed(file, self.identity, hint) if self.has_checksums else read_bytes(file, hint)
        return decode_netcdf(content, file, hint)

    def save_partial(self, name: str, dataset: xr.Dataset) -> None:
        """Save a partial result, so that a stopped run can resume from it.

        Args:
            name: The name of the partial result.
            dataset: The partial result.
        """
        header = {**self._partial_origin(name), "code": hash_source_code()}
        content = add_header(encode_netcdf(dataset), header, "partial result")
        write_atomically(self._partial_path(name), content)

    def load_partial(self, name: str, log: LogFn = do_nothing) -> xr.Dataset | None:
        """Load a partial result that was saved by the same code version.

        Args:
            name: The name of the partial result.
            log: Receives one line if it is damaged.

        Returns:
            The dataset, or None if it is missing, damaged, or from another run or code version.
        """
        if not self._partial_path(name).exists():
            return None
        hint = "it is computed again"
        try:
            code, content = self.read_partial(name, hint)
            return decode_netcdf(content, self._partial_path(name), hint) if code == hash_source_code() else None
        except RunError as damage:
            log(str(damage))
            return None

    def read_partial(self, name: str, hint: str) -> tuple[str, bytes]:
        """Read the file of a partial result and verify it.

        Args:
            name: The name of the partial result.
            hint: What to do if it is damaged.

        Returns:
            The digest of the code that computed it, and the content as netCDF.

        Raises:
            DamagedFile: If it is damaged, or is another partial result or that of another run.
        """
        file = self._partial_path(name)
        header, content = split_header(file, "partial result", hint)
        check_origin(header, self._partial_origin(name), file, "partial result", hint)
        return header["code"], content

    def _partial_origin(self, name: str) -> dict[str, Any]:
        return {"run": self.identity, "name": name}

    def _partial_path(self, name: str) -> Path:
        return self.path / "parts" / f"{name}.part"


def encode_netcdf(dataset: xr.Dataset) -> bytes:
    """Return the content of the file of a result.

    Args:
        dataset: The result.
    """
    with delay_interrupts():
        return bytes(dataset.to_netcdf(engine="netcdf4"))


def decode_netcdf(content: bytes, file: Path, hint: str) -> xr.Dataset:
    """Return a result from the content of its file.

    Args:
        content: netCDF.
        file: Where it was read, for the message.
        hint: What to do if it cannot be decoded.

    Raises:
        RunError: If it cannot be decoded.
    """
    try:
        with delay_interrupts():
            return xr.load_dataset(content, engine="netcdf4").drop_encoding()  # written again as if it were new
    except (OSError, RuntimeError, ValueError) as error:
        raise RunError(f"results must be netCDF, but {file} cannot be read; {hint}") from error


def _check_attrs(owner: str, attrs: Mapping[Any, Any]) -> None:
    """Raise unless all attributes are strings or numbers, which every netCDF reader understands."""
    for key, value in attrs.items():
        if isinstance(value, bool) or not isinstance(value, str | Number):
            raise RunError(
                f"attributes of results must be strings or numbers, but {key!r} of {owner} is {value!r}; "
                "write it as a string"
            )
