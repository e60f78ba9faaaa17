"""Executors: run jobs in this process, in processes of this machine, on a Ray or Slurm cluster, or with torchrun.

Each executor has one method, ``map_jobs``: it calls ``fn(job, progress, log)`` for every job and returns the results in
the order of the jobs. ``fn`` and the jobs must be picklable: a module-level function, and plain values.
"""

from typing import Any

from mesascope.executors._jobs import ExecutorError, JobState
from mesascope.executors._processes import ProcessExecutor
from mesascope.executors._ray import RayExecutor
from mesascope.executors._retries import RetryPolicy
from mesascope.executors._serial import SerialExecutor
from mesascope.executors._slurm import SlurmExecutor
from mesascope.executors._torchrun import TorchrunExecutor

__all__ = [
    "ExecutorError",
    "JobState",
    "ProcessExecutor",
    "RayExecutor",
    "RetryPolicy",
    "SerialExecutor",
    "SlurmExecutor",
    "TorchrunExecutor",
    "create_executor",
]
OPTIONS: dict[str, dict[str, type]] = {
    "serial": {},
    "processes": {"max_workers": int, "max_retries": int},
    "ray": {"num_cpus": float, "num_gpus": float, "memory": int, "max_retries": int},
    "slurm": {
        "partition": str,
        "time": str,
        "num_cpus": int,
        "num_gpus": int,
        "memory": int,
        "account": str,
        "qos": str,
        "constraint": str,
        "max_jobs": int,
        "max_retries": int,
        "cluster": str,
    },
    "torchrun": {"strategy": str},
}


def create_executor(
    name: str,
) -> "SerialExecutor | ProcessExecutor | RayExecutor | SlurmExecutor | TorchrunExecutor":
    """Create an executor from its name and options.

    Args:
        name: ``serial``, ``processes``, ``ray[:ADDRESS]``, ``slurm`` or ``torchrun``, followed by options
            ``,NAME=VALUE``: ``max_workers`` of processes; ``num_cpus``, ``num_gpus`` and ``memory`` of a job on Ray or
            Slurm; ``max_retries`` of these three; ``partition``, ``time``, ``account``, ``qos``, ``constraint``,
            ``max_jobs`` and ``cluster`` of Slurm, which are fields of :class:`SlurmExecutor`; ``strategy`` of torchrun,
            ``ddp`` or ``fsdp``.

    Returns:
        The executor.

    Raises:
        ValueError: If there is no executor of this name, or it has no such option.

    >>> executor = create_executor("ray:10.0.0.1:6379,num_gpus=0.5")
    >>> executor.address, executor.num_gpus
    ('10.0.0.1:6379', 0.5)
    """
    base, *options = name.split(",")
    kind, _, address = base.partition(":")
    if kind not in OPTIONS or (address and kind != "ray") or (":" in base and not address):
        raise ValueError(f"an executor must be serial, processes, ray[:ADDRESS], slurm or torchrun, but got {name!r}")
    values: dict[str, Any] = dict(_parse_option(kind, option) for option in options)
    if kind == "serial":
        return SerialExecutor()
    if kind == "torchrun":
        return TorchrunExecutor(**values)
    if "max_retries" in values:
        values["retries"] = RetryPolicy(max_retries=values.pop("max_retries"))
    if kind == "slurm":
        return SlurmExecutor(**values)
    return ProcessExecutor(**values) if kind == "processes" else RayExecutor(address=address or None, **values)


def _parse_option(kind: str, option: str) -> tuple[str, Any]:
    """Return name and value of an option such as ``num_gpus=1``."""
    name, _, text = option.partition("=")
    convert = OPTIONS[kind].get(name)
    try:
        if convert is not None:
            return name, convert(text)
    except ValueError:
        pass  # the same error as for an unknown option
    allowed = ", ".join(f"{one}={of.__name__}" for one, of in OPTIONS[kind].items()) or "none"
    raise ValueError(f"options of the executor {kind} must be NAME=VALUE of {allowed}, but got {option!r}")
