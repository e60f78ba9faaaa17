"""The run directory: what lies where, and writes that a kill at any moment cannot spoil.

::

    run.json                           what was asked for, versions, platform, start time; written first
    models/seed=0/training.json        what this seed's model is trained on
    models/seed=0/log.csv              one line per optimiser step
    models/seed=0/step=100/            config.json, model.safetensors, state.safetensors, checkpoint.json
    models/seed=0/resume/              the same for the newest step, overwritten; gone when training is done
    models/seed=0/history/             what linear maps read and the error signals that came back, if it was asked for
    models/ARM/seed=0/...              the same for the other settings that a study trains beside its own
    results/NAME.nc                    xarray datasets; ``xr.open_dataset(path)`` opens them
    verdicts.json, report.html

Every file and every checkpoint is written under a temporary name beside its place, synced, and renamed. This
module knows bytes, no science.
"""

from mesascope.store.checkpoints import MANIFEST, CheckpointDamaged, verify
from mesascope.store.files import RunError, Say, ignore
from mesascope.store.history import Column, History, HistoryWriter
from mesascope.store.log import Log
from mesascope.store.run import Run

__all__ = [
    "MANIFEST",
    "CheckpointDamaged",
    "Column",
    "History",
    "HistoryWriter",
    "Log",
    "Run",
    "RunError",
    "Say",
    "ignore",
    "verify",
]
