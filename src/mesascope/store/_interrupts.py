"""Interrupts that wait until a call has finished that cannot be stopped in the middle."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def delay_interrupts() -> Iterator[None]:
    """Handle SIGINT and SIGTERM after the ``with`` block instead of in it.

    xarray takes several locks one after another to read and write netCDF. An exception between two of them leaves the
    first one locked, and closing the file then waits for it for ever. In other threads than the main one, where no
    handlers run, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    handlers = {number: handler for number in SIGNALS if (handler := signal.getsignal(number)) is not None}
    try:
        for number in handlers:
            signal.signal(number, lambda given, frame: received.append(given))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])
