"""Results of a run, and partial results from which a stopped run resumes."""

from collections.abc import Mapping
from numbers import Number
from pathlib import Path
from typing import Any

import xarray as xr

from mesascope.store._files import (
    RunError,
    replace_atomically,
)
from mesascope.store._run_files import RunFiles
from mesascope.store.provenance import hash_source_code


class RunResults(RunFiles):
    """The results of a run, as netCDF files."""

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
        _check_attrs("the dataset", dataset.attrs)
        for variable_name, variable in dataset.variables.items():
            _check_attrs(f"{variable_name!r}", variable.attrs)
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


def _check_attrs(owner: str, attrs: Mapping[Any, Any]) -> None:
    """Raise unless all attributes are strings or numbers, which every netCDF reader understands."""
    for key, value in attrs.items():
        if isinstance(value, bool) or not isinstance(value, str | Number):
            raise RunError(
                f"attributes of results must be strings or numbers, but {key!r} of {owner} is {value!r}; "
                "write it as a string"
            )
