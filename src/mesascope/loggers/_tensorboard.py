"""Event files of TensorBoard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mesascope.loggers._missing import explain_missing_package

FILE_SUFFIX = ".mesascope"  # of event files, which are replaced when a run is logged again


class TensorBoardLogger:
    """Writes one folder of event files per model.

    Args:
        folder: the folder that TensorBoard shows.

    Raises:
        ValueError: if tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise explain_missing_package("tensorboard") from error
        self._folder, self._create_writer = folder, SummaryWriter
        self._writer: Any = None

    def start_model(self, name: str, config: Mapping[str, Any]) -> None:
        """Open the event file of a model, and remove those of earlier calls.

        Args:
            name: the name of the model, whose parts are folders.
            config: the parameters, which are stored as text.
        """
        folder = self._folder / name
        for earlier in folder.glob(f"events.out.tfevents.*{FILE_SUFFIX}"):
            earlier.unlink()
        self._writer = self._create_writer(str(folder), filename_suffix=FILE_SUFFIX)
        self._writer.add_text("config", "\n".join(f"    {key}: {value}" for key, value in config.items()))

    def log_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values at one step.

        Args:
            step: optimizer steps taken.
            values: numbers by name.
        """
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def finish_model(self) -> None:
        """Close the event file."""
        self._writer.close()
