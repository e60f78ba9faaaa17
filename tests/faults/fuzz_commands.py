"""Property-based calls of the command line: odd words and combinations of options, in processes with limits."""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from faults.forked import call_main, limit_memory, run_forked
from faults.small_study import STUDY
from faults.trial_result import TrialResult, draw_examples, format_range
from saved import save_tiny

COMMANDS = (
    *("run", "inspect", "circuit", "which-algorithm", "list", "show", "cite", "report", "verify", "compare", "runs"),
    *("serve", "table", "figures", "log", "push", "sync"),
    "",
)
OPTIONS = (
    "--scale --seeds --out --device --on --vary --strict --text --tokens --sequences --analyses --steps --dtype "
    "--study --seed --trust-remote-code --json --help --no-such-option -x "
    "--pairs --condition --num-pairs --size --ablation --set --token-ids --by "
    "--port --format --only --to --log-to --private --results --name"
).split()
FLAGS = {"--strict", "--trust-remote-code", "--json", "--help", "--private"}
ODD_WORDS = (
    *("", " ", "-", "--", "-1", "0", "1e400", "nan", "99999999999999999999", "3.5", "null", "[/x]", "[bold]", "[]"),
    *(
        "x[y",
        "affine[",
        "affine[heads=1]",
        "affine[=]",
        "affine[heads=1,heads=1]",
        ":bug:",
        "\\",
        "..",
        "/",
        "/dev/null",
    ),
    *("~", "\udcff", "\x1b[31m", "a\nb", "é", "目", "🙂", "\u202e", "a" * 300, "a" * 5000, "x/" * 200, "%s", "{}", "'"),
    *("heads=", "=", "heads=0", "heads=1,1", "a=b=c", ",", ",,,", "cuda", "cuda:99", "cuda:-1", "cpu:x", "mps", "ray:"),
    *("serial", "processes", "smoke", "file.txt", "folder", "missing.gguf", "bad.py", "bad.gguf", "bad.json", "-0"),
    *("mean", "resample", "pairs.jsonl", "bad.jsonl", "ids.npy", "bad.npy", "signed"),
    *(
        "training.steps=2",
        "training.steps=x",
        "training.=1",
        "model.x=1",
        "task.length=-1",
        "training.optimizer.lr=nan",
    ),
    *("study.py", "finished", "finished/models", "tiny", "run.json", "me/repository", "toy", "text", "1234567"),
    *(
        "csv",
        "latex",
        "svg",
        "pdf",
        "png",
        "claims",
        "tensorboard",
        "trackio",
        "tensorboard:folder",
        "tensorboard:",
        "*",
    ),
    *("norms", "float16", "inner,norms", "all", "gpt2/x", "a/b/c", "https://example.org/x", "hf://x", "\0"),
)
WORDS = st.one_of(st.sampled_from(ODD_WORDS), st.text(max_size=8), st.integers().map(str), st.floats().map(str))
MAX_LINES, MAX_SECONDS = 4, 60
HELP_CODES, CODES = {0, 2}, {0, 1, 2, 130}


@st.composite
def draw_words(draw: st.DrawFn) -> list[str]:
    """Draw a command with odd arguments and options, in any order."""
    command = draw(st.sampled_from(COMMANDS))
    words = draw(st.lists(WORDS, max_size=3))
    for option in draw(st.lists(st.sampled_from(OPTIONS), max_size=3)):
        words += [option] if option in FLAGS else [option, draw(WORDS)]
    return [command, *words] if command else words


def make_place(folder: Path) -> Path:
    """A folder with files that odd words name; what a command writes must be below it."""
    place = folder / "place"
    (place / "folder").mkdir(parents=True)
    (place / "study.py").write_text(STUDY)
    save_tiny(place)
    made = run_forked(partial(call_main, make_run_words(place)), folder / "made", MAX_SECONDS)
    if made != 0:
        raise RuntimeError((folder / "made").read_text())
    (place / "file.txt").write_text("words")
    (place / "bad.py").write_text("STUDY = Studie()\n")
    (place / "bad.gguf").write_bytes(b"GGUF\0\0")
    (place / "bad.json").write_text("[" * 10_000)
    pair = {"clean": "a b a", "counterfactual": "a c a", "answer": " b", "wrong_answer": " c"}
    (place / "pairs.jsonl").write_text(f"{json.dumps(pair)}\n" * 4)
    np.save(place / "ids.npy", np.arange(12).reshape(2, 6))
    np.save(place / "bad.npy", np.array([[0.5, np.nan]]))
    (place / "bad.jsonl").write_text(f"{json.dumps({**pair, 'clean': None})}\n" * 4)
    return place


def make_run_words(place: Path) -> list[str]:
    """The command that writes the finished run of a place."""
    return ["run", str(place / "study.py"), *f"--scale smoke --seeds 1 --device cpu --out {place / 'finished'}".split()]


def run_words(words: list[str], place: Path) -> int:
    """The command line in a place, without network, with limits."""
    limit_memory()
    os.chdir(place)
    os.environ |= {"HF_HUB_OFFLINE": "1", "HOME": str(place), "COLUMNS": "200"}
    FileWatch(place)
    if "serve" in words:
        end_servers_at_once()
    return call_main([word.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape") for word in words])


def end_servers_at_once() -> None:
    """Let a server end when it would wait for its first request; requests are tried as calls of functions."""
    import uvicorn

    uvicorn.Server.run = lambda self, sockets=None: None


class FileWatch:
    """Reports files that are written outside of a folder, and connections, on the error output."""

    def __init__(self, place: Path) -> None:
        import sys

        self.allowed = (str(place), "/dev/", "/proc/")
        sys.addaudithook(self._receive)

    def _receive(self, event: str, arguments: tuple) -> None:
        if event == "socket.connect":
            os.write(2, f"OUTSIDE: connects to {arguments[1]!r}\n".encode())
        elif event in ("open", "os.mkdir", "os.rename") and isinstance(arguments[0], str):
            writes = event != "open" or bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR))
            path = os.path.abspath(arguments[0])
            if writes and not path.startswith(self.allowed) and "__pycache__" not in path and not _is_scratch(path):
                os.write(2, f"OUTSIDE: {event} {path!r}\n".encode())


def _is_scratch(path: str) -> bool:
    return path.startswith("/tmp/") or path == "/"


def judge_call(words: list[str], code: int, printed: str) -> str:
    """Return what is wrong with a call, or an empty text."""
    lines = [line for line in printed.splitlines() if line.strip()]
    usage = any(line.startswith(("Usage:", " Usage:")) for line in lines)  # typer's box with the offending word
    checks = {
        f"exit code {code}": code not in CODES,
        "a traceback": "Traceback (most recent" in printed or "panicked" in printed,
        "exit code 1 without --strict": code == 1 and "--strict" not in words and "verify" not in words,
        f"{len(lines)} lines for a refusal": code == 2 and not usage and len(lines) > MAX_LINES,
        "no line for a refusal": code == 2 and not lines,
        "written outside, or connected": "OUTSIDE: " in printed,
    }
    found = [name for name, is_wrong in checks.items() if is_wrong]
    return f"{words!r}: {', '.join(found)}: {printed[-1500:]}" if found else ""


def run_commands(folder: Path, seeds: range, log: Callable[[str], None] = lambda line: None) -> TrialResult:
    """Call the command line once per seed; all calls depend on the first seed."""
    result = TrialResult(name="odd arguments of the command line", seeds=format_range(seeds))
    place = make_place(folder)

    @given(draw_words())
    def try_words(words: list[str]) -> None:
        if len(result.outcomes) >= len(seeds):
            return
        output = folder / "output"
        code = run_forked(partial(run_words, words, place), output, MAX_SECONDS)
        printed = output.read_text(errors="replace")
        result.add(f"exit code {code}", judge_call(words, code, printed))
        if len(result.outcomes) % 50 == 0:
            log(f"{result.name}: {len(result.outcomes)}/{len(seeds)}")

    draw_examples(try_words, seeds)
    return result
