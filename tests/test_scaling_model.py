"""The cost model of large runs: its counts are those of a real run, and the page shows its predictions."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scaling_model", ROOT / "benchmarks" / "scaling_model.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["scaling_model"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_run_of_two_seeds_in_two_cells_has_the_predicted_files(model: ModuleType, tmp_path: Path) -> None:
    grid, path, results = model.run_grid(tmp_path, cells=2, seeds=2)
    assert grid.jobs == len(results) == 4
    assert model.count_files(path) == grid.files


def test_a_history_has_the_predicted_bytes(model: ModuleType, tmp_path: Path) -> None:
    history, steps, path = model.record_history(tmp_path, 8)
    files = [*path.glob("*.bin"), *path.glob("*.sha256")]
    assert len(files) == 2 * history.columns
    assert sum(file.stat().st_size for file in files) == steps * history.bytes_per_step


def test_the_page_shows_the_predictions(model: ModuleType) -> None:
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    for predict in model.PREDICTIONS.values():
        assert predict() in page


def test_wall_time_is_that_of_rounds_and_of_cells_one_after_another(model: ModuleType) -> None:
    assert model.wall_seconds(10, 4, job_seconds=60.0, cells=5, cell_seconds=2.0) == 3 * 60 + 5 * 2


def test_a_ratio_beyond_its_bounds_does_not_hold(model: ModuleType) -> None:
    rows = [model.Row(quantity="q", size="s", predicted=4, measured=n, bounds=(0.5, 2.0)) for n in (1, 2, 8, 9)]
    assert [row.holds for row in rows] == [False, True, True, False]
