"""The folder of one run: its record, and text files beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mesascope.store._files import (
    read_json,
    replace_atomically,
    to_json,
)


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
        return {key: value for key, value in flat.items() if isinstance(value, str | int | float)}

    def write_json(self, name: str, value: object) -> Path:
        """Write ``NAME.json``; numbers that are not finite become null, since JSON has none.

        Args:
            name: The file name without its extension.
            value: Any value that `to_json` accepts.

        Returns:
            The path of the file.
        """
        return self.write_text(f"{name}.json", to_json(value))

    def read_json(self, name: str) -> Any:
        """Read ``NAME.json``.

        Args:
            name: The file name without its extension.

        Returns:
            The decoded value.

        Raises:
            RunError: If the file is missing or is not valid JSON.
        """
        return read_json(self.path / f"{name}.json")

    def write_text(self, name: str, text: str) -> Path:
        """Write a text file such as ``report.html``.

        Args:
            name: The file name.
            text: The content, written as UTF-8.

        Returns:
            The path of the file.
        """
        target = self.path / name
        with replace_atomically(target) as temp_path:
            temp_path.write_text(text, encoding="utf-8")
        return target
