"""Command line of mesascope. Each command imports its dependencies only when it runs."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mesascope.cli import _catalogue, _execution, _finished_runs  # noqa: F401  registers the commands
from mesascope.cli._app import (
    EXIT_BAD_INPUT,
    EXIT_CONTRADICTED,
    EXIT_DAMAGED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    app,
    err,
    print_line,
)

__all__ = ["EXIT_BAD_INPUT", "EXIT_CONTRADICTED", "EXIT_DAMAGED", "EXIT_INTERRUPTED", "EXIT_OK", "app", "main"]


def main() -> None:
    """Run the command line; user errors print one line and exit with code 2."""
    with _handle_user_errors():
        app()


@contextmanager
def _handle_user_errors() -> Iterator[None]:
    """Print user errors in one line; other exceptions are bugs and keep their traceback."""
    try:
        yield
    except (ValueError, MemoryError) as error:
        _exit_with_error(str(error))
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
    print_line(f"mesascope: {' '.join(line.split())}", err)
    sys.exit(EXIT_BAD_INPUT)
