"""Try faults and write docs/reliability.md: ``python -m tests.faults`` (``make test-faults``)."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the helpers beside the tests
os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: a trial never asks the network

from faults import corruptions, disk, fuzz_calls, fuzz_commands, inspect_folders, kills, publication
from faults.trial_result import TrialResult, write_table

# tries by default, with --full, and in one part, which is a process of its own
COUNTS = {
    "disks": (14, 21, 7),
    "publications": (10, 24, 12),
    "worker_kills": (4, 24, 12),
    "kills": (16, 60, 20),
    "commands": (150, 500, 250),
    "calls": (500, 2000, 500),
    "folders": (100, 200, 100),
    "corruptions": (60, 1000, 100),
}
Part = tuple[str, int, int]  # the name of a trial, its first seed, and the seed after its last one


def show(line: str) -> None:
    """Print progress at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


TRIALS: dict[str, Callable[[Path, range], TrialResult]] = {
    "kills": partial(kills.run_kills, executor="serial", log=show),
    "worker_kills": partial(kills.run_kills, executor="processes", log=show),
    "publications": partial(publication.run_publications, log=show),
    "disks": partial(disk.run_full_disks, log=show),
    "corruptions": partial(corruptions.run_corruptions, log=show),
    "folders": partial(inspect_folders.run_folders, log=show),
    "commands": partial(fuzz_commands.run_commands, log=show),
    "calls": partial(fuzz_calls.run_calls, log=show),
}


def split_into_parts(counts: dict[str, int]) -> list[Part]:
    """Return the parts of all trials whose count is not 0."""
    return [
        (name, first, min(first + COUNTS[name][2], count))
        for name, count in counts.items()
        for first in range(0, count, COUNTS[name][2])
    ]


def name_file(results: Path, part: Part) -> Path:
    """Return the file of the result of a part."""
    return results / "{}-{}-{}.json".format(*part)


def run_part(part: Part, results: Path, *, in_process: bool) -> TrialResult:
    """Run a part, in a process of its own or in this one; its result is read from a file if it is there already."""
    (name, first, stop), file = part, name_file(results, part)
    if not file.exists() and in_process:
        with tempfile.TemporaryDirectory() as folder:
            result = TRIALS[name](Path(folder), range(first, stop))
        file.with_suffix(".part").write_text(json.dumps(asdict(result)))
        file.with_suffix(".part").rename(file)
    elif not file.exists():
        words = ["--part", name, str(first), str(stop), "--results", str(results)]
        subprocess.run([sys.executable, "-m", "tests.faults", *words], check=True)
    return TrialResult(**json.loads(file.read_text()))


def merge_parts(parts: Sequence[Part], results: Sequence[TrialResult]) -> Iterator[TrialResult]:
    """Yield one result per trial."""
    for trial in dict.fromkeys(name for name, _, _ in parts):
        own = [(part, result) for part, result in zip(parts, results, strict=True) if part[0] == trial]
        yield replace(
            own[0][1],
            seeds=format_seeds([(first, stop) for (_, first, stop), _ in own]),
            outcomes=[outcome for _, one in own for outcome in one.outcomes],
            faults=[fault for _, one in own for fault in one.faults],
        )


def format_seeds(ranges: Sequence[tuple[int, int]]) -> str:
    """Return ranges of seeds as a text; those that touch are joined.

    >>> format_seeds([(0, 10), (10, 20), (30, 40)])
    '0-19, 30-39'
    """
    joined: list[list[int]] = []
    for first, stop in ranges:
        if joined and joined[-1][1] == first:
            joined[-1][1] = stop
        else:
            joined.append([first, stop])
    return ", ".join(f"{first}-{stop - 1}" for first, stop in joined)


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="run as many tries as docs/reliability.md says")
    parser.add_argument("--no-page", action="store_true", help="do not write docs/reliability.md")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time; 1 runs all in this one")
    parser.add_argument("--results", type=Path, help="keep the results of parts here, and use those that it has")
    parser.add_argument("--finished", action="store_true", help="run nothing: write the page of the parts in --results")
    parser.add_argument("--part", nargs=3, metavar=("TRIAL", "FIRST", "STOP"), help="run a part of one trial")
    for name, (count, full, _) in COUNTS.items():
        help_text = f"tries: {count} by default, {full} with --full"
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=help_text)
    return parser.parse_args()


def main() -> int:
    """Run the trials; return 1 if there was a fault."""
    options = parse_options()
    if options.part:
        name, first, stop = options.part
        run_part((name, int(first), int(stop)), options.results, in_process=True)
        return 0
    default = {name: full if options.full else count for name, (count, full, _) in COUNTS.items()}
    given = {name: getattr(options, name) for name in COUNTS}
    parts = split_into_parts({name: default[name] if given[name] is None else given[name] for name in COUNTS})
    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor(options.jobs) as pool:
        folder = options.results or Path(place)
        folder.mkdir(exist_ok=True, parents=True)
        if options.finished:
            parts = [part for part in parts if name_file(folder, part).exists()]
        run = partial(run_part, results=folder, in_process=options.jobs == 1)
        results = list(merge_parts(parts, list((map if options.jobs == 1 else pool.map)(run, parts))))
    if not options.no_page:
        write_table(results)
    faults = [f"{one.name}: {fault}" for one in results for fault in one.faults]
    show("\n".join([*faults, f"{sum(len(one.outcomes) for one in results)} tries, {len(faults)} faults"]))
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
