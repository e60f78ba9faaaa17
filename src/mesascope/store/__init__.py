"""Run directories: file layout and atomic writes that survive a kill at any moment.

::

    run.json                           requested parameters, versions, platform, start time; written first
    models/seed=0/training.json        the training configuration of this seed
    models/seed=0/log.csv              one line per optimizer step; log.json has its checksum
    models/seed=0/step=100/            config.json, model.safetensors, state.safetensors, README.md, checkpoint.json
    models/seed=0/resume/              the same for the newest step, overwritten; removed when training ends
    models/seed=0/history/             inputs and output gradients of every linear module, if requested, with a checksum
                                       per step
    models/CONDITION/seed=0/...        the same for the further conditions of a study
    results/NAME.nc                    xarray datasets; open them with ``xr.open_dataset(path)``
    parts/NAME-seed=0.part             the results of one seed, from which a stopped run resumes
    verdicts.json, report.html
    manifest.json, results/manifest.json   checksums of the files beside them

Every file and every checkpoint is written under a temporary name in the same folder, synced to disk, and renamed. Every
file is verified when it is read: see `mesascope.checksums`. This package knows nothing about the science: it stores
bytes.
"""

from mesascope.store._checkpoints import CHECKPOINT_FILE, CheckpointDamaged, verify_checkpoint
from mesascope.store._files import LogFn, RunError, do_nothing, remove_drafts, write_atomically
from mesascope.store._history_columns import HistoryColumn
from mesascope.store._history_reader import HistoryReader
from mesascope.store._history_writer import HistoryWriter
from mesascope.store._log import TrainingLog
from mesascope.store._run import Run
from mesascope.store._run_models import HISTORY_FOLDER, TRAINING_FILE
from mesascope.store._verify import VerificationResult, verify_run

__all__ = [
    "CHECKPOINT_FILE",
    "HISTORY_FOLDER",
    "TRAINING_FILE",
    "CheckpointDamaged",
    "HistoryColumn",
    "HistoryReader",
    "HistoryWriter",
    "LogFn",
    "Run",
    "RunError",
    "TrainingLog",
    "VerificationResult",
    "do_nothing",
    "remove_drafts",
    "verify_checkpoint",
    "verify_run",
    "write_atomically",
]
