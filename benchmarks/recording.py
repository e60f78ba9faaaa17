"""What recording costs: the stream and the attention patterns of all layers, next to the model's own eager pass.

    python benchmarks/recording.py GGUF

All take 4 sequences of 256 tokens and take turns, since machines are noisy; the medians are compared. The bound is on
the eager model. Predictions that nobody asks for are not made, which the plain pass cannot say of itself; so the same
stands beside it with predictions recorded too, and with the kernel that the model is loaded with, whose patterns are
computed in addition to what the kernel does. Exits with 1 if the bound does not hold.
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch
from transformers import PreTrainedModel

import mesascope
from mesascope.models.load import load_pretrained

SEQUENCES, LENGTH, ROUNDS = 4, 256, 9
MOST_TIME = 1.05  # times the eager pass


def seconds(run: Callable[[], object]) -> float:
    """How long one call takes."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def main(path: str) -> None:
    """Measure, print, and judge."""
    model, _ = load_pretrained(path)
    eager, _ = load_pretrained(path)
    eager.set_attn_implementation("eager")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (SEQUENCES, LENGTH), generator=generator)

    def plain() -> None:
        with torch.no_grad():
            eager(input_ids=ids, use_cache=False)

    def recorded(one: PreTrainedModel, *more: str) -> None:
        mesascope.capture(one, ids, sites=["resid_pre", "pattern", *more])

    runs = (
        plain,
        lambda: recorded(eager),
        lambda: recorded(eager, "output"),
        lambda: recorded(model, "output"),
    )
    for run in runs:
        run()
    rounds = [[seconds(run) for run in runs] for _ in range(ROUNDS)]
    own, ours, whole, fast = (statistics.median(times) for times in zip(*rounds, strict=True))
    print(f"eager forward pass            {own:6.2f} s")
    print(f"recorded                      {ours:6.2f} s, {ours / own:.3f} times (at most {MOST_TIME})")
    print(f"  with predictions            {whole:6.2f} s, {whole / own:.3f} times")
    print(f"  and with its own kernel     {fast:6.2f} s, {fast / own:.3f} times")
    sys.exit(ours / own > MOST_TIME)


if __name__ == "__main__":
    main(sys.argv[1])
