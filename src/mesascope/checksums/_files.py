"""Checksums of files that are no records: in a manifest, in a header, or in a comment at the end."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mesascope.checksums._records import (
    DamagedFile,
    RunError,
    check_origin,
    check_record,
    hash_bytes,
    parse_json,
    read_bytes,
    read_record,
    seal_record,
)

MANIFEST = "manifest.json"
PAGE_SEAL = "\n<!-- sha256:{} -->\n"


def read_manifest(folder: Path, run: Mapping[str, str], hint: str) -> dict[str, Any]:
    """Read the manifest of a folder.

    Args:
        folder: The folder.
        run: The identity of the run that it belongs to.
        hint: What to do if it is damaged.

    Returns:
        The list of checksums that each file may have, by the name of the file.

    Raises:
        DamagedFile: If it is missing or damaged, or belongs to another run.
    """
    file = folder / MANIFEST
    manifest = read_record(file, "manifest", hint)
    check_origin(manifest, {"run": dict(run)}, file, "manifest", hint)
    return manifest["files"]


def add_to_manifest(folder: Path, run: Mapping[str, str], name: str, checksum: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest of a folder in which one file is about to be replaced.

    The checksum of the file as it is stays valid, so that a process can be killed between the two writes.

    Args:
        folder: The folder.
        run: The identity of the run.
        name: The file that will be written.
        checksum: Its new checksum.

    Returns:
        The manifest, with its checksum. A damaged manifest is replaced: its files must be written again.
    """
    try:
        files = read_manifest(folder, run, "")
    except RunError:
        files = {}
    valid = [checksum, *(one for one in files.get(name, [])[:1] if one != checksum)]
    return seal_record({"run": dict(run), "files": {**files, name: valid}}, "manifest")


def read_listed(file: Path, run: Mapping[str, str], hint: str) -> bytes:
    """Read a file that the manifest of its folder lists, and verify it.

    Args:
        file: The file.
        run: The identity of the run.
        hint: What to do if it is damaged.

    Returns:
        Its content.

    Raises:
        DamagedFile: If it differs from the manifest or is not listed there, or the manifest is damaged.
    """
    content = read_bytes(file, hint)
    valid = read_manifest(file.parent, run, hint).get(file.name)
    if valid is None:
        raise DamagedFile(f"{file} must be listed in {MANIFEST}, but is not; {hint}")
    if hash_bytes(content) not in valid:
        raise DamagedFile(f"{file} must match its checksum in {MANIFEST}, but differs; {hint}")
    return content


def verify_folder(record_file: Path, kind: str, hint: str) -> None:
    """Verify a record and the files beside it whose checksums it lists.

    Args:
        record_file: The record, with a field ``files``.
        kind: The kind that it must have.
        hint: What to do if a file is damaged.

    Raises:
        DamagedFile: If the record or a file is damaged.
    """
    for name, checksum in read_record(record_file, kind, hint)["files"].items():
        if hash_bytes(read_bytes(record_file.parent / name, hint)) != checksum:
            raise DamagedFile(f"{record_file.parent / name} must match its checksum, but differs; {hint}")


def add_header(content: bytes | memoryview, header: Mapping[str, Any], kind: str) -> bytes:
    """Return a file with a header, which has the checksum of the content.

    Args:
        content: The content.
        header: What identifies it, in JSON types.
        kind: What it is, such as ``partial result``.
    """
    line = json.dumps(seal_record({**header, "content": hash_bytes(content)}, kind))
    return line.encode() + b"\n" + bytes(content)


def split_header(file: Path, kind: str, hint: str) -> tuple[dict[str, Any], bytes]:
    """Read a file with a header and verify both.

    Args:
        file: The file.
        kind: The kind that it must have.
        hint: What to do if it is damaged.

    Returns:
        The header and the content.

    Raises:
        DamagedFile: If either is damaged.
    """
    line, _, content = read_bytes(file, hint).partition(b"\n")
    header = check_record(parse_json(line, file, hint), kind, file, hint)
    if header.pop("content", None) != hash_bytes(content):
        raise DamagedFile(f"{file} must match its checksum, but differs; {hint}")
    return header, content


def seal_page(text: str, run: Mapping[str, str]) -> str:
    """Return a page that ends with a comment of its checksum.

    Args:
        text: HTML.
        run: The identity of the run, which the checksum covers too.
    """
    return text + _format_page_seal(text.encode(), run)


def check_page(file: Path, run: Mapping[str, str], hint: str) -> None:
    """Verify a page.

    Args:
        file: The page.
        run: The identity of the run that it belongs to.
        hint: What to do if it is damaged.

    Raises:
        DamagedFile: If it differs from its checksum, has none, or is that of another run.
    """
    content, length = read_bytes(file, hint), len(PAGE_SEAL.format("0" * 64))
    if content[-length:] != _format_page_seal(content[:-length], run).encode():
        raise DamagedFile(f"{file} must match this run and the checksum at its end, but differs; {hint}")


def _format_page_seal(content: bytes, run: Mapping[str, str]) -> str:
    return PAGE_SEAL.format(hashlib.sha256(json.dumps(dict(run), sort_keys=True).encode() + content).hexdigest())
