"""The tour is what a newcomer does first: its commands are run in a copy of the checkout, its outputs are compared."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from mesascope.store import Run
from pages import blocks

ROOT = Path(__file__).parents[1]
TOUR = ROOT / "docs" / "tour.md"
GGUF = Path(".models") / "SmolLM2-135M-Instruct.Q4_1.gguf"


def checkout(place: Path) -> Path:
    """The tree as it is, with the environment and the model that are there already, and nothing for make to do.

    Everything here is older than the environment; else make would install this copy into the environment of the tests.
    """
    shutil.copytree(ROOT / "src", place / "src")
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, place / name)
        os.utime(place / name, (0, 0))
    for name in (".venv", ".models"):
        (place / name).symlink_to(ROOT / name)
    return place


def see_what_everybody_knows(run: Run) -> None:
    """What holds for a language model of this size that reads English."""
    loss = run.read_results("logit_lens")["loss"]
    assert loss.sizes == {"layer": 31}
    assert float(loss[-1]) < 4.0 < float(loss[0])  # it reads English; the embedding does not
    norms = run.read_results("norms")
    assert float(norms["first_token"].max()) > 20 * float(norms["mean"].max())  # the first token is a sink
    scores = run.read_results("repeated_token_heads")["score"]
    assert float(scores.sel(stat="first token").mean()) > 0.3
    assert float(scores.sel(stat="previous token").max()) > 0.5  # there is a previous-token head
    assert run.read_json("model")["parameters"] > 1e8
    assert run.read_json("model")["skipped"] == {}


@pytest.mark.slow
@pytest.mark.needs_smollm2
@pytest.mark.skipif(sys.platform == "win32", reason="the tour is written for a Unix shell")
def test_the_tour_leads_where_it_says(tmp_path):
    if not (ROOT / GGUF).exists() or not (ROOT / ".venv" / ".installed").exists():
        pytest.skip("make test has what the tour starts from")
    here = checkout(tmp_path)
    already = {  # what pip would download is found in the environment of the tests, and nothing else is
        "PYTHONPATH": sysconfig.get_path("purelib"),
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    (here / "tour.txt").write_text("\n".join(blocks(TOUR, "pycon")), encoding="utf-8")
    script = "\n".join(["set -eu", *blocks(TOUR, "console"), "python -m doctest tour.txt"])
    told = subprocess.run(
        ["bash", "-c", script], cwd=here, env=os.environ | already, capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stdout[-3000:] + told.stderr[-3000:]
    assert (here / "runs" / "tour" / "report.html").stat().st_size > 100_000
    see_what_everybody_knows(Run.open(here / "runs" / "tour"))
    assert (here / "lab" / "bin" / "mesascope").exists()
    assert "pip install" not in told.stdout  # by make
