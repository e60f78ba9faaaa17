"""A stand-in for the commands of Slurm, for machines without it: sbatch, squeue and scancel of jobs on this machine.

`install_slurm(folder)` writes the commands. The jobs run in processes that go on when their driver is killed, as many
at once as `NUM_CPUS`; others wait.
"""

import fcntl
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

FOLDER = "STAND_IN_SLURM"  # the environment variable with the folder of the queue
NUM_CPUS = 2
ACTIVE = ("PENDING", "RUNNING")


def install_slurm(folder: Path) -> dict[str, str]:
    """Write the commands to a folder; return the environment variables with which they are found."""
    (folder / "queue").mkdir(parents=True)
    for name in ("sbatch", "srun", "squeue", "scancel"):
        command = folder / "bin" / name
        command.parent.mkdir(exist_ok=True)
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -S {Path(__file__).resolve()} {name} "$@"\n')
        command.chmod(0o755)
    return {FOLDER: str(folder / "queue"), "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}


def read_options(words: list[str]) -> dict[str, str]:
    return {name: value for name, _, value in (word.removeprefix("--").partition("=") for word in words)}


def run_sbatch(queue: Path, script: Path) -> None:
    """Submit a script: one job, or an array."""
    lines = [line for line in script.read_text().splitlines() if line.startswith("#SBATCH")]
    options = read_options([word for line in lines for word in shlex.split(line)[1:]])
    if options.get("partition") == "nowhere":
        sys.exit("sbatch: error: invalid partition specified: nowhere")
    number = next(number for number in range(1, 10**6) if make_folder(queue / f"number-{number}"))
    array = re.match(r"0-(\d+)", options.get("array", ""))
    for task in range(int(array[1]) + 1) if array else [None]:
        job_id = str(number) if task is None else f"{number}_{task}"
        job = queue / job_id
        job.mkdir()
        names = {"%j": str(number), "%A": str(number), "%a": str(task)}
        logs = [
            re.sub("%[jAa]", lambda match, names=names: names[match[0]], options[one]) for one in ("output", "error")
        ]
        (job / "script").write_text(script.read_text())
        write_state(job, "PENDING")
        (job / "name").write_text(options["job-name"])  # with which squeue finds the job
        variables = {"SLURM_JOB_ID": str(number)}
        if task is not None:
            variables |= {"SLURM_ARRAY_JOB_ID": str(number), "SLURM_ARRAY_TASK_ID": str(task)}
        command = [sys.executable, "-S", __file__, "supervise", str(job), *logs]
        null = subprocess.DEVNULL
        subprocess.Popen(
            command, stdin=null, stdout=null, stderr=null, start_new_session=True, env={**os.environ, **variables}
        )
    sys.stdout.write(f"Submitted batch job {number}\n")


def make_folder(folder: Path) -> bool:
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def write_state(job: Path, state: str) -> None:
    (job / "draft").write_text(state)
    (job / "draft").replace(job / "state")


def supervise(queue: Path, job: Path, output: str, error: str) -> None:
    """Run a job as soon as a CPU is free, and record how it ends."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # Slurm starts jobs without the mask of sbatch
    slots = [(queue / f"slot-{number}").open("w") for number in range(NUM_CPUS)]
    while not any(map(lock_slot, slots)):
        if (job / "cancelled").exists():
            write_state(job, "CANCELLED")
            return
        time.sleep(0.05)
    with open(output, "ab") as out, open(error, "ab") as err:
        ran = subprocess.Popen(["bash", str(job / "script")], stdout=out, stderr=err, start_new_session=True)
    (job / "pid").write_text(str(ran.pid))
    write_state(job, "RUNNING")
    while ran.poll() is None:
        if (job / "cancelled").exists():
            with suppress(ProcessLookupError):
                os.killpg(ran.pid, signal.SIGTERM)
        time.sleep(0.05)
    cancelled = (job / "cancelled").exists()
    write_state(job, "CANCELLED" if cancelled else "FAILED" if ran.returncode else "COMPLETED")


def lock_slot(slot) -> bool:
    try:
        fcntl.flock(slot, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def list_jobs(queue: Path, name: str) -> list[Path]:
    return [file.parent for file in sorted(queue.glob("*/name")) if file.read_text() == name]


def run_squeue(queue: Path, options: dict[str, str]) -> None:
    for job in list_jobs(queue, options["name"]):
        state = (job / "state").read_text()
        if state in ACTIVE or options.get("states") == "all":
            sys.stdout.write(options["format"].replace("%i", job.name).replace("%T", state) + "\n")


def run_scancel(queue: Path, options: dict[str, str]) -> None:
    for job in list_jobs(queue, options["name"]):
        (job / "cancelled").touch()


def main(command: str, *words: str) -> None:
    queue = Path(os.environ[FOLDER])
    with (queue / "calls").open("a") as calls:
        calls.write(json.dumps([command, *words]) + "\n")
    if command == "sbatch":
        run_sbatch(queue, Path(words[0]))
    elif command == "squeue":
        run_squeue(queue, read_options(list(words)))
    elif command == "scancel":
        run_scancel(queue, read_options(list(words)))
    elif command == "supervise":
        supervise(queue, Path(words[0]), words[1], words[2])


if __name__ == "__main__":
    main(*sys.argv[1:])
