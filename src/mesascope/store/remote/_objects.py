"""Objects of shared storage: how they are written, on stores that replace objects whole and on file systems."""

import os
import shutil
import uuid
from pathlib import Path
from typing import Any, Protocol

from mesascope.store._files import TEMP_PREFIX, replace_atomically, write_atomically
from mesascope.store.remote._address import EXTRAS, StorageError

OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"}  # protocols of stores without folders


class ObjectWriter(Protocol):
    """Writes objects of a store by their full paths."""

    def upload(self, file: Path, path: str) -> None:
        """Write an object from a file.

        Args:
            file: The file.
            path: The full path of the object, which does not exist.
        """
        ...

    def replace(self, content: bytes, path: str) -> None:
        """Write an object, or replace it.

        Args:
            content: Its content.
            path: Its full path.
        """
        ...

    def create(self, content: bytes, path: str) -> None:
        """Write an object that must not exist.

        Args:
            content: Its content.
            path: Its full path.

        Raises:
            FileExistsError: If it exists.
        """
        ...


class StoreWriter(ObjectWriter):
    """Writes objects through fsspec; creation is conditional where the store offers it, such as S3.

    Args:
        filesystem: The file system of fsspec.
    """

    def __init__(self, filesystem: Any) -> None:
        self._filesystem = filesystem

    def upload(self, file: Path, path: str) -> None:
        """Write an object from a file."""
        self._filesystem.put_file(str(file), path)

    def replace(self, content: bytes, path: str) -> None:
        """Write an object, or replace it."""
        self._make_parent(path)
        self._filesystem.pipe_file(path, content)

    def create(self, content: bytes, path: str) -> None:
        """Write an object that must not exist."""
        self._make_parent(path)
        self._filesystem.pipe_file(path, content, mode="create")

    def _make_parent(self, path: str) -> None:
        """Create the folder of an object where the store has folders; ``put_file`` does it itself."""
        names = self._filesystem.protocol
        if not OBJECT_STORES & {names, *(names if isinstance(names, tuple) else ())}:
            self._filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)


class FolderWriter(ObjectWriter):
    """Writes objects as files of a folder: under a temporary name, synced to disk, and renamed."""

    def upload(self, file: Path, path: str) -> None:
        """Write an object from a file."""
        with replace_atomically(Path(path)) as draft:
            shutil.copyfile(file, draft)

    def replace(self, content: bytes, path: str) -> None:
        """Write an object, or replace it."""
        write_atomically(Path(path), content)

    def create(self, content: bytes, path: str) -> None:
        """Write an object that must not exist: a hard link is created only if its name is free."""
        target = Path(path)
        draft = target.parent / f"{TEMP_PREFIX}{uuid.uuid4().hex[:8]}-{target.name}"
        write_atomically(draft, content)
        try:
            os.link(draft, target)
        finally:
            draft.unlink()


def open_filesystem(url: str) -> tuple[Any, str, ObjectWriter]:
    """Open the file system of a URL.

    Args:
        url: The URL; all else, such as credentials, is from the environment or the configuration of fsspec.

    Returns:
        The file system, the path of the URL in it, and the writer of its objects.

    Raises:
        StorageError: If the protocol is unknown or its package is not installed.
    """
    import fsspec

    protocol = url.partition("://")[0].lower()
    try:
        filesystem, path = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
    except ImportError as error:
        extra = EXTRAS.get(protocol)
        advice = f"run pip install '{extra}'" if extra else "install the package of fsspec for it"
        raise StorageError(f"{protocol} needs a package that is not installed; {advice}") from error
    except ValueError as error:
        raise StorageError(
            f"a URL must have a protocol that fsspec knows, such as s3, but got {protocol!r}; use another, or a folder"
        ) from error
    is_folder = type(filesystem).__name__ == "LocalFileSystem"
    return filesystem, path.rstrip("/"), FolderWriter() if is_folder else StoreWriter(filesystem)
