"""The run directory: what is refused, what survives a kill or a full disk, what comes back."""

import contextlib
import errno
import json
import math
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from mesascope.axes import to_data_array
from mesascope.store import CHECKPOINT_FILE, LogFn, Run, RunError, do_nothing, verify_checkpoint

WHAT = {"study": "affine", "scale": "smoke", "parameters": {"training": {"steps": 5}}, "seeds": [0, 1]}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", WHAT)


def put(run: Run, step: int, text: str = "weights", *, rolling: bool = False) -> Path:
    return run.write_checkpoint(0, step, lambda folder: write(folder / "model.bin", text), rolling=rolling)


def write(file: Path, text: str) -> None:
    file.write_text(text)


def replace_in(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def resumed(run: Run, due: tuple[int, ...], say: LogFn = do_nothing) -> str:
    found = run.find_resume_point(0, due, say)
    return found.name if found else ""


def dataset() -> xr.Dataset:
    return xr.Dataset({"loss": to_data_array(np.arange(3.0), "step", units="1", description="a loss")})


def drafts(run: Run) -> list[Path]:
    return list(run.path.rglob(".tmp-*"))


def test_run_json_says_what_was_asked_for_and_what_ran(run: Run) -> None:
    record = json.loads((run.path / "run.json").read_text())
    assert {key: record[key] for key in WHAT} == WHAT
    assert {"mesascope", "torch", "transformers", "python", "revision", "platform", "started"} <= set(
        record["provenance"]
    )
    assert Run.open(run.path).description == WHAT


def test_taking_up_a_run_keeps_its_start_and_takes_new_seeds_and_prose(run: Run) -> None:
    again = Run.create(run.path, {**WHAT, "seeds": [0, 1, 2], "description": "other words"})
    assert again.record["provenance"] == run.record["provenance"]
    assert Run.open(run.path).description["seeds"] == [0, 1, 2]


def test_another_study_and_other_numbers_are_refused(run: Run) -> None:
    with pytest.raises(RunError, match=r"holds one with study 'affine' \(now 'ngram'\); choose another directory"):
        Run.create(run.path, {**WHAT, "study": "ngram"})
    with pytest.raises(RunError, match=r"parameters.training.steps 5 \(now 6\)"):
        Run.create(run.path, {**WHAT, "parameters": {"training": {"steps": 6}}})


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(RunError, match=r"must be a folder, but .* is a file"):
        Run.create(tmp_path / "run", WHAT)


def test_a_place_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(RunError, match="must be writable, but /proc/nowhere is not"):
        Run.create("/proc/nowhere", WHAT)
    with pytest.raises(RunError, match="must be writable, but /proc/self is not"):
        Run.create("/proc/self", WHAT)


def test_somebody_elses_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(RunError, match=r"must have an empty folder, but .* holds thesis.tex"):
        Run.create(tmp_path, WHAT)


def test_a_corrupt_run_json_is_named(run: Run) -> None:
    (run.path / "run.json").write_text('{"study": "aff')
    for opened in (lambda: Run.open(run.path), lambda: Run.create(run.path, WHAT)):
        with pytest.raises(RunError, match=r"run.json must be JSON, but cannot be read .*delete the folder"):
            opened()


def test_opening_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"must hold run.json, but .* has none"):
        Run.open(tmp_path)


def test_checkpoints_are_listed_in_order_and_damaged_ones_named(run: Run) -> None:
    for step in (0, 100, 20):
        put(run, step)
    (run.verified_checkpoint(0, 20) / "model.bin").write_text("weight")
    said: list[str] = []
    assert run.list_checkpoints(0, said.append) == [0, 100]
    assert "step=20/model.bin must have 7 bytes, but has 6" in said[0]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: write(folder / "model.bin", "weighty"), "its SHA-256 differs"),
        (lambda folder: (folder / "model.bin").unlink(), "model.bin must exist, but is missing"),
        (lambda folder: (folder / CHECKPOINT_FILE).unlink(), "checkpoint.json must exist, but is missing"),
        (
            lambda folder: write(folder / CHECKPOINT_FILE, "[]"),
            "checkpoint.json must be a JSON object, but is an array",
        ),
        (lambda folder: write(folder / CHECKPOINT_FILE, "[" * 100_000), "checkpoint.json must be JSON, but is nested"),
        (lambda folder: write(folder / CHECKPOINT_FILE, '{"files": {}, "step": 3}'), "written by an older version"),
        (lambda folder: replace_in(folder / CHECKPOINT_FILE, '"step": 3', '"step": 4'), "must match its checksum"),
    ],
)
def test_every_damage_is_told(run: Run, damage, reason: str) -> None:
    folder = put(run, 3)
    assert verify_checkpoint(folder) == 3
    damage(folder)
    with pytest.raises(RunError, match=rf"{reason}.*delete .*step=3 and run again"):
        run.verified_checkpoint(0, 3)
    assert run.list_checkpoints(0) == []


@pytest.mark.parametrize(("source", "target"), [((1, 10), (0, 10)), ((0, 10), (0, 100))], ids=["seed", "step"])
def test_the_checkpoint_of_another_seed_or_step_is_refused(run: Run, source, target) -> None:
    (seed, step), (other_seed, other_step) = source, target
    folder = run.write_checkpoint(seed, step, lambda folder: write(folder / "model.bin", "other weights"))
    shutil.copytree(folder, run.seed_path(other_seed) / f"step={other_step}")
    with pytest.raises(RunError, match=r"must be the checkpoint of (seed|step) \d+, but is that of \d+; delete"):
        run.verified_checkpoint(other_seed, other_step)
    with pytest.raises(RunError, match=r"must be the checkpoint of"):
        run.find_resume_point(other_seed, (other_step,))
    assert (run.seed_path(other_seed) / f"step={other_step}").exists(), "it is not removed"


def test_a_checkpoint_of_other_settings_is_refused(run: Run) -> None:
    put(run, 3)
    run.write_record("models/seed=0/training", {"rate": 0.1}, "training")
    with pytest.raises(RunError, match=r"must be the checkpoint of training '[0-9a-f]+', but is that of ''"):
        run.verified_checkpoint(0, 3)


def test_resume_from_the_newest_that_has_all_before_it(run: Run) -> None:
    due = (0, 1, 10, 100)
    assert resumed(run, due) == ""
    for step in due:
        put(run, step)
    assert resumed(run, due) == "step=100"
    (run.seed_path(0) / "step=10" / "model.bin").write_text("")
    with pytest.raises(RunError, match=r"step=10/model.bin must have 7 bytes, but has 0; delete .*step=10 and run"):
        resumed(run, due)
    assert (run.seed_path(0) / "step=100").exists(), "nothing is removed unasked"
    shutil.rmtree(run.seed_path(0) / "step=10")
    assert resumed(run, due) == "step=1"
    assert not (run.seed_path(0) / "step=100").exists()


def test_the_rolling_checkpoint_counts_only_if_nothing_before_it_is_lacking(run: Run) -> None:
    due = (0, 10, 100)
    put(run, 0)
    put(run, 50, rolling=True)
    assert resumed(run, due) == "step=0"
    put(run, 10)
    assert resumed(run, due) == "resume"
    put(run, 60, rolling=True)
    assert verify_checkpoint(run.seed_path(0) / "resume") == 60
    put(run, 100)
    assert resumed(run, due) == "step=100"


def test_a_damaged_rolling_checkpoint_is_removed_and_named(run: Run) -> None:
    put(run, 0)
    (put(run, 50, rolling=True) / "model.bin").write_text("")
    said: list[str] = []
    assert resumed(run, (0, 100), said.append) == "step=0"
    assert "resume/model.bin must have 7 bytes, but has 0; it is removed, and training resumes" in said[0]
    assert not (run.seed_path(0) / "resume").exists()


def test_the_log_is_cut_to_the_checkpoint_and_a_torn_line_is_forgotten(run: Run) -> None:
    with run.open_log(0, keep_steps=0) as log:
        for step in range(4):
            log.add_row(step, 0.1 + step, 1e-3, 2.0, 0.5 * step)
    file = run.seed_path(0) / "log.csv"
    file.write_text(file.read_text() + "4,0.25,0.0")  # a write that was killed
    assert run.read_log(0)["step"].tolist() == [0, 1, 2, 3]
    with run.open_log(0, keep_steps=2) as log:
        assert (log.loss, log.seconds) == (1.1, 0.5)
        log.add_row(2, 7.0, 1e-3, 2.0, 1.0)
    assert run.read_log(0)["loss"].tolist() == [0.1, 1.1, 7.0]


def test_a_damaged_log_is_refused_and_not_resumed(run: Run) -> None:
    with run.open_log(0, keep_steps=0) as log:
        log.add_row(0, 0.125, 1e-3, 2.0, 0.5)
    replace_in(run.seed_path(0) / "log.csv", "0.125", "0.625")
    for read in (lambda: run.read_log(0), lambda: run.open_log(0, keep_steps=1)):
        with pytest.raises(RunError, match=r"log.csv must match its checksum, but differs; delete .*seed=0 and run"):
            read()
    (run.seed_path(0) / "log.json").unlink()
    with pytest.raises(RunError, match=r"log.json must exist, but is missing; delete"):
        run.read_log(0)
    with run.open_log(0, keep_steps=0):
        assert run.read_log(0)["step"].tolist() == []


def test_the_log_of_another_seed_is_refused(run: Run) -> None:
    for seed in (0, 1):
        with run.open_log(seed, keep_steps=0) as log:
            log.add_row(0, seed, 1e-3, 2.0, 0.5)
    for name in ("log.csv", "log.json"):
        shutil.copy(run.seed_path(1) / name, run.seed_path(0))
    with pytest.raises(RunError, match=r"log.csv must be the log of seed 0, but is that of 1; delete"):
        run.read_log(0)


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_log_that_is_cut_can_be_killed_between_any_two_writes(run: Run, monkeypatch, stop: int) -> None:
    with run.open_log(0, keep_steps=0) as log:
        for step in range(4):
            log.add_row(step, 0.1 + step, 1e-3, 2.0, 0.5 * step)
    written = []

    def killed(source: object, target: object) -> None:
        written.append(target)
        if len(written) == stop:
            raise KeyboardInterrupt
        replace(source, target)

    replace = os.replace
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", killed)
        with contextlib.suppress(KeyboardInterrupt), run.open_log(0, keep_steps=2):
            pass
    with run.open_log(0, keep_steps=2) as log:
        assert log.loss == 1.1
    assert run.read_log(0)["step"].tolist() == [0, 1]


def test_a_record_of_another_kind_is_refused(run: Run) -> None:
    run.write_record("models/seed=0/training", {"rate": 0.1}, "training")
    shutil.copy(run.seed_path(0) / "training.json", run.path / "run.json")
    with pytest.raises(RunError, match=r"run.json must be the record of a run, but is that of something else"):
        Run.open(run.path)


@pytest.mark.parametrize(
    "text", ["5", "[1]", "null", '"text"', "[" * 100_000, '{"a": 1, "format": 2}', '{"sha256": 1}']
)
def test_other_json_types_are_refused(run: Run, text: str) -> None:
    (run.path / "run.json").write_text(text)
    with pytest.raises(RunError, match=r"run.json must .*; restore it, or delete the folder and run again"):
        Run.open(run.path)


def test_a_run_of_the_older_format_is_read_but_not_resumed(run: Run) -> None:
    (run.path / "run.json").write_text(json.dumps(WHAT))
    (run.path / "verdicts.json").write_text("[]")
    older = Run.open(run.path)
    assert not older.has_checksums
    assert older.read_json("verdicts") == []
    with pytest.raises(
        RunError, match=r"run\.json must have a checksum to be resumed, but was written by an older version"
    ):
        Run.create(run.path, WHAT)


def test_a_result_is_verified_and_a_swapped_one_is_no_other(run: Run) -> None:
    first, second = run.write_results("inner", dataset()), run.write_results("outer", dataset() + 1)
    first.write_bytes(second.read_bytes())
    with pytest.raises(RunError, match=r"inner.nc must match its checksum in manifest.json, but differs; run again"):
        run.read_results("inner")
    run.write_results("inner", dataset())
    xr.testing.assert_equal(run.read_results("inner"), dataset())
    replace_in(run.path / "results" / "manifest.json", '"started"', '"stopped"')
    with pytest.raises(RunError, match=r"manifest.json must match its checksum, but differs"):
        run.read_results("outer")


def test_results_of_another_run_are_refused_even_with_their_manifest(run: Run, tmp_path: Path) -> None:
    other = Run.create(tmp_path / "other", {**WHAT, "scale": "laptop"})
    other.write_results("inner", dataset())
    shutil.copytree(other.path / "results", run.path / "results")
    with pytest.raises(RunError, match=r"manifest.json must be the manifest of this run, but is that of another"):
        run.read_results("inner")


def test_a_result_can_be_killed_before_and_after_its_manifest(run: Run, monkeypatch) -> None:
    run.write_results("inner", dataset())
    replaced, replace = [], os.replace

    def killed(source: object, target: Path) -> None:
        if Path(target).name == "inner.nc":
            raise KeyboardInterrupt
        replaced.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        run.write_results("inner", dataset() + 1)
    assert len(replaced) == 1
    xr.testing.assert_equal(run.read_results("inner"), dataset())


def test_a_damaged_partial_result_is_named_and_computed_again(run: Run) -> None:
    run.save_partial("a-seed=0", dataset())
    run.save_partial("a-seed=1", dataset() + 1)
    loaded = run.load_partial("a-seed=0")
    assert loaded is not None
    xr.testing.assert_identical(loaded, dataset())
    file, other = (run.path / "parts" / f"a-seed={seed}.part" for seed in (0, 1))
    said: list[str] = []
    original = file.read_bytes()
    for damaged in (original[:-9], original.replace(b"loss", b"boss", 1), b"", b"[1]\n", b"no header"):
        file.write_bytes(damaged)
        assert run.load_partial("a-seed=0", said.append) is None
        assert "a-seed=0.part must" in said[-1]
        assert said[-1].endswith("it is computed again")
    file.write_bytes(other.read_bytes())
    assert run.load_partial("a-seed=0", said.append) is None, "it is that of another seed"


def test_results_open_with_plain_xarray_and_carry_provenance(run: Run) -> None:
    file = run.write_results("inner", dataset())
    with xr.open_dataset(file) as plain:
        assert plain["loss"].attrs["units"] == "1"
        assert plain.attrs["study"] == "affine"
        assert plain.attrs["torch"] == run.record["provenance"]["torch"]
    assert run.result_names() == ["inner"]
    xr.testing.assert_equal(run.read_results("inner"), dataset())


def test_rich_attributes_and_unknown_results_are_refused(run: Run) -> None:
    with pytest.raises(RunError, match=r"must be strings or numbers, but 'ranges' of 'loss' is \{\}"):
        run.write_results("inner", dataset().assign(loss=dataset()["loss"].assign_attrs(ranges={})))
    with pytest.raises(RunError, match=r"results must be one of \[\], but got 'inner'"):
        run.read_results("inner")


def test_json_holds_null_where_a_number_is_not_finite(run: Run) -> None:
    run.write_json("verdicts", [{"value": math.nan, "low": np.float32(1.5), "at": Path("a"), "n": np.arange(2)}])
    assert run.read_json("verdicts") == [{"value": None, "low": 1.5, "at": "a", "n": [0, 1]}]
    with pytest.raises(RunError, match=r"nothing.json must exist, but is missing"):
        run.read_json("nothing")


def test_a_full_disk_is_one_line_and_leaves_the_old_file(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.write_text("report.html", "old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(
            RunError, match=r"must have room for .*report.html, but is full; free some space and run again"
        ):
            run.write_text("report.html", "new")
        with pytest.raises(RunError, match=r"must have room for .*step=7, but is full"):
            put(run, 7)
    assert (run.path / "report.html").read_text() == "old"
    assert not drafts(run)
    assert not (run.seed_path(0) / "step=7").exists()


FILL = """
import resource, sys, numpy, torch, xarray, safetensors.torch
from mesascope.store import Run, RunError
run = Run.open(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
big = xarray.Dataset({"x": ("batch", numpy.random.rand(100_000))})
tensors = {"x": torch.rand(100_000)}
def fill_log():
    log = run.open_log(0, 0)
    for _ in range(5000):
        log.add_row(*[1.0] * 5)
    log.sync_to_disk()


for write in (
    lambda: run.write_results("big", big),
    lambda: run.write_text("report.html", "x" * 100_000),
    lambda: run.write_checkpoint(0, 1, lambda folder: safetensors.torch.save_file(tensors, folder / "x.safetensors")),
    fill_log,
):
    try:
        write()
    except RunError as error:
        print(error)
"""


def test_no_writer_leaves_anything_half_written_when_the_disk_really_refuses(run: Run) -> None:
    """A limit on the size of files stops numpy, HDF5, safetensors and text in the middle of a write."""
    told = subprocess.run([sys.executable, "-c", FILL, run.path], capture_output=True, text=True, check=True)
    lines = told.stdout.splitlines()
    assert len(lines) == 4, told.stdout
    assert all("but is full; free some space and run again" in line for line in lines), told.stdout
    assert not drafts(run)
    assert not run.result_names()
    assert not (run.path / "report.html").exists()
    assert run.list_checkpoints(0) == []


def _hold(path: Path, ready, release) -> None:
    with Run.open(path).exclusive_lock():
        ready.set()
        release.wait(30)


def test_two_processes_cannot_write_one_run(run: Run) -> None:
    context = multiprocessing.get_context("fork")
    ready, release = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(run.path, ready, release))
    holder.start()
    assert ready.wait(30)
    with pytest.raises(RunError, match=f"in use by process {holder.pid}; wait for it"), run.exclusive_lock(wait=0.2):
        pass
    release.set()
    with run.exclusive_lock():
        pass
    holder.join()


def test_too_many_open_files_are_one_line_that_names_the_limit(run: Run) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    first_free = os.dup(0)
    os.close(first_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (first_free, hard))
    try:
        with pytest.raises(RunError, match=r"too many files are open.*ulimit -n.*fewer cells"), run.exclusive_lock():
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with run.exclusive_lock():
        assert (run.path / ".lock").exists()


def test_what_a_killed_process_left_is_removed_under_the_lock(run: Run) -> None:
    for place in (run.path, run.path / "results", run.seed_path(0)):
        (place / ".tmp-dead").mkdir(parents=True)
        (place / ".tmp-dead" / "half").write_text("")
    with run.exclusive_lock():
        assert [draft.parent for draft in drafts(run)] == [run.seed_path(0)]
    with run.exclusive_lock("models/seed=0"):
        assert not drafts(run)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_waits_until_a_result_is_written(number: signal.Signals, tmp_path: Path, monkeypatch):
    """An interrupt while xarray takes its locks would leave one locked for ever."""
    run, done = Run.create(tmp_path / "run", {"study": "x"}), []
    write, before = xr.Dataset.to_netcdf, signal.getsignal(number)

    def write_interrupted(dataset: xr.Dataset, **options: Any) -> Any:
        signal.raise_signal(number)
        image = write(dataset, **options)
        done.append(True)
        return image

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(xr.Dataset, "to_netcdf", write_interrupted)
    signal.signal(number, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            run.save_partial("part", xr.Dataset({"a": ("x", [1.0])}))
        assert done == [True]
        assert signal.getsignal(number) is interrupt
    finally:
        signal.signal(number, before)


def test_a_record_that_was_replaced_by_another_file_is_named(tmp_path):
    path = Run.create(tmp_path / "run", {"study": "mine"}).path
    (path / "run.json").write_text('{"architectures": ["Decoder"], "activation": "gelu"}')
    with pytest.raises(
        RunError, match=r"run\.json must have a checksum to be resumed, but was .* replaced; restore it"
    ):
        Run.create(path, {"study": "mine"})
