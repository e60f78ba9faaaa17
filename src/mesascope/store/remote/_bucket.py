"""The objects of one run in shared storage, written and read with bounded retries."""

import errno
import hashlib
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mesascope.checksums import RunError, hash_file
from mesascope.store._files import remove_path
from mesascope.store.remote._address import DamagedObject, StorageError, check_url
from mesascope.store.remote._objects import open_filesystem

_Answer = TypeVar("_Answer")
_PERMANENT = (PermissionError, ImportError, NotImplementedError, TypeError, ValueError)  # another try cannot help
_PERMANENT_NAMES = {"NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError", "ProfileNotFound"}


class IncompleteTransfer(Exception):  # noqa: N818  the name states the event
    """Raised when an object that was written or read differs from what it should be; the transfer is tried again."""


@dataclass(frozen=True, kw_only=True)
class TransferPolicy:
    """Retries of transfers that fail by a timeout, an error of the server, or a torn object.

    Attributes:
        max_retries: Number of further tries.
        pause: Seconds before the first of them, doubled before every further one.
        max_pause: Maximum of these seconds.
    """

    max_retries: int = 5
    pause: float = 0.5
    max_pause: float = 8.0

    def pause_after(self, failures: int) -> float:
        """Return the seconds before the next try.

        Args:
            failures: Tries that have failed, at least 1.

        >>> [TransferPolicy().pause_after(failures) for failures in (1, 2, 3, 9)]
        [0.5, 1.0, 2.0, 8.0]
        """
        return min(self.pause * 2.0 ** (failures - 1), self.max_pause)


class Bucket:
    """The objects under one URL. Every method retries, and raises StorageError when that does not help.

    Args:
        url: The URL of a run.
        policy: How often a transfer is tried.

    Raises:
        StorageError: If the URL is invalid, or its package is not installed.
    """

    def __init__(self, url: str, policy: TransferPolicy | None = None) -> None:
        self.url = check_url(url)
        self._policy = policy or TransferPolicy()
        self._stopped = threading.Event()
        self._filesystem, self._root, self._writer = open_filesystem(self.url)

    def stop_retries(self) -> None:
        """Let every transfer fail at its next error, because the process is about to end."""
        self._stopped.set()

    def list_keys(self, prefix: str = "") -> list[str]:
        """Return the names of all objects below a prefix, relative to the URL, in ascending order.

        Args:
            prefix: A folder inside the URL, such as ``commits``.
        """

        def find() -> list[str]:
            self._filesystem.invalidate_cache()
            with suppress(FileNotFoundError):
                return self._filesystem.find(self._path(prefix).rstrip("/"))
            return []

        return sorted(path.removeprefix(f"{self._root}/") for path in self._attempt("listing", prefix, find))

    def read(self, key: str) -> bytes | None:
        """Return the content of a small object; None if it does not exist, and no bytes if the store finds it torn.

        Args:
            key: Its name.
        """

        def read() -> bytes | None:
            self._filesystem.invalidate_cache()
            try:
                return self._filesystem.cat_file(self._path(key))
            except FileNotFoundError:
                return None
            except Exception as error:
                if _is_checksum_error(error):
                    return b""
                raise

        return self._attempt("reading", key, read)

    def download(self, key: str, target: Path, checksum: dict[str, Any]) -> bool:
        """Write an object to a file, and verify it; the file does not exist if that fails.

        Args:
            key: Its name.
            target: The file, which must not exist.
            checksum: Its size and SHA-256.

        Returns:
            Whether the object exists.

        Raises:
            StorageError: If it cannot be read, or still differs from its checksum.
        """
        return self._attempt("reading", key, lambda: self._download_once(key, target, checksum))

    def upload(self, file: Path, key: str, checksum: dict[str, Any]) -> None:
        """Write an object, read it again, and compare it with its checksum.

        Args:
            file: The file.
            key: The name of the object, which does not exist.
            checksum: The size and the SHA-256 of the file.

        Raises:
            StorageError: If it cannot be written whole.
        """

        def upload() -> None:
            self._writer.upload(file, self._path(key))
            copy = file.with_name(f"{file.name}.check")
            try:
                if not self._download_once(key, copy, checksum):
                    raise IncompleteTransfer(f"{key} is missing after it was written")
            finally:
                remove_path(copy)

        self._attempt("writing", key, upload)

    def create(self, key: str, content: bytes) -> bool:
        """Write an object that must not exist, and read it again.

        A try whose answer was lost may have written it; then it has this content.

        Args:
            key: Its name.
            content: Its content.

        Returns:
            Whether the object now has this content; if not, another writer or a torn write was first.
        """

        def create() -> bool:
            exists = False
            try:
                self._writer.create(content, self._path(key))
            except FileExistsError:
                exists = True
            stored = self.read(key)
            if stored != content and not exists:
                raise IncompleteTransfer(f"{key} differs from what was written")
            return stored == content

        return self._attempt("writing", key, create)

    def replace(self, key: str, content: bytes) -> None:
        """Write an object, or replace it.

        Args:
            key: Its name.
            content: Its content.
        """
        self._attempt("writing", key, lambda: self._writer.replace(content, self._path(key)))

    def remove(self, keys: Iterable[str]) -> None:
        """Remove objects that nothing needs; one that cannot be removed is left to the next writer.

        Args:
            keys: Their names.
        """
        for key in keys:
            with suppress(Exception):  # of the network or the store
                self._filesystem.rm_file(self._path(key))

    def _download_once(self, key: str, target: Path, checksum: dict[str, Any]) -> bool:
        try:
            self._filesystem.get_file(self._path(key), str(target))
            found = hash_file(target)
        except FileNotFoundError:
            remove_path(target)
            return False
        except BaseException as error:
            remove_path(target)
            if _is_checksum_error(error):
                raise IncompleteTransfer(f"{key} differs from its checksum in the store") from error
            raise
        if found != checksum:
            remove_path(target)
            raise IncompleteTransfer(f"{key} differs from its checksum")
        return True

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    def _attempt(self, action: str, key: str, operation: Callable[[], _Answer]) -> _Answer:
        """Call an operation until it succeeds, and raise StorageError when another try cannot help."""
        failures = 0
        while True:
            try:
                return operation()
            except RunError:
                raise
            except Exception as error:  # the errors of a store are those of its package
                failures += 1
                is_last = failures > self._policy.max_retries or self._stopped.is_set()
                if is_last or isinstance(error, _PERMANENT) or type(error).__name__ in _PERMANENT_NAMES:
                    is_damaged = isinstance(error, IncompleteTransfer) and action == "reading"
                    kind = DamagedObject if is_damaged else StorageError
                    raise kind(self._describe_failure(action, key, error, failures)) from error
            self._stopped.wait(self._policy.pause_after(failures))

    def _describe_failure(self, action: str, key: str, error: Exception, failures: int) -> str:
        name = f"{self.url}/{key}".rstrip("/")
        times = f" in {failures} tries" if failures > 1 else ""
        if isinstance(error, IncompleteTransfer):
            what = "is not whole after it was written" if action == "writing" else "differs from its checksum"
            return f"every object must match its checksum, but {name} {what}{times}; run again, or sync it again"
        return f"shared storage must answer, but {action} {name} failed{times} ({format_error_codes(error)}); run again"


def format_error_codes(error: BaseException) -> str:
    """Return the type and the codes of an error of a store; its text is left out, as it may hold credentials.

    Args:
        error: The error.

    >>> format_error_codes(TimeoutError("https://user:password@host"))
    'TimeoutError'
    >>> format_error_codes(OSError(5, "secret"))
    'OSError: EIO'
    """
    number = getattr(error, "errno", None)
    codes = [errno.errorcode[number]] if isinstance(number, int) and number in errno.errorcode else []
    cause: BaseException | None = error
    while cause is not None:
        response = getattr(cause, "response", None)
        code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
        codes += [str(code)[:40]] if code and str(code).isalnum() else []
        cause = cause.__cause__ or cause.__context__
    return ": ".join([type(error).__name__, *dict.fromkeys(codes)])


def _is_checksum_error(error: BaseException) -> bool:
    """Return whether a store, such as S3, found that an object differs from the checksum that it was sent with."""
    return type(error).__name__ == "FlexibleChecksumError"


def hash_text(text: str) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of a text.

    Args:
        text: The text.
    """
    return hashlib.sha256(text.encode()).hexdigest()[:16]
