"""The page on axes and sites lists exactly those that the code has."""

import re
from pathlib import Path

from mesascope.activations import SITES
from mesascope.axes import AXES

PAGE = (Path(__file__).parents[1] / "docs" / "axes.md").read_text(encoding="utf-8")


def table_under(heading: str) -> list[list[str]]:
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def test_every_axis_is_on_the_page():
    listed = [name for row in table_under("Axes") for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(listed) == sorted(AXES)


def test_every_site_is_on_the_page_with_its_axes():
    listed = {re.fullmatch(r"`(\w+)`", row[0])[1]: tuple(row[1].split()) for row in table_under("Sites")}
    assert listed == {name: site.axes for name, site in SITES.items()}
