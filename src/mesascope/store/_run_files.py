"""The folder of one run: its record, and text files beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mesascope.checksums import (
    RESTORE_HINT,
    check_origin,
    identify_run,
    is_older_format,
    parse_json,
    read_bytes,
    read_listed,
    read_record,
    seal_record,
)
from mesascope.store._files import to_json, to_json_types, write_atomically, write_listed


class RunFiles:
    """The folder of one run.

    Attributes:
        path: The directory.
        record: The content of ``run.json``: the description, and ``provenance`` (versions, revision, platform, start).
        condition: The condition whose models are accessed; empty for the main condition of the study.
    """

    def __init__(self, path: Path | str, record: Mapping[str, Any], condition: str = "") -> None:
        self.path = Path(path)
        self.record = dict(record)
        self.condition = condition

    @property
    def provenance_attrs(self) -> dict[str, str | int | float]:
        """The record and its provenance as flat strings and numbers, stored with every result."""
        flat = {**self.record, **self.record.get("provenance", {})}
        flat.pop("format", None)
        return {key: value for key, value in flat.items() if isinstance(value, str | int | float)}

    @property
    def identity(self) -> dict[str, str]:
        """Properties that tell this run from others; its manifests repeat them."""
        return identify_run(self.record)

    @property
    def has_checksums(self) -> bool:
        """``True`` if its files have checksums; runs of an earlier version have none and are not resumed."""
        return not is_older_format(self.record)

    def write_json(self, name: str, value: object) -> Path:
        """Write ``NAME.json``, and its checksum; numbers that are not finite become null, since JSON has none.

        Args:
            name: The file name without its extension.
            value: Any value that `to_json` accepts.

        Returns:
            The path of the file.
        """
        target = self.path / f"{name}.json"
        write_listed(target, to_json(value).encode(), self.identity)
        return target

    def read_json(self, name: str, hint: str = RESTORE_HINT) -> Any:
        """Read ``NAME.json`` and verify it.

        Args:
            name: The file name without its extension.
            hint: What to do if it is damaged, for the message.

        Returns:
            The decoded value.

        Raises:
            RunError: If the file is missing, damaged, or not valid JSON.
        """
        file = self.path / f"{name}.json"
        content = read_listed(file, self.identity, hint) if self.has_checksums else read_bytes(file, hint)
        return parse_json(content, file, hint)

    def write_record(self, name: str, record: Mapping[str, Any], kind: str) -> Path:
        """Write ``NAME.json`` as a record that carries its own checksum.

        Args:
            name: The file name without its extension.
            record: Values that `to_json` accepts.
            kind: What is recorded, such as ``run``.

        Returns:
            The path of the file.
        """
        return self.write_text(f"{name}.json", to_json(seal_record(to_json_types(record), kind)))

    def write_seconds(self, seconds: Mapping[str, float]) -> Path:
        """Write ``seconds.json``, which says of which run it is.

        Args:
            seconds: The duration of each stage.

        Returns:
            The path of the file.
        """
        return self.write_record("seconds", {**seconds, "run": self.identity}, "seconds")

    def read_seconds(self) -> dict[str, float]:
        """Read ``seconds.json`` and verify it.

        Returns:
            The duration of each stage.

        Raises:
            DamagedFile: If it is missing or damaged, or is that of another run.
        """
        file, hint = self.path / "seconds.json", "delete it"
        record = read_record(file, "seconds", hint)
        check_origin(record, {"run": self.identity}, file, "record", hint)
        return {name: value for name, value in record.items() if name not in ("format", "run")}

    def write_text(self, name: str, text: str) -> Path:
        """Write a text file such as ``report.html``, without a checksum.

        Args:
            name: The file name.
            text: The content, written as UTF-8.

        Returns:
            The path of the file.
        """
        target = self.path / name
        write_atomically(target, text)
        return target
