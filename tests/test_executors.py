"""Executors: order, news, errors, and nothing left behind."""

import os
import platform
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from multiprocessing import forkserver
from pathlib import Path
from types import ModuleType

import psutil
import pytest

from mesascope.executors import (
    ExecutorError,
    ProcessExecutor,
    RayExecutor,
    RetryPolicy,
    SerialExecutor,
    create_executor,
)

HELPERS = "resource_tracker|forkserver"  # in the command lines of Python's own two processes


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The jobs, where children find them too."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return import_module("cluster_jobs")


def children() -> list[psutil.Process]:
    """All below us but the tests' browser and Python's own two helpers; what branches off those two counts."""
    ours = psutil.Process()
    helpers = [child for child in ours.children() if re.search(HELPERS, " ".join(child.cmdline()))]
    return [
        child
        for child in ours.children(recursive=True)
        if child not in helpers and not child.name().startswith("chrom")
    ]


@pytest.mark.parametrize("where", [SerialExecutor(), ProcessExecutor(), ProcessExecutor(max_workers=1)], ids=str)
def test_results_in_order_and_all_the_news(where: SerialExecutor | ProcessExecutor, jobs: ModuleType) -> None:
    heard, said = [], []
    assert where.map_jobs(jobs.square, [3, 4, 5], lambda *news: heard.append(news), said.append) == [9, 16, 25]
    assert sorted(heard) == [(job, done, 2, 0.5 / done) for job in range(3) for done in (1, 2)]
    assert sorted(said) == [f"squaring {number}" for number in (3, 4, 5)]
    assert not children()


def test_order_is_the_jobs_even_if_the_first_is_last(jobs: ModuleType) -> None:
    assert ProcessExecutor().map_jobs(jobs.slowest_first, [0, 1, 2, 3]) == [0, 1, 2, 3]
    assert ProcessExecutor().map_jobs(jobs.slowest_first, []) == []


def test_few_workers_do_many_jobs(jobs: ModuleType) -> None:
    assert len(set(ProcessExecutor(max_workers=2).map_jobs(jobs.who, range(6)))) == 2
    assert os.getpid() not in ProcessExecutor(max_workers=1).map_jobs(jobs.who, [0])


def test_workers_allocate_huge_pages_and_the_environment_stays(jobs: ModuleType, monkeypatch) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    forkserver._forkserver._stop()  # of earlier tests  # pyright: ignore[reportAttributeAccessIssue]  private
    (flags,) = ProcessExecutor().map_jobs(jobs.list_memory_flags, [0])
    assert "GLIBC_TUNABLES" not in os.environ
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if platform.libc_ver() >= ("glibc", "2.35") and setting.exists() and "[madvise]" in setting.read_text():
        assert "hg" in flags


@pytest.mark.parametrize("where", [SerialExecutor(), ProcessExecutor()], ids=str)
def test_a_jobs_error_arrives_with_its_type_and_stops_the_others(
    where: SerialExecutor | ProcessExecutor, jobs: ModuleType
) -> None:
    began = time.monotonic()
    with pytest.raises(LookupError, match="no 1 here"):
        where.map_jobs(jobs.fail, [1, 2])
    assert time.monotonic() - began < 30
    assert not children()


def test_an_error_that_cannot_travel_is_told_in_words(jobs: ModuleType) -> None:
    with pytest.raises(ExecutorError, match="a job failed: PeculiarError: peculiar 7") as caught:
        ProcessExecutor().map_jobs(jobs.fail_peculiarly, [7])
    assert "in another process" in caught.value.__notes__[0]


QUICK = RetryPolicy(pause=0.05)


def test_a_job_whose_process_is_killed_is_started_again(jobs: ModuleType, tmp_path: Path) -> None:
    said, states = [], []
    where = ProcessExecutor(max_workers=2, retries=QUICK)
    found = where.map_jobs(jobs.die_once, [(tmp_path, 0), (tmp_path, 1), (tmp_path, 2)], log=said.append,
                           change_state=lambda *state: states.append(state))  # fmt: skip
    assert found == [0, 1, 2]
    assert (
        sum("its worker process ended (signal SIGKILL); the job starts again in 0.05 s" in line for line in said) == 3
    )
    assert [state for index, state in states if index == 1] == ["running", "waiting", "running", "done"]
    assert not children()


def test_a_job_that_kills_its_process_twice_is_set_aside_and_named_at_the_end(jobs: ModuleType) -> None:
    """The others are done first."""
    states = []
    where = ProcessExecutor(max_workers=2, retries=QUICK)
    with pytest.raises(
        ExecutorError, match=r"2 of 6 were set aside because they ended 2 worker processes: 0 \(signal SIGKILL\), 3 \("
    ):
        where.map_jobs(jobs.die_if_divisible_by_three, range(6), change_state=lambda *state: states.append(state))
    assert {index for index, state in states if state == "done"} == {1, 2, 4, 5}
    assert [state for index, state in states if index == 3] == ["running", "waiting", "running", "set aside"]
    assert not children()


def test_without_retries_a_lost_process_sets_its_job_aside(jobs: ModuleType) -> None:
    with pytest.raises(ExecutorError, match="1 of 1 were set aside because they ended 1 worker processes: 0"):
        ProcessExecutor(retries=RetryPolicy(max_retries=0)).map_jobs(jobs.die, [0])


def test_processes_that_end_before_they_can_run_a_job_end_the_call(jobs: ModuleType, monkeypatch) -> None:
    """As in a script without `if __name__ == "__main__":`, where every new process fails to import it."""
    monkeypatch.setattr("mesascope.executors._processes._run_worker", jobs.exit_at_once)
    with pytest.raises(ExecutorError, match="a worker process must start, but 2 ended with exit code 3; run again"):
        ProcessExecutor(max_workers=1, retries=QUICK).map_jobs(jobs.square, list(range(50)))


@pytest.mark.parametrize("wrong", [{"max_retries": -1}, {"pause": -0.1}, {"pause": 61.0}], ids=str)
def test_policies_that_mean_nothing_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"must be .*, but got"):
        RetryPolicy(**wrong)


@pytest.mark.parametrize("error", [EOFError("unexpected EOF"), ConnectionRefusedError(111, "refused")], ids=repr)
def test_processes_that_cannot_start_are_named(jobs: ModuleType, monkeypatch, error: Exception) -> None:
    """A killed fork server answers with the first error, and one that is gone with the second."""

    def fail(self) -> None:
        raise error

    monkeypatch.setattr("multiprocessing.context.ForkServerProcess.start", fail)
    with pytest.raises(ExecutorError, match=r"a worker process must start, but none could .*; run again to resume"):
        ProcessExecutor().map_jobs(jobs.square, [1])
    monkeypatch.undo()
    assert ProcessExecutor().map_jobs(jobs.square, [2]) == [4]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no fork server")
def test_a_killed_fork_server_is_started_again(jobs: ModuleType) -> None:
    assert ProcessExecutor().map_jobs(jobs.square, [3]) == [9]
    helpers = [one for one in psutil.Process().children() if re.search(HELPERS, " ".join(one.cmdline()))]
    assert helpers
    for one in helpers:
        one.kill()
    while any(one.status() != psutil.STATUS_ZOMBIE for one in helpers):  # waiting would reap them
        time.sleep(0.01)
    with warnings.catch_warnings(action="ignore"):  # that the resource tracker has died
        assert ProcessExecutor().map_jobs(jobs.square, [4]) == [16]


SLEEPERS = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born without
sys.path.insert(0, {here!r})
import cluster_jobs
from mesascope.executors import ProcessExecutor
def tell(job, pid, *_):
    sys.stdout.write(f"{{pid}}\\n")
    sys.stdout.flush()
try:
    ProcessExecutor().map_jobs(cluster_jobs.sleep, [0, 1], tell)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda one: one.name)
def test_children_end_with_their_parent(sent: signal.Signals) -> None:
    code = SLEEPERS.format(here=str(Path(__file__).parent))
    pipe = subprocess.PIPE
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    with parent:
        assert parent.stdout is not None
        workers = [psutil.Process(int(parent.stdout.readline())) for _ in range(2)]
        if sent == signal.SIGINT:
            os.killpg(parent.pid, sent)  # a terminal's Ctrl-C goes to all
        else:
            parent.send_signal(sent)
        _, alive = psutil.wait_procs(workers, timeout=10)
        _, errors = parent.communicate(timeout=30)
    assert not alive
    assert parent.returncode == (130 if sent == signal.SIGINT else -sent)
    assert "Traceback" not in errors


def test_processes_of_jobs_need_not_wait_for_torch() -> None:
    code = "import sys, mesascope.executors\nassert not {'torch', 'submitit'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_of_executors() -> None:
    assert create_executor("serial") == SerialExecutor()
    assert create_executor("processes") == ProcessExecutor()
    assert create_executor("ray") == RayExecutor()
    assert create_executor("ray:auto") == RayExecutor(address="auto")
    for unknown in ("threads", "serial:1", "", "ray:", "processes:", "torchrun:1"):
        with pytest.raises(ValueError, match=r"must be serial, processes, ray\[:ADDRESS\], slurm or torchrun, but got"):
            create_executor(unknown)


def test_options_of_executors() -> None:
    assert create_executor("processes,max_workers=3") == ProcessExecutor(max_workers=3)
    assert create_executor("ray:10.0.0.1:6379,num_gpus=0.5,memory=1000,max_retries=0") == RayExecutor(
        address="10.0.0.1:6379", num_gpus=0.5, memory=1000, retries=RetryPolicy(max_retries=0)
    )
    for wrong in ("serial,max_workers=1", "processes,num_gpus=1", "ray,num_gpus=", "ray,num_gpus", "ray,memory=1GB"):
        with pytest.raises(ValueError, match=r"options of the executor \w+ must be NAME=VALUE of .*, but got"):
            create_executor(wrong)
    for wrong in ("processes,max_workers=0", "ray,num_cpus=-1", "ray,max_retries=-1"):
        with pytest.raises(ValueError, match=r"must be [01] or more, but got"):
            create_executor(wrong)


def test_ray_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch, jobs: ModuleType) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ExecutorError, match=r"ray package, but it is not installed; pip install 'mesascope\[ray\]'"):
        RayExecutor().map_jobs(jobs.square, [1])


def open_ports(process: psutil.Process) -> list[str]:
    """The addresses at which other machines can reach a process; none if it has ended."""
    try:
        listening = [one.laddr.ip for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN]
    except psutil.NoSuchProcess:
        return []
    return [ip for ip in listening if ip.removeprefix("::ffff:") != "127.0.0.1"]


@pytest.fixture
def local_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ray, not imported before the executor imports it, and shut down at the end."""
    if find_spec("ray") is None:
        pytest.skip("ray is not installed")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    yield
    import_module("ray").shutdown()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_jobs_on_a_local_ray(jobs: ModuleType, tmp_path: Path, local_ray: None) -> None:
    where, heard, said, states = RayExecutor(retries=QUICK), [], [], []
    found = where.map_jobs(jobs.square, [3, 4], lambda *news: heard.append(news), said.append,
                           lambda *state: states.append(state))  # fmt: skip
    assert found == [9, 16]
    assert sorted(heard) == [(job, done, 2, 0.5 / done) for job in range(2) for done in (1, 2)]
    assert sorted(said) == ["a local Ray was started, which listens on 127.0.0.1", "squaring 3", "squaring 4"]
    assert sorted(states) == [(job, state) for job in range(2) for state in ("done", "running")]
    open_to_others = [one for process in psutil.Process().children(recursive=True) for one in open_ports(process)]
    assert not open_to_others

    assert where.map_jobs(jobs.die_once, [(tmp_path, 0), (tmp_path, 1)], log=said.append) == [0, 1]
    assert sum("its worker process ended (killed or crashed); the job starts again" in line for line in said) == 2
    with pytest.raises(ExecutorError, match=r"2 of 4 were set aside .*: 0 \(killed or crashed\), 3 \("):
        where.map_jobs(jobs.die_if_divisible_by_three, range(4))
    with pytest.raises(LookupError, match="no 1 here"):
        where.map_jobs(jobs.fail, [1, 2])
    with pytest.raises(ExecutorError, match="a job failed"):
        where.map_jobs(jobs.fail_peculiarly, [7])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_for_which_this_machine_is_too_small_is_refused(jobs: ModuleType, local_ray: None) -> None:
    with pytest.raises(ExecutorError, match=r"this machine must have what a job requests \(1 CPU, 999 GPU\), but has"):
        RayExecutor(num_gpus=999).map_jobs(jobs.square, [1])
