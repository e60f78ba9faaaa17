"""Jobs that other processes can import."""

import ctypes
import os
import re
import time
from collections.abc import Callable
from pathlib import Path


class PeculiarError(Exception):
    """An error that cannot be copied to another process."""

    def __init__(self, *, number: int) -> None:
        super().__init__(f"peculiar {number}")


def square(number: int, progress: Callable[..., None], say: Callable[[str], None]) -> int:
    progress(1, 2, 0.5)
    say(f"squaring {number}")
    progress(2, 2, 0.25)
    return number**2


def slowest_first(number: int, progress: Callable[..., None], say: Callable[[str], None]) -> int:
    time.sleep(0.3 / (number + 1))
    return number


def fail(number: int, progress: Callable[..., None], say: Callable[[str], None]) -> int:
    if number == 1:
        raise LookupError(f"no {number} here")
    time.sleep(60)
    return number


def fail_peculiarly(number: int, progress: Callable[..., None], say: Callable[[str], None]) -> int:
    raise PeculiarError(number=number)


def die(number: int, progress: Callable[..., None], say: Callable[[str], None]) -> int:
    os.kill(os.getpid(), 9)
    return number


def sleep(number: int, progress: Callable[..., None], say: Callable[[str], None]) -> int:
    progress(os.getpid(), 1, 0.0)
    time.sleep(60)
    return number


def who(number: int, progress: Callable[..., None], say: Callable[[str], None]) -> int:
    time.sleep(0.1)
    return os.getpid()


def list_memory_flags(number: int, progress: Callable[..., None], say: Callable[[str], None]) -> list[str]:
    """The flags of the memory from malloc that holds a block of 16 MB."""
    block = (ctypes.c_char * 2**24)()
    address, inside, flags = ctypes.addressof(block), False, []
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith("VmFlags:"):
            flags += line.split()[1:]
    return flags


def die_once(work: tuple[Path, int], progress: Callable[..., None], say: Callable[[str], None]) -> int:
    folder, number = work
    if not (folder / str(number)).exists():
        (folder / str(number)).touch()
        os.kill(os.getpid(), 9)
    return number


def die_if_divisible_by_three(number: int, progress: Callable[..., None], say: Callable[[str], None]) -> int:
    time.sleep(0.05)
    if number % 3 == 0:
        os.kill(os.getpid(), 9)
    return number


def exit_at_once(pipe: object) -> None:
    os._exit(3)
