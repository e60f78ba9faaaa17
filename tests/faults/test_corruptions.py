"""Random damage to the files of a finished run is named or repaired, and never changes a number in silence."""

import random
from collections import Counter
from pathlib import Path

import pytest

from faults.corruptions import HARMLESS, NAMED, REPAIRED, Fragile, Trial
from faults.random_damage import flip_bit


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Fragile:
    return Fragile(tmp_path_factory.mktemp("fragile"), follow=False)


@pytest.fixture(autouse=True)
def quick_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports load everything, but draw nothing, which takes most of the time."""
    monkeypatch.setattr("mesascope.report.page._render_record", lambda record: "page")


def test_no_damage_leads_to_a_traceback_or_to_other_numbers(fragile: Fragile) -> None:
    trials: list[Trial] = [fragile.try_once(seed) for seed in range(20, 45)]
    wrong = [trial for trial in trials if trial.outcome not in (NAMED, REPAIRED, HARMLESS)]
    assert not wrong, wrong
    counts = Counter(trial.outcome for trial in trials)
    assert counts[NAMED] > 5
    assert counts[REPAIRED]


def test_verify_finds_whole_files_in_the_place_of_others(fragile: Fragile, tmp_path: Path) -> None:
    """Files change places within a run, kind by kind in a circle, and each is replaced by that of an equal run."""
    of_kind: dict[str, list[Path]] = {}
    for file in fragile.files:
        of_kind.setdefault(file.suffix if file.suffix in (".part", ".nc") else file.name, []).append(file)
    for files in of_kind.values():
        contents = [file.read_bytes() for file in files]
        if len(set(contents)) > 1:
            assert_found(fragile, files, [*contents[1:], contents[0]])
    assert fragile.call("run", tmp_path / "other")[0] == 0
    for file in fragile.files:
        other = (tmp_path / "other" / file.relative_to(fragile.finished)).read_bytes()
        if other != file.read_bytes():
            assert_found(fragile, [file], [other])
    assert fragile.call("verify", fragile.finished)[0] == 0


def assert_found(fragile: Fragile, files: list[Path], contents: list[bytes]) -> None:
    """Write other contents into files, and check that ``verify`` finds damage."""
    own = [file.read_bytes() for file in files]
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)
    code, printed = fragile.call("verify", fragile.finished)
    assert code, files
    assert "Traceback" not in printed
    for file, content in zip(files, own, strict=True):
        file.write_bytes(content)


def test_verify_names_every_damaged_file(fragile: Fragile, tmp_path: Path) -> None:
    """One bit of every fifth file is flipped in turn."""
    code, printed = fragile.call("verify", fragile.finished)
    assert (code, printed.count("\n")) == (0, 1)
    assert "0 damaged" in printed
    draw = random.Random(0)
    for file in fragile.files[::5]:
        content = file.read_bytes()
        file.write_bytes(flip_bit(draw, content))
        code, printed = fragile.call("verify", fragile.finished)
        file.write_bytes(content)
        assert code == (2 if file.name == "run.json" else 1), file
    assert fragile.call("verify", fragile.finished)[0] == 0
    assert fragile.call("verify", tmp_path)[0] == 2
