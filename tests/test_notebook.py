"""What a notebook shows: short representations, tables, completion, progress, and runs of studies that are values."""

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
import xarray as xr
from rich.console import Console

import mesascope
from mesascope import progress
from mesascope.activations.recording._captured import Capture, NotRecorded
from mesascope.models.transformer import Decoder, DecoderConfig
from mesascope.runner import load_verdicts
from mesascope.store import Run, RunError
from mesascope.studies.registry import list_studies, load_study
from mesascope.summaries import MAX_ROWS, Summarised, Summary
from mesascope.tasks.affine import Affine

MAX_CHARACTERS = 2000


@pytest.fixture(scope="module")
def cap() -> Capture:
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(d_in=1, d_out=1, hidden_size=8, num_attention_heads=2))
    return mesascope.capture(model, torch.ones(4, 6, 1), ["resid_pre", "pattern"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of a study that is a value, at smoke scale."""
    study = load_study("next-token-convergence")
    own = replace(study, name="my-study", title="mine <b>")
    return mesascope.run(own, scale="smoke", seeds=1, out=tmp_path_factory.mktemp("runs") / "run")


def test_public_names_are_completed():
    names = dir(mesascope)
    assert set(mesascope.__all__) <= set(names)
    for name in names:
        assert getattr(mesascope, name) is not None


def test_representations_are_short(cap: Capture, run: Run):
    studies = [load_study(entry.name) for entry in list_studies()]
    conditions = [one for study in studies for one in study.conditions]
    analyses = [one for condition in conditions for one in condition.analyses]
    batch = Affine().sample(64, torch.Generator().manual_seed(0))
    for shown in (cap, run, batch, *load_verdicts(run), *studies, *conditions, *analyses):
        assert isinstance(shown, Summarised)
        assert 20 < len(repr(shown)) < MAX_CHARACTERS, repr(shown)
        assert len(shown._repr_html_()) < 10 * MAX_CHARACTERS


def test_a_summary_cuts_long_text_and_escapes_html():
    rows = [(f"<{number}>", 200 * "a") for number in range(MAX_ROWS + 3)]
    summary = Summary(title="a & b", header=("x", "y"), rows=rows, link=Path("a b/'report\".html"))
    text = summary.to_text().splitlines()
    assert text[0] == "a & b"
    assert len(text) == MAX_ROWS + 2
    assert text[-1] == "  ... and 3 more"
    assert max(map(len, text)) < 80
    html = summary.to_html()
    assert "&lt;14&gt;" in html
    assert "<14>" not in html
    assert "a &amp; b" in html
    assert "&quot;.html" in html


def test_a_capture_is_a_mapping_of_what_it_recorded(cap: Capture):
    assert list(cap) == list(cap.keys()) == ["resid_pre", "pattern"]
    assert len(cap) == 2
    assert "pattern" in cap
    assert "z" not in cap
    assert [value.shape for value in cap.values()] == [cap[name].shape for name in cap]
    assert cap.get("z") is None
    assert cap == cap
    assert cap != replace(cap)
    assert hash(cap) == hash(cap)
    with pytest.raises(NotRecorded, match="'z' was not recorded"):
        cap["z"]
    assert "resid_pre  layer 3, batch 4, pos 6, d_model 8" in repr(cap)


def test_a_capture_becomes_a_dataset(cap: Capture):
    dataset = cap.to_dataset()
    assert set(dataset) == {"resid_pre", "pattern"}
    xr.testing.assert_identical(dataset["pattern"], cap.to_xarray("pattern").rename("pattern"))
    assert list(cap.to_dataset(["pattern"])) == ["pattern"]


def test_a_run_shows_its_verdicts_and_gives_its_results(run: Run, tmp_path: Path):
    verdicts = load_verdicts(run)
    table = run.verdicts
    assert isinstance(table, pd.DataFrame)
    assert table["statement"].tolist() == [one.statement for one in verdicts]
    assert table["status"].tolist() == [one.status for one in verdicts]
    name = run.result_names()[0]
    xr.testing.assert_identical(run[name], run.read_results(name))
    assert run._ipython_key_completions_() == run.result_names()
    assert run.report() == run.path / "report.html"
    assert "my-study" in repr(run)
    assert str(run.report()) in run._repr_html_()
    empty = Run.create(tmp_path / "empty", {"study": "x"})
    assert repr(empty) == f"Run of x: {tmp_path / 'empty'}"
    with pytest.raises(RunError, match="must have a report, but has none"):
        empty.report()


def test_a_study_that_is_a_value_runs_in_one_process(run: Run):
    study = load_study("affine")
    with pytest.raises(ValueError, match=r"must run on 'serial', but got 'processes'; write it to a \.py file"):
        mesascope.run(replace(study, name="mine"), on="processes")
    assert run.record["study"] == "my-study"
    assert load_study("next-token-convergence").name == "next-token-convergence"


CELL = """
SCALE = 2.0
def helper(x): return SCALE * x
def compute(x, power=2): return helper(x) ** power
class Rule:
    def apply(self, x): return compute(x)
"""


def hash_cells(*texts: str) -> list[list[str]]:
    """The digests of a function and a class, after each of some cells that an interpreter runs one after another."""
    show = "print(hash_user_code(compute), hash_user_code(Rule))"
    code = "\n".join(f"exec(compile({text!r}, 'cell {number}', 'exec'))\n{show}" for number, text in enumerate(texts))
    code = f"from mesascope.store.user_code import hash_user_code\n{code}\n"
    done = subprocess.run([sys.executable, "-"], input=code, capture_output=True, text=True, check=True)
    return [line.split() for line in done.stdout.splitlines()]


def test_code_of_a_notebook_counts_as_code_of_a_file_does():
    changes = [("SCALE = 2.0", "SCALE = 3.0"), ("SCALE * x", "SCALE + x"), ("power=2", "power=3")]
    changed = [CELL.replace(old, new) for old, new in changes]
    first, same, *others = hash_cells(CELL, f"\n\nother = 1\n{CELL}", *changed)
    assert all(len(digest) == 16 for digest in first)
    assert same == first
    for (_, new), digests in zip(changes, others, strict=True):
        assert all(one != two for one, two in zip(digests, first, strict=True)), new


def test_progress_is_shown_to_who_watches(monkeypatch: pytest.MonkeyPatch):
    def make_console(**options: object) -> Console:
        return Console(file=io.StringIO(), force_terminal=True, quiet=bool(options.get("quiet")))

    assert progress.open_console(quiet=False).quiet  # a script without a terminal
    monkeypatch.setattr(progress, "Console", make_console)
    assert not progress.open_console(quiet=False).quiet
    assert progress.open_console(quiet=True).quiet
