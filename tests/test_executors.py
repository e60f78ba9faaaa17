"""Executors: order, news, errors, and nothing left behind."""

import os
import platform
import re
import signal
import subprocess
import sys
import time
import warnings
from importlib import import_module
from multiprocessing import forkserver
from pathlib import Path
from types import ModuleType

import psutil
import pytest

from mesascope.executors import ExecutorError, ProcessExecutor, RayExecutor, SerialExecutor, create_executor

HELPERS = "resource_tracker|forkserver"  # in the command lines of Python's own two processes


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The jobs, where children find them too."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return import_module("cluster_jobs")


def children() -> list[psutil.Process]:
    """All below us, but for Python's own two helpers; what branches off those looks like them, and counts."""
    ours = psutil.Process()
    helpers = [child for child in ours.children() if re.search(HELPERS, " ".join(child.cmdline()))]
    return [child for child in ours.children(recursive=True) if child not in helpers]


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


def test_a_process_that_is_killed_is_told(jobs: ModuleType) -> None:
    with pytest.raises(ExecutorError, match="but one ended with signal SIGKILL; run again"):
        ProcessExecutor().map_jobs(jobs.die, [0])


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


def test_names_of_executors() -> None:
    assert create_executor("serial") == SerialExecutor()
    assert create_executor("processes") == ProcessExecutor()
    assert create_executor("ray") == RayExecutor()
    assert create_executor("ray:auto") == RayExecutor(address="auto")
    for unknown in ("threads", "serial:1", ""):
        with pytest.raises(ValueError, match=r"must be serial, processes or ray\[:ADDRESS\], but got"):
            create_executor(unknown)


def test_ray_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch, jobs: ModuleType) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ExecutorError, match=r"ray package, but it is not installed; pip install 'mesascope\[ray\]'"):
        RayExecutor().map_jobs(jobs.square, [1])
