"""The index of a folder of runs: every run has a row, and a damaged one says what is wrong."""

import json
import re
from urllib.parse import unquote

import pytest

from commands import call
from mesascope.report import write_run_index
from mesascope.report.index_page import render_index
from report.test_page import parse


def rows_of(html: str) -> dict[str, str]:
    texts = (re.sub(r"<[^>]*>", " ", row) for row in re.findall(r'<tr><th scope="row">(.*?)</tr>', html, re.S))
    return {" ".join(text.split()).split(" ")[0]: " ".join(text.split()) for text in texts}


def test_every_run_has_a_row(runs, samples):
    page = write_run_index(runs)
    assert page == runs / "index.html"
    html = page.read_text(encoding="utf-8")
    rows = rows_of(html)
    assert set(rows) == {"affine", "model", "broken", "empty", "odd", "damaged"}
    assert "laptop" in rows["affine"]
    for word in ("1 supported", "1 contradicted", "1 inconclusive", "1 not tested at this scale"):
        assert word in rows["affine"]
    assert "unreadable: " in rows["broken"]
    assert "verdicts.json" in rows["damaged"]
    links = [attrs["href"] for tag, attrs in parse(html).found if tag == "a"]
    assert [unquote(link) for link in links] == ["affine & more/report.html"]


@pytest.mark.parametrize(
    ("cells", "words"), [([""], "–"), (["block=bare,heads=4"], "block=bare, heads=4"), (["a=1", "a=2"], "2 cells")]
)
def test_a_row_names_its_cells(samples, tmp_path, cells, words):
    for name in cells:
        run = samples.write_study(tmp_path / "runs" / "study" / (f"cells/{name}" if name != cells[0] else ""))
        record = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps(record | {"cell": name}))
    row = rows_of(render_index(tmp_path / "runs"))["study"]
    assert f" laptop {words} 20" in row


def test_text_of_runs_is_never_markup(samples, tmp_path):
    samples.hostile(tmp_path / "runs" / "<img src=x>")
    html = render_index(tmp_path / "runs")
    assert "<img" not in html
    assert not [tag for tag, _ in parse(html).found if tag in ("img", "script")]


def test_a_folder_without_runs_and_no_folder(tmp_path):
    assert "There are no runs in this folder" in render_index(tmp_path)
    with pytest.raises(ValueError, match="the folder of runs must exist, but"):
        write_run_index(tmp_path / "none")


def test_the_command_writes_the_index(runs, capsys, monkeypatch):
    code, out, _ = call("runs", str(runs), "--html", capsys=capsys, monkeypatch=monkeypatch)
    assert code == 0
    assert (runs / "index.html").is_file()
    assert "index.html" in out
