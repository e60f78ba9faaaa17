"""Verification of every file of a run."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mesascope.argument_types import validate_arguments
from mesascope.checksums import (
    MANIFEST,
    RESTORE_HINT,
    RunError,
    check_page,
    read_listed,
    read_manifest,
    read_record,
    verify_folder,
)
from mesascope.store._checkpoints import verify_checkpoint
from mesascope.store._log import read_log
from mesascope.store._run import Run
from mesascope.store._run_models import HISTORY_FOLDER, TRAINING_FILE

CELLS_FOLDER = "cells"
RECORDS = ("run.json", "seconds.json")  # carry their own checksum
Check = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class VerificationResult:
    """Result of the verification of a run.

    Attributes:
        files: Number of files that were verified.
        problems: One line per damaged file.
    """

    files: int
    problems: tuple[str, ...]


@validate_arguments
def verify_run(path: Path | str) -> VerificationResult:
    """Verify every file of a run and of its cells.

    Args:
        path: The directory of the run.

    Returns:
        The number of files, and one line per file that is damaged, missing or not ours.

    Raises:
        RunError: If there is no run, its ``run.json`` is damaged, or it is of the older format without checksums.
    """
    run = Run.open(path)
    if not run.has_checksums:
        raise RunError(f"{path} must have checksums, but was written by an older version without them; run it again")
    files, problems = 1, []  # run.json was verified above
    for check in _list_checks(run):
        files += 1
        try:
            check()
        except RunError as error:
            problems.append(str(error))
    for folder in sorted((run.path / CELLS_FOLDER).glob("*/")):
        try:
            cell = verify_run(folder)
        except RunError as error:
            cell = VerificationResult(files=1, problems=(str(error),))
        files, problems = files + cell.files, [*problems, *cell.problems]
    return VerificationResult(files=files, problems=tuple(dict.fromkeys(problems)))


def _list_checks(run: Run) -> Iterator[Check]:
    """Yield one check per file or checkpoint; a check raises RunError."""
    yield from _check_listed(run, run.path, RESTORE_HINT)
    yield from _check_listed(run, run.path / "results", "run again to analyse it again")
    for file in sorted((run.path / "parts").glob("*.part")):
        yield partial(run.read_partial, file.stem, "delete it")
    if (run.path / "seconds.json").exists():
        yield run.read_seconds
    for file in sorted(run.path.glob("report.html")):
        yield partial(check_page, file, run.identity, f"write it again with: mesascope report {run.path}")
    for folder in sorted(run.path.glob("data/*/")):
        yield partial(verify_folder, folder / "source.json", "text", f"delete {folder} to prepare the text again")
    for folder in (*sorted(run.path.glob("models/seed=*/")), *sorted(run.path.glob("models/*/seed=*/"))):
        if not folder.name.removeprefix("seed=").isdigit():
            continue
        condition = "" if folder.parent == run.path / "models" else folder.parent.name
        yield from _check_training(run.for_condition(condition), folder)


def _check_listed(run: Run, folder: Path, hint: str) -> Iterator[Check]:
    """Yield a check of the manifest of a folder, and one for every file that it lists or that should be listed."""
    present = {*folder.glob("*.nc"), *folder.glob("*.json")} - {folder / MANIFEST, *map(folder.joinpath, RECORDS)}
    if not present and not (folder / MANIFEST).exists():
        return
    yield partial(read_manifest, folder, run.identity, hint)
    try:
        listed = {folder / name for name in read_manifest(folder, run.identity, hint)}
    except RunError:
        return  # the check above names it
    for file in sorted(present | listed):
        yield partial(read_listed, file, run.identity, hint)


def _check_training(models: Run, folder: Path) -> Iterator[Check]:
    """Yield the checks of one seed: settings, log, every column of the history, every checkpoint."""
    seed = int(folder.name.removeprefix("seed="))
    numbers = [path.name.removeprefix("step=") for path in folder.glob("step=*/")]
    steps = sorted(int(number) for number in numbers if number.isdigit())
    hint = f"delete {folder} and run again to train this seed again"
    yield partial(read_record, folder / f"{TRAINING_FILE}.json", "training", hint)
    if any(folder.glob("log.*")):
        yield partial(read_log, folder / "log.csv", models.training_identity(seed))
    if (folder / HISTORY_FOLDER).exists():
        yield partial(models.open_history, seed, max(steps, default=0))
        for file in sorted((folder / HISTORY_FOLDER).glob("*.bin")):
            yield partial(_verify_column, models, seed, file.stem)
    for step in steps:
        yield partial(models.verified_checkpoint, seed, step)
    if (folder / "resume").exists():
        yield partial(verify_checkpoint, folder / "resume", models.training_identity(seed))


def _verify_column(models: Run, seed: int, name: str) -> None:
    history = models.open_history(seed)
    if name in history.columns:
        history.verify_column(name)
