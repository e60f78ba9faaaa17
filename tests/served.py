"""`mesascope serve` in a process of its own, and requests to it as its page sends them."""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from faults.forked import call_main, start_forked, wait_for

SECONDS = 240


@contextmanager
def serve(*words: str | Path, output: Path) -> Iterator[str]:
    """Serve the explorer inside the block; the value is its address. Ctrl-C ends it without a word.

    The process is forked, since importing everything anew takes longer than a whole session.
    """
    child = start_forked(lambda: call_main(["serve", *map(str, words)]), output, SECONDS)
    try:
        yield _read_address(output)
    finally:
        os.kill(child, signal.SIGINT)
        code = wait_for(child)
    assert code == 0
    assert len(output.read_text().splitlines()) == 2  # the address, and how to end it


def _read_address(output: Path) -> str:
    began = time.monotonic()
    while time.monotonic() < began + SECONDS:
        printed = output.read_text() if output.exists() else ""
        if printed.count("\n") > 1:
            return printed.split()[1]
        time.sleep(0.05)
    raise TimeoutError(f"no address, but {printed!r}")


def request_view(address: str, view: str, **body: Any) -> Any:
    """What the server answers to the page at this address; an error is an HTTPError."""
    base, _, token = address.partition("/?token=")
    request = Request(f"{base}/api/{view}?token={token}", json.dumps(body).encode())
    with urlopen(request, timeout=SECONDS) as answer:
        return json.load(answer)
