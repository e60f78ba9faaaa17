"""Self-contained HTML reports, one page per run. Only the run directory is read."""

from mesascope.report.page import render_report, summarize_run, write_report

__all__ = ["render_report", "summarize_run", "write_report"]
