"""Synchronisation of a run with shared storage: while it goes on, or later."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mesascope.checksums import RunError
from mesascope.store._files import do_nothing
from mesascope.store._run import Run
from mesascope.store.remote._address import StorageError
from mesascope.store.remote._bucket import TransferPolicy
from mesascope.store.remote._session import SyncSession, read_sync_url
from mesascope.store.remote._writer_lock import PATIENCE

SYNC_INTERVAL = 30.0  # seconds between two commits of a run that goes on
LAST_COMMIT_WAIT = 60.0  # seconds for the commit of a run that was stopped


def sync_run(
    folder: Path,
    url: str | None = None,
    *,
    policy: TransferPolicy | None = None,
    log: Callable[[str], None] = do_nothing,
    patience: float = PATIENCE,
) -> str:
    """Bring a run in shared storage to the state of its folder on this machine.

    Args:
        folder: The directory of the run, which no process writes to.
        url: The URL; that with which it was last synchronised if None.
        policy: How often a transfer is tried.
        log: Receives lines of text.
        patience: Seconds to wait for a sign of life of another writer.

    Returns:
        The URL.

    Raises:
        StorageError: If the URL holds something else, or another process writes to it, or it does not answer.
        RunError: If there is no run, a process uses it, or one of its files is damaged.
    """
    run, chosen = Run.open(folder), url or read_sync_url(folder)
    if chosen is None:
        raise RunError(
            f"{folder} must have been synchronised before, but was not; give a URL, such as s3://bucket/name"
        )
    session = SyncSession(folder, chosen, policy=policy, log=log, patience=patience)
    with session, run.exclusive_lock():
        session.commit(is_final=True)
    return session.bucket.url


@contextmanager
def keep_synchronised(
    folder: Path,
    url: str,
    log: Callable[[str], None] = do_nothing,
    *,
    policy: TransferPolicy | None = None,
    interval: float = SYNC_INTERVAL,
    patience: float = PATIENCE,
) -> Iterator[None]:
    """Synchronise a run with shared storage while the ``with`` block writes it, and at its end.

    The working copy is fetched first if the URL holds a newer state. An outage is logged and does not stop the block;
    it is an error at the end only.

    Args:
        folder: The working copy.
        url: The URL.
        log: Receives lines of text.
        policy: How often a transfer is tried.
        interval: Seconds between two commits.
        patience: Seconds to wait for a sign of life of another writer.

    Returns:
        A context manager.

    Raises:
        StorageError: If another process writes to the run, or the storage does not answer at the end.
        RunError: If the working copy cannot be used.
    """
    with SyncSession(folder, url, policy=policy, log=log, patience=patience) as session:
        background = _BackgroundSync(session, interval, log)
        try:
            yield
        except BaseException:
            session.bucket.stop_retries()
            background.stop(LAST_COMMIT_WAIT)
            _try_last_commit(session, background, log)
            raise
        background.stop()
        try:
            session.commit(is_final=True)
        except StorageError as error:
            raise StorageError(
                f"{error}; nothing is lost: {folder} has the whole run, and `mesascope sync {folder}` synchronises it"
            ) from error


def _try_last_commit(session: SyncSession, background: "_BackgroundSync", log: Callable[[str], None]) -> None:
    """Commit the state of a run that was stopped, if the storage answers at once."""
    if background.is_alive:
        return
    try:
        session.commit()
    except RunError as error:
        log(f"{error}; the working copy is whole")


class _BackgroundSync:
    """A thread that commits the state of a run from time to time."""

    def __init__(self, session: SyncSession, interval: float, log: Callable[[str], None]) -> None:
        self._session, self._interval, self._log = session, interval, log
        self._stopped, self._last_problem = threading.Event(), ""
        self._thread = threading.Thread(target=self._commit_until_stopped, daemon=True, name="synchronisation")
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Return whether a commit still goes on."""
        return self._thread.is_alive()

    def stop(self, timeout: float | None = None) -> None:
        """Wait for the commit that goes on, and start no further one.

        Args:
            timeout: Maximum of seconds.
        """
        self._stopped.set()
        self._thread.join(timeout)

    def _commit_until_stopped(self) -> None:
        while not self._stopped.wait(self._interval):
            try:
                self._session.commit()
                self._last_problem = ""
            except RunError as error:
                if str(error) != self._last_problem:
                    self._log(f"{error}; the run goes on, and is synchronised later")
                self._last_problem = str(error)
