"""What ran where: versions, code revision, platform, processors, start time."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
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


@cache
def code_digest() -> str:
    """What differs where this code differs, or the versions of what it stands on: changed files count too."""
    here = Path(__file__).parents[1]
    told = [(str(file.relative_to(here)), sha256(file.read_bytes()).digest()) for file in sorted(here.rglob("*.py"))]
    stands_on = [(name, _version(name)) for name in ("torch", "transformers", "numpy")]
    return sha256(repr((told, stands_on)).encode()).hexdigest()[:16]


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
