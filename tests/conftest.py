"""Strict by default: every test checks shapes and types, and every warning is an error (pyproject.toml)."""

import os
import sys
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest
from jaxtyping import install_import_hook
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

SOURCE = Path(__file__).parents[1] / "src" / "mesascope"
TOGETHER = (  # one run, at which all tests look
    "tests/test_end_to_end.py",
    "tests/test_inspection_of_everything.py",
    "tests/test_settings.py",
    "tests/train/test_resume.py",
)
LONG = (
    "test_inspect.py",
    "test_norms.py",
    "test_readme.py",
    "test_resume.py",
    "test_induction.py",
    "test_which_algorithm.py",
)

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: a test never asks the network
os.environ.pop("MESASCOPE_DEBUG", None)
sys.path.insert(0, str(Path(__file__).parent))  # for the helpers beside the tests
UNCHECKED = ("api", "cli", "cluster", "console", "report")  # know no tensor, so that pyright is enough
CHECKED = [f"mesascope.{one.name}" for one in iter_modules([str(SOURCE)]) if one.name not in UNCHECKED]
FIRST = ("torch", "transformers.modeling_utils", "xarray", "netCDF4", "sklearn.cluster", "sklearn.metrics")


def pytest_configure(config: pytest.Config) -> None:
    """Small models run fastest on one thread, and xdist gives every worker its own."""
    if config.getoption("numprocesses", None) and "PYTEST_XDIST_WORKER" not in os.environ:
        return  # the workers run the tests
    for name in FIRST:
        import_module(name)  # what is first imported from within a checked module is compiled anew, for many seconds
    install_import_hook(CHECKED, "beartype.beartype")  # before mesascope is imported
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.disable_progress_bar()


class OneRunOneWorker(LoadScopeScheduling):
    """Gives a worker one test after the other, but the tests of some files all to one."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        return file if file in TOGETHER else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> OneRunOneWorker:
    """How tests are handed out."""
    return OneRunOneWorker(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first, so that at the end no worker waits for another's."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    """With MESASCOPE_REQUIRE_ALL=1 a skipped test fails: continuous integration must run everything."""
    report = yield
    if report.skipped and os.environ.get("MESASCOPE_REQUIRE_ALL") == "1" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, but MESASCOPE_REQUIRE_ALL=1: {report.longrepr}"
    return report
