"""How the cost of opening a language model grows: with the length of its sequences, and with their number.

    python benchmarks/scaling.py GGUF [PEERS]

All default measures, as `mesascope inspect` applies them but without controls, read the same 4,096 tokens as 16
sequences of 256 to 2 of 2,048. Every second belongs to one part alone: what a part calls that is a part itself is taken
off. Attention compares every token with every other, so that its parts grow with the length by nature; they are the
model's own attention function, the attention weights of the tokens looked at, and the measures that read them over the
whole text. All others together, and each that takes a twentieth or more, must not: from 256 to 2,048 tokens the time
per token may grow by a fifth. It may fall: most instruments look at a fixed number of tokens. Noise only adds time, so
that where something seems to grow the shortest and the longest are measured again, up to twice, and the least counts.
Memory is measured for 4 and for 16 sequences of 512, each part in a process of its own, so that none hides or inherits
what another takes, and from the safetensors that capturing.py writes into PEERS: reading GGUF leaves memory behind in
which growth would be hidden. Exits with 1 if a bound does not hold.
"""

import gc
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from capturing import exported
from measuring import forget_peak, keep, peak
from transformers import PreTrainedModel

from mesascope.activations.hooks.attention_interface import AttentionCall
from mesascope.analyses import Analysis
from mesascope.inspection._passes import PASSES, InspectionInputs, Pass
from mesascope.inspection._text import non_special_tokens
from mesascope.models.load import load_pretrained
from mesascope.tasks.corpora import load_prose
from mesascope.train import limit_threads as using

ATTENDING = import_module("mesascope.activations.hooks._attention_patterns")  # a function has this name too
TOKENS, LENGTHS, ROUNDS, THREADS = 4096, (256, 512, 1024, 2048), 3, 2
FEW, MANY, MEMORY_LENGTH = 4, 16, 512
MOST_GROWTH, MOST_MEMORY, LARGE = 1.2, 1.1, 0.05
FUNCTION, WEIGHTS, REST = "attention function", "attention weights", "the model and its recording"
BY_NATURE = {FUNCTION, WEIGHTS, "positional_attention"}  # products of every token with every other, or readers of them

Times = dict[str, float]


class Stopwatch:
    """Seconds by part, each without the parts that it calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside: list[str] = []
        self._since = 0.0

    def of(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, its time noted under a name."""

        @wraps(call)
        def timed(*args: Any, **options: Any) -> Any:
            with self.running(name):
                return call(*args, **options)

        return timed

    @contextmanager
    def running(self, name: str) -> Iterator[None]:
        """Note the time of what happens inside."""
        self._note()
        self._inside.append(name)
        try:
            yield
        finally:
            self._note()
            self._inside.pop()

    def _note(self) -> None:
        """What passed since the last note belongs to the part that is running."""
        now = time.perf_counter()
        if self._inside:
            self.seconds[self._inside[-1]] += now - self._since
        self._since = now


@contextmanager
def watched(watch: Stopwatch) -> Iterator[list[Pass]]:
    """The parts of an inspection, with the time of attention and of every instrument noted."""
    with ExitStack() as patches:
        for home, name, part in (
            (AttentionCall, "run", FUNCTION),
            (ATTENDING, "_show_rows", WEIGHTS),
            (ATTENDING, "attention_weights", WEIGHTS),
        ):
            patches.enter_context(patch.object(home, name, watch.of(part, getattr(home, name))))
        yield [replace(part, analyses={k: noted(watch, i) for k, i in part.analyses.items()}) for part in PASSES]


def noted(watch: Stopwatch, one: Analysis) -> Analysis:
    """The same instrument, its own time and that of what it computes while the model runs noted under its name."""
    name = "inner objectives" if one.name.startswith("inner_") else one.name
    timed = replace(one, compute=watch.of(name, one.compute))
    if timed.input != "capture":
        return timed
    return replace(timed, reductions={k: replace(r, fn=watch.of(name, r.fn)) for k, r in timed.reductions.items()})


def opened(path: Path, count: int) -> tuple[PreTrainedModel, torch.Tensor, torch.Tensor]:
    """The model, so many tokens of the prose, and those to draw random sequences from."""
    model, tokenizer = load_pretrained(path)
    assert tokenizer is not None
    return model, torch.tensor(tokenizer(load_prose())["input_ids"][:count]), non_special_tokens(tokenizer, model)


def measured(model: PreTrainedModel, material: InspectionInputs) -> Times:
    """Seconds of every part."""
    watch = Stopwatch()
    with watched(watch) as parts:
        for part in parts:
            with watch.running(REST):
                part.run(model, material, list(part.analyses.values()))
    return dict(watch.seconds)


def timed(path: Path) -> dict[int, Times]:
    """Milliseconds per token of every part at every length: at the ends the least of as many rounds as it takes."""
    model, ids, allowed = opened(path, TOKENS)
    least: dict[int, Times] = {}
    with using(THREADS):
        measured(
            model, InspectionInputs(token_ids=ids[: 2 * LENGTHS[0]].view(2, -1), allowed_tokens=allowed)
        )  # with the checks
        for again in range(ROUNDS):
            for length in (LENGTHS[0], LENGTHS[-1]) if again else LENGTHS:
                seconds = measured(model, InspectionInputs(token_ids=ids.view(-1, length), allowed_tokens=allowed))
                spent = {name: 1e3 * each / TOKENS for name, each in seconds.items()}
                least[length] = {name: min(each, least.get(length, spent)[name]) for name, each in spent.items()}
            if max(growth(least).values()) <= MOST_GROWTH:
                break
    return least


def remembered(path: Path, part: Pass, sequences: int) -> int:
    """Peak memory in bytes while one part reads so many sequences; in a process of its own."""
    model, ids, allowed = opened(path, sequences * MEMORY_LENGTH)
    material = InspectionInputs(token_ids=ids.view(sequences, -1), allowed_tokens=allowed)
    gc.collect()
    forget_peak()  # that of loading the model
    with using(THREADS):
        part.run(model, material, list(part.analyses.values()))
    return peak()


def peaks_of(path: Path, sequences: int) -> dict[str, int]:
    """Peak memory in bytes of every part."""
    command = [sys.executable, __file__, str(path), str(sequences)]
    told = {part.name: [*command, part.name] for part in PASSES}
    return {name: int(subprocess.check_output(words, text=True)) for name, words in told.items()}


def main(path: Path) -> None:
    """Measure, print, and judge."""
    times = timed(path)
    show(times)
    peaks = {sequences: peaks_of(path, sequences) for sequences in (FEW, MANY)}
    keep("scaling", {"milliseconds a token": times, "peak": peaks, "threads": THREADS})
    sys.exit(not judged(times, peaks))


def show(times: dict[int, Times]) -> None:
    """The table: milliseconds per token, by part and length, and what the longest takes next to the shortest."""
    shortest, longest = times[LENGTHS[0]], times[LENGTHS[-1]]
    print(f"{'ms per token':30}" + "".join(f"{length:>9,}" for length in LENGTHS) + "   grows")
    for name in sorted(shortest, key=lambda name: (name not in BY_NATURE, -longest[name])):
        line = "".join(f"{each[name]:9.3f}" for each in times.values())
        print(f"{name:30}{line}{longest[name] / shortest[name]:7.2f}x{'  by nature' if name in BY_NATURE else ''}")
    print(f"{'all others together':30}" + "".join(f"{linear(each):9.3f}" for each in times.values()))


def linear(times: Times) -> float:
    """The parts that must not grow, together."""
    return sum(seconds for name, seconds in times.items() if name not in BY_NATURE)


def growth(times: dict[int, Times]) -> Times:
    """What the longest sequences take next to the shortest, per token: all parts that must not grow, and the large."""
    shortest, longest = times[LENGTHS[0]], times[LENGTHS[-1]]
    large = [name for name in shortest if name not in BY_NATURE and longest[name] >= LARGE * linear(longest)]
    return {"all others together": linear(longest) / linear(shortest)} | {n: longest[n] / shortest[n] for n in large}


def judged(times: dict[int, Times], peaks: dict[int, dict[str, int]]) -> bool:
    """Whether every bound holds; each is printed, and each part that breaks one is named."""
    held = {
        f"{name}, per token, {by:.2f} times (at most {MOST_GROWTH})": by <= MOST_GROWTH
        for name, by in growth(times).items()
    }
    for name, few in peaks[FEW].items():
        many = peaks[MANY][name]
        line = f"memory of {name}, {FEW} and {MANY} sequences: {few / 1e9:.2f} and {many / 1e9:.2f} GB"
        held[f"{line}, {many / few:.2f} times (at most {MOST_MEMORY})"] = many <= MOST_MEMORY * few
    for line, fine in held.items():
        print(line if fine else f"{line}: DOES NOT HOLD")
    return all(held.values())


if __name__ == "__main__":
    if len(sys.argv) > 3:
        (asked,) = [part for part in PASSES if part.name == sys.argv[3]]
        sys.stdout.write(str(remembered(Path(sys.argv[1]), asked, int(sys.argv[2]))))
    else:
        main(exported(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else ".peers")))
