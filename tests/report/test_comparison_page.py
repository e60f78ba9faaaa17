"""The page that compares two runs: every verdict of both, what changed first, and what may have changed it."""

import json
import re
from pathlib import Path

import pytest

from mesascope.checksums import RunError
from mesascope.report import write_comparison
from report.test_page import parse

CHANGED = "layer_0_copies"


def words_of(html: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def table_after(html: str, heading: str) -> dict[str, list[str]]:
    """The rows of the first table after a heading: the first column, and the words of the others."""
    part = html[html.index(heading) :]
    body = part[part.index("<tbody>") : part.index("</tbody>")]
    rows = re.findall(r'<th scope="row">(.*?)</th>(.*?)</tr>', body, re.S)
    return {
        words_of(first): [words_of(one) for one in re.findall(r"<td>(.*?)</td>", rest, re.S)] for first, rest in rows
    }


@pytest.fixture
def pair(samples, tmp_path) -> tuple[Path, Path]:
    """Two runs of a study that differ in one setting, one version and two verdicts."""
    first, second = samples.write_study(tmp_path / "before"), samples.write_study(tmp_path / "after")
    facts, verdicts = (json.loads((second / name).read_text()) for name in ("run.json", "verdicts.json"))
    facts["parameters"]["training"]["steps"] = 12_000
    facts["provenance"] = {"torch": "2.14.0"}
    (second / "run.json").write_text(json.dumps(facts))
    for row in verdicts:
        row["status"] = {CHANGED: "supported", "learns_in_context": "contradicted"}.get(row["name"], row["status"])
    (second / "verdicts.json").write_text(json.dumps(verdicts))
    (second / "report.html").write_text("report")
    return first, second


def test_changed_verdicts_come_first(pair, tmp_path):
    (tmp_path / "pages").mkdir()
    html = write_comparison(pair[0], pair[1], tmp_path / "pages" / "both.html").read_text(encoding="utf-8")
    assert "2 of 4 verdicts differ, and 1 is the opposite (supported and contradicted)." in html
    rows = table_after(html, "<h2>Verdicts</h2>")
    first, second, *others = rows
    assert first.endswith("copying the last term. opposite")
    assert second.endswith("layer 0. differs")
    assert not any(one.endswith(("opposite", "differs")) for one in others)
    assert rows[second] == [
        "~ inconclusive 0.62 [0.31, 0.93]; control 0.48",
        "✓ supported 0.62 [0.31, 0.93]; control 0.48",
    ]
    assert table_after(html, "Settings that differ") == {"training: steps": ["6000", "12000"]}
    assert table_after(html, "Environment that differs") == {"torch": ["–", "2.14.0"]}
    assert [attrs["href"] for tag, attrs in parse(html).found if tag == "a"] == ["../after/report.html"] * 4


def test_equal_runs_have_no_differences(pair, tmp_path):
    html = write_comparison(pair[0], str(pair[0]), tmp_path / "same.html").read_text(encoding="utf-8")
    assert "0 of 4 verdicts differ, and none is the opposite" in html
    assert "Settings and environment are the same." in html
    assert str(pair[0]) in html  # both have the same name


def test_cells_are_compared_one_by_one(samples, tmp_path):
    """A claim of a cell that one run lacks is in one run only."""
    many, one = samples.write_comparison(tmp_path / "many"), samples.write_study(tmp_path / "one")
    html = write_comparison(many, one, tmp_path / "both.html").read_text(encoding="utf-8")
    assert "0 of 4 verdicts differ" in html  # of the study's own setting
    assert "4 claims are in one of the runs only" in html
    cells = [row[0] for row in table_after(html, "<h2>Verdicts</h2>").values()]
    assert cells == ["heads=1"] * 4 + ["as in the study"] * 4


def test_text_of_runs_is_never_markup(samples, pair, tmp_path):
    html = write_comparison(samples.hostile(tmp_path / "<img src=x>"), pair[0], tmp_path / "x.html").read_text()
    assert "<img" not in html
    assert not [tag for tag, _ in parse(html).found if tag in ("img", "script")]


def test_what_cannot_be_compared_is_refused(samples, pair, tmp_path):
    with pytest.raises(RunError, match="must have verdicts, but has none"):
        write_comparison(pair[0], samples.write_inspection(tmp_path / "model"), tmp_path / "x.html")
    for page in (tmp_path / "x.txt", tmp_path / "nowhere" / "x.html"):
        with pytest.raises(ValueError, match=r"a page must be an \.html file in a folder that exists"):
            write_comparison(pair[0], pair[1], page)
    assert not list(tmp_path.glob("x.*"))


def test_the_command_writes_the_page(pair, tmp_path, command):
    page = tmp_path / "both.html"
    code, out, _ = command("compare", *pair, "--out", page)
    assert code == 0
    assert f"Page: {page}" in out.replace("\n", "")
    assert "2 of 4 verdicts differ" in page.read_text(encoding="utf-8")
    code, out, err = command("compare", *pair, "--out", tmp_path / "both.pdf")
    assert (code, out) == (2, "")
    assert "give another file" in " ".join(err.split())
