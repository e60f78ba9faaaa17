"""Command line of mesascope. Each command imports its dependencies only when it runs."""

import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mesascope.cli._exit_codes import (
    EXIT_BAD_INPUT,
    EXIT_CONTRADICTED,
    EXIT_DAMAGED,
    EXIT_INTERRUPTED,
    EXIT_OK,
)

if TYPE_CHECKING:
    from mesascope.cli._app import app

__all__ = ["EXIT_BAD_INPUT", "EXIT_CONTRADICTED", "EXIT_DAMAGED", "EXIT_INTERRUPTED", "EXIT_OK", "app", "main"]
MIN_INTERRUPT_INTERVAL = 2.0  # seconds between two signals that both interrupt
REPEAT_SECONDS = 0.05  # after which an interrupt that was lost is sent again
QUIET_LOGGERS = (
    "torchao",
    "torch.utils._pytree",
    "bitsandbytes",
)  # they warn of kernels that are missing, and of casts
_RESUME_HINT = "interrupted; run the same command again to resume"


def main() -> None:
    """Run the command line; user errors print one line and exit with code 2, SIGINT and SIGTERM with code 130."""
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    with _handle_interrupts(), _handle_user_errors():
        _load_app()()


def __getattr__(name: str) -> Any:
    """Import the application on first access, so that `main` can handle interrupts while it is imported."""
    if name == "app":
        return _load_app()
    raise AttributeError(f"module 'mesascope.cli' has no attribute {name!r}")


def _load_app() -> Any:
    from mesascope.cli import _catalogue, _execution, _explorer, _finished_runs  # noqa: F401  registers the commands
    from mesascope.cli._app import app

    return app


@contextmanager
def _handle_interrupts() -> Iterator[None]:
    """Print how to resume after SIGINT (Ctrl-C) or SIGTERM."""
    in_main_thread = threading.current_thread() is threading.main_thread()  # only that one may set handlers
    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM) if in_main_thread}
    handler = _InterruptHandler()
    try:
        for number, before in old.items():
            if before != signal.SIG_IGN:  # as nohup and shells set it
                signal.signal(number, handler)
        with handler.repeat_lost_interrupts():
            yield
    except KeyboardInterrupt:
        _exit_interrupted()
    except SystemExit as stop:
        if stop.code == EXIT_INTERRUPTED:  # typer has converted the KeyboardInterrupt
            _exit_interrupted()
        raise
    finally:
        for number, before in old.items():
            signal.signal(number, before)


class _InterruptHandler:
    """A signal handler that raises KeyboardInterrupt, once for signals that come together.

    A terminal or `timeout` may send several, and a second one must not stop the clean-up. A later one raises again.
    """

    def __init__(self) -> None:
        self._last = -math.inf

    def __call__(self, *_: object) -> None:
        """Raise the exception."""
        if time.monotonic() - self._last > MIN_INTERRUPT_INTERVAL:
            self._last = time.monotonic()
            raise KeyboardInterrupt

    @contextmanager
    def repeat_lost_interrupts(self) -> Iterator[None]:
        """Send the signal again if the exception was raised in a destructor or a callback, where Python ignores it."""
        before, timers = sys.unraisablehook, list[threading.Timer]()

        def repeat_interrupt(unraisable: "sys.UnraisableHookArgs") -> None:
            if not issubclass(unraisable.exc_type, KeyboardInterrupt):
                before(unraisable)
                return
            self._last = -math.inf
            timers.append(threading.Timer(REPEAT_SECONDS, os.kill, (os.getpid(), signal.SIGINT)))
            timers[-1].daemon = True
            timers[-1].start()

        sys.unraisablehook = repeat_interrupt
        try:
            yield
        finally:
            for timer in timers:
                timer.cancel()
            sys.unraisablehook = before


def _exit_interrupted() -> None:
    print(_RESUME_HINT, file=sys.stderr)
    sys.exit(EXIT_INTERRUPTED)


@contextmanager
def _handle_user_errors() -> Iterator[None]:
    """Print user errors in one line; other exceptions are bugs and keep their traceback."""
    try:
        yield
    except (ValueError, MemoryError) as error:
        _exit_with_error(str(error))
    except TypeError as error:
        if "MPS" in str(error) and "float64" in str(error):
            _exit_with_error("the device mps has no float64, which this command needs; use the device cpu")
        raise
    except RuntimeError as error:
        if type(error).__module__.startswith("mesascope"):
            _exit_with_error(str(error))
        raise
    except OSError as error:
        named = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        _exit_with_error(named or str(error))


def _exit_with_error(line: str) -> None:
    if os.environ.get("MESASCOPE_DEBUG"):
        raise
    from mesascope.cli._app import err, print_line

    print_line(f"mesascope: {' '.join(line.split())}", err)
    sys.exit(EXIT_BAD_INPUT)
