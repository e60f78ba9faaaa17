"""Provenance of a run: versions, code revision, platform, processors, start time."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any


def collect_provenance() -> dict[str, Any]:
    """Collect versions, git revision, platform, processor count and start time.

    Returns:
        A flat mapping of strings and numbers.
    """
    versions = {name: _installed_version(name) for name in ("mesascope", "torch", "transformers", "numpy")}
    return {
        **versions,
        "python": platform.python_version(),
        "revision": _git_revision(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@cache
def hash_source_code() -> str:
    """Return a hash of the package's source files and of the versions of its main dependencies.

    Uncommitted changes count too, unlike in the git revision.

    Returns:
        16 hexadecimal digits.
    """
    package = Path(__file__).parents[1]
    sources = [
        (str(file.relative_to(package)), sha256(file.read_bytes()).digest()) for file in sorted(package.rglob("*.py"))
    ]
    dependencies = [(name, _installed_version(name)) for name in ("torch", "transformers", "numpy")]
    return sha256(repr((sources, dependencies)).encode()).hexdigest()[:16]


def _installed_version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _git_revision() -> str:
    """Return the git revision, with ``-dirty`` if files were changed; empty outside a git repository."""
    init_file = Path(__file__).parents[1] / "__init__.py"
    git = ["git", "-C", str(init_file.parent)]
    try:
        subprocess.run(
            [*git, "ls-files", "--error-unmatch", init_file.name], check=True, capture_output=True, timeout=5
        )
        result = subprocess.run(
            [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            check=True,
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return result.stdout.strip()
