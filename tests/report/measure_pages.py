"""Weight, first paint, load and printed sheets of pages, in a headless Chromium.

    PYTHONPATH=tests python tests/report/measure_pages.py runs/affine-laptop/report.html runs/index.html ...

Each page is opened five times in a context of its own, and medians are printed. *Drawn* is the time until every figure
in the window is drawn; figures further down are drawn when they come near it. *Width* is that of the content in a
window of 400 pixels, with everything unfolded. Times hold for the machine at hand; compare them with the empty page's.
"""

import statistics
import sys
import tempfile
from pathlib import Path

from browser import MEASURE, Browser

REPEATS = 5
NARROW = 400  # pixels
TIMES = """
  const navigation = performance.getEntriesByType("navigation")[0];
  const paint = performance.getEntriesByName("first-contentful-paint")[0];
  return { paint: paint?.startTime ?? 0, load: navigation.loadEventEnd, drawn: performance.now() };
"""
EMPTY = "<!doctype html><html lang='en'><title>empty</title><p>empty</p></html>"
COLUMNS = ("page", "weight [MB]", "first paint [ms]", "load [ms]", "drawn [ms]", "sheets", f"width of {NARROW}")


def measure_page(browser: Browser, page: Path) -> tuple[str, ...]:
    """Return the row of one page."""
    times: dict[str, list[float]] = {}
    for _ in range(REPEATS):
        with browser.open(page.as_uri()) as opened:
            for name, value in opened.run(TIMES).items():
                times.setdefault(name, []).append(value)
    with browser.open(page.as_uri()) as opened:
        opened.run("return 0;")  # plotly is loaded, so that figures which nobody saw are drawn for the printer
        sheets = opened.count_sheets()
    with browser.open(page.as_uri(), width=NARROW) as opened:
        content = opened.run(MEASURE)[0]
    medians = [f"{statistics.median(times[name]):.0f}" for name in ("paint", "load", "drawn")]
    name = page.parent.name if page.name == "report.html" else page.stem
    return (name, f"{page.stat().st_size / 1e6:.2f}", *medians, str(sheets), str(content))


def main() -> None:
    """Print one row for each page on the command line, and one for an empty page."""
    pages = [Path(word).resolve() for word in sys.argv[1:]]
    if missing := [page for page in pages if not page.is_file()]:
        sys.exit(f"a page must be a file, but {missing[0]} is none; give the pages to measure")
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "empty.html"
        empty.write_text(EMPTY, encoding="utf-8")
        browser = Browser()
        try:
            sys.stdout.write("\t".join(COLUMNS) + "\n")
            for page in [empty, *pages]:
                sys.stdout.write("\t".join(measure_page(browser, page)) + "\n")
        finally:
            browser.close()


if __name__ == "__main__":
    main()
