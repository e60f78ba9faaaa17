"""A history on disk: appended, cut back to a checkpoint, read in blocks, and refused where it is not whole."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mesascope.checksums import seal_record
from mesascope.store import HistoryColumn, HistoryReader, HistoryWriter, RunError

COLUMNS = {"x": HistoryColumn(rows=3, width=2), "t": HistoryColumn(rows=1, width=1, dtype="float64")}
FACTS = {"rule": "SGD", "labels": ["generator"]}


def rows(step: int) -> dict[str, np.ndarray]:
    return {"x": np.arange(6, dtype=np.float32).reshape(3, 2) + 10 * step, "t": np.array([[float(step)]])}


def written(folder: Path, steps: range, keep: int = 0) -> HistoryReader:
    writer = HistoryWriter(folder, COLUMNS, FACTS, keep)
    for step in steps:
        writer.append_step(rows(step))
    writer.sync_to_disk()
    writer.close()
    return HistoryReader(folder)


def test_what_is_appended_is_read(tmp_path: Path) -> None:
    history = written(tmp_path / "history", range(5))
    assert (history.steps, history.metadata, history.columns, history.size_on_disk) == (5, FACTS, COLUMNS, 5 * 32)
    assert np.array_equal(history.read_column("x"), np.concatenate([rows(step)["x"] for step in range(5)]))
    assert history.limit_steps(2).read_column("t").tolist() == [[0.0], [1.0]]
    assert history.limit_steps(0).read_column("x").shape == (0, 2)


@pytest.mark.parametrize("size", [1, 4, 15, 100])
def test_blocks_are_all_rows_in_order(tmp_path: Path, size: int) -> None:
    history = written(tmp_path / "history", range(5))
    seen = [(start, x.copy(), again.copy()) for start, (x, again) in history.iterate_blocks("x", "x", rows=size)]
    assert [start for start, _, _ in seen] == list(range(0, 15, size))
    assert np.array_equal(np.concatenate([x for _, x, _ in seen]), history.read_column("x"))
    assert all(np.array_equal(x, again) for _, x, again in seen)
    assert list(history.limit_steps(0).iterate_blocks("x")) == []


def test_a_writer_that_goes_on_cuts_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "history"
    written(folder, range(5))
    with (folder / "x.bin").open("ab") as file:
        file.write(b"torn")
    assert HistoryReader(folder).steps == 5, "a torn step does not count"
    again = written(folder, range(3, 5), keep=3)
    assert np.array_equal(again.read_column("x"), np.concatenate([rows(step)["x"] for step in range(5)]))
    assert (folder / "x.bin").stat().st_size == 5 * 24


def test_a_history_of_something_else_or_too_short_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "history"
    with pytest.raises(RunError, match=r"must hold history\.json, but has none; train with history=True"):
        HistoryReader(folder)
    written(folder, range(2))
    with pytest.raises(RunError, match=r"must hold 3 steps, but has 2 complete ones; delete"):
        HistoryReader(folder, 3)
    with pytest.raises(RunError, match=r"must hold the 4 steps before the checkpoint, but has 2; delete"):
        written(folder, range(4, 5), keep=4)
    with pytest.raises(RunError, match=r"must hold the history of this training, but holds another one; delete"):
        HistoryWriter(folder, {"x": COLUMNS["x"]}, FACTS, 1)
    assert HistoryReader(folder).steps == 2, "nothing was lost"


def test_a_lost_description_is_written_again_and_a_spoilt_one_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "history"
    written(folder, range(3))
    (folder / "history.json").unlink()
    assert written(folder, range(2, 4), keep=2).steps == 4
    for spoilt in ("[]", "{}", '{"columns": {"x": {"rows": 1}}, "facts": {}}', "{"):
        (folder / "history.json").write_text(spoilt)
        with pytest.raises(RunError, match=r"history.json must .*; delete .*run and run again to train this seed"):
            HistoryReader(folder)
    for columns in ({"x": {"rows": 1}}, 5):
        record = seal_record({"columns": columns, "facts": {}}, "history")
        (folder / "history.json").write_text(json.dumps(record))
        with pytest.raises(RunError, match=r"must describe a history, but does not; delete"):
            HistoryReader(folder)


@pytest.mark.parametrize("read", ["column", "rows", "blocks"])
@pytest.mark.parametrize("file", ["x.bin", "x.sha256"])
def test_a_flipped_bit_is_named_by_its_step_however_it_is_read(tmp_path: Path, read: str, file: str) -> None:
    history = written(tmp_path / "run" / "history", range(5))
    history.read_column("x")
    path, size = history.folder / file, 24 if file == "x.bin" else 16
    content = bytearray(path.read_bytes())
    content[3 * size + 5] ^= 1
    path.write_bytes(content)
    readers = {
        "column": lambda: history.read_column("x"),
        "rows": lambda: history.read_rows("x", np.array([0])),
        "blocks": lambda: list(history.iterate_blocks("x")),
    }
    with pytest.raises(RunError, match=r"x.bin must match its checksums, but step 3 differs; delete .*run and run"):
        readers[read]()
    assert history.read_column("t").shape == (5, 1)
    assert history.limit_steps(3).read_column("x").shape == (9, 2), "earlier steps are intact"


def test_columns_and_histories_do_not_stand_for_each_other(tmp_path: Path) -> None:
    columns = dict.fromkeys(("a", "b"), COLUMNS["t"])
    for run in ("one", "two"):
        writer = HistoryWriter(tmp_path / run / "history", columns, {"training": run}, 0)
        writer.append_step({name: np.array([[1.0]]) for name in columns})
        writer.close()
    for source in (tmp_path / "one" / "history" / "b", tmp_path / "two" / "history" / "a"):
        for suffix in (".bin", ".sha256"):
            shutil.copy(source.with_suffix(suffix), tmp_path / "one" / "history" / f"a{suffix}")
        with pytest.raises(RunError, match=r"a.bin must match its checksums, but step 0 differs"):
            HistoryReader(tmp_path / "one" / "history").read_column("a")


def test_some_rows_are_taken_by_their_places(tmp_path: Path) -> None:
    history = written(tmp_path / "history", range(5))
    places = np.array([[14, 0], [3, 3]])
    assert np.array_equal(history.read_rows("x", places), history.read_column("x")[places])
    assert history.limit_steps(0).read_rows("x", np.zeros((2, 0), int)).shape == (2, 0, 2)
    with pytest.raises(IndexError):
        history.limit_steps(1).read_rows("x", np.array([3]))


def test_steps_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    writer = HistoryWriter(tmp_path / "history", COLUMNS, FACTS, 0)
    with pytest.raises(ValueError, match=r"a step must have the columns x, t, but got x"):
        writer.append_step({"x": rows(0)["x"]})
    with pytest.raises(ValueError, match=r"x must be \(3, 2\) of float32 at every step, but got \(2, 2\) of float32"):
        writer.append_step(rows(0) | {"x": rows(0)["x"][:2]})
    writer.close()


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    writer = HistoryWriter(tmp_path / "history", COLUMNS, FACTS, 0)
    writer.close()
    with Path("/dev/full").open("ab", buffering=0) as full:
        writer._files["x"] = full
        with pytest.raises(RunError, match=r"the disk must have room for .*history, but is full"):
            writer.append_step(rows(0))


def test_a_disk_that_is_full_at_the_end_is_one_line(tmp_path: Path) -> None:
    writer = HistoryWriter(tmp_path / "history", COLUMNS, FACTS, 0)
    writer._files["x"].close()
    writer._files["x"] = Path("/dev/full").open("ab")  # noqa: SIM115  closing it is what is tested
    writer.append_step(rows(0))
    with pytest.raises(RunError, match=r"the disk must have room for .*history, but is full"):
        writer.close()
