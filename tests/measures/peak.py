"""How much memory a forward pass takes, plain or with norms reduced in place; run in a process of its own.

    python peak.py GGUF plain|norms

Prints the highest resident size in kilobytes, counted from the moment at which the model was loaded.
"""

import sys
from pathlib import Path

import torch

from mesascope import measures
from mesascope.models.load import load_pretrained


def main(path: str, what: str) -> None:
    torch.set_num_threads(1)
    model, _ = load_pretrained(path)
    ids = torch.randint(0, model.config.vocab_size, (4, 256), generator=torch.Generator().manual_seed(0))
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    if what == "plain":
        with torch.no_grad():
            model(ids, use_cache=False)
    else:
        measures.measure_all(model, ids, [measures.norms])
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    sys.stdout.write(line.split()[1])


if __name__ == "__main__":
    main(*sys.argv[1:])
