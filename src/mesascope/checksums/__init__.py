"""Checksums of the files of a run, so that a damaged file is named and never read as if it were whole.

Four kinds of file carry their SHA-256 in four ways:

- a record (``run.json``, ``training.json``, ``checkpoint.json``, ``history.json``) has a field ``sha256`` over all its
  other fields;
- other files are listed in the ``manifest.json`` of their folder, which is itself a record;
- a file with a header (a partial result) begins with a record of one line that has the digest of all that follows;
- a page ends with a comment that has the digest of all that precedes.

The digest of a record is that of its values, so that a different indentation is not damage.
"""

from mesascope.checksums._files import (
    MANIFEST,
    add_header,
    add_to_manifest,
    check_page,
    read_listed,
    read_manifest,
    seal_page,
    split_header,
)
from mesascope.checksums._records import (
    FORMAT,
    DamagedFile,
    OlderFormat,
    RunError,
    check_record,
    describe_json_type,
    hash_bytes,
    hash_file,
    identify_run,
    is_older_format,
    parse_json,
    read_bytes,
    read_record,
    seal_record,
)

__all__ = [
    "FORMAT",
    "MANIFEST",
    "DamagedFile",
    "OlderFormat",
    "RunError",
    "add_header",
    "add_to_manifest",
    "check_page",
    "check_record",
    "describe_json_type",
    "hash_bytes",
    "hash_file",
    "identify_run",
    "is_older_format",
    "parse_json",
    "read_bytes",
    "read_listed",
    "read_manifest",
    "read_record",
    "seal_page",
    "seal_record",
    "split_header",
]
