"""Runs a function or a command in a forked process, with limits of memory and time; its output goes to a file."""

import faulthandler
import os
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import torch

import mesascope.cli

MAX_SECONDS = 60
DUMP_SECONDS = 3  # before the limit of time, in which the positions of threads are written
NOT_STARTED = 99  # exit code of a process that a signal ended before its function was called
EXTRA_BYTES = 1_500_000_000  # address space that a child may add to that of its parent


def start_forked(function: Callable[[], int | None], output: Path, seconds: int = MAX_SECONDS) -> int:
    """Start a function in a forked process that leads a group of its own.

    Args:
        function: Returns the exit code.
        output: Receives what it prints to both streams.
        seconds: Limit of time; SIGALRM ends the process after it, and the output says where each thread was.

    Returns:
        The process id.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings(action="ignore"):  # the child uses no other thread of its parent
        child = os.fork()
    if child == 0:
        try:
            os.setpgid(0, 0)
            code = _run_function(function, output, seconds)
        except BaseException:  # a signal came before the function was called
            code = NOT_STARTED
        finally:
            os._exit(code)
    with suppress(OSError):
        os.setpgid(child, child)
    return child


def wait_for(child: int) -> int:
    """Return the exit code of a process; minus the signal if one ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_forked(function: Callable[[], int | None], output: Path, seconds: int = MAX_SECONDS) -> int:
    """Run a function in a forked process; return its exit code, or minus the signal that ended it."""
    return wait_for(start_forked(function, output, seconds))


def list_orphans(group: int) -> list[str]:
    """Return the processes of a group that are alive, after a minute in which they may end."""
    alive: list[psutil.Process] = []
    for one in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(one.pid) == group and one.status() != psutil.STATUS_ZOMBIE:
                alive.append(one)
    psutil.wait_procs(alive, timeout=60)  # a fork server that still imports modules ends after that
    return [" ".join(one.cmdline()) for one in alive if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def limit_memory() -> None:
    """Limit the address space of this process."""
    size = psutil.Process().memory_info().vms + EXTRA_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def call_main(words: Sequence[str]) -> int:
    """Return the exit code of the command line."""
    sys.argv = ["mesascope", *words]
    try:
        mesascope.cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def _run_function(function: Callable[[], int | None], output: Path, seconds: int) -> int:
    for number in (signal.SIGALRM, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    signal.alarm(seconds)
    torch.set_num_threads(1)  # it would wait for ever for OpenMP threads that its parent has started
    _redirect_streams(output)
    faulthandler.dump_traceback_later(max(1, seconds - DUMP_SECONDS), file=sys.stderr)
    try:
        code = function() or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _redirect_streams(output: Path) -> None:
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
