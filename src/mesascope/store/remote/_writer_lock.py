"""The lock object of a run in shared storage: advisory, and alive as long as its owner renews it."""

import json
import os
import platform
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psutil

from mesascope.store.remote._address import StorageError
from mesascope.store.remote._bucket import Bucket

WRITER = "writer.json"
RENEWAL_INTERVAL = 30.0  # seconds
PATIENCE = 100.0  # seconds without a renewal, after which the owner is gone; clocks are not compared


class WriterLock:
    """Tells other writers that this process writes to a run.

    It keeps honest writers from starting together. It does not keep them from writing: that a commit of another writer
    is never overwritten follows from the numbers of commits.

    Args:
        bucket: The objects of the run.
        session: Digits that tell this writer from others.
        log: Receives one line if it waits.
        patience: Seconds to wait for a sign of life of another writer.
        interval: Seconds between renewals.
    """

    def __init__(
        self,
        bucket: Bucket,
        session: str,
        log: Callable[[str], None],
        *,
        patience: float = PATIENCE,
        interval: float = RENEWAL_INTERVAL,
    ) -> None:
        self._bucket, self._session, self._log = bucket, session, log
        self._patience, self._interval = patience, interval
        self._renewals, self._stopped = 0, threading.Event()
        self._thread = threading.Thread(target=self._renew_until_stopped, daemon=True, name="writer lock")

    def acquire(self) -> None:
        """Write the lock object and begin to renew it.

        Raises:
            StorageError: If another writer renews it.
        """
        self._wait_for_owner()
        self._write()
        self._thread.start()

    def release(self) -> None:
        """Stop the renewal and remove the lock object, if it is still that of this writer."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(self._interval)
        with suppress(StorageError):
            if _parse_owner(self._bucket.read(WRITER)).get("session") == self._session:
                self._bucket.remove([WRITER])

    def _wait_for_owner(self) -> None:
        """Return when there is no other writer, or it gives no sign of life."""
        first = self._bucket.read(WRITER)
        owner = _parse_owner(first)
        process, machine = owner.get("process", "unknown"), owner.get("machine", "unknown")
        is_here = machine == platform.node() and isinstance(process, int)
        if not first or (is_here and process != os.getpid() and not psutil.pid_exists(process)):
            return
        named = f"process {process} of {machine}"
        self._log(f"{self._bucket.url} was in use by {named}; waiting {self._patience:.0f} s for a sign of life")
        pause = max(0.01, min(5.0, self._patience / 10))
        for _ in range(int(self._patience / pause)):
            self._stopped.wait(pause)
            content = self._bucket.read(WRITER)
            if not content:
                return
            if content != first:
                raise StorageError(
                    f"a run must be written by one process at a time, but {self._bucket.url} is in use by {named}; "
                    "wait for it, or choose another URL"
                )

    def _write(self) -> None:
        self._renewals += 1
        owner = {"session": self._session, "machine": platform.node(), "process": os.getpid()}
        self._bucket.replace(WRITER, json.dumps({**owner, "renewals": self._renewals}).encode())

    def _renew_until_stopped(self) -> None:
        while not self._stopped.wait(self._interval):
            with suppress(StorageError):  # the next renewal may succeed
                self._write()


def _parse_owner(content: bytes | None) -> dict[str, Any]:
    with suppress(ValueError):
        value = json.loads(content or b"")
        return value if isinstance(value, dict) else {}
    return {}
