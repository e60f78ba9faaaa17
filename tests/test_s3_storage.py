"""Runs on an S3 server: one that answers, fails and tears uploads as a real one may."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import s3_server
from mesascope.store import Run, verify_run
from mesascope.store.remote import StorageError, TransferPolicy, fetch_run, sync_run
from mesascope.store.remote._session import SyncSession
from s3_server import BUCKET, KINDS, FaultyProxy
from shared_runs import continue_run, create_run, read_tree

pytest.importorskip("s3fs")
pytest.importorskip("moto")
pytestmark = pytest.mark.slow
QUICK = TransferPolicy(max_retries=3, pause=0.01)
TRIED = 10  # requests of one synchronisation that fail in turn, spread over all of them


@pytest.fixture(scope="session")
def server() -> Iterator[FaultyProxy]:
    with s3_server.run_server() as proxy:
        yield proxy


@pytest.fixture
def url(server: FaultyProxy, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """An empty URL of the server."""
    address = f"http://{server.server_address[0]}:{server.server_address[1]}"
    for name, value in {**s3_server.ENVIRONMENT, "AWS_ENDPOINT_URL": address}.items():
        monkeypatch.setenv(name, value)
    server.inject()
    return f"s3://{BUCKET}/{request.node.name.replace('[', '-').rstrip(']').replace(' ', '-')}"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return create_run(tmp_path / "run")


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_fault_of_the_server_a_reader_sees_one_of_the_two_states(
    run: Run,
    server: FaultyProxy,
    url: str,
    tmp_path: Path,
    kind: str,
):
    def fetch() -> dict[str, str]:
        return read_tree(fetch_run(url, cache=tmp_path / "cache", policy=QUICK))

    def sync() -> None:
        sync_run(run.path, url, policy=QUICK, patience=0)

    sync()
    states = [fetch()]
    server.inject()
    continue_run(run)
    sync()
    states.append(fetch())
    count = server.requests
    assert count > TRIED
    for number in range(TRIED):
        run.write_json("verdicts", [{"name": "a", "status": f"changed {number}"}])
        before, after = fetch(), read_tree(run.path)
        server.inject(kind, number * count // TRIED)
        try:
            sync()
            expected = [after]
        except StorageError:
            expected = [before, after]
        server.inject()
        assert fetch() in expected
        sync()
        assert fetch() == after
    assert not verify_run(fetch_run(url, cache=tmp_path / "cache", policy=QUICK)).problems


def test_s3_refuses_the_commit_of_a_writer_that_was_overtaken(run: Run, url: str, tmp_path: Path):
    with SyncSession(run.path, url, policy=QUICK, patience=0) as slow:
        slow.commit()
        with SyncSession(tmp_path / "fast", url, policy=QUICK, patience=0) as fast:
            continue_run(run)
            with pytest.raises(StorageError, match="another one has written"):
                slow.commit()
            assert not slow.bucket.create(f"commits/{2:08d}.json", b"{}")
            fast.commit(is_final=True)


def test_errors_of_s3_are_one_line_without_credentials(run: Run, url: str, command: Callable):
    code, _, err = command("sync", run.path, "s3://missing-bucket/run")
    assert (code, err.count("\n")) == (2, 1)
    assert "NoSuchBucket" in err
    assert "OFTESTS" not in err
    code, out, err = command("sync", run.path, url)
    assert (code, out, err) == (0, f"Synchronised with {url}\n", "")
    assert "OFTESTS" not in "".join(file.read_text() for file in (run.path / ".sync").iterdir())


@pytest.mark.usefixtures("url")
def test_a_study_is_run_stopped_and_continued_on_s3(url: str, tmp_path: Path):
    """Two working folders are two machines."""
    command = [sys.executable, "-m", "mesascope", "run", "affine", "--scale", "smoke", "--seeds", "1", "--out", url]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    for machine in ("first", "second"):
        (tmp_path / machine).mkdir()
        done = subprocess.run(
            command, cwd=tmp_path / machine, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    name = url.partition("://")[2]
    trees = [read_tree(tmp_path / machine / "runs" / "s3" / name) for machine in ("first", "second")]
    models = [{path: digest for path, digest in tree.items() if path.startswith("models")} for tree in trees]
    assert models[0] == models[1] != {}
    assert read_tree(fetch_run(url, cache=tmp_path / "cache")) == trees[1]
    verify = [sys.executable, "-m", "mesascope", "verify", url]
    done = subprocess.run(verify, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.endswith(" 0 damaged\n")
