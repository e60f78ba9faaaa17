"""A grid on Ray whose workers, driver and nodes are killed ends bit for bit where an undisturbed one ends."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import ray_grid

SEEDS, STEPS, CHECKPOINTS = 24, 150, 6
PATIENCE = 1500.0  # seconds, on a busy machine
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "PYTHONPATH": os.pathsep.join(str(Path(__file__).parents[1] / one) for one in ("src", "tests")),
}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster on this machine: a head without CPUs, to which the driver connects."""
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        add_node(cluster, num_cpus=0, include_dashboard=False)
        yield cluster
    finally:
        cluster.shutdown()


def add_node(cluster: Any, **settings: Any) -> Any:
    """Start a node; Ray gives it 30 s, which are too few on a busy machine."""
    for _ in range(5):
        try:
            return cluster.add_node(wait=False, **settings)
        except Exception as error:  # Ray raises bare exceptions
            if "timed out during startup" not in str(error):
                raise
    return cluster.add_node(wait=False, **settings)


def start_driver(folder: Path, executor: str) -> subprocess.Popen:
    command = [sys.executable, str(Path(ray_grid.__file__)), str(folder), executor, str(SEEDS)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **SETTINGS})


def read_states(log: Path) -> list[tuple[int, str]]:
    """States of jobs in the order in which they changed, of all drivers."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return [(row[2], row[3]) for row in map(json.loads, lines) if row[1] == "state"]


def num_done(log: Path) -> int:
    return sum(state == "done" for _, state in read_states(log))


def wait_until(condition: Callable[[], object], driver: subprocess.Popen) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert driver.poll() is None, f"the driver ended: {driver.stderr and driver.stderr.read()}"
        assert time.monotonic() < end
        time.sleep(0.1)


def find_workers() -> list[psutil.Process]:
    """The processes that run a job of this cluster."""
    mine = psutil.Process().children(recursive=True)
    return [one for one in mine if one.is_running() and "_run_ray_job" in "".join(safe_cmdline(one))]


def safe_cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def kill_a_worker(driver: subprocess.Popen) -> None:
    wait_until(find_workers, driver)
    time.sleep(random.uniform(0.0, 1.0))
    for worker in random.sample(workers, 1) if (workers := find_workers()) else []:
        worker.kill()


def first_and_last_checkpoints(folder: Path) -> dict[Path, int]:
    """When the checkpoints were written that only a training from its start, or a finished one, writes."""
    files = [*folder.glob("models/seed=*/step=0/*"), *folder.glob(f"models/seed=*/step={STEPS}/*")]
    return {file: file.stat().st_mtime_ns for file in files}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_disturbed_grid_ends_where_an_undisturbed_one_ends(cluster, tmp_path: Path) -> None:
    """Three workers are killed, the driver is killed, a node is removed and another added."""
    random.seed(seed := int(os.environ.get("RAY_GRID_SEED", "0")))
    sys.stdout.write(f"seed {seed}\n")
    ray_grid.write_study(tmp_path / "grid.py", STEPS, CHECKPOINTS)
    undisturbed = start_driver(tmp_path / "undisturbed", "processes,max_workers=2")
    nodes = [add_node(cluster, num_cpus=1) for _ in range(2)]
    folder, log, seen = tmp_path / "disturbed", tmp_path / "disturbed.log", {}
    driver = start_driver(folder, f"ray:{cluster.address}")
    from faults.small_study import list_differences, read_outputs  # takes a while, in which the drivers work

    for goal in (2, 5, 8):
        wait_until(lambda goal=goal: num_done(log) >= goal, driver)
        seen |= first_and_last_checkpoints(folder)
        kill_a_worker(driver)
    wait_until(lambda: num_done(log) >= 10, driver)
    seen |= first_and_last_checkpoints(folder)
    driver.kill()
    driver.communicate()

    before = num_done(log)
    driver = start_driver(folder, f"ray:{cluster.address}")
    wait_until(lambda: num_done(log) >= before + 13, driver)  # those that were finished, and others
    seen |= first_and_last_checkpoints(folder)
    cluster.remove_node(nodes[1])
    add_node(cluster, num_cpus=1)
    _, errors = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 0, errors

    _, errors = undisturbed.communicate(timeout=PATIENCE)
    assert undisturbed.returncode == 0, errors
    outputs = read_outputs(tmp_path / "undisturbed")
    assert len([name for name in outputs if name.endswith("model.safetensors")]) == SEEDS * CHECKPOINTS
    assert list_differences(folder, outputs) == []
    now = first_and_last_checkpoints(folder)
    assert {file: time for file, time in seen.items() if now[file] != time} == {}
    assert sum(state == "waiting" for _, state in read_states(log)) >= 3, "fewer jobs were lost than killed"
    assert not list(folder.rglob(".tmp-*"))
    text = log.read_text(encoding="utf-8")
    sys.stdout.write("\n".join(line for line in text.splitlines() if '"log"' in line) + "\n")
