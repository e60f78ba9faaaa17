"""Addresses of shared storage: URLs that fsspec opens."""

import re
from pathlib import Path

from mesascope.checksums import RunError

_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")
_COLLAPSED_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+:/(?!/)")  # what pathlib makes of one
_USER_AND_PASSWORD = re.compile(r"^[^/]*:[^/]*@")
EXTRAS = {"s3": "mesascope[s3]", "s3a": "mesascope[s3]"}  # other protocols name their package themselves


class StorageError(RunError):
    """Raised when shared storage cannot be used; the message says why and what to do, and has no credentials."""


class DamagedObject(StorageError):  # noqa: N818  the name states the event
    """Raised when an object of a run is missing or differs from its checksum; the message names it."""


def is_url(location: object) -> bool:
    """Return whether a location is a URL of shared storage rather than a folder.

    Args:
        location: A folder or a URL.

    Raises:
        StorageError: If it is a URL that was made a path, which loses one of its slashes.

    >>> is_url("s3://bucket/affine"), is_url("runs/affine"), is_url("memory://affine")
    (True, False, True)
    """
    text = str(location)
    if isinstance(location, Path) and _COLLAPSED_URL.match(text):
        raise StorageError(
            f"a URL must be given as a text to run or sync, but got the path {text!r}; write to a folder, and send it "
            "with mesascope sync"
        )
    return bool(_URL.match(text))


def check_url(url: str) -> str:
    """Return a URL without slashes at its end, or refuse it.

    Args:
        url: The URL of a run.

    Raises:
        StorageError: If it holds credentials, a query or a chain of protocols, or names no folder.

    >>> check_url("s3://bucket/affine/")
    's3://bucket/affine'
    """
    protocol, _, rest = url.partition("://")
    if _USER_AND_PASSWORD.match(rest):
        raise StorageError(
            f"a URL must hold no credentials, but that of {protocol} does; give them in the way of the storage, such "
            "as a profile or variables of the environment"
        )
    if "?" in rest or "#" in rest or "::" in url:
        raise StorageError(f"a URL must be PROTOCOL://FOLDER, but that of {protocol} has ?, # or ::; omit them")
    if not rest.strip("/") or {".", ".."} & set(rest.split("/")):
        raise StorageError(
            f"a URL must name the folder of a run, but got {url!r}; add a name, such as {protocol}://a/b"
        )
    return url.rstrip("/")


def make_local_path(url: str, folder: Path) -> Path:
    """Return the folder of the working copy of a run.

    Args:
        url: The URL of the run.
        folder: The folder of all runs.

    >>> make_local_path("s3://bucket/group/affine", Path("runs")).as_posix()
    'runs/s3/bucket/group/affine'
    """
    protocol, _, rest = check_url(url).partition("://")
    return folder.joinpath(protocol.lower(), *filter(None, rest.split("/")))
