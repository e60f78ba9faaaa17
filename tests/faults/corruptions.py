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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import xarray as xr

from mesascope import cli

STUDY = """
from dataclasses import replace
from mesascope import analyses
from mesascope.analyses.training.history_attention import history_attention
from mesascope.models.config import DecoderConfig
from mesascope.studies.base import SCALES, Citation, Claim, Condition, Quantity, ScaleConfig, Simulation, Study
from mesascope.studies.next_token_convergence.toy_model import NextTokenModel
from mesascope.tasks.seeded import SeededSequences
from mesascope.tasks.text import TextTask
from mesascope.train import SGD, TrainingConfig

TASK = SeededSequences(num_symbols=5, num_generators=3, prefix_length=1, length=6)
TEXT = TextTask(length=6, vocab_size=260, source="prose", max_characters=5_000)
SHAPE = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "max_position_embeddings": 6}
TRAINING = TrainingConfig(steps=3, batch_size=4, optimizer=SGD(lr=0.1, momentum=0.5), checkpoints=3, history=True)
TOY = NextTokenModel(vocabulary=5, length=3, sentences=8, unseen=30, steps=150, checkpoints=9)


def error(step):
    def read(results):
        return results["loss_vs_baselines"]["error"].isel(step=step, predictor=0, drop=True).mean("pos")
    return Quantity(description="error", read=read)


CLAIM = Claim(name="it learns", statement="It learns.", source="ours", value=error(-1), control=error(0),
              direction="below", scales=("smoke",))
STUDY = Study(
    name="fragile",
    title="A study for a test",
    description="For a test.",
    citation=Citation(key="k", authors="A", title="T", year=2024, venue="V", url="https://example.org"),
    conditions=(
        Condition(
            task=TASK,
            model=DecoderConfig(vocab_size=5, **SHAPE),
            scales={name: ScaleConfig(training=TRAINING, sequences=8, evaluation_sequences=8) for name in SCALES},
            analyses=(analyses.loss_vs_baselines, history_attention),
        ),
        Condition(
            name="text",
            title="real text",
            task=TEXT,
            model=DecoderConfig(vocab_size=260, **SHAPE),
            scales={name: ScaleConfig(training=replace(TRAINING, history=False), sequences=4) for name in SCALES},
            analyses=(analyses.loss_vs_baselines,),
        ),
    ),
    simulations=(Simulation(name="toy", title="A toy model", description="", scales=dict.fromkeys(SCALES, TOY)),),
    claims=(CLAIM,),
    seeds=dict.fromkeys(SCALES, 2),
    minutes=dict.fromkeys(SCALES, 1.0),
)
"""
UNREAD = {".lock", ".lock-holder"}
JSON_VALUES = ("5", "[1]", "null", '"text"', "{}", "[[]]", "true", "[" * 100_000, '{"a": {"b": []}}')
COMMANDS = ("run", "run", "report")

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


def same_json(first: Path, second: Path) -> bool:
    """Whether two files have the same values."""
    try:
        return json.loads(first.read_bytes()) == json.loads(second.read_bytes())
    except (ValueError, RecursionError):
        return False


def read_outputs(path: Path) -> dict[str, object]:
    """Return all numbers and attributes of the results, bit for bit, the verdicts and the weights of a run."""
    outputs: dict[str, object] = {}
    for file in sorted(path.glob("results/*.nc")):
        data = xr.load_dataset(file.read_bytes(), engine="netcdf4")
        outputs[file.name] = dict(data.attrs)
        outputs |= {f"{file.name} {name}": describe_variable(one) for name, one in data.variables.items()}
    others = [path / "verdicts.json", *path.glob("models/**/step=*/model.safetensors")]
    return outputs | {str(file.relative_to(path)): file.read_bytes() for file in others if file.exists()}


def describe_variable(variable: xr.Variable) -> tuple[object, ...]:
    """Return dimensions, values (texts as they are, numbers bit for bit) and attributes."""
    values = variable.values
    bits = values.tolist() if values.dtype.kind in "OUST" else values.tobytes()
    return variable.dims, values.shape, bits, dict(variable.attrs)


def list_differences(path: Path, outputs: dict[str, object]) -> list[str]:
    """Return the names of the outputs that differ."""
    try:
        found = read_outputs(path)
    except (OSError, RuntimeError, ValueError) as error:
        return [f"unreadable: {error}"]
    return [name for name in {**outputs, **found} if found.get(name) != outputs.get(name)]


def draw_damage(draw: random.Random, file: Path, others: list[Path]) -> tuple[str, bytes]:
    """Draw a kind of damage; return its name and the damaged content, which differs from the file's."""
    content = file.read_bytes()
    kinds: dict[str, Callable[[], bytes]] = {
        "bit flip": lambda: flip_bit(draw, content),
        "zeros": lambda: write_zeros(draw, content),
        "truncation": lambda: content[: draw.randrange(len(content))] if content else b"x",
        "emptied": lambda: b"",
        "swapped": lambda: draw.choice([one for one in others if one.suffix == file.suffix]).read_bytes(),
    }
    if file.suffix == ".json":
        kinds["another type"] = lambda: draw.choice(JSON_VALUES).encode()
    for _ in range(100):
        name = draw.choice(list(kinds))
        damaged = kinds[name]()
        if damaged != content:
            return name, damaged
    return "one more byte", content + b"x"


def flip_bit(draw: random.Random, content: bytes) -> bytes:
    """Flip one bit."""
    if not content:
        return b"\x01"
    changed = bytearray(content)
    changed[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def write_zeros(draw: random.Random, content: bytes) -> bytes:
    """Overwrite a run of up to 512 bytes with zeros."""
    start, length = draw.randrange(len(content) + 1), draw.randrange(1, 513)
    return content[:start] + bytes(len(content[start : start + length])) + content[start + length :]


def run_trials(folder: Path, seeds: range) -> list[Trial]:
    """Run one trial per seed on copies of one finished run.

    Args:
        folder: An empty folder.
        seeds: The seeds.
    """
    fragile = Fragile(folder)
    return [fragile.try_once(seed) for seed in seeds]


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
        sys.stdout.write(summarise(run_trials(Path(place), range(int(sys.argv[1])))) + "\n")
