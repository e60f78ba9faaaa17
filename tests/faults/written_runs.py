"""Folders of runs written by hand."""

import json
from pathlib import Path

from mesascope.checksums import add_to_manifest, hash_bytes, identify_run, seal_record


def write_run(folder: Path, record: dict, verdicts: object, *, older: bool = False) -> None:
    """Write the record and the verdicts of a run with valid checksums, or without any."""
    folder.mkdir(parents=True)
    text = json.dumps(verdicts)
    (folder / "verdicts.json").write_text(text)
    (folder / "run.json").write_text(json.dumps(record if older else seal_record(record, "run")))
    if not older:
        manifest = add_to_manifest(folder, identify_run(record), "verdicts.json", hash_bytes(text.encode()))
        (folder / "manifest.json").write_text(json.dumps(manifest))
