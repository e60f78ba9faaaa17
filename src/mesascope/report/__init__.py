"""One self-contained page per run; it reads the run and nothing else."""

from mesascope.report.page import draw, render, summary

__all__ = ["draw", "render", "summary"]
