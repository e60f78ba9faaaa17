"""Sessions: one process that commits the states of its working copy of a run to shared storage."""

import threading
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mesascope.checksums import RunError, hash_file, read_record, seal_record
from mesascope.store._files import (
    SYNC_FOLDER,
    do_nothing,
    hold_lock,
    make_writable_folder,
    remove_path,
    to_json,
    write_atomically,
)
from mesascope.store.remote._address import StorageError
from mesascope.store.remote._bucket import Bucket, TransferPolicy
from mesascope.store.remote._commits import (
    COMMITS,
    FILES,
    Commit,
    format_commit_key,
    list_commit_numbers,
    read_commit,
    read_newest_commit,
)
from mesascope.store.remote._fetch import describe_missing, fetch_files, list_files
from mesascope.store.remote._snapshot import Signature, Snapshot, take_snapshot
from mesascope.store.remote._writer_lock import PATIENCE, RENEWAL_INTERVAL, WRITER, WriterLock

STATE_FILE = "state.json"
OPEN_LOCK_WAIT = 10.0  # seconds; then another process uses the working copy
MAX_TORN_NUMBERS = 8  # commits of one call that are torn or lost, each of which takes a number


class SyncSession:
    """The only writer of a run in shared storage, with a working copy of it in a local folder.

    Args:
        folder: The working copy; it may be missing or empty.
        url: The URL of the run.
        policy: How often a transfer is tried.
        log: Receives lines of text.
        patience: Seconds to wait for a sign of life of another writer.
        interval: Seconds between renewals of the lock.
    """

    def __init__(
        self,
        folder: Path,
        url: str,
        *,
        policy: TransferPolicy | None = None,
        log: Callable[[str], None] = do_nothing,
        patience: float = PATIENCE,
        interval: float = RENEWAL_INTERVAL,
    ) -> None:
        self.folder, self._log = folder, log
        self.bucket = Bucket(url, policy)
        self._session = uuid.uuid4().hex[:12]
        self._own_sessions = {self._session}
        self._lock = WriterLock(self.bucket, self._session, log, patience=patience, interval=interval)
        self._base: Commit | None = None  # the newest commit
        self._previous: Commit | None = None  # the one before it, which a reader may be reading
        self._known_units: Mapping[str, Mapping[str, Signature]] = {}
        self._uploaded: dict[tuple[str, str], dict[str, Any]] = {}  # entries of objects, by path and SHA-256
        self._num_calls, self._mutex = 0, threading.Lock()

    def __enter__(self) -> "SyncSession":
        """Take the lock of the run, and bring the working copy to the newest commit unless it is ahead of it.

        Raises:
            StorageError: If another process writes to the run, the working copy and the run have both changed, or the
                storage does not answer.
            RunError: If the working copy cannot be written.
        """
        make_writable_folder(self.folder)
        self._lock.acquire()
        try:
            with hold_lock(self.folder, OPEN_LOCK_WAIT):
                self._open()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Release the lock of the run."""
        self._lock.release()
        remove_path(self._stage)

    @property
    def _stage(self) -> Path:
        return self.folder / SYNC_FOLDER / f"stage-{self._session}"

    def commit(self, *, is_final: bool = False) -> bool:
        """Upload the files that have changed, and commit the state of the run.

        Readers see the state before until the record of the commit is written, and then this one.

        Args:
            is_final: Nothing writes to the working copy any more, so that every file must be whole.

        Returns:
            Whether there was anything to commit.

        Raises:
            StorageError: If another process has written to the run, or the storage does not answer.
            RunError: If a file of the working copy is damaged, in a final commit.
        """
        with self._mutex:
            self._num_calls += 1
            if not (self.folder / "run.json").is_file():
                return False
            remove_path(self._stage)
            try:
                snapshot = take_snapshot(self.folder, self._stage, self._known_units)
                if is_final and snapshot.held_back:
                    reason = next(iter(snapshot.held_back.values()))
                    raise RunError(f"every file must be intact to be synchronised, but {reason}")
                if "" in snapshot.held_back:
                    return False
                files = self._merge_files(snapshot)
                current = self._base.files if self._base else {}
                if {path: _checksum(one) for path, one in files.items()} == {
                    path: _checksum(one) for path, one in current.items()
                }:
                    self._known_units = snapshot.units
                    return False
                self._commit_files({path: self._upload(path, entry, snapshot) for path, entry in files.items()})
                self._known_units = snapshot.units
                return True
            finally:
                remove_path(self._stage)

    def _merge_files(self, snapshot: Snapshot) -> dict[str, dict[str, Any]]:
        """Return the entries of all files: those of units that are held back are the committed ones."""
        current = self._base.files if self._base else {}
        files: dict[str, dict[str, Any]] = {}
        for signatures in snapshot.units.values():
            for path in signatures:
                committed = dict(current.get(path, {}))
                staged = snapshot.staged.get(path)
                files[path] = committed if staged is None or _checksum(committed) == staged[1] else dict(staged[1])
        for unit in snapshot.held_back:
            files |= {path: dict(entry) for path, entry in current.items() if path.startswith(unit)}
        return dict(sorted(files.items()))

    def _upload(self, path: str, entry: dict[str, Any], snapshot: Snapshot) -> dict[str, Any]:
        """Return the entry of a file with its object, which is uploaded if it does not exist."""
        if "object" in entry:
            return entry
        key = (path, entry["sha256"])
        if key not in self._uploaded:
            number = self._base.number + 1 if self._base else 1
            name = f"{FILES}/{number:08d}-{self._session}-{self._num_calls}/{path}"  # never used before
            self.bucket.upload(snapshot.staged[path][0], name, _checksum(entry))
            self._uploaded[key] = {**entry, "object": name}
        return self._uploaded[key]

    def _commit_files(self, files: Mapping[str, Mapping[str, Any]]) -> None:
        """Write the record of the next commit, after which it is the state of the run."""
        newest = self._check_newest()
        numbers = list_commit_numbers(self.bucket)
        number = max(numbers, default=0) + 1  # beyond torn records
        for _ in range(MAX_TORN_NUMBERS):
            commit = Commit(number=number, session=self._session, files=files)
            if self.bucket.create(commit.key, commit.encode()):
                break
            other = read_commit(self.bucket, number)
            if other is not None and other.session not in self._own_sessions:
                raise self._describe_conflict()
            newest = other or newest
            number += 1
        else:
            raise StorageError(
                f"a commit must be written whole, but {self.bucket.url}/{format_commit_key(number - 1)} was torn; "
                "run again"
            )
        self._previous, self._base = newest, commit
        self._write_state()
        self._remove_unused(numbers)

    def _check_newest(self) -> Commit | None:
        """Return the newest commit; raise if it is that of another writer."""
        newest = read_newest_commit(self.bucket)
        if newest is None:
            if self._base is not None:
                raise StorageError(
                    f"{self.bucket.url} must hold the commits of this run, but they are gone; choose another URL"
                )
        elif newest != self._base and newest.session not in self._own_sessions:
            raise self._describe_conflict()
        return newest

    def _describe_conflict(self) -> StorageError:
        return StorageError(
            f"a run must be written by one process at a time, but another one has written to {self.bucket.url}; its "
            f"state is kept, and so is the working copy {self.folder}; synchronise that to another URL, or delete it"
        )

    def _remove_unused(self, numbers: list[int]) -> None:
        """Remove commits before the previous one, and objects that were of use to them or to nothing."""
        retained = {commit.number for commit in (self._previous, self._base) if commit}
        used = {name for commit in (self._previous, self._base) if commit for name in commit.objects}
        for number in [one for one in numbers if one not in retained]:
            old = read_commit(self.bucket, number)
            self.bucket.remove([format_commit_key(number)])
            self.bucket.remove(sorted(old.objects - used) if old else [])
        unused = {key: entry for key, entry in self._uploaded.items() if entry["object"] not in used}
        self.bucket.remove([entry["object"] for entry in unused.values()])
        for key in unused:
            del self._uploaded[key]

    def _open(self) -> None:
        """Compare the working copy with the newest commit, and begin a session of commits."""
        for stage in (self.folder / SYNC_FOLDER).glob("stage-*"):  # of killed processes
            remove_path(stage)
        state, newest = self._read_state(), read_newest_commit(self.bucket, self._log)
        keys = self.bucket.list_keys()  # before the first commit of this session: all are of earlier ones
        if newest is None:
            foreign = [key for key in keys if key.partition("/")[0] not in (COMMITS, FILES, WRITER)]
            if foreign:
                raise StorageError(
                    f"a new run must have an empty URL, but {self.bucket.url} holds {foreign[0]}; choose another URL"
                )
            self._write_state()
            return
        if state.get("session"):
            self._own_sessions.add(str(state["session"]))
        if not self._is_ahead(state, newest):
            self._log(f"fetching commit {newest.number} of {self.bucket.url} to {self.folder}")
            self._write_state(newest, is_complete=False)
            missing = fetch_files(self.bucket, newest.files, self.folder)
            if missing:
                raise describe_missing(self.bucket, missing)
        self._base = newest
        self._write_state()
        self._commit_files(newest.files)  # of a writer that is gone but not dead, no commit is accepted from here on
        used = self._base.objects
        self.bucket.remove(key for key in keys if key.startswith(f"{FILES}/") and key not in used)

    def _is_ahead(self, state: Mapping[str, Any], newest: Commit) -> bool:
        """Return whether the working copy is the newest commit, perhaps with changes; False if it is to be fetched.

        Raises:
            StorageError: If both have changed.
        """
        files = list_files(self.folder)
        if not files or state.get("is_complete") is False:
            return False
        if state.get("commit") == newest.as_json() or newest.session == state.get("session"):
            return True
        found = {file.relative_to(self.folder).as_posix(): hash_file(file) for file in files}
        if found == _checksums(newest.files):
            return True
        committed = (state.get("commit") or {}).get("files")
        if committed and found == _checksums(committed):
            return False
        raise StorageError(
            f"{self.folder} must be the working copy of {self.bucket.url}, but both have changed; delete {self.folder} "
            "to continue from the URL, or choose another URL"
        )

    def _read_state(self) -> dict[str, Any]:
        file = self.folder / SYNC_FOLDER / STATE_FILE
        if not file.exists():
            return {}
        state = read_record(file, "sync", f"delete {file}")
        return state if state.get("url") == self.bucket.url else {}

    def _write_state(self, base: Commit | None = None, *, is_complete: bool = True) -> None:
        base = base or self._base
        state = {"url": self.bucket.url, "session": self._session, "is_complete": is_complete}
        record = {**state, "commit": base.as_json() if base else None}
        write_atomically(self.folder / SYNC_FOLDER / STATE_FILE, to_json(seal_record(record, "sync")))


def read_sync_url(folder: Path) -> str | None:
    """Return the URL that a working copy was last synchronised with; None if it never was.

    Args:
        folder: The working copy.

    Raises:
        RunError: If the record of it is damaged.
    """
    file = folder / SYNC_FOLDER / STATE_FILE
    return str(read_record(file, "sync", f"delete {file}")["url"]) if file.exists() else None


def _checksum(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: entry[key] for key in ("sha256", "size") if key in entry}


def _checksums(files: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {path: _checksum(entry) for path, entry in files.items()}
