"""Errors of other libraries while a model is loaded, as one line."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from tempfile import TemporaryFile
from threading import RLock

from safetensors import SafetensorError

MAX_REASON_LENGTH = 300  # characters of another library's message
_PLAIN_ERRORS = (OSError, ValueError, RuntimeError, MemoryError, SafetensorError)  # their messages are sentences


class ModelNotFound(ValueError):  # noqa: N818  named for the condition
    """No loadable model exists under a name; the message says what was expected."""


class BrokenModelError(ValueError):
    """The reason why files of a model cannot be used, without the name of the model."""


def check_installed(
    purpose: str,
    packages: Sequence[str],
    extra: str,
    error: type[BrokenModelError] | type[ModelNotFound] = BrokenModelError,
) -> None:
    """Check that optional packages are installed.

    Args:
        purpose: the beginning of the message, such as ``loading model.gguf needs``.
        packages: the names of the packages.
        extra: the extra of mesascope that installs them.
        error: the class of the error.

    Raises:
        BrokenModelError: one is missing, unless ``error`` is another class.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise error(f"{purpose} {' and '.join(missing)}, which is not installed; pip install 'mesascope[{extra}]'")


@contextmanager
def convert_load_errors(
    explain: Callable[[str], str], into: type[BrokenModelError] | type[ModelNotFound] = ModelNotFound
) -> Iterator[None]:
    """Convert every exception of another library inside the context to an exception of one line.

    A broken file can raise any exception: a TypeError for a number in quotes, a RecursionError for nested JSON, or a
    panic of compiled Rust code, which is not even an Exception.

    Args:
        explain: Called with the reason in one line; returns the message.
        into: The class of the new exception, whose cause is the old one. Exceptions of this class are not converted.

    Raises:
        ModelNotFound: An exception was raised inside the context.
    """
    try:
        yield
    except into:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise into(explain(describe_error(error))) from error


def is_panic(error: BaseException) -> bool:
    """Return whether an exception is a panic of compiled Rust code, whose class cannot be imported.

    Args:
        error: the exception.
    """
    return type(error).__name__ == "PanicException"


def describe_error(error: BaseException) -> str:
    """Return the reason of an exception in one line; lines that end in a colon are joined to the next one.

    Args:
        error: The exception.

    Returns:
        The reason, without a final full stop.
    """
    if isinstance(error, BrokenModelError):
        return str(error)
    reason = ""
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    for line in message.strip().splitlines():
        reason = f"{reason} {line.strip()}".strip()
        if not reason.endswith(":"):
            break
    name = type(error).__name__
    if not reason:
        return name
    if not isinstance(error, _PLAIN_ERRORS) and type(error) is not Exception:
        reason = f"{name}: {reason}"
    shortened = reason if len(reason) <= MAX_REASON_LENGTH else reason[:MAX_REASON_LENGTH] + " ..."
    return shortened.rstrip(".:")


_STDERR_LOCK = RLock()  # the descriptor belongs to the process, not to a thread


@contextmanager
def silence_panics() -> Iterator[None]:
    """Drop what compiled Rust code prints to stderr when it panics; other output is printed afterwards."""
    with _STDERR_LOCK, TemporaryFile() as sink:
        sys.stderr.flush()
        stderr, panicked = os.dup(2), False
        os.dup2(sink.fileno(), 2)
        try:
            yield
        except BaseException as error:
            panicked = is_panic(error)
            raise
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            sink.seek(0)
            if not panicked:
                os.write(2, sink.read())
