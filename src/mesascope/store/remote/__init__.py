"""Shared storage of runs: any URL that fsspec opens, such as ``s3://bucket/affine``.

::

    commits/00000012.json                 size, SHA-256 and object of every file of the run; carries its own checksum
    files/00000012-1f2e3d4c5b6a-1/PATH    the content of a file; a name is used once
    writer.json                           who writes to the run; advisory

A process has a working copy of a run in a local folder. It uploads the files that have changed under new names, reads
each of them again, and writes the next commit, whose number must not exist yet. The newest commit that matches its own
checksum is the state of the run, so that a reader sees the state before or after a commit and never a mixture.
"""

from mesascope.store.remote._address import DamagedObject, StorageError, check_url, is_url, make_local_path
from mesascope.store.remote._bucket import TransferPolicy
from mesascope.store.remote._fetch import fetch_run
from mesascope.store.remote._sync import keep_synchronised, sync_run

__all__ = [
    "DamagedObject",
    "StorageError",
    "TransferPolicy",
    "check_url",
    "fetch_run",
    "is_url",
    "keep_synchronised",
    "make_local_path",
    "sync_run",
]
