"""What a training step of each recurrent transformer costs, next to a decoder of the same number of plain layers.

    python benchmarks/recurrent.py

All take turns in one session, since machines are noisy; medians of the ratios to the plain layers of the same turn are
compared. Models that halt have a threshold that they do not reach, so that they take all steps. The gate and the
attention to memory multiply and add more than plain layers do: the second column is the ratio of that arithmetic.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from measuring import keep
from torch.utils.flop_counter import FlopCounterMode

from mesascope.models.config import DecoderConfig
from mesascope.models.load import find_decoder_class
from mesascope.models.recurrent.config import RecurrentConfig

BATCH, LENGTH, STEPS, ROUNDS, TURN = 32, 64, 6, 15, 2
CHUNKS: dict[str, Any] = {"chunk_length": 16, "memory_slots": 8}
SHAPE: dict[str, Any] = {
    "vocab_size": 16,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": LENGTH,
    "norm": "layer",
    "positions": "rotary",
}
NEVER = {"halting_threshold": 1.0, "halting_penalty": 0.1}
HALTING: dict[str, dict[str, Any]] = {
    "UT": {},
    "GUT": {"gate": True, "halt": "global", "transition": True},
    "GUT, no gate": {"halt": "global", "transition": True},
    "GUT, no global halt": {"gate": True, "transition": True},
    "GUT, no transition": {"gate": True, "halt": "global"},
    "GUTLB": {"gate": True, "halt": "global", "transition": True, **CHUNKS},
}
CONFIGS: dict[str, DecoderConfig] = {
    "plain layers": DecoderConfig(**SHAPE, num_hidden_layers=STEPS),
    "UT, no halt": RecurrentConfig(**SHAPE, max_iterations=STEPS, halt="none"),
    **{name: RecurrentConfig(**SHAPE, max_iterations=STEPS, **NEVER, **one) for name, one in HALTING.items()},
    "TLB": RecurrentConfig(**SHAPE, num_hidden_layers=STEPS, max_iterations=1, halt="none", **CHUNKS),
}


def training_step(config: DecoderConfig) -> Callable[[], None]:
    """Forward pass, loss with its penalty, backward pass and update, on the same tokens each time."""
    torch.manual_seed(0)
    model = find_decoder_class(config)(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = torch.randint(SHAPE["vocab_size"], (BATCH, LENGTH))

    def step() -> None:
        optimizer.zero_grad()
        output = model(tokens)
        loss = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        (loss if output.auxiliary_loss is None else loss + output.auxiliary_loss).backward()
        optimizer.step()

    return step


def count_operations(step: Callable[[], None]) -> int:
    """Multiplications and additions of a step."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def measure_seconds(step: Callable[[], None]) -> float:
    began = time.perf_counter()
    for _ in range(TURN):
        step()
    return (time.perf_counter() - began) / TURN


def main() -> None:
    """Take turns and print."""
    torch.set_num_threads(1)
    steps = {name: training_step(config) for name, config in CONFIGS.items()}
    operations = {name: count_operations(step) for name, step in steps.items()}
    rounds = [{name: measure_seconds(step) for name, step in steps.items()} for _ in range(ROUNDS + 1)][1:]
    print(f"{'model':22s} {'ms a step':>10s} {'ratio':>7s} {'arithmetic':>11s}")
    for name in steps:
        ratio = statistics.median(each[name] / each["plain layers"] for each in rounds)
        milliseconds = 1e3 * statistics.median(each[name] for each in rounds)
        print(f"{name:22s} {milliseconds:10.1f} {ratio:7.2f} {operations[name] / operations['plain layers']:11.2f}")
    keep("recurrent", {"rounds": rounds, "operations": operations})


if __name__ == "__main__":
    main()
