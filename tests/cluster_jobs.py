"""Jobs that other processes can import."""

import os
import time
from collections.abc import Callable


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
