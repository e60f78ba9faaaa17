"""Executors: run jobs in this process, in processes of this machine, or on a Ray cluster.

Each executor has one method, ``map_jobs``: it calls ``fn(job, progress, log)`` for every job and returns the results in
the order of the jobs. ``fn`` and the jobs must be picklable: a module-level function, and plain values.
"""

from mesascope.executors._jobs import ExecutorError
from mesascope.executors._processes import ProcessExecutor
from mesascope.executors._ray import RayExecutor
from mesascope.executors._serial import SerialExecutor

__all__ = ["ExecutorError", "ProcessExecutor", "RayExecutor", "SerialExecutor", "create_executor"]


def create_executor(name: str) -> "SerialExecutor | ProcessExecutor | RayExecutor":
    """Create an executor from its name.

    Args:
        name: ``serial``, ``processes`` or ``ray[:ADDRESS]``.

    Returns:
        The executor.

    Raises:
        ValueError: If there is no executor of this name.

    >>> create_executor("ray:10.0.0.1:6379")
    RayExecutor(address='10.0.0.1:6379')
    """
    kind, _, address = name.partition(":")
    if kind == "ray":
        return RayExecutor(address=address or None)
    if name not in ("serial", "processes"):
        raise ValueError(f"an executor must be serial, processes or ray[:ADDRESS], but got {name!r}")
    return SerialExecutor() if name == "serial" else ProcessExecutor()
