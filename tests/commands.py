"""The command line as a function."""

import sys

import pytest

from mesascope import cli


def call(*words: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    """Exit code, output and error output of a command."""
    monkeypatch.setattr(sys, "argv", ["mesascope", *words])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err
