"""The state of a run is read from its folder: cells, seeds, steps, locks, jobs that were set aside."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mesascope.folder_locks import find_lock_holder
from mesascope.store import Run, RunError
from mesascope.studies.run_status import JobStatus, read_run_status

MAX_SECONDS = 0.5  # of processor time, with the start of Python


def make_run(path: Path, cell: str, seeds: list[int]) -> Run:
    """A main condition of 100 steps, the condition `wide` of 50, and a toy model."""
    training = {"training": {"kind": "TrainingConfig", "steps": 100}, "task": {"kind": "Affine"}}
    parameters = {**training, "wide": {"training": {"steps": 50}}, "toy": {"title": "", "toy model": {}}}
    return Run.create(path, {"study": "s", "scale": "smoke", "cell": cell, "seeds": seeds, "parameters": parameters})


def write_log(run: Run, condition: str, seed: int, steps: int) -> None:
    with run.for_condition(condition).open_log(seed, keep_steps=0) as log:
        for step in range(steps):
            log.add_row(step, 0.5, 0.1, 1.0, 0.0)


def write_part(run: Run, name: str) -> None:
    (run.path / "parts").mkdir(exist_ok=True)
    (run.path / "parts" / f"{name}.part").touch()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = make_run(tmp_path / "run", "heads=1", [0, 1, 2, 3])
    write_log(run, "", 0, 100)
    write_part(run, "loss-seed=0")
    write_log(run, "", 1, 100)
    write_log(run, "", 2, 7)
    write_log(run, "wide", 3, 50)
    write_part(run, "wide_loss-seed=3")
    write_part(run, "toy-seed=1")
    run.write_json("set_aside", [{"condition": "wide", "seed": 0}, {"simulation": "toy", "seed": 2}])
    make_run(run.path / "cells" / "heads=2", "heads=2", [0])
    return run


def test_every_job_has_its_state(run: Run) -> None:
    status = read_run_status(run.path)
    found = {(job.cell, job.condition, job.seed): (job.state, job.step, job.steps) for job in status.jobs}
    expected = {("heads=1", "", seed): ("waiting", 0, 100) for seed in range(4)}
    expected |= {("heads=1", "wide", seed): ("waiting", 0, 50) for seed in range(4)}
    expected |= {("heads=1", "toy", seed): ("waiting", 0, 0) for seed in range(4)}
    expected |= {("heads=2", name, 0): ("waiting", 0, n) for name, n in (("", 100), ("wide", 50), ("toy", 0))}
    expected |= {
        ("heads=1", "", 0): ("analysed", 100, 100),
        ("heads=1", "", 1): ("trained", 100, 100),
        ("heads=1", "", 2): ("stopped", 7, 100),
        ("heads=1", "wide", 3): ("analysed", 50, 50),
        ("heads=1", "wide", 0): ("set aside", 0, 50),
        ("heads=1", "toy", 1): ("analysed", 0, 0),
        ("heads=1", "toy", 2): ("set aside", 0, 0),
    }
    assert found == expected
    assert status.counts == {"waiting": 8, "stopped": 1, "trained": 1, "analysed": 3, "set aside": 2}
    assert 0 <= status.seconds_since_change < 300


def test_a_condition_whose_name_begins_with_that_of_another_has_results_of_its_own(tmp_path: Path) -> None:
    parameters = {"training": {"steps": 0}, "wide": {"training": {"steps": 0}}, "wide_deep": {"training": {"steps": 0}}}
    description = {"study": "s", "scale": "smoke", "cell": "", "seeds": [1, 11], "parameters": parameters}
    run = Run.create(tmp_path / "run", description)
    write_part(run, "wide_deep_loss-seed=1")
    write_part(run, "wider-seed=11")
    states = {(job.condition, job.seed): job.state for job in read_run_status(run.path).jobs}
    analysed = {key for key, state in states.items() if state == "analysed"}
    assert analysed == {("wide", 1), ("wide_deep", 1), ("", 11)}


def test_locks_tell_who_works(run: Run) -> None:
    assert read_run_status(run.path).holder is None
    with run.exclusive_lock(), run.exclusive_lock("models/seed=2"):
        status = read_run_status(run.path)
        assert status.holder == find_lock_holder(run.path) == str(os.getpid())
        jobs = [job for job in status.jobs if job.state == "training"]
    assert jobs == [JobStatus(cell="heads=1", condition="", seed=2, state="training", step=7, steps=100)]
    assert find_lock_holder(run.path) is None


def test_the_command_prints_a_line_per_condition(run: Run, command: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = command("status", run.path)
    lines = out.splitlines()
    assert code == 0
    assert re.search(
        r"s at smoke scale, 15 jobs: 8 waiting, 1 stopped, .*; last change \d+ s ago; no process uses it", lines[0]
    )
    assert lines[1] == "  heads=1 analysed: seed 0; trained: seed 1; stopped: seed 2 (step 7 of 100); waiting: seed 3"
    assert len(lines) == 7
    assert len(json.loads(command("status", run.path, "--json")[1])["jobs"]) == 15


def test_what_is_no_run_of_a_study_is_one_line(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    code, _, errors = command("status", tmp_path / "none")
    assert (code, len(errors.splitlines())) == (2, 1)
    assert "must hold run.json, but" in errors
    Run.create(tmp_path / "other", {"study": "inspect"})
    with pytest.raises(RunError, match=r"must be that of a run of a study, but .* holds another run"):
        read_run_status(tmp_path / "other")


def test_a_status_needs_no_torch_and_half_a_second(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "", list(range(300)))
    for seed in range(100):
        (run.seed_path(seed)).mkdir(parents=True)
        (run.seed_path(seed) / "log.csv").write_text("step,loss\n0,1.0\n1,0.5\n")
    code = (
        "import sys, time\n"
        "from mesascope.cli import main\n"
        f"sys.argv = ['mesascope', 'status', {str(run.path)!r}]\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules, time.process_time())"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(2)]
    assert "100 stopped" in runs[0].stdout
    endings = [one.stdout.splitlines()[-1].split() for one in runs]
    assert {has_torch for has_torch, _ in endings} == {"False"}
    assert min(float(seconds) for _, seconds in endings) < MAX_SECONDS


def test_an_older_change_is_told_in_seconds(run: Run) -> None:
    before = time.time() - 1000
    for file in run.path.rglob("*"):
        os.utime(file, (before, before))
    assert 999 < read_run_status(run.path).seconds_since_change < 1300
