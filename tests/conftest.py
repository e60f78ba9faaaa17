"""Strict by default: every test checks the shapes of arrays, and every warning is an error (pyproject.toml).

Shapes are checked in the first two calls of every function within a test, and in few of the later ones.
"""

import gc
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial, wraps
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import jaxtyping
import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    from browser import Browser
    from fake_hub import FakeHub

TOGETHER = (  # one run, at which all tests look
    "tests/test_end_to_end.py",
    "tests/test_example_notebooks.py",
    "tests/test_inspection_of_everything.py",
    "tests/test_settings.py",
    "tests/test_together.py",
    "tests/train/test_resume.py",
)
LONG = (
    "test_example_notebooks.py",
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
FIRST = ("torch", "transformers.modeling_utils", "xarray", "netCDF4", "sklearn.cluster", "sklearn.metrics")


def speaks_of_arrays(hint: object) -> bool:
    """Whether an annotation has a shape anywhere in it."""
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(speaks_of_arrays, hint if isinstance(hint, list | tuple) else get_args(hint)))


def check_shapes(wrap: Any) -> Any:
    """`jaxtyped` for what has arrays in its signature; all else is pyright's, since checks take as long as tests."""

    def jaxtyped(what: Any = None, **options: Any) -> Any:
        if what is None:
            return partial(jaxtyped, **options)
        inside = (what.fget, what.fset) if isinstance(what, property) else (inspect.unwrap(what),)
        hints = [hint for one in inside if one for hint in getattr(one, "__annotations__", {}).values()]
        if not speaks_of_arrays(hints):
            return what
        return check_first_calls(what, partial(wrap, **options)) if inspect.isfunction(what) else wrap(what, **options)

    return jaxtyped


def check_first_calls(function: Callable[..., Any], wrap: Callable[..., Any]) -> Callable[..., Any]:
    """The checked function in its first two calls within each test, and then in few: loops need not be checked anew.

    Its check is built when it is first called.
    """
    test, calls, checked = 0, 0, None

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal test, calls, checked
        calls = 1 if test != CURRENT.test else calls + 1
        test = CURRENT.test
        if calls > CHECKED_CALLS and calls % CHECKED_EVERY:
            return function(*args, **kwargs)
        if checked is None:
            checked = wrap(function)
        return checked(*args, **kwargs)

    return call


@dataclass
class Current:
    """The number of the test that runs."""

    test: int = 0


CURRENT = Current()
CHECKED_CALLS, CHECKED_EVERY = 2, 64


def pytest_runtest_setup() -> None:
    """Count the tests."""
    CURRENT.test += 1


def pytest_configure(config: pytest.Config) -> None:
    """Small models run fastest on one thread, and xdist gives every worker its own."""
    if config.getoption("numprocesses", None) and "PYTEST_XDIST_WORKER" not in os.environ:
        return  # the workers run the tests
    for name in FIRST:
        import_module(name)  # what is first imported from within mesascope is compiled anew, for many seconds
    jaxtyping.jaxtyped = check_shapes(jaxtyping.jaxtyped)
    jaxtyping.install_import_hook("mesascope", "beartype.beartype")  # before mesascope is imported
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.disable_progress_bar()
    os.fsync = ignore_sync


def ignore_sync(file: int) -> None:
    """Instead of `os.fsync`, which can take as long as a test: a test may kill a process, but not the machine."""


class OneRunOneWorker(LoadScopeScheduling):
    """Gives a worker one test after the other, but the tests of some files all to one."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        return file if file in TOGETHER else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> OneRunOneWorker:
    """How tests are handed out."""
    return OneRunOneWorker(config, log)


def pytest_collection_finish() -> None:
    """Modules and tests stay for the whole session, so that the garbage collector need not visit them again."""
    gc.collect()
    gc.freeze()


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


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda:0", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """The device of a test, which runs on the processor in `make test` and on a GPU with `-m gpu`."""
    if request.param != "cpu":
        import torch

        if not torch.cuda.is_available():
            pytest.skip("a test on a GPU needs a CUDA device, but torch finds none")
    return request.param


@pytest.fixture(scope="session")
def browser() -> "Iterator[Browser]":
    """The browser of all tests of this process."""
    from browser import CHROMIUM, Browser

    if CHROMIUM is None:
        pytest.skip("there is no chromium here")
    browser = Browser()
    yield browser
    browser.close()


@pytest.fixture
def command(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """The command line as a function from words to exit code, output and error output."""
    from commands import call  # imports mesascope, whose import hook must be there first

    def run(*words: str | Path) -> tuple[int, str, str]:
        return call(*map(str, words), capsys=capsys, monkeypatch=monkeypatch)

    return run


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> "type[FakeHub]":
    """The Hub without a network; `calls` is what was sent to it."""
    import huggingface_hub

    from fake_hub import TOKEN, FakeHub

    monkeypatch.setattr(FakeHub, "calls", [])
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: TOKEN)
    return FakeHub
