"""The page on analyses is what the code generates."""

import importlib.util
from pathlib import Path

from mesascope import analyses
from mesascope.analyses import Analysis

DOCS = Path(__file__).parents[1] / "docs"


def load_generator():
    spec = importlib.util.spec_from_file_location("list_analyses", DOCS / "list_analyses.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date():
    written = (DOCS / "analyses.md").read_text(encoding="utf-8")
    assert written == load_generator().format_page(), "run `make index`"


def test_the_page_has_every_public_analysis():
    listed = {one.name for group in load_generator().list_analyses().values() for one in group}
    public = {value.name for value in vars(analyses).values() if isinstance(value, Analysis)}
    assert public <= listed
    assert "inner_linear" in listed
