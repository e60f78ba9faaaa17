"""Arguments that name runs: directories, or URLs of shared storage."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from mesascope.cli._app import err, print_line

RunLocation = Annotated[str, typer.Argument(metavar="RUN", help="Run directory, or URL of shared storage.")]
RunLocations = Annotated[list[str], typer.Argument(metavar="RUN", help="Run directories, or URLs of shared storage.")]


def print_log_line(line: str) -> None:
    """Print a line about the storage to the error output.

    Args:
        line: The line.
    """
    print_line(line, err)


def open_location(location: str, log: Callable[[str], None] = print_log_line, *, weights: bool = False) -> Path:
    """Return the folder of a run; a URL is fetched into the user's cache and verified.

    Args:
        location: A directory or a URL.
        log: Receives lines about the storage.
        weights: Also fetch checkpoints and training histories.

    Returns:
        The folder.
    """
    if "://" not in location:
        return Path(location)
    from mesascope.store.remote import fetch_run

    return fetch_run(location, weights=weights, log=log)
