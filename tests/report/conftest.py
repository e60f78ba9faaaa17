"""Run directories made by hand; tests are imported without a package, so samples.py is loaded by its path."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest


def _load() -> ModuleType:
    spec = spec_from_file_location("report_samples", Path(__file__).with_name("samples.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def samples() -> ModuleType:
    """The functions that write sample runs."""
    return _load()


@pytest.fixture
def study_run(tmp_path: Path, samples: ModuleType) -> Path:
    """A run of a study: three seeds, twelve steps, three layers of four heads."""
    return samples.write_study(tmp_path / "affine-laptop")


@pytest.fixture
def inspect_run(tmp_path: Path, samples: ModuleType) -> Path:
    """An inspected language model: thirty layers of nine heads, no seeds, no verdicts."""
    return samples.write_inspection(tmp_path / "inspect-smol")
