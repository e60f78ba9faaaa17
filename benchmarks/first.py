"""What the first capture of a model costs, with its checks, next to the second, which needs none.

    python benchmarks/first.py GGUF

Processor time of one thread, since machines are busy. Both captures take turns: a weight that is written, with the
value that it had, makes the model a new one. One sequence of SmolLM2, long and short, and of a small GPT-2 with random
weights, whose captures are hardly more than calls. Exits with 1 if the bound does not hold; the target is stricter,
and has not been reached.
"""

import statistics
import sys
import time

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

import mesascope
from mesascope.models.load import load_pretrained

SITES, LENGTHS, ROUNDS = ("resid_pre", "pattern", "z"), (256, 14), 7
MAX_RATIO, TARGET = 3.5, 1.3  # of SmolLM2 with 256 tokens


def processor_seconds(model: PreTrainedModel, ids: torch.Tensor) -> float:
    """Return what one capture takes."""
    began = time.process_time()
    mesascope.capture(model, ids, SITES)
    return time.process_time() - began


def take_turns(model: PreTrainedModel, length: int) -> tuple[float, float, float]:
    """Return the median seconds of the first and of the second capture, and the median of their ratios."""
    ids = torch.randint(0, model.config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
    rounds = []
    for _ in range(ROUNDS):
        with torch.no_grad():
            next(model.parameters()).mul_(1.0)
        rounds.append((processor_seconds(model, ids), processor_seconds(model, ids)))
    first, second = (statistics.median(times) for times in zip(*rounds, strict=True))
    return first, second, statistics.median(a / b for a, b in rounds)


def main(path: str) -> None:
    """Measure, print, and judge."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tiny = GPT2LMHeadModel(GPT2Config(vocab_size=258, n_embd=16, n_layer=2, n_head=2, n_positions=256)).eval()
    large, _ = load_pretrained(path)
    ratios = {}
    for name, model in (("SmolLM2", large), ("tiny GPT-2", tiny)):
        for length in LENGTHS:
            first, second, ratio = take_turns(model, length)
            ratios[name, length] = ratio
            print(f"{name:12}{length:5} tokens: first {first:7.3f} s, second {second:7.3f} s, {ratio:.2f} times")
    judged = ratios["SmolLM2", LENGTHS[0]]
    print(f"{judged:.2f} times with {LENGTHS[0]} tokens (at most {MAX_RATIO}; the target is {TARGET})")
    sys.exit(judged > MAX_RATIO)


if __name__ == "__main__":
    main(sys.argv[1])
