"""Fetching of a run from shared storage: every file is verified before the folder is returned."""

import functools
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mesascope.checksums import RunError, hash_file
from mesascope.store._files import TEMP_PREFIX, do_nothing, hold_lock, make_writable_folder, remove_path
from mesascope.store.remote._address import DamagedObject, StorageError
from mesascope.store.remote._bucket import Bucket, TransferPolicy, hash_text
from mesascope.store.remote._commits import Commit, read_newest_commit
from mesascope.user_cache import find_user_cache

CACHE_LOCK_WAIT = 3600.0  # seconds; another process may be fetching the same run
MAX_NEWER_COMMITS = 5  # that may be written while one is fetched
KEPT_FOLDERS = 2  # of one run in the cache
_WEIGHTS = re.compile(r"(?:^|/)models/.*seed=\d+/(?:step=\d+|resume|history)/")


def fetch_run(
    url: str,
    *,
    weights: bool = True,
    cache: Path | None = None,
    policy: TransferPolicy | None = None,
    log: Callable[[str], None] = do_nothing,
) -> Path:
    """Fetch the newest state of a run from shared storage into the user's cache, and verify every file.

    Files that the cache has already are verified and not read again.

    Args:
        url: The URL of the run, such as ``s3://bucket/affine``.
        weights: Also fetch checkpoints and training histories.
        cache: The folder of the cache; that of the user if None.
        policy: How often a transfer is tried.
        log: Receives lines of text.

    Returns:
        A folder with the run, all of whose files belong to one commit.

    Raises:
        StorageError: If there is no run, the storage does not answer, or an object is missing, torn or changed.
    """
    bucket = Bucket(url, policy)
    folder = (cache or find_user_cache()) / "runs" / hash_text(bucket.url)
    make_writable_folder(folder)
    with hold_lock(folder, CACHE_LOCK_WAIT):
        missing: str | None = None
        for _ in range(MAX_NEWER_COMMITS):
            commit = require_commit(bucket, log)
            digest = hash_text(commit.encode().decode())[:8]
            target = (
                folder / f"{commit.number:08d}-{digest}{'' if weights else '-light'}" / bucket.url.rsplit("/", 1)[-1]
            )
            files = {path: entry for path, entry in commit.files.items() if weights or not _WEIGHTS.search(path)}
            missing = fetch_files(bucket, files, target, functools.partial(_find_copies, folder))
            if missing is None:
                _remove_older(folder, target.parent)
                return target
            if read_newest_commit(bucket) == commit:
                break
        raise describe_missing(bucket, missing or "")


def describe_missing(bucket: Bucket, key: str) -> DamagedObject:
    """Return the error of an object that a commit names, but that does not exist.

    Args:
        bucket: The objects of the run.
        key: The name of the object.
    """
    return DamagedObject(
        f"every file of a run must exist, but {bucket.url}/{key} is missing; synchronise the run again from the "
        "machine that has its working copy"
    )


def require_commit(bucket: Bucket, log: Callable[[str], None] = do_nothing) -> Commit:
    """Read the newest commit.

    Args:
        bucket: The objects of a run.
        log: Receives one line for each newer commit that is torn.

    Returns:
        The commit.

    Raises:
        StorageError: If there is none.
    """
    commit = read_newest_commit(bucket, log)
    if commit is None:
        raise StorageError(f"a URL must hold a run, but {bucket.url} holds none; check its name")
    return commit


def fetch_files(
    bucket: Bucket,
    files: Mapping[str, Mapping[str, Any]],
    target: Path,
    find_copies: Callable[[], Mapping[str, Path]] = dict,
) -> str | None:
    """Make a folder hold exactly these files; what it has is verified, and what differs is fetched.

    Args:
        bucket: The objects of a run.
        files: Size, SHA-256 and object by path.
        target: The folder.
        find_copies: Finds files on this machine by their SHA-256, which are linked instead of fetched if they are
            intact. It is called once, and only if the folder lacks a file.

    Returns:
        None, or the name of an object that does not exist.

    Raises:
        StorageError: If an object cannot be read, or differs from its checksum.
        RunError: If the folder cannot be written.
    """
    make_writable_folder(target)
    list_copies = functools.cache(find_copies)
    for file in list_files(target):
        if file.relative_to(target).as_posix() not in files:
            remove_path(file)
    for path, entry in files.items():
        checksum = {"sha256": entry["sha256"], "size": entry["size"]}
        file = target / path
        if file.is_file() and hash_file(file) == checksum:
            continue
        draft = file.parent / f"{TEMP_PREFIX}{file.name}"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            remove_path(draft)
            if not _link_copy(list_copies().get(entry["sha256"]), draft, checksum) and not bucket.download(
                entry["object"], draft, checksum
            ):
                return entry["object"]
            os.replace(draft, file)
        except OSError as error:
            raise RunError(
                f"{file} must be writable, but is not: {error.strerror or error}; free some space"
            ) from error
    return None


def list_files(folder: Path) -> list[Path]:
    """Return all files below a folder but those with a hidden name, such as locks and temporary files.

    Args:
        folder: A folder, which need not exist.
    """
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(parent) / name for name in sorted(names) if not name.startswith(".")]
    return found


def _link_copy(copy: Path | None, draft: Path, checksum: dict[str, Any]) -> bool:
    """Copy a file of the cache if it is intact, by a hard link where that is possible."""
    if copy is None or not copy.is_file() or hash_file(copy) != checksum:
        return False
    try:
        os.link(copy, draft)
    except OSError:
        shutil.copyfile(copy, draft)
    return True


def _find_copies(folder: Path) -> dict[str, Path]:
    """Return the files of other commits in the cache by their SHA-256."""
    return {hash_file(file)["sha256"]: file for file in list_files(folder)}  # type: ignore[misc]  a digest is a text


def _remove_older(folder: Path, current: Path) -> None:
    """Remove the oldest folders of a run from the cache."""
    others = sorted(path for path in folder.iterdir() if path.is_dir() and path != current)
    for path in others[: max(0, len(others) + 1 - KEPT_FOLDERS)]:
        remove_path(path)
