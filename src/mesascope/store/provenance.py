"""What ran where: versions, code revision, platform, processors, start time."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any


def provenance() -> dict[str, Any]:
    """What ran where: versions, code revision, platform, processors, start time."""
    versions = {name: _version(name) for name in ("mesascope", "torch", "transformers", "numpy")}
    return {
        **versions,
        "python": platform.python_version(),
        "revision": _revision(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str:
    """The installed version."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _revision() -> str:
    """The git revision of this code, ``-dirty`` if it was changed; empty where it is not in a repository."""
    here = Path(__file__).parents[1] / "__init__.py"
    git = ["git", "-C", str(here.parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", here.name], check=True, capture_output=True, timeout=5)
        told = subprocess.run(
            [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            check=True,
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return told.stdout.strip()
