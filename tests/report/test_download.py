"""Tables as CSV: plain numbers, quoted text, and no cell that a spreadsheet would take for a formula."""

import pytest

from mesascope.report import render_report

CELLS = [
    *("−0.52", "1,234", "3.1 × 10⁻⁵", "-7", "–", "=1+2", "+x", "-x", "@sum", "−x", "a, b", 'say "x"', "95%"),
]
PLAIN = ["-0.52", "1234", "3.1e-5", "-7", "–", "'=1+2", "'+x", "'-x", "'@sum", "'−x", '"a, b"', '"say ""x"""', "95%"]
USE = """
  const table = document.createElement("table");
  document.querySelector("main").append(table);
  const cell = table.insertRow().insertCell(), said = [];
  for (const text of CELLS) { cell.textContent = text; said.push(mesascope.formatCsv(table).trimEnd()); }
  table.remove();
  const tables = [...document.querySelectorAll("main table")];
  const saved = [];
  URL.createObjectURL = blob => { saved.push(blob.type); return "#"; };
  document.querySelectorAll(".csv").forEach(button => button.click());
  return [said, tables.length, saved];
"""


@pytest.mark.needs_chromium
@pytest.mark.parametrize("kind", ["write_study", "write_circuit"])
def test_tables_can_be_saved(samples, browser, tmp_path, kind):
    html = render_report(getattr(samples, kind)(tmp_path / "run"))
    (cells, tables, saved), console = browser.look(html, USE.replace("CELLS", str(CELLS)))
    assert console == []
    assert cells == PLAIN
    assert saved == ["text/csv"] * tables
    assert tables >= 1
