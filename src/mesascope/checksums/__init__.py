"""Checksums of the files of a run, so that a damaged file is named and never read as if it were whole.

Files carry their SHA-256 in one of these ways:

- a record (``run.json``, ``training.json``, ``checkpoint.json``, ``history.json``, ``log.json``) has a field ``sha256``
  over all its other fields;
- other files are listed in the ``manifest.json`` of their folder, which is itself a record;
- a file with a header (a partial result) begins with a record of one line that has the digest of all that follows;
- a checkpoint, and a prepared text, has a record that lists its files (``checkpoint.json``, ``source.json``);
- a page ends with a comment that has the digest of the run that it belongs to and of all that precedes.

The digest of a record is that of its values, so that a different indentation is not damage. All but ``run.json`` and a
prepared text also say what they belong to (run, name, seed, step), so that a whole file in the place of another is
found.
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
    verify_folder,
)
from mesascope.checksums._records import (
    FORMAT,
    DamagedFile,
    OlderFormat,
    RunError,
    check_origin,
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
from mesascope.checksums._run_folder import RESTORE_HINT, VERDICTS_HINT, read_run_record, read_verdict_rows

__all__ = [
    "FORMAT",
    "MANIFEST",
    "RESTORE_HINT",
    "VERDICTS_HINT",
    "DamagedFile",
    "OlderFormat",
    "RunError",
    "add_header",
    "add_to_manifest",
    "check_origin",
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
    "read_run_record",
    "read_verdict_rows",
    "seal_page",
    "seal_record",
    "split_header",
    "verify_folder",
]
