"""Seeded trials: one random damage to one random file of a finished run, then the next command on it.

Run any number with ``python tests/faults/corruptions.py 1000`` (from the root, with ``src`` and ``tests`` on the path).
"""

import contextlib
import io
import json
import random
import re
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from faults.forked import limit_memory, run_forked
from faults.random_damage import draw_damage
from faults.small_study import STUDY, list_differences, read_outputs, same_json
from faults.trial_result import TrialResult, format_range
from mesascope import cli

UNREAD = {".lock", ".lock-holder"}
COMMANDS = ("run", "run", "report")
MAX_SECONDS = 120  # of a trial, which may run the study four times

NAMED, REPAIRED, HARMLESS, TRACEBACK, WRONG = "named", "redone", "harmless", "traceback", "silently wrong"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What one damage led to.

    Attributes:
        seed: The seed of the trial.
        file: The damaged file.
        damage: The kind of damage.
        command: The command that ran next.
        outcome: ``named`` in one line with exit code 2; ``redone`` with bit-identical outputs; ``harmless``: the file
            was not read, the outputs are the same, and ``verify`` names it; ``traceback``; ``silently wrong``.
        details: What was printed.
    """

    seed: int
    file: str
    damage: str
    command: str
    outcome: str
    details: str


class Fragile:
    """A finished small run, and trials on copies of it.

    Args:
        folder: An empty folder.
        follow: Whether to do what the lines advise, such as to delete a folder and to train again, which takes seconds.
    """

    def __init__(self, folder: Path, *, follow: bool = True) -> None:
        self.folder, self.study, self.follow = folder, folder / "fragile.py", follow
        self.study.write_text(STUDY)
        self.finished = folder / "finished"
        code, printed = self.call("run", self.finished)
        assert code == 0, printed
        self.files = sorted(file for file in self.finished.rglob("*") if file.is_file() and file.name not in UNREAD)
        self.outputs = read_outputs(self.finished)

    def call(self, command: str, path: Path) -> tuple[int, str]:
        """Run a command on a run; return its exit code, 1 for an exception that escapes, and the error output."""
        options = ["--scale", "smoke", "--on", "serial", "--out", str(path)]
        words = ["run", str(self.study), *options] if command == "run" else [command, str(path)]
        out, err, before = io.StringIO(), io.StringIO(), sys.argv
        sys.argv, code = ["mesascope", *words], 0
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        except Exception:
            return -1, traceback.format_exc()
        finally:
            sys.argv = before
        return code, (out.getvalue() if command == "verify" else "") + err.getvalue()

    def try_once(self, seed: int) -> Trial:
        """Damage a copy of the run, run a command on it, and judge what happened."""
        draw, path = random.Random(seed), self.folder / "damaged"
        shutil.copytree(self.finished, path)
        try:
            file = path / draw.choice(self.files).relative_to(self.finished)
            damage, content = draw_damage(draw, file, [path / one.relative_to(self.finished) for one in self.files])
            file.write_bytes(content)
            command = draw.choice(COMMANDS)
            outcome, details = self._judge(command, path, file, content)
            return Trial(
                seed=seed,
                file=str(file.relative_to(path)),
                damage=damage,
                command=command,
                outcome=outcome,
                details=details,
            )
        finally:
            shutil.rmtree(path)

    def _judge(self, command: str, path: Path, file: Path, content: bytes) -> tuple[str, str]:
        code, printed = self.call(command, path)
        if code == -1 or "Traceback" in printed:
            return TRACEBACK, printed
        if code == 2:
            lines = [line for line in printed.splitlines() if line.startswith("mesascope: ")]
            named = any(is_named(file, path, line) for line in lines)
            return self._follow_advice(command, path, lines) if named else (WRONG, f"not named: {printed}")
        damaged = str(file.relative_to(path))  # of weights that were not read, which `verify` must name
        if different := [name for name in list_differences(path, self.outputs) if name != damaged]:
            return WRONG, f"code {code}, other values in {different}: {printed}"
        if file.exists() and file.read_bytes() == content:
            return self._find(path, file)
        return REPAIRED, printed

    def _follow_advice(self, command: str, path: Path, lines: list[str]) -> tuple[str, str]:
        """Do what the lines say, until the run is whole again; its outputs must then be the same."""
        advised = "\n".join(lines)
        if not self.follow:
            return NAMED, advised
        for _ in range(3):
            for line in lines:
                if advice := re.search(r"; delete (\S+) and run again", line):
                    assert path in Path(advice[1]).parents, line
                    shutil.rmtree(advice[1], ignore_errors=True)
            if any("restore it, or delete the folder" in line for line in lines):
                return NAMED, advised
            code, printed = self.call("run", path)
            lines = printed.splitlines()
            if code == -1:
                return TRACEBACK, printed
            if code == 0:
                different = list_differences(path, self.outputs)
                return (WRONG, f"after the advice, other values in {different}") if different else (NAMED, advised)
        return WRONG, f"the advice does not help: {lines}"

    def _find(self, path: Path, file: Path) -> tuple[str, str]:
        """Judge a damaged file that the command did not read."""
        code, printed = self.call("verify", path)
        if code == -1:
            return TRACEBACK, printed
        if code == 1 and any(is_named(file, path, line) for line in printed.splitlines()):
            return HARMLESS, printed
        if file.suffix == ".json" and code == 0 and same_json(file, self.finished / file.relative_to(path)):
            return HARMLESS, "the values of the file are the same"
        return WRONG, f"not found by verify: {printed}"


def is_named(file: Path, run: Path, line: str) -> bool:
    """Whether a line names a file, a file that has its checksum, or the folder of one seed or checkpoint."""
    names = {file.name, f"{file.stem}.bin"} if file.suffix == ".sha256" else {file.name}
    names |= {"log.csv"} if file.name == "log.json" else set()
    names |= {"checkpoint.json", file.parent.name} if "step=" in file.parent.name else set()
    names |= {file.parent.name} if file.parent.parent == run / "data" else set()
    names |= {"history", "seed="} if file.name in ("history.json", "training.json") else set()
    return any(name in line for name in names)


def run_trials(folder: Path, seeds: range) -> Iterator[Trial]:
    """Run one trial per seed on copies of one finished run, each in a process with limits of memory and time.

    Args:
        folder: An empty folder.
        seeds: The seeds.
    """
    fragile, answer, output = Fragile(folder), folder / "answer", folder / "output"

    def try_once(seed: int) -> None:
        limit_memory()
        answer.write_text(json.dumps(asdict(fragile.try_once(seed))))

    for seed in seeds:
        answer.unlink(missing_ok=True)
        code = run_forked(partial(try_once, seed), output, MAX_SECONDS)
        if answer.exists():
            yield Trial(**json.loads(answer.read_text()))
        else:
            shutil.rmtree(folder / "damaged", ignore_errors=True)
            details = f"ended with {code}: {output.read_text(errors='replace')[-2000:]}"
            yield Trial(seed=seed, file="", damage="", command="", outcome=TRACEBACK, details=details)


def run_corruptions(folder: Path, seeds: range, log: Callable[[str], None] = lambda line: None) -> TrialResult:
    """Damage a file of a finished run, once per seed."""
    result = TrialResult(name="random damage to a file of a finished run", seeds=format_range(seeds))
    for one in run_trials(folder, seeds):
        fault = one.outcome in (TRACEBACK, WRONG)
        result.add(one.outcome, f"seed {one.seed}, {one.damage} of {one.file}: {one.details}" if fault else "")
        if len(result.outcomes) % 20 == 0:
            log(f"{result.name}: {len(result.outcomes)}/{len(seeds)}")
    return result


def summarise(trials: list[Trial]) -> str:
    """Return the counts of outcomes by kind of damage, after all trials that went wrong."""
    lines = [
        f"{trial.seed} {trial.damage} of {trial.file}, {trial.command}: {trial.outcome}\n{trial.details}\n"
        for trial in trials
        if trial.outcome in (TRACEBACK, WRONG)
    ]
    counts = Counter((one.outcome, one.damage) for one in trials)
    lines += [f"{outcome:15} {damage:15} {count}" for (outcome, damage), count in sorted(counts.items())]
    return "\n".join([*lines, str(dict(Counter(one.outcome for one in trials)))])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        sys.stdout.write(summarise(list(run_trials(Path(place), range(int(sys.argv[1]))))) + "\n")
