"""Tests and benchmarks on a GPU in under 8 minutes: parts with time budgets, whose results are written as they come.

    python benchmarks/gpu.py [--device cuda|cpu] [--parts tests,seeds] [--peers FOLDER] [--wheels FOLDER] [--seconds N]

Any interpreter will do that has torch and the packages that mesascope needs; the package itself is taken from src. What
is missing is named in one line, and the parts run nevertheless. --wheels installs the wheels in a folder for the
duration of the run, without a network. TransformerLens and nnsight come from their environments in the folder of peers,
or from this interpreter; rows of a library that is in neither say so. With --device cpu all parts run with tiny sizes,
to test them.

Results are in gpu.json and gpu.md, and all output of the parts in gpu.log, in the folder $OUT or benchmarks/results.
They are written anew after every row, so that a part that fails or runs out of time loses nothing. Exits with 1 if a
part failed or a bound does not hold, and with 2 if there is no such device.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn, TextIO

HERE = Path(__file__).parent
ROOT = HERE.parent
TOTAL_SECONDS = 460.0
BUDGETS = {"tests": 170.0, "study": 70.0, "seeds": 80.0, "capture": 70.0, "lens": 60.0, "nnsight": 60.0}  # seconds
PEERS = {"lens": "lens4", "nnsight": "nnsight"}  # folders of their environments
FACTS_SECONDS = 120.0  # for the first import of torch
MIN_SECONDS = 5.0  # with fewer left, a part is not begun
JUDGED_MODEL = "GPT-2 size"  # the model by which captures are compared with other libraries
MARK = "@"  # begins a line of results in the output of a part
TEST_RESULT = re.compile(r"^(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED)\b")
TEST_PACKAGES = ("pytest>=8.3", "pytest-timeout>=2.3", "pytest-xdist>=3.6", "beartype>=0.20")

Row = dict[str, Any]


@dataclass
class Part:
    """What became of a part.

    Attributes:
        name: Its name.
        budget: Seconds that it may take.
        status: "running", "done", "left out", "failed" or "out of time".
        seconds: Seconds that it took.
        note: Why it was left out or failed.
        rows: Its results, in the order in which they came.
        bounds: Statements that must hold, and whether they do.
    """

    name: str
    budget: float
    status: str = "running"
    seconds: float = 0.0
    note: str = ""
    rows: list[Row] = field(default_factory=list)
    bounds: dict[str, bool] = field(default_factory=dict)

    @property
    def is_fine(self) -> bool:
        """Whether it did not fail, and all its bounds hold."""
        return self.status in ("done", "left out") and all(self.bounds.values())


class Report:
    """The files of the results, which are replaced as a whole."""

    def __init__(self, folder: Path, facts: Row) -> None:
        self.folder, self.facts, self.parts = folder, facts, list[Part]()

    def write(self) -> None:
        """Write what is known so far."""
        told = {**self.facts, "parts": [{**vars(part), "seconds": round(part.seconds, 2)} for part in self.parts]}
        self._replace("gpu.json", json.dumps(told, indent=1) + "\n")
        self._replace("gpu.md", "\n".join(markdown(self.facts, self.parts)) + "\n")

    def _replace(self, name: str, text: str) -> None:
        new = self.folder / f".{name}.tmp"
        new.write_text(text, encoding="utf-8")
        new.replace(self.folder / name)


def markdown(facts: Row, parts: Sequence[Part]) -> Iterator[str]:
    """The lines of the page: facts, parts, bounds, and one table for every kind of row of a part."""
    yield "# Measurements on a GPU\n"
    yield from (f"- {name}: {value}" for name, value in facts.items())
    yield "\n| part | status | seconds | budget | note |\n|---|---|---|---|---|"
    for part in parts:
        yield f"| {part.name} | {part.status} | {part.seconds:.0f} | {part.budget:.0f} | {part.note} |"
    for part in parts:
        if part.bounds or part.rows:
            yield f"\n## {part.name}\n"
        yield from (f"- {line}: {'holds' if held else 'DOES NOT HOLD'}" for line, held in part.bounds.items())
        columns: list[str] = []
        for row in part.rows:
            if list(row) != columns:
                columns = list(row)
                yield f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}"
            yield f"| {' | '.join(map(formatted, row.values()))} |"


def formatted(value: object) -> str:
    """A value as in a table; numbers to four digits, and no bar, which would end the cell."""
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/").replace("\n", " ")


def missing_packages(tests: bool) -> list[str]:
    """Declared packages that this interpreter lacks, or has in an older version; and those of the tests.

    Without packaging, which reads versions, only what is not there at all is found.
    """
    try:
        from packaging.requirements import Requirement
    except ImportError:
        Requirement = None
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    found = []
    for line in [*declared, *(TEST_PACKAGES if tests else ())]:
        name = re.split(r"[<>=!~\[ ]", line)[0]
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            found.append(line)
            continue
        if Requirement is not None and not Requirement(line).specifier.contains(version, prereleases=True):
            found.append(f"{line} (has {version})")
    return found


def gpu_test_files() -> list[str]:
    """The files of tests that take the fixture `device`."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    taken = re.compile(r"^def \w+\([^)]*\bdevice\b(?!=)", re.MULTILINE)
    return [str(f.relative_to(ROOT)) for f in files if taken.search(f.read_text(encoding="utf-8"))]


def command_of(name: str, device: str, peers: Path, scratch: Path) -> list[str]:
    """The command line of a part."""
    if name == "tests":
        marks = "gpu" if device == "cuda" else "not slow and not gpu"
        select = ["-m", marks] if device == "cuda" else ["-m", marks, "-k", "cpu and together"]
        quick = ["-p", "no:cacheprovider", "-W", "default", "-o", "timeout=60", "--tb=short", "-v", "--color=no"]
        return [sys.executable, "-m", "pytest", *quick, *select, *gpu_test_files()]
    python = sys.executable
    if name in PEERS and (own := peers / PEERS[name] / "bin" / "python").exists():
        python = str(own)
    return [python, str(HERE / "gpu_parts.py"), name, device, str(scratch)]


def run_part(part: Part, command: Sequence[str], environment: dict[str, str], report: Report, log: TextIO) -> None:
    """Run a part in a process group of its own, and kill the group when its budget is spent."""
    began, in_time, last = time.monotonic(), True, ""
    log.write(f"\n=== {part.name}: {' '.join(command)}\n")
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:

        def stop() -> None:
            nonlocal in_time
            in_time = False
            kill_group(process)

        timer = threading.Timer(part.budget, stop)
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                log.write(line)
                log.flush()
                last = line.strip() or last
                if read_line(part, line):
                    part.seconds = time.monotonic() - began
                    report.write()
            code = process.wait()
        finally:
            timer.cancel()
            kill_group(process)
    part.seconds = time.monotonic() - began
    if not in_time:
        part.status, part.note = "out of time", f"stopped after {part.budget:.0f} s; rows until then are kept"
    elif part.status == "running":
        part.status, part.note = ("done", part.note) if code == 0 else ("failed", f"exit code {code}: {last[:200]}")
    if part.name == "tests":
        judge_tests(part)


def kill_group(process: subprocess.Popen) -> None:
    """Kill a process and all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def read_line(part: Part, line: str) -> bool:
    """Take a result from a line of output, if there is one."""
    if part.name == "tests":
        if found := TEST_RESULT.match(line):
            part.rows.append({"test": found[1], "outcome": found[2].lower()})
        return False  # there are hundreds, in a few minutes
    if not line.startswith(MARK):
        return False
    for kind, value in json.loads(line[len(MARK) :]).items():
        if kind == "row":
            part.rows.append(value)
        elif kind == "bounds":
            part.bounds |= value
        else:
            part.status, part.note = "left out", value
    return True


def judge_tests(part: Part) -> None:
    """Replace the outcomes of tests by their numbers and the names of those that did not pass."""
    outcomes = [row["outcome"] for row in part.rows]
    part.bounds = {
        f"{outcomes.count('passed')} tests passed (at least 1)": "passed" in outcomes,
        f"{len(outcomes) - outcomes.count('passed')} tests did not pass (at most 0)": {*outcomes} <= {"passed"},
    }
    part.rows = [row for row in part.rows if row["outcome"] != "passed"]


def compare_parts(parts: Sequence[Part]) -> None:
    """Add the bounds that concern two parts: a capture is as fast as a cache of everything in TransformerLens.

    They are judged where the model takes most of the time; with a small one, the cost of a call does.
    """
    by_name = {part.name: part for part in parts}
    if not {"capture", "lens"} <= by_name.keys():
        return
    ours, theirs = by_name["capture"], by_name["lens"]
    for row in theirs.rows:
        if row.get("what") != "cache of everything" or row["model"] != JUDGED_MODEL:
            continue
        setting = {key: row[key] for key in ("model", "dtype")}
        for own in ours.rows:
            if own.get("what") == "capture, eager" and setting.items() <= own.items():
                ratio = row["ms"] / own["ms"]
                theirs.bounds[
                    f"{row['model']}, {row['dtype']}: a capture is {ratio:.2f} times as fast as a cache of everything "
                    "(at least 1)"
                ] = ratio >= 1


def install_wheels(folder: Path, target: Path) -> None:
    """Install wheels into a folder, without a network and without what they need."""
    wheels = sorted(map(str, folder.glob("*.whl")))
    if not wheels:
        sys.exit(f"a folder of wheels must hold .whl files, but {folder} has none; see docs/performance.md")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    subprocess.run([*pip, "--disable-pip-version-check", "--target", str(target), *wheels], check=True)


def collect_facts(device: str, environment: dict[str, str]) -> Row:
    """The date, the card, and versions; ends with code 2 if there is no such device."""
    command = [sys.executable, str(HERE / "gpu_parts.py"), "facts", device, ""]
    try:
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=FACTS_SECONDS)
    except subprocess.TimeoutExpired:
        refuse(f"torch must be imported within {FACTS_SECONDS:.0f} s, but is not; run again")
    lines = [line for line in ran.stdout.splitlines() if line.startswith(MARK)]
    if ran.returncode != 0 or not lines:
        refuse((ran.stderr.strip() or "torch must be importable, but is not").splitlines()[-1])
    return json.loads(lines[-1][len(MARK) :])


def refuse(line: str) -> NoReturn:
    """End with one line and code 2."""
    print(line, file=sys.stderr)
    sys.exit(2)


def parse_arguments() -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--parts", default=",".join(BUDGETS), help=f"some of {','.join(BUDGETS)}")
    parser.add_argument("--peers", type=Path, default=Path(".peers"), help="environments of other libraries")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels to install for this run")
    parser.add_argument("--seconds", type=float, default=TOTAL_SECONDS, help="for all parts; budgets are in proportion")
    arguments = parser.parse_args()
    arguments.parts = arguments.parts.split(",")
    if unknown := [name for name in arguments.parts if name not in BUDGETS]:
        parser.error(f"parts must be among {', '.join(BUDGETS)}, but got {unknown[0]!r}")
    return arguments


def main() -> None:
    """Run the parts one after another, write, and judge."""
    arguments = parse_arguments()
    end = time.monotonic() + arguments.seconds
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the running part is killed, too
    folder = Path(os.environ.get("OUT") or HERE / "results")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, (folder / "gpu.log").open("w", encoding="utf-8") as log:
        paths = [str(ROOT / "src"), str(ROOT)]
        if arguments.wheels is not None:
            site = Path(scratch) / "site"
            install_wheels(arguments.wheels, site)
            paths.insert(0, str(site))
            sys.path.insert(0, str(site))
        inherited = os.environ.get("PYTHONPATH")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, *([inherited] if inherited else [])])}
        environment |= {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
        if arguments.device == "cuda":
            environment["MESASCOPE_REQUIRE_ALL"] = "1"  # a skipped test is a failed test here
        missing = missing_packages("tests" in arguments.parts)
        if missing:
            print(f"this interpreter lacks {', '.join(missing)}; parts that need them fail", flush=True)
        facts = collect_facts(arguments.device, environment)
        report = Report(folder, {**facts, "missing packages": ", ".join(missing) or "none"})
        report.write()
        for name in arguments.parts:
            budget = BUDGETS[name] * arguments.seconds / TOTAL_SECONDS
            part = Part(name, min(budget, end - time.monotonic()))
            report.parts.append(part)
            if part.budget < MIN_SECONDS:
                part.status, part.note = "out of time", "not begun: the parts before it took the time"
            else:
                command = command_of(name, arguments.device, arguments.peers, Path(scratch))
                run_part(part, command, environment, report, log)
            print(f"{part.name:10} {part.status:12} {part.seconds:6.1f} s  {part.note}", flush=True)
            compare_parts(report.parts)
            report.write()
    print((folder / "gpu.md").read_text(encoding="utf-8"))
    sys.exit(not all(part.is_fine for part in report.parts))


if __name__ == "__main__":
    main()
