"""Try faults and write docs/reliability.md: ``python -m tests.faults`` (``make test-faults``)."""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the helpers beside the tests
os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: a trial never asks the network

from faults import corruptions, disk, fuzz_calls, fuzz_commands, inspect_folders, kills
from faults.trial_result import TrialResult, write_table

DEFAULTS = {
    "corruptions": 60,
    "kills": 16,
    "worker_kills": 3,
    "disks": 14,
    "commands": 150,
    "calls": 500,
    "folders": 100,
}
FULL = {
    "corruptions": 1000,
    "kills": 80,
    "worker_kills": 20,
    "disks": 20,
    "commands": 500,
    "calls": 1500,
    "folders": 200,
}


def show(line: str) -> None:
    """Print progress at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def run_trials(place: Path, counts: dict[str, int]) -> Iterator[TrialResult]:
    """Run all trials whose count is not 0."""
    trials: dict[str, Callable[[Path, int], TrialResult]] = {
        "kills": lambda folder, count: kills.run_kills(folder, range(count), "serial", show),
        "worker_kills": lambda folder, count: kills.run_kills(folder, range(count), "processes", show),
        "disks": lambda folder, count: disk.run_full_disks(folder, range(count), show),
        "corruptions": try_corruptions,
        "folders": try_folders,
        "commands": lambda folder, count: fuzz_commands.run_commands(folder, count, log=show),
        "calls": lambda folder, count: fuzz_calls.run_calls(folder, count, log=show),
    }
    for name, trial in trials.items():
        if counts[name]:
            folder = place / name
            folder.mkdir()
            show(f"{name}: {counts[name]} tries")
            yield trial(folder, counts[name])


def try_corruptions(folder: Path, count: int) -> TrialResult:
    """Damage a file of a finished run, once per seed."""
    result = TrialResult(name="random damage to a file of a finished run", seeds=f"0-{count - 1}")
    for one in corruptions.run_trials(folder, range(count)):
        fault = one.outcome in (corruptions.TRACEBACK, corruptions.WRONG)
        result.add(one.outcome, f"seed {one.seed}, {one.damage} of {one.file}: {one.details}" if fault else "")
    return result


def try_folders(folder: Path, count: int) -> TrialResult:
    """Inspect hostile model folders."""
    result = TrialResult(name="broken and hostile model folders", seeds=f"0-{count - 1}")
    for one in inspect_folders.run_many(folder, count):
        fault = f"{one.kind}-{one.seed}: {one.faults}: {one.output}" if one.faults else ""
        result.add("refused in one line" if one.code else "opened", fault)
    return result


def main() -> int:
    """Run the trials; return 1 if there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="run as many tries as docs/reliability.md says")
    parser.add_argument("--no-page", action="store_true", help="do not write docs/reliability.md")
    for name, count in DEFAULTS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=f"tries, by default {count}")
    options = vars(parser.parse_args())
    counts = FULL if options["full"] else DEFAULTS
    counts = {name: count if options[name] is None else options[name] for name, count in counts.items()}
    with tempfile.TemporaryDirectory() as place:
        results = list(run_trials(Path(place), counts))
    if not options["no_page"]:
        write_table(results)
    faults = [f"{one.name}: {fault}" for one in results for fault in one.faults]
    show("\n".join([*faults, f"{sum(len(one.outcomes) for one in results)} tries, {len(faults)} faults"]))
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
