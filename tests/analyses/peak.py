"""How much memory a forward pass takes, plain and with norms reduced in place; run in a process of its own.

    python peak.py

The model is deep and narrow, so that to keep every layer's stream would take two fifths more. Prints the highest
resident size in kilobytes of either, counted from the moment at which the model was there, the plain pass first: what
it gave back and the system still counts, norms may use again.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mesascope import analyses

SHAPE = LlamaConfig(
    vocab_size=512,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=30,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=True,
)


def main() -> None:
    torch.set_num_threads(1)
    model = LlamaForCausalLM(SHAPE).eval()
    ids = torch.randint(0, model.config.vocab_size, (8, 512), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = peak(lambda: model(ids, use_cache=False))
    sys.stdout.write(f"{plain} {peak(lambda: analyses.run_analyses(model, ids, [analyses.norms]))}")


def peak(work: Callable[[], object]) -> int:
    """Kilobytes while this is done."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    work()
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1])


if __name__ == "__main__":
    main()
