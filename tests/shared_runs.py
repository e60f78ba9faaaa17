"""A small run, written without training, that is sent to shared storage."""

from pathlib import Path

import xarray as xr

from mesascope.checksums import hash_file
from mesascope.store import Run


def create_run(path: Path) -> Run:
    """Create a run with one checkpoint and a result."""
    run = Run.create(path, {"study": "affine", "scale": "smoke", "seeds": [0], "parameters": {}})
    run.write_record("models/seed=0/training", {"steps": 4}, "training")
    write_checkpoint(run, 1, rolling=True)
    run.write_results("similarity", xr.Dataset({"score": ("pos", [0.5, 0.25])}))
    run.write_json("verdicts", [{"name": "a", "status": "inconclusive"}])
    return run


def write_checkpoint(run: Run, step: int, *, rolling: bool = False) -> None:
    """Write a checkpoint and the line of the log before it."""

    def write_files(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(bytes([step % 256]) * 400)

    with run.open_log(0, max(0, step - 1)) as log:
        log.add_row(max(0, step - 1), 1.0 / (step + 1), 0.1, 1.0, float(step))
    run.write_checkpoint(0, step, write_files, rolling=rolling)


def continue_run(run: Run) -> None:
    """What a job may do between two commits: a checkpoint more, one less, a new verdict."""
    write_checkpoint(run, 2)
    run.remove_resume(0)
    run.write_json("verdicts", [{"name": "a", "status": "supported"}])


def read_tree(folder: Path) -> dict[str, str]:
    """Return the digest of every file of a run by its path."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    paths = {file: file.relative_to(folder).as_posix() for file in files}
    return {path: str(hash_file(file)["sha256"]) for file, path in paths.items() if "/." not in f"/{path}"}
