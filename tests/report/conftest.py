"""Run directories made by hand; tests are imported without a package, so samples.py is loaded by its path."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest


def _load(name: str) -> ModuleType:
    spec = spec_from_file_location(f"report_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def samples() -> ModuleType:
    """The functions that write sample runs."""
    return _load("samples")


@pytest.fixture(scope="session")
def inspected() -> ModuleType:
    """The functions that write an inspected language model of realistic size."""
    return _load("inspected")


@pytest.fixture(scope="session")
def inspection(tmp_path_factory: pytest.TempPathFactory, inspected: ModuleType) -> Path:
    """An inspection of thirty layers of nine heads on two short sequences; tests only read it."""
    return inspected.write(tmp_path_factory.mktemp("runs") / "smol", sequences=2, length=96)


@pytest.fixture
def study_run(tmp_path: Path, samples: ModuleType) -> Path:
    """A run of a study: three seeds, twelve steps, three layers of four heads."""
    return samples.write_study(tmp_path / "affine-laptop")


@pytest.fixture
def inspect_run(tmp_path: Path, samples: ModuleType) -> Path:
    """An inspected language model: thirty layers of nine heads, no seeds, no verdicts."""
    return samples.write_inspection(tmp_path / "inspect-smol")
