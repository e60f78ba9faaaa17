"""Self-contained HTML reports, one page per run. Only the run directory is read."""

from mesascope.report.comparison_page import write_comparison
from mesascope.report.index_page import write_run_index
from mesascope.report.load_run import NO_CHECKSUMS
from mesascope.report.page import render_report, summarize_run, write_report

__all__ = ["NO_CHECKSUMS", "render_report", "summarize_run", "write_comparison", "write_report", "write_run_index"]
