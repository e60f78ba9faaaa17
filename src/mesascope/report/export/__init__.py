"""Figures and tables of a report as files for a paper, and as values in Python."""

from mesascope.report.export.figures import FORMATS, ReportFigure, collect_figures, write_figures
from mesascope.report.export.tables import collect_tables, select_table, tabulate_results

__all__ = [
    "FORMATS",
    "ReportFigure",
    "collect_figures",
    "collect_tables",
    "select_table",
    "tabulate_results",
    "write_figures",
]
