"""Fixtures of the tests of faults."""

from pathlib import Path

import pytest

from commands import call


@pytest.fixture
def command(capsys, monkeypatch):
    def run(*words: str | Path):
        return call(*map(str, words), capsys=capsys, monkeypatch=monkeypatch)

    return run
