"""One self-contained page per run; it reads the run and nothing else."""

from mesascope.report.page import render, summary

__all__ = ["render", "summary"]
