"""Runs in shared storage: after every fault a reader sees the state before or the one after, whole, and no mixture."""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

import mesascope.store.remote as remote
from faulty_storage import KINDS, Faults, FaultyStorage, empty_storage, inject
from mesascope.checksums import RunError, seal_record
from mesascope.store import Run, verify_run
from mesascope.store.remote import StorageError, TransferPolicy, fetch_run, keep_synchronised, sync_run
from mesascope.store.remote._session import SyncSession
from shared_runs import continue_run, create_run, read_tree, write_checkpoint

URL = "faulty://bucket/group/run"
NO_RETRIES = TransferPolicy(max_retries=0)
RETRIES = TransferPolicy(max_retries=3, pause=0.001)
MAX_CALLS = 200  # of a synchronisation of the small run; a test checks that all are tried


@pytest.fixture(autouse=True)
def storage() -> None:
    empty_storage()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return create_run(tmp_path / "run")


def sync(run: Run, policy: TransferPolicy = NO_RETRIES) -> str:
    return sync_run(run.path, URL, policy=policy, patience=0)


def fetch(cache: Path, policy: TransferPolicy = NO_RETRIES, url: str = URL) -> Path:
    return fetch_run(url, cache=cache, policy=policy)


def check_no_object_is_left_over() -> None:
    """All objects are those of the newest two commits."""
    names = [path.partition("/group/run/")[2] for path in FaultyStorage.store]
    commits = sorted(name for name in names if name.startswith("commits/"))
    assert len(commits) <= 2
    records = [json.loads(FaultyStorage.store[f"/bucket/group/run/{name}"].getvalue()) for name in commits]
    used = {entry["object"] for record in records for entry in record["files"].values()}
    assert {name for name in names if not name.startswith("commits/")} == used


def test_a_run_is_fetched_as_it_was_synchronised(run: Run, tmp_path: Path):
    assert sync(run) == URL
    folder = fetch(tmp_path / "cache")
    assert folder.name == "run"
    assert read_tree(folder) == read_tree(run.path)
    assert not verify_run(folder).problems
    continue_run(run)
    sync(run)
    newer = fetch(tmp_path / "cache")
    assert newer != folder
    assert read_tree(newer) == read_tree(run.path)
    check_no_object_is_left_over()
    light = fetch_run(URL, cache=tmp_path / "cache", weights=False)
    assert {path for path in read_tree(newer) if path not in read_tree(light)} == {
        path for path in read_tree(newer) if "/step=" in path
    }


def find_error(action: Callable[[], object]) -> str:
    """Return the message of the error that an action ends in, one line without secrets; empty if there is none."""
    try:
        action()
    except StorageError as error:
        message = str(error)
    else:
        return ""
    assert message
    assert "SECRET" not in message
    assert "\n" not in message
    return message


class States:
    """A run before and after a synchronisation, from which faults start again and again.

    Attributes:
        before: The files that are committed.
        after: The files of the working copy.
    """

    def __init__(self, run: Run) -> None:
        sync(run)
        self._run, self.before = run, read_tree(run.path)
        continue_run(run)
        self.after = read_tree(run.path)
        self._copy = shutil.copytree(run.path, run.path.parent / "copy", copy_function=shutil.copy2)
        self._objects = {path: file.getvalue() for path, file in FaultyStorage.store.items()}
        with inject() as faults:
            sync(run)
        self.num_calls, self.calls = faults.calls, faults.names

    def restore(self) -> None:
        """Bring storage and working copy to where the synchronisation begins."""
        FaultyStorage.store.clear()
        storage = FaultyStorage()
        for path, content in self._objects.items():
            MemoryFileSystem.pipe_file(storage, path, content)
        shutil.rmtree(self._run.path)
        shutil.copytree(self._copy, self._run.path, copy_function=shutil.copy2)


def try_faults(run: Run, cache: Path, cases: Iterable[tuple[int, str]], *, is_outage: bool, policy: TransferPolicy):
    """Synchronise with each fault, look at what a reader sees, and synchronise again without one.

    Returns:
        How many synchronisations failed, and how many succeeded.
    """
    states, outcomes = States(run), [0, 0]
    for index, kind in cases:
        if index >= states.num_calls:
            break
        states.restore()
        with inject(kind, index, is_outage=is_outage):
            failed = bool(find_error(lambda: sync(run, policy)))
        outcomes[not failed] += 1
        seen = read_tree(fetch(cache))
        assert seen in ([states.before, states.after] if failed else [states.after]), (index, kind)
        assert read_tree(run.path) == states.after, "the working copy must keep everything"
        sync(run)
        assert read_tree(fetch(cache)) == states.after, (index, kind)
        check_no_object_is_left_over()
    return outcomes


def test_after_a_fault_at_any_call_a_reader_sees_one_of_the_two_states(run: Run, tmp_path: Path):
    cases = [(index, KINDS[index % len(KINDS)]) for index in range(0, MAX_CALLS, 3)]  # all of them are slow
    failed, _ = try_faults(run, tmp_path / "cache", cases, is_outage=False, policy=NO_RETRIES)
    assert failed > 5


@pytest.mark.slow
@pytest.mark.parametrize("policy", [NO_RETRIES, RETRIES], ids=["no retries", "retries"])
@pytest.mark.parametrize("is_outage", [False, True], ids=["one call fails", "all calls fail from it on"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_fault_at_every_call(run: Run, tmp_path: Path, kind: str, is_outage: bool, policy: TransferPolicy):
    cases = [(index, kind) for index in range(MAX_CALLS)]
    failed, _ = try_faults(run, tmp_path / "cache", cases, is_outage=is_outage, policy=policy)
    assert (failed > 0) == (is_outage or policy == NO_RETRIES)


def test_a_fault_while_a_run_is_read_gives_the_whole_run_or_an_error(run: Run, tmp_path: Path):
    sync(run)
    with inject() as faults:
        fetch(tmp_path / "none")
    refused = 0
    for index in range(faults.calls):
        cache, kind = tmp_path / f"cache-{index}", KINDS[index % len(KINDS)]
        with inject(kind, index):
            message = find_error(partial(fetch, cache))
        refused += bool(message)
        with inject(kind, index):
            assert read_tree(fetch(cache, RETRIES)) == read_tree(run.path)
    assert refused > faults.calls / 2


def test_damage_in_the_storage_is_named_and_never_read(run: Run, tmp_path: Path, command: Callable, monkeypatch):
    monkeypatch.setattr(remote, "fetch_run", partial(fetch_run, cache=tmp_path / "cache", policy=NO_RETRIES))
    sync(run)
    assert command("verify", URL)[:2] == (0, f"{URL}: 8 files and checkpoints verified, 0 damaged\n")
    for path, file in sorted(FaultyStorage.store.items()):
        content = file.getvalue()
        for damaged in (content[:-2], content[:-2] + bytes([content[-2] ^ 1]) + content[-1:], b"", None):
            shutil.rmtree(tmp_path / "cache", ignore_errors=True)
            if damaged is None:
                del FaultyStorage.store[path]
            else:
                MemoryFileSystem.pipe_file(FaultyStorage(), path, damaged)
            with pytest.raises(StorageError, match=r"must match its checksum|is missing|only damaged|holds none"):
                fetch(tmp_path / "cache")
            MemoryFileSystem.pipe_file(FaultyStorage(), path, content)
    victim = next(path for path in FaultyStorage.store if path.endswith("verdicts.json"))
    MemoryFileSystem.pipe_file(FaultyStorage(), victim, b"[]")
    shutil.rmtree(tmp_path / "cache")
    code, out, _ = command("verify", URL)
    assert code == 1
    assert "verdicts.json differs from its checksum" in out


def test_a_torn_commit_is_passed_over_and_named(run: Run, tmp_path: Path, command: Callable, monkeypatch):
    monkeypatch.setattr(remote, "fetch_run", partial(fetch_run, cache=tmp_path / "cache", policy=NO_RETRIES))
    sync(run)
    commits = sorted(path for path in FaultyStorage.store if "/commits/" in path)
    content = FaultyStorage.store[commits[-1]].getvalue()
    MemoryFileSystem.pipe_file(FaultyStorage(), "/bucket/group/run/commits/00000009.json", content[:100])
    assert read_tree(fetch(tmp_path / "cache")) == read_tree(run.path)
    code, out, _ = command("verify", URL)
    assert code == 1
    assert "commits/00000009.json is not whole" in out
    sync(run)
    assert command("verify", URL)[0] == 0


def test_a_run_continues_on_another_machine(run: Run, tmp_path: Path):
    sync(run)
    elsewhere = tmp_path / "elsewhere"
    with keep_synchronised(elsewhere, URL, policy=NO_RETRIES, patience=0):
        assert read_tree(elsewhere) == read_tree(run.path)
        continue_run(Run.open(elsewhere))
    assert read_tree(fetch(tmp_path / "cache")) == read_tree(elsewhere)
    with keep_synchronised(run.path, URL, policy=NO_RETRIES, patience=0):  # unchanged here, so that it may be replaced
        assert read_tree(run.path) == read_tree(elsewhere)


def test_a_stopped_fetch_of_a_working_copy_is_completed(run: Run, tmp_path: Path):
    sync(run)
    with inject() as faults, keep_synchronised(tmp_path / "none", URL, policy=NO_RETRIES, patience=0):
        pass
    for index in (one for one, name in enumerate(faults.names) if name == "get_file"):
        folder = tmp_path / f"copy-{index}"
        with (
            inject("timeout", index),
            pytest.raises(StorageError),
            keep_synchronised(folder, URL, policy=NO_RETRIES, patience=0),
        ):
            pass
        with keep_synchronised(folder, URL, policy=NO_RETRIES, patience=0):
            assert read_tree(folder) == read_tree(run.path)


def test_two_copies_that_both_changed_are_refused(run: Run, tmp_path: Path):
    sync(run)
    other = Run(shutil.copytree(run.path, tmp_path / "other"), run.record)
    continue_run(run)
    other.write_json("verdicts", [{"name": "a", "status": "contradicted"}])
    sync(run)
    sync(run)
    committed = read_tree(run.path)
    with pytest.raises(StorageError, match="both have changed"):
        sync(other)
    assert read_tree(fetch(tmp_path / "cache")) == committed
    with pytest.raises(RunError, match="must have been synchronised before"):
        sync_run(Run.create(tmp_path / "third", run.description).path)


def test_a_writer_that_is_overtaken_cannot_commit(run: Run, tmp_path: Path):
    """It is suspended in the middle of its session, and another machine takes the run over."""
    slow = SyncSession(run.path, URL, policy=NO_RETRIES, patience=0)
    with slow:
        slow.commit()
        with SyncSession(tmp_path / "fast", URL, policy=NO_RETRIES, patience=0) as fast:
            continue_run(run)
            with pytest.raises(StorageError, match="another one has written"):
                slow.commit()
            continue_run(Run.open(tmp_path / "fast"))
            fast.commit(is_final=True)
    assert read_tree(fetch(tmp_path / "cache")) == read_tree(tmp_path / "fast")


def test_a_second_writer_is_refused_while_the_first_one_lives(run: Run, tmp_path: Path):
    with SyncSession(run.path, URL, policy=NO_RETRIES, interval=0.02) as first:
        first.commit()
        with pytest.raises(StorageError, match=r"one process at a time, but .* is in use by process"):
            SyncSession(tmp_path / "second", URL, policy=NO_RETRIES, patience=5).__enter__()
    with SyncSession(tmp_path / "second", URL, policy=NO_RETRIES, patience=5):
        assert read_tree(tmp_path / "second") == read_tree(run.path)


def test_commits_of_a_run_that_is_being_written_are_whole(run: Run, tmp_path: Path):
    """A job writes checkpoints and its log as fast as it can; every state that is committed verifies."""
    stopped = threading.Event()

    def write_forever() -> None:
        step = 2
        while not stopped.is_set():
            write_checkpoint(run, step, rolling=step % 3 > 0)
            step += 1

    job = threading.Thread(target=write_forever)
    job.start()
    try:
        seen = set()
        with SyncSession(run.path, URL, policy=NO_RETRIES) as session:
            for _ in range(6):
                session.commit()
                if FaultyStorage.store.keys() - {"/bucket/group/run/writer.json"}:
                    folder = fetch(tmp_path / "cache")
                    assert not verify_run(folder).problems
                    seen.add(json.dumps(read_tree(folder)))
    finally:
        stopped.set()
        job.join()
    assert len(seen) > 2
    sync(run)
    assert read_tree(fetch(tmp_path / "cache")) == read_tree(run.path)


def test_damage_of_the_working_copy_is_not_sent(run: Run, tmp_path: Path):
    sync(run)
    before = read_tree(run.path)
    (run.path / "verdicts.json").write_text("[]")
    with pytest.raises(RunError, match=r"every file must be intact to be synchronised, but .*verdicts.json"):
        sync(run)
    assert read_tree(fetch(tmp_path / "cache")) == before


def test_a_commit_cannot_name_files_outside_of_the_run(run: Run, tmp_path: Path):
    sync(run)
    path = max(path for path in FaultyStorage.store if "/commits/" in path)
    record = json.loads(FaultyStorage.store[path].getvalue())
    for name in ("../outside", "/outside", "a/../../outside", ".lock", "a//b", "a\\b"):
        files = {name: record["files"]["run.json"]}
        content = json.dumps(seal_record({"number": record["number"], "session": "x", "files": files}, "commit"))
        MemoryFileSystem.pipe_file(FaultyStorage(), path, content.encode())
        with pytest.raises(StorageError, match="only damaged"):
            fetch(tmp_path / "cache")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://key:secret@bucket/run", "a URL must hold no credentials"),
        ("s3://bucket/run?token=secret", r"has \?, # or ::"),
        ("simplecache::s3://bucket/run", "must be PROTOCOL://FOLDER|fsspec knows"),
        ("nowhere://bucket/run", "must have a protocol that fsspec knows"),
        ("memory://", "must name the folder of a run"),
        ("memory://a/../b", "must name the folder of a run"),
    ],
)
def test_a_bad_url_gets_one_line(run: Run, url: str, message: str):
    with pytest.raises(StorageError, match=message) as raised:
        sync_run(run.path, url)
    assert "secret" not in str(raised.value)


def test_a_folder_is_shared_storage_too(run: Run, tmp_path: Path):
    url = (tmp_path / "nfs" / "run").as_uri()
    sync_run(run.path, url, policy=NO_RETRIES)
    continue_run(run)
    assert sync_run(run.path, policy=NO_RETRIES) == url
    assert read_tree(fetch(tmp_path / "cache", url=url)) == read_tree(run.path)
    (tmp_path / "nfs" / "other").mkdir()
    (tmp_path / "nfs" / "other" / "mine.txt").write_text("mine")
    with pytest.raises(StorageError, match=r"must have an empty URL, but .* holds mine.txt"):
        sync_run(run.path, f"{url.removesuffix('run')}other", policy=NO_RETRIES)


def test_an_outage_does_not_stop_a_run_and_is_one_line_at_its_end(run: Run, tmp_path: Path):
    lines: list[str] = []
    sync(run)

    def run_during_outage() -> None:
        with keep_synchronised(run.path, URL, lines.append, policy=NO_RETRIES, interval=0.01, patience=0):
            FaultyStorage.faults = Faults(kind="timeout", index=0, is_outage=True)
            continue_run(run)
            while not lines:
                time.sleep(0.01)

    with pytest.raises(StorageError, match=r"nothing is lost: .* has the whole run, and `mesascope sync"):
        run_during_outage()
    assert lines[0].endswith("the run goes on, and is synchronised later")
    FaultyStorage.faults = Faults()
    sync(run)
    assert read_tree(fetch(tmp_path / "cache")) == read_tree(run.path)
