"""Jobs on Slurm: those of `debug` run here, those of `local` in processes, and those of `slurm` in a queue.

The queue is that of this machine if it has one, or else a stand-in.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

import ray_grid
from mesascope import api
from mesascope.executors import ExecutorError, RetryPolicy, SlurmExecutor, create_executor
from mesascope.executors import _slurm_job as slurm_job
from mesascope.executors import _slurm_submission as slurm_submission
from mesascope.runner import run_study
from slurm_commands import install_slurm

QUICK = RetryPolicy(pause=0.05)
PATIENCE = 600.0  # seconds, on a busy machine
SOURCES = os.pathsep.join(str(Path(__file__).parents[1] / one) for one in ("src", "tests"))


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The jobs, where other processes find them too."""
    monkeypatch.setenv("PYTHONPATH", SOURCES)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return import_module("cluster_jobs")


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of Slurm."""
    if shutil.which("sbatch") is None:
        for name, value in install_slurm(tmp_path / "slurm").items():
            monkeypatch.setenv(name, value)


@pytest.fixture(params=["local", "slurm"])
def cluster(request: pytest.FixtureRequest, jobs: ModuleType, queue: None) -> str:
    return request.param


def list_folder(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*"))


def find_job_processes(folder: Path) -> list[psutil.Process]:
    """The processes of Python that run a job with files in a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if "submitit.core._submit" in words and words[-1].startswith(f"{folder}/"):
            found.append(process)
    return found


def test_jobs_in_this_process_and_all_the_news(jobs: ModuleType, tmp_path: Path) -> None:
    heard, said, states = [], [], []
    where = SlurmExecutor(cluster="debug", folder=tmp_path / "files", max_jobs=2)
    found = where.map_jobs(jobs.square, [3, 4, 5], lambda *news: heard.append(news), said.append,
                           lambda *state: states.append(state))  # fmt: skip
    assert found == [9, 16, 25]
    assert heard == [(job, done, 2, 0.5 / done) for job in range(3) for done in (1, 2)]
    assert said == ["squaring 3", "squaring 4", "squaring 5"]
    assert states == [(job, state) for job in range(3) for state in ("running", "done")]
    assert not (tmp_path / "files").exists()
    assert where.map_jobs(jobs.square, []) == []


def test_a_jobs_error_arrives_with_its_type_and_its_log_is_named(jobs: ModuleType, tmp_path: Path) -> None:
    said: list[str] = []
    where = SlurmExecutor(cluster="debug", folder=tmp_path)
    with pytest.raises(LookupError, match="no 1 here"):
        where.map_jobs(jobs.fail, [1, 2], log=said.append)
    (line,) = said
    log = Path(line.removeprefix("1: failed; its log is "))
    assert log.exists()
    with pytest.raises(ExecutorError, match="a job failed: PeculiarError: peculiar 7"):
        where.map_jobs(jobs.fail_peculiarly, [7])
    assert not log.exists(), "the next call removes the files of the former one"
    assert where.map_jobs(jobs.square, [4]) == [16]
    assert list_folder(tmp_path) == []


def test_jobs_that_have_finished_before_are_not_submitted(jobs: ModuleType, tmp_path: Path) -> None:
    states: list[Any] = []
    where = SlurmExecutor(cluster="debug").in_run(tmp_path, lambda job: "stored" if job == 4 else None)
    assert where.folder == tmp_path / ".slurm"
    found = where.map_jobs(jobs.square, [3, 4], change_state=lambda *state: states.append(state))
    assert found == [9, "stored"]
    assert (1, "running") not in states


@pytest.mark.slow
def test_a_run_equals_a_serial_one_and_its_finished_jobs_are_loaded(tmp_path: Path) -> None:
    from faults.small_study import STUDY, list_differences, load_small_study, read_outputs

    file, folder = tmp_path / "fragile.py", tmp_path / "debug"
    file.write_text(STUDY, encoding="utf-8")
    run_small_study(file, tmp_path / "serial", "serial")
    run_small_study(file, folder, "slurm,cluster=debug")
    outputs = read_outputs(tmp_path / "serial")
    assert len(outputs) > 10
    assert list_differences(folder, outputs) == []
    assert read_states(folder, "running") == [0, 1, 2]  # two conditions and a toy model
    assert not (folder / ".slurm").exists()

    shutil.rmtree(folder / "results")
    next(folder.glob("parts/toy-seed=*.part")).unlink()
    run_small_study(file, folder, "slurm,cluster=debug")
    assert list_differences(folder, outputs) == []
    assert read_states(folder, "running")[3:] == [2], "only the job without a result is submitted"
    assert read_states(folder, "done") == [0, 1, 2, 0, 1, 2]
    with pytest.raises(ValueError, match="a study that is a value must run on 'serial', but got 'slurm'; write it to"):
        api.run(load_small_study(), scale="smoke", on="slurm")


def run_small_study(file: Path, folder: Path, executor: str) -> None:
    with closing(ray_grid.Log(folder.with_suffix(".log"))) as log:
        run_study(
            str(file),
            scale="smoke",
            seeds=1,
            path=folder,
            device="cpu",
            executor=create_executor(executor),
            progress=log,
        )


def test_jobs_that_slurm_refuses_later_are_submitted_again(
    jobs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import submitit

    monkeypatch.setattr(slurm_submission, "SUBMISSION_INTERVAL", 0.05)
    accept, calls, said = submitit.DebugExecutor._internal_process_submissions, [], []

    def accept_some(self: Any, submissions: list) -> list:
        calls.append(len(submissions))
        if len(calls) in refused:
            raise RuntimeError("sbatch: error: too many\njobs")
        return accept(self, submissions)

    monkeypatch.setattr(submitit.DebugExecutor, "_internal_process_submissions", accept_some)
    where, refused = SlurmExecutor(cluster="debug", folder=tmp_path / "files", max_jobs=2), {2, 3}
    assert where.map_jobs(jobs.square, [1, 2, 3], log=said.append) == [1, 4, 9]
    assert calls == [2, 1, 1, 1]
    line = "Slurm must accept 1 jobs, but refuses them: sbatch: error: too many jobs; tried again every 0.05 s"
    assert said.count(line) == 1

    refused = {5}  # the first of the next call
    with pytest.raises(ExecutorError, match=r"Slurm must accept 2 jobs, but refuses them: sbatch: error: too many"):
        where.map_jobs(jobs.square, [1, 2, 3])


def test_options() -> None:
    text = "slurm,partition=gpu,time=1:30:00,num_cpus=4,num_gpus=1,memory=1000,account=a,qos=q,constraint=a100|h100"
    assert create_executor(f"{text},max_jobs=20,max_retries=2,cluster=local") == SlurmExecutor(
        partition="gpu", time="1:30:00", num_cpus=4, num_gpus=1, memory=1000, account="a", qos="q",
        constraint="a100|h100", max_jobs=20, retries=RetryPolicy(max_retries=2), cluster="local",
    )  # fmt: skip
    assert create_executor("slurm") == SlurmExecutor()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("slurm,gpus=1", r"options of the executor slurm must be NAME=VALUE of partition=str, .*, but got 'gpus=1'"),
        ("slurm,num_gpus=0.5", "NAME=VALUE of .*num_gpus=int.*, but got 'num_gpus=0.5'"),
        ("slurm:login1", "an executor must be serial, .*, slurm or torchrun, but got"),
        ("slurm,time=soon", "time must be minutes, HH:MM:SS or D-HH:MM:SS, and more than 0, but got 'soon'"),
        ("slurm,time=0", "time must be .*, but got '0'"),
        ("slurm,time=1:70:00", "time must be .*, but got '1:70:00'"),
        ("slurm,num_cpus=0", "num_cpus must be 1 or more, but got 0"),
        ("slurm,num_gpus=-1", "num_gpus must be 0 or more, but got -1"),
        ("slurm,memory=0", "memory must be 1 or more, but got 0"),
        ("slurm,max_jobs=0", "max_jobs must be 1 or more, but got 0"),
        ("slurm,max_retries=-1", "max_retries must be 0 or more, but got -1"),
        ("slurm,partition", "partition must be a text without spaces, but got ''"),
        ("slurm,qos=very high", "qos must be a text without spaces, but got 'very high'"),
        ("slurm,cluster=moon", "cluster must be one of slurm, local, debug, but got 'moon'"),
    ],
)
def test_options_that_mean_nothing_are_refused(wrong: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_executor(wrong)


def test_what_is_not_installed_is_one_line(jobs: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ExecutorError, match="needs the command sbatch, but it is not on the PATH; start the run on"):
        SlurmExecutor().map_jobs(jobs.square, [1])
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(
        ExecutorError, match=r"submitit package, but it is not installed; pip install 'mesascope\[slurm"
    ):
        api.run("affine", scale="smoke", out=tmp_path / "run", on="slurm,cluster=local")
    assert not (tmp_path / "run").exists()


def test_a_folder_whose_name_slurm_replaces_is_refused(jobs: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ExecutorError, match="must have no % in its path, which Slurm replaces, but is "):
        SlurmExecutor(cluster="debug", folder=tmp_path / "100%a").map_jobs(jobs.square, [1])


def test_devices_are_those_of_the_machines_that_run_the_jobs() -> None:
    assert api._choose_job_device("auto", SlurmExecutor(num_gpus=1)) == "cuda"
    assert api._choose_job_device("cuda", SlurmExecutor(num_gpus=1)) == "cuda"
    assert api._choose_job_device("auto", SlurmExecutor()) == "cpu"
    with pytest.raises(ValueError, match="the device cuda must request a GPU of Slurm, but num_gpus is 0"):
        api._choose_job_device("cuda", SlurmExecutor())
    with pytest.raises(ValueError, match="a device must be auto, cpu, cuda or mps, but got 'tpu'"):
        api._choose_job_device("tpu", SlurmExecutor())


def test_messages_that_a_killed_process_has_begun_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / slurm_job.MESSAGES_FOLDER).mkdir()
    file, reader = tmp_path / slurm_job.MESSAGES_FOLDER / "3", slurm_job.MessageReader(tmp_path)
    assert list(reader.read_new(3)) == []
    file.write_text('["started"]\n["progr')
    assert list(reader.read_new(3)) == [["started"]]
    with file.open("a") as more:
        more.write('["started"]\n["log", "a"]\n')
    assert list(reader.read_new(3)) == [["log", "a"]]
    assert list(reader.read_new(3)) == []


def test_a_job_that_no_driver_wants_ends_its_process_before_it_writes(tmp_path: Path) -> None:
    (tmp_path / slurm_job.MESSAGES_FOLDER).mkdir()
    (tmp_path / slurm_job.ACTIVE_FILE).touch()
    code = (
        "from pathlib import Path; from mesascope.executors._slurm_job import ACTIVE_FILE, run_submitted_job\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "def job(number, *_): print('runs', number, flush=True)\n"
        "run_submitted_job(job, 0, 0, folder, True)\n"
        "(folder / ACTIVE_FILE).unlink()\n"
        "run_submitted_job(job, 1, 1, folder, True)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (slurm_job.UNWANTED_EXIT_CODE, "runs 0\n", "")
    assert list_folder(tmp_path) == [slurm_job.MESSAGES_FOLDER, f"{slurm_job.MESSAGES_FOLDER}/0"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_lost_jobs_start_again_and_those_that_end_two_processes_are_set_aside(
    cluster: str, jobs: ModuleType, tmp_path: Path
) -> None:
    said, states = [], []
    folder = tmp_path / "files"
    where = SlurmExecutor(cluster=cluster, retries=QUICK, folder=folder, max_jobs=3)  # pyright: ignore[reportArgumentType]
    found = where.map_jobs(jobs.die_once, [(tmp_path, 0), (tmp_path, 1)], log=said.append,
                           change_state=lambda *state: states.append(state))  # fmt: skip
    assert found == [0, 1]
    assert sum("its worker process ended (" in line and "the job starts again in 0.05 s" in line for line in said) == 2
    assert [state for index, state in states if index == 1] == ["running", "waiting", "running", "done"]
    assert not folder.exists()

    with pytest.raises(ExecutorError, match="2 of 5 were set aside because they ended 2 worker processes: 0") as caught:
        where.map_jobs(jobs.die_if_divisible_by_three, range(5), change_state=lambda *state: states.append(state))
    assert {index for index, state in states if state == "set aside"} == {0, 3}
    log = Path(str(caught.value).partition("log ")[2].removeprefix("is ").split()[0].rstrip("),;"))
    assert log.is_relative_to(folder)
    assert log.exists()

    with pytest.raises(LookupError, match="no 1 here"):
        where.map_jobs(jobs.fail, [2, 1], log=said.append)  # the first job would sleep for a minute
    assert not find_job_processes(folder)
    with pytest.raises(ExecutorError, match=r"a job must start, but ends with .*No module named 'elsewhere'"):
        where.map_jobs(make_function_of("elsewhere"), [1])


def make_function_of(module: str) -> Callable:
    """A function of a module that other processes cannot import."""

    def run(job: object, *_: object) -> object:
        return job

    run.__module__, run.__qualname__ = module, "run"
    sys.modules[module] = ModuleType(module)
    sys.modules[module].run = run  # pyright: ignore[reportAttributeAccessIssue]
    return run


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_time_limit_ends_a_job(jobs: ModuleType, tmp_path: Path) -> None:
    where = SlurmExecutor(cluster="local", time="0:00:04", retries=RetryPolicy(max_retries=0), folder=tmp_path)
    with pytest.raises(ExecutorError, match="1 of 1 were set aside because they ended 1 worker processes: 0 "):
        where.map_jobs(jobs.sleep, [0])
    assert not find_job_processes(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_jobs_that_slurm_refuses_are_one_line(jobs: ModuleType, queue: None, tmp_path: Path) -> None:
    with pytest.raises(ExecutorError, match=r"Slurm must accept 2 jobs, but refuses them: .*partition") as caught:
        SlurmExecutor(partition="nowhere", folder=tmp_path / "files").map_jobs(jobs.square, [1, 2])
    assert "\n" not in str(caught.value)


SLEEPERS = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born without
from pathlib import Path
import cluster_jobs
from mesascope.executors import SlurmExecutor
def tell(job, pid, *_):
    sys.stdout.write(f"{{pid}}\\n")
    sys.stdout.flush()
SlurmExecutor(cluster={cluster!r}, folder=Path({folder!r}), max_jobs=4).map_jobs(cluster_jobs.sleep, range(6), tell)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT], ids=lambda one: one.name)
def test_jobs_of_a_driver_that_has_ended_end_before_others_start(
    cluster: str, jobs: ModuleType, tmp_path: Path, sent: signal.Signals
) -> None:
    """Those that run, and those that wait in the queue. A killed driver leaves them to the next one."""
    folder = tmp_path / "files"
    code = SLEEPERS.format(cluster=cluster, folder=str(folder))
    with (tmp_path / "errors").open("w") as errors, subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
    ) as driver:  # fmt: skip
        assert driver.stdout is not None
        running = [psutil.Process(int(driver.stdout.readline())) for _ in range(2)]
        if sent == signal.SIGINT:
            os.killpg(driver.pid, sent)  # a terminal's Ctrl-C goes to all
        else:
            driver.kill()
        driver.wait()
    said, states = [], []

    def change_state(index: int, state: str) -> None:
        states.append(state)
        assert not [one for one in running if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]

    if sent == signal.SIGKILL:
        assert all(one.is_running() for one in running), "jobs must go on without the driver"
    else:
        change_state(0, "interrupted")
        assert not folder.exists()
    where = SlurmExecutor(cluster=cluster, folder=folder)  # pyright: ignore[reportArgumentType]
    assert where.map_jobs(jobs.square, [2, 3], log=said.append, change_state=change_state) == [4, 9]
    assert states.count("done") == 2
    line = "jobs of an earlier command were cancelled; each resumes from its last checkpoint"
    assert said.count(line) == (sent == signal.SIGKILL)
    time.sleep(3.0)  # in which a job of the former driver would start, if it were still in the queue
    assert not find_job_processes(folder)
    assert not folder.exists()


SEEDS, STEPS, CHECKPOINTS = 4, 1500, 6


def start_driver(folder: Path, executor: str) -> subprocess.Popen:
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pathlib import Path; import ray_grid\n"
        f"ray_grid.main(Path({str(folder)!r}), {executor!r}, {SEEDS})"
    )
    with folder.with_suffix(".err").open("w") as errors:  # not a pipe, which jobs would keep open
        return subprocess.Popen([sys.executable, "-c", code], stderr=errors)


def read_errors(folder: Path) -> str:
    return folder.with_suffix(".err").read_text(encoding="utf-8")


def read_states(folder: Path, state: str) -> list[int]:
    """Indices of the jobs that have changed to a state, of all drivers of a run."""
    log = folder.with_suffix(".log")
    rows = map(json.loads, log.read_text(encoding="utf-8").splitlines()) if log.exists() else []
    return [row[2] for row in rows if row[1] == "state" and row[3] == state]


def wait_until(condition: Callable[[], object], driver: subprocess.Popen) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert driver.poll() is None, "the driver has ended"
        assert time.monotonic() < end
        time.sleep(0.1)


def first_and_last_checkpoints(folder: Path) -> dict[Path, int]:
    """When the checkpoints were written that only a training from its start, or a finished one, writes."""
    files = [*folder.glob("models/seed=*/step=0/*"), *folder.glob(f"models/seed=*/step={STEPS}/*")]
    return {file: file.stat().st_mtime_ns for file in files}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_disturbed_grid_ends_where_an_undisturbed_one_ends(cluster: str, tmp_path: Path) -> None:
    """The driver is killed while jobs run and wait; a job is killed; the driver is interrupted."""
    ray_grid.write_study(tmp_path / "grid.py", STEPS, CHECKPOINTS)
    undisturbed = start_driver(tmp_path / "undisturbed", "serial")
    folder, files = tmp_path / "disturbed", tmp_path / "disturbed" / ".slurm"
    executor = f"slurm,cluster={cluster},max_jobs=3"
    from faults.small_study import list_differences, read_outputs

    driver = start_driver(folder, executor)
    wait_until(lambda: len(read_states(folder, "running")) >= 1 and find_job_processes(files), driver)
    driver.kill()
    driver.wait()
    assert find_job_processes(files), "jobs must go on without the driver"
    (former,) = files.iterdir()
    time.sleep(2.0)  # jobs write meanwhile
    seen = first_and_last_checkpoints(folder)

    driver = start_driver(folder, executor)
    wait_until(lambda: files.exists() and {*files.iterdir()} - {former}, driver)
    assert not find_job_processes(former), "those of the former driver must have ended before others start"
    assert not former.exists()
    wait_until(lambda: find_job_processes(files), driver)
    time.sleep(1.0)
    for process in find_job_processes(files)[:1]:
        process.kill()
    wait_until(lambda: "the job starts again in 1 s" in folder.with_suffix(".log").read_text(encoding="utf-8"), driver)
    wait_until(lambda: read_states(folder, "done"), driver)
    seen |= first_and_last_checkpoints(folder)
    driver.send_signal(signal.SIGINT)
    driver.wait(PATIENCE)
    assert "KeyboardInterrupt" in read_errors(folder)
    assert not find_job_processes(files)
    assert not files.exists()

    before, num_done = len(read_states(folder, "running")), len({*read_states(folder, "done")})
    driver = start_driver(folder, executor)
    assert driver.wait(PATIENCE) == 0, read_errors(folder)
    assert not files.exists()
    assert len(read_states(folder, "running")) - before == SEEDS - num_done, (
        "jobs that are done are not submitted again"
    )
    assert undisturbed.wait(PATIENCE) == 0, read_errors(tmp_path / "undisturbed")
    outputs = read_outputs(tmp_path / "undisturbed")
    assert len([name for name in outputs if name.endswith("model.safetensors")]) == SEEDS * CHECKPOINTS
    assert list_differences(folder, outputs) == []
    now = first_and_last_checkpoints(folder)
    assert {file: time for file, time in seen.items() if now[file] != time} == {}
    assert "jobs of an earlier command were cancelled" in folder.with_suffix(".log").read_text(encoding="utf-8")
