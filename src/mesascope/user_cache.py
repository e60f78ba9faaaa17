"""The user's cache folder, for compiled kernels and runs that were fetched."""

import os
from pathlib import Path


def find_user_cache() -> Path:
    """Return the user's cache folder, which need not exist.

    Returns:
        ``mesascope`` in ``XDG_CACHE_HOME``, or in ``~/.cache``; a relative ``XDG_CACHE_HOME`` is ignored, as the XDG
        specification asks.
    """
    given = Path(os.environ.get("XDG_CACHE_HOME") or "")
    return (given if given.is_absolute() else Path.home() / ".cache") / "mesascope"
