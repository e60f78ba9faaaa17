"""Checkpoints and training logs of a run."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mesascope.checksums import RunError, read_record
from mesascope.store._checkpoints import verify_checkpoint, verify_or_remove, write_manifest
from mesascope.store._files import (
    LogFn,
    do_nothing,
    remove_path,
    replace_atomically,
)
from mesascope.store._history_reader import HistoryReader
from mesascope.store._log import LOG_COLUMNS, TrainingLog, log_checksum_path, parse_log, read_log
from mesascope.store._run_files import RunFiles

TRAINING_FILE = "training"  # settings of one training, without the extension .json
HISTORY_FOLDER = "history"


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
            RunError: If it is the checkpoint of another training or step.
        """
        path = self.seed_path(seed) / f"step={step}"
        verify_checkpoint(path, {**self.training_identity(seed), "step": step})
        return path

    def training_identity(self, seed: int) -> dict[str, Any]:
        """Return what tells the training of one seed from others; its files repeat it.

        Args:
            seed: The training replicate.

        Returns:
            Study, scale, cell, condition, seed, and the digest of ``training.json`` if there is one.
        """
        own = {key: value for key, value in self.identity.items() if key != "started"}  # the same in a rerun elsewhere
        settings = self.seed_path(seed) / f"{TRAINING_FILE}.json"
        digest = hashlib.sha256(settings.read_bytes()).hexdigest() if settings.exists() else ""
        return {**own, "condition": self.condition, "seed": seed, "training": digest}

    def list_checkpoints(self, seed: int, log: LogFn = do_nothing) -> list[int]:
        """Return the steps of all valid checkpoints, in ascending order.

        Args:
            seed: The training replicate.
            log: Receives one line for each damaged checkpoint.

        Returns:
            Optimizer steps.
        """
        steps, identity = [], self.training_identity(seed)
        for path in self.seed_path(seed).glob("step=*"):
            try:
                step = verify_checkpoint(path, identity)
                steps += [step] if path.name == f"step={step}" else []
            except RunError as damage:
                log(str(damage))
        return sorted(steps)

    def find_resume_point(self, seed: int, checkpoint_steps: Sequence[int], log: LogFn = do_nothing) -> Path | None:
        """Find the newest checkpoint that has all earlier ones before it.

        A damaged rolling checkpoint is removed. Any other damaged one stops the training, since training again from the
        checkpoint before it also replaces all later ones.

        Args:
            seed: The training replicate.
            checkpoint_steps: The steps at which training saves a checkpoint, in ascending order.
            log: Receives one line if a checkpoint is removed.

        Returns:
            The checkpoint folder, or None if there is none.

        Raises:
            RunError: If a checkpoint is damaged, or is that of another training or step.
        """
        folder, identity = self.seed_path(seed), self.training_identity(seed)
        present = [(folder / f"step={step}").exists() for step in checkpoint_steps]
        num_valid = present.index(False) if False in present else len(present)
        for step in checkpoint_steps[:num_valid]:
            self.verified_checkpoint(seed, step)
        for step in checkpoint_steps[num_valid:]:
            # log and history are truncated, so later checkpoints no longer match them
            remove_path(folder / f"step={step}")
        rolling = verify_or_remove(folder / "resume", identity, log)
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
            write_manifest(temp_path, {**self.training_identity(seed), "step": step})
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

        Raises:
            RunError: If lines of earlier steps are damaged.
        """
        return TrainingLog(self.seed_path(seed) / "log.csv", keep_steps, self.training_identity(seed))

    def read_log(self, seed: int) -> dict[str, np.ndarray]:
        """Read the columns of a seed's ``log.csv``; lines that a killed training did not save are ignored.

        Args:
            seed: The training replicate.

        Returns:
            One array per column: step, loss, learning rate, gradient norm, seconds.

        Raises:
            RunError: If the log is damaged.
        """
        file = self.seed_path(seed) / "log.csv"
        started = file.exists() or log_checksum_path(file).exists()
        content = read_log(file, self.training_identity(seed)) if started else b""
        table = np.array(parse_log(content), dtype=float).reshape(-1, len(LOG_COLUMNS))
        return dict(zip(LOG_COLUMNS, table.T, strict=True))

    def open_history(self, seed: int, steps: int | None = None) -> HistoryReader:
        """Open the training history of a seed.

        Args:
            seed: The training replicate.
            steps: Number of steps to read; all complete ones by default.

        Returns:
            A reader, which verifies every column that it reads.

        Raises:
            RunError: If there is no history, it has fewer steps, or it is that of another training.
        """
        reader = HistoryReader(self.seed_path(seed) / HISTORY_FOLDER, steps)
        if reader.metadata.get("training") != self.training_identity(seed):
            raise RunError(
                f"{reader.folder} must be the history of seed {seed} of this run, but is that of another training; "
                f"delete {reader.folder.parent} and run again to train this seed again"
            )
        return reader

    def verify_training_record(self, seed: int, steps: int) -> None:
        """Verify the settings, the log and the description of the history of a seed, but not the history itself.

        Args:
            seed: The training replicate.
            steps: Steps that the history must hold, if there is one.

        Raises:
            RunError: If one of them is missing or damaged.
        """
        folder = self.seed_path(seed)
        hint = f"delete {folder} and run again to train this seed again"
        read_record(folder / f"{TRAINING_FILE}.json", "training", hint)
        read_log(folder / "log.csv", self.training_identity(seed))
        if (folder / HISTORY_FOLDER).exists():
            self.open_history(seed, steps)
