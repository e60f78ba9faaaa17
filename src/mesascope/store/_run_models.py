"""Checkpoints and training logs of a run."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mesascope.store._checkpoints import CheckpointDamaged, verify_checkpoint, verify_or_remove, write_manifest
from mesascope.store._files import (
    LogFn,
    do_nothing,
    remove_path,
    replace_atomically,
)
from mesascope.store._log import LOG_COLUMNS, TrainingLog, read_log_rows
from mesascope.store._run_files import RunFiles


class RunModels(RunFiles):
    """The checkpoints and training logs of a run, one folder per seed."""

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
            write_manifest(temp_path, step)
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
