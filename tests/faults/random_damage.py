"""Random damage to the content of a file."""

import random
from collections.abc import Callable
from pathlib import Path

JSON_VALUES = ("5", "[1]", "null", '"text"', "{}", "[[]]", "true", "[" * 100_000, '{"a": {"b": []}}')


def draw_damage(draw: random.Random, file: Path, others: list[Path]) -> tuple[str, bytes]:
    """Draw a kind of damage; return its name and the damaged content, which differs from the file's."""
    content = file.read_bytes()
    kinds: dict[str, Callable[[], bytes]] = {
        "bit flip": lambda: flip_bit(draw, content),
        "zeros": lambda: write_zeros(draw, content),
        "truncation": lambda: content[: draw.randrange(len(content))] if content else b"x",
        "emptied": lambda: b"",
        "swapped": lambda: draw.choice([one for one in others if one.suffix == file.suffix]).read_bytes(),
    }
    if file.suffix == ".json":
        kinds["another type"] = lambda: draw.choice(JSON_VALUES).encode()
    for _ in range(100):
        name = draw.choice(list(kinds))
        damaged = kinds[name]()
        if damaged != content:
            return name, damaged
    return "one more byte", content + b"x"


def flip_bit(draw: random.Random, content: bytes) -> bytes:
    """Flip one bit."""
    if not content:
        return b"\x01"
    changed = bytearray(content)
    changed[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def write_zeros(draw: random.Random, content: bytes) -> bytes:
    """Overwrite a run of up to 512 bytes with zeros."""
    start, length = draw.randrange(len(content) + 1), draw.randrange(1, 513)
    return content[:start] + bytes(len(content[start : start + length])) + content[start + length :]
