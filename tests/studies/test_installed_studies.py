"""Studies of installed packages, found through entry points."""

from pathlib import Path

import pytest

from commands import call
from mesascope.studies import registry

POINTS = """[mesascope.studies]
their-study = their_studies:STUDY
no-study = their_studies:OTHER
broken = their_studies:MISSING
affine = their_studies:STUDY
"""
CODE = """
from dataclasses import replace
from mesascope.studies.registry import load_study

STUDY = replace(load_study("affine"), name="their-study", title="Theirs")
OTHER = 1
"""


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    info = tmp_path / "their_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    (tmp_path / "their_studies.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_study_of_an_installed_package_is_loaded_and_listed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    assert registry.load_study("their-study").title == "Theirs"
    assert registry.load_summary("their-study").title == "Theirs"
    assert registry.load_study("their-study[heads=1]").title != "Theirs"
    code, printed, _ = call("list", capsys=capsys, monkeypatch=monkeypatch)
    assert code == 0
    assert "their-study  of the package their-package" in printed


def test_a_name_of_this_package_stays_its_own():
    assert registry.load_study("affine").title == "Affine recurrences in context"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no-study", "of their-package must be a mesascope.studies.base.Study, but their_studies:OTHER is of type int"),
        ("broken", "of their-package must be importable, but fails with AttributeError"),
    ],
)
def test_an_entry_point_that_is_no_study_is_refused(name: str, message: str):
    with pytest.raises(registry.InvalidStudyPackage, match=message):
        registry.load_study(name)


def test_an_unknown_name_lists_them_too():
    with pytest.raises(registry.UnknownStudy, match=r"affine, .*their-study, or a \.py file"):
        registry.load_study("nothing")
