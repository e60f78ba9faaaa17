"""Connection to a Ray cluster, or start of a local one."""

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType

from mesascope.executors._jobs import ExecutorError, JobLogFn

LOCAL_SETTINGS = {  # of a local Ray: environment variables that it reads at its start
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on Linux too: listen on 127.0.0.1 only; read when ray is imported
    "RAY_worker_niceness": "0",  # like the processes of this machine; 15 by default
}


def import_ray(address: str | None) -> ModuleType:
    """Import Ray; without the address of a cluster, so that a local one listens on 127.0.0.1 only.

    Args:
        address: The address of a cluster; ``None`` for the one in ``RAY_ADDRESS``, or a local one.

    Returns:
        The module ``ray``.

    Raises:
        ExecutorError: If it is not installed.
    """
    try:
        with _environment({}, {} if _find_address(address) else LOCAL_SETTINGS):
            ray = import_module("ray")
            import_module("ray.util.scheduling_strategies")
            return ray
    except ImportError as error:
        raise ExecutorError(
            "running on Ray needs the ray package, but it is not installed; pip install 'mesascope[ray]'"
        ) from error


def join_cluster(ray: ModuleType, address: str | None, log: JobLogFn) -> bool:
    """Connect to a cluster, or start a local one, unless this process is connected already.

    Args:
        ray: The module ``ray``.
        address: The address of a cluster; ``None`` for the one in ``RAY_ADDRESS``, or a local one.
        log: Receives one line if a local one is started.

    Returns:
        Whether a local one was started.

    Raises:
        ExecutorError: If there is no cluster at the address, or a local one cannot start.
    """
    if ray.is_initialized():
        return False
    address = _find_address(address)
    try:
        if address is not None:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            return False
        with _environment({"PYTHONPATH": os.pathsep.join(sys.path)}, LOCAL_SETTINGS):
            ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises bare exceptions too
        where = f"a Ray cluster must run at {address}" if address else "a local Ray must start"
        raise ExecutorError(f"{where}, but there is an error: {' '.join(str(error).split())[:300]}") from error
    log(f"a local Ray was started, which listens on {ray.util.get_node_ip_address()}")
    return True


def check_resources(ray: ModuleType, needed: Mapping[str, float], log: JobLogFn, *, can_grow: bool) -> None:
    """Check that a machine of the cluster has what a job requests.

    Args:
        ray: The module ``ray``, connected.
        needed: Amounts by resource.
        log: Receives one line if no machine has it now, but one may join.
        can_grow: Whether machines may join.

    Raises:
        ExecutorError: If no machine has it, and none can join.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(all(node.get(name, 0) >= amount for name, amount in needed.items()) for node in nodes):
        return
    wanted = ", ".join(f"{amount:g} {name}" for name, amount in needed.items() if amount)
    if not can_grow:
        have = ", ".join(f"{nodes[0].get(name, 0):g} {name}" for name, amount in needed.items() if amount)
        raise ExecutorError(f"this machine must have what a job requests ({wanted}), but has {have}; request less")
    log(f"no machine of the cluster has what a job requests ({wanted}); the jobs wait for one")


def _find_address(address: str | None) -> str | None:
    """Return the address of the cluster to join; None to start a local Ray."""
    address = address or os.environ.get("RAY_ADDRESS")  # Ray's own variable
    return None if address in ("", "local") else address


@contextmanager
def _environment(variables: Mapping[str, str], defaults: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, and defaults of those that are not set; restore them on exit."""
    before = {name: os.environ.get(name) for name in (*variables, *defaults)}
    os.environ.update({**defaults, **{name: value for name, value in before.items() if value is not None}, **variables})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
