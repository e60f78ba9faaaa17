"""The benchmark on a GPU: parts that fail or run out of time lose nothing, and without a card it says so."""

import importlib.util
import io
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu.py"
ROW = """import json; print("@" + json.dumps({"row": {"what": "a|b", "ms": 1.23456}}), flush=True)"""


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["gpu"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("code", "status", "note"),
    [
        (ROW, "done", ""),
        (f"{ROW}; raise ValueError('no card')", "failed", "exit code 1: ValueError: no card"),
        (f"{ROW}; import time; time.sleep(60)", "out of time", "stopped after 1 s; rows until then are kept"),
        (f"{ROW}; print('@' + json.dumps({{'left_out': 'not installed'}}))", "left out", "not installed"),
    ],
)
def test_rows_of_a_part_are_kept_whatever_becomes_of_it(gpu, tmp_path, code, status, note):
    report, log = gpu.Report(tmp_path, {"card": "none"}), io.StringIO()
    part = gpu.Part("capture", 1.0 if "sleep" in code else 60.0)
    report.parts.append(part)
    gpu.run_part(part, [sys.executable, "-S", "-c", code], dict(os.environ), report, log)
    assert (part.status, part.note) == (status, note)
    assert part.is_fine == (status in ("done", "left out"))
    written = json.loads((tmp_path / "gpu.json").read_text())  # while the part ran
    assert written["parts"][0]["rows"] == [{"what": "a|b", "ms": 1.23456}]
    report.write()
    assert "| a/b | 1.235 |" in (tmp_path / "gpu.md").read_text()
    assert "=== capture" in log.getvalue()


def test_tests_that_do_not_pass_are_named_and_none_is_a_failure(gpu):
    part = gpu.Part("tests", 1.0, status="done")
    for line in ("tests/a.py::test_x[cuda:0] PASSED [ 5%]", "tests/a.py::test_y[a b] FAILED [ 9%]", "PASSED or not"):
        gpu.read_line(part, line)
    gpu.judge_tests(part)
    assert part.rows == [{"test": "tests/a.py::test_y[a b]", "outcome": "failed"}]
    assert not part.is_fine
    none = gpu.Part("tests", 1.0, status="done")
    gpu.judge_tests(none)
    assert not none.is_fine


def test_a_capture_that_is_slower_than_a_cache_of_everything_breaks_the_bound(gpu):
    setting = {"model": "GPT-2 size", "dtype": "float32"}
    ours, theirs = gpu.Part("capture", 1.0, status="done"), gpu.Part("lens", 1.0, status="done")
    theirs.rows = [{**setting, "what": "cache of everything", "ms": 3.0}]
    for ms, holds in ((2.0, True), (4.0, False)):
        ours.rows, theirs.bounds = [{**setting, "what": "capture, eager", "ms": ms}], {}
        gpu.compare_parts([ours, theirs])
        assert list(theirs.bounds.values()) == [holds]


def test_packages_that_are_missing_or_old_are_named(gpu, monkeypatch):
    assert gpu.missing_packages(tests=True) == []
    versions = {"xarray": "1.0", "beartype": None}

    def version(name: str) -> str:
        if (found := versions.get(name, "9999")) is None:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(metadata, "version", version)
    assert gpu.missing_packages(tests=True) == ["xarray>=2025.10 (has 1.0)", "beartype>=0.20"]
    assert gpu.missing_packages(tests=False) == ["xarray>=2025.10 (has 1.0)"]


def test_all_files_with_cases_on_a_gpu_are_run(gpu):
    expected = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "tests").rglob("test_*.py")
        if "device)" in file.read_text(encoding="utf-8") or "device: str)" in file.read_text(encoding="utf-8")
    }
    assert {"tests/activations/test_edits.py", "tests/train/test_population.py"} <= expected
    assert expected - {"tests/test_gpu_benchmark.py"} <= set(gpu.gpu_test_files())


def run_script(out: Path, *words: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OUT": str(out), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(SCRIPT), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)


@pytest.mark.slow
def test_without_a_card_there_is_one_line_and_code_2(tmp_path):
    ran = run_script(tmp_path)
    assert ran.returncode == 2
    assert ran.stderr == "a CUDA device must be on this machine, but torch finds none; give --device cpu\n"


@pytest.mark.slow
def test_the_parts_run_on_a_processor(tmp_path):
    ran = run_script(tmp_path, "--device", "cpu", "--parts", "seeds,capture", "--seconds", "800")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    parts = {part["name"]: part for part in json.loads((tmp_path / "gpu.json").read_text())["parts"]}
    assert [part["status"] for part in parts.values()] == ["done"] * 2
    assert len(parts["seeds"]["rows"]) == 6
    assert len(parts["capture"]["rows"]) == 18
    assert all(parts["capture"]["bounds"].values())
    assert len(parts["capture"]["bounds"]) == 6
