"""Fixtures with synthetic run directories. Tests have no package, so helper modules are loaded by their path."""

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
    """Return the functions that write sample runs."""
    return _load("samples")


@pytest.fixture(scope="session")
def inspected() -> ModuleType:
    """Return the functions that write an inspected language model of realistic size."""
    return _load("inspected")


@pytest.fixture(scope="session")
def inspection(tmp_path_factory: pytest.TempPathFactory, inspected: ModuleType) -> Path:
    """Return an inspection of 30 layers of 9 heads on two short sequences. Tests must not change it."""
    return inspected.write(tmp_path_factory.mktemp("runs") / "smol", sequences=2, length=96)


@pytest.fixture
def study_run(tmp_path: Path, samples: ModuleType) -> Path:
    """Return a study run: three seeds, twelve steps, three layers of four heads."""
    return samples.write_study(tmp_path / "affine-laptop")


@pytest.fixture
def inspect_run(tmp_path: Path, samples: ModuleType) -> Path:
    """Return an inspected language model: 30 layers of 9 heads, no seeds, no verdicts."""
    return samples.write_inspection(tmp_path / "inspect-smol")


@pytest.fixture
def runs(samples: ModuleType, tmp_path: Path) -> Path:
    """Return a folder with a study, an inspection, and runs that are damaged or unfinished."""
    folder = tmp_path / "runs"
    samples.write_study(folder / "affine & more")
    (folder / "affine & more" / "report.html").write_text("report")
    samples.write_inspection(folder / "model")
    for name, text in {"broken": "[", "empty": "{}", "odd": '{"study": [1], "seeds": 3, "provenance": 2}'}.items():
        (folder / name).mkdir()
        (folder / name / "run.json").write_text(text)
    damaged = samples.write_study(folder / "damaged")
    (damaged / "verdicts.json").write_text("[{")
    return folder
