"""Strict by default: every test checks shapes and types, and every warning is an error (pyproject.toml)."""

import os
import sys
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: a test never asks the network
os.environ.pop("MESASCOPE_DEBUG", None)
sys.path.insert(0, str(Path(__file__).parent))  # for the helpers beside the tests
install_import_hook("mesascope", "beartype.beartype")  # before mesascope is imported


def pytest_configure(config: pytest.Config) -> None:
    """Small models run fastest on one thread, and xdist gives every worker its own."""
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.disable_progress_bar()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    """With MESASCOPE_REQUIRE_ALL=1 a skipped test fails: continuous integration must run everything."""
    report = yield
    if report.skipped and os.environ.get("MESASCOPE_REQUIRE_ALL") == "1" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, but MESASCOPE_REQUIRE_ALL=1: {report.longrepr}"
    return report
