"""Processor time of small jobs on a local Ray, relative to processes of this machine.

Both executors run the same jobs in alternation, after a first call that starts their processes and is reported apart.
Counted are the jobs, this process, and what it has started: the server of processes; the daemons of Ray.
"""

import sys
import time

import psutil
from executor_jobs import train

from mesascope.executors import ProcessExecutor, RayExecutor

WORKERS, ROUNDS = 2, 3
JOBS = int(sys.argv[1]) if len(sys.argv) > 1 else 24


def is_job_process(process: psutil.Process) -> bool:
    return process.name().startswith("ray::") and "Agent" not in process.name()


def measure_others() -> float:
    """Processor time of this process and of its descendants that run no jobs."""
    me = psutil.Process()
    times = [me.cpu_times()]
    for process in me.children(recursive=True):
        try:
            times += [] if is_job_process(process) else [process.cpu_times()]
        except psutil.Error:
            continue
    return sum(one.user + one.system for one in times)


def measure(executor: ProcessExecutor | RayExecutor) -> tuple[float, float]:
    """Return processor and wall time of all jobs, in seconds."""
    before, start = measure_others(), time.perf_counter()
    jobs = sum(executor.map_jobs(train, range(JOBS)))
    return jobs + measure_others() - before, time.perf_counter() - start


def main() -> None:
    executors = {"processes": ProcessExecutor(max_workers=WORKERS), "ray": RayExecutor(num_cpus=1)}
    for name, executor in executors.items():
        start = time.perf_counter()
        executor.map_jobs(train, range(WORKERS))
        print(f"{name}: first call with {WORKERS} jobs {time.perf_counter() - start:.1f} s", flush=True)
    ratios = []
    for _ in range(ROUNDS):
        results = {name: measure(executor) for name, executor in executors.items()}
        ratios.append([results["ray"][k] / results["processes"][k] for k in range(2)])
        print({name: [round(one, 2) for one in values] for name, values in results.items()}, flush=True)
    cpu, wall = (sorted(one[k] for one in ratios)[len(ratios) // 2] for k in range(2))
    print(
        f"ray / processes: processor time {cpu:.3f}, wall time {wall:.3f} (medians of {ROUNDS} rounds of {JOBS} jobs)"
    )


if __name__ == "__main__":
    main()
