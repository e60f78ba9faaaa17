"""The tour is what a newcomer does first: its commands are run in a copy of the checkout, its outputs are compared."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GGUF = Path(".models") / "SmolLM2-135M-Instruct.Q4_1.gguf"


def blocks(language: str) -> str:
    text = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL))


def checkout(place: Path) -> Path:
    """The tree as it is, with the environment and the model that are there already."""
    for name in ("src", "Makefile", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, place / name)
    for name in (".venv", ".models"):
        (place / name).symlink_to(ROOT / name)
    return place


@pytest.mark.needs_smollm2
@pytest.mark.skipif(sys.platform == "win32", reason="the tour is written for a Unix shell")
def test_the_tour_leads_where_it_says(tmp_path):
    if not (ROOT / GGUF).exists() or not (ROOT / ".venv").exists():
        pytest.skip("make test has what the tour starts from")
    here = checkout(tmp_path)
    already = {  # what pip would download is found in the environment of the tests, and nothing else is
        "PYTHONPATH": sysconfig.get_path("purelib"),
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    (here / "tour.txt").write_text(blocks("pycon"), encoding="utf-8")
    script = f"set -eu\n{blocks('console')}\npython -m doctest tour.txt\n"
    told = subprocess.run(
        ["bash", "-c", script], cwd=here, env=os.environ | already, capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stdout[-3000:] + told.stderr[-3000:]
    assert (here / "runs" / "tour" / "report.html").stat().st_size > 100_000
    assert (here / "lab" / "bin" / "mesascope").exists()
