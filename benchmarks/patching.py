"""What a patching map of a language model costs, next to a loop that runs one edit per forward pass.

    python benchmarks/patching.py MODEL

The outputs of every head at every position of a 16-token prompt are patched from another prompt, one at a time; of the
loop, some edits are timed in the same run and the rest is extrapolated. Exits with 1 if a bound does not hold.
"""

import random
import sys
import time
import warnings
from dataclasses import replace as with_other
from itertools import product

import torch

from mesascope.activations import EditHadNoEffect, capture
from mesascope.interventions import logit_difference, patch, replace
from mesascope.models.load import load_pretrained

CLEAN = "Yesterday Mary and John went to the big old store. There John gave a drink to"
CORRUPTED = "Suddenly John and Mary came from the small new house! Here Mary took the book of"
LENGTH, LOOPED = 16, 60
MOST_SECONDS, MOST_SHARE, MOST_DISTANCE = 120.0, 1 / 3, 1e-4

model, tokenizer = load_pretrained(sys.argv[1])
assert tokenizer is not None
clean, corrupted = (torch.tensor([tokenizer(text)["input_ids"][-LENGTH:]]) for text in (CLEAN, CORRUPTED))
metric = logit_difference(tokenizer(" Mary")["input_ids"][0], tokenizer(" John")["input_ids"][0])

began = time.perf_counter()
found = patch(model, corrupted, clean, metric, "z", ("layer", "head", "pos"))
seconds = time.perf_counter() - began

recorded = capture(model, clean, ["z"])
edit, value = replace("z", recorded), found["value"]
every = list(product(*(range(size) for size in value.shape)))
random.seed(0)
some = random.sample(every, LOOPED)
farthest, began = 0.0, time.perf_counter()
with warnings.catch_warnings():
    warnings.simplefilter("ignore", EditHadNoEffect)
    for layer, head, pos in some:
        alone = with_other(edit, where={"layer": layer, "head": head, "pos": pos})
        prediction = capture(model, corrupted, ["output"], edits=[alone], check=False)["output"]
        farthest = max(farthest, abs(float(metric(prediction).mean()) - float(value[layer, head, pos])))
looped = (time.perf_counter() - began) / LOOPED * len(every)

held = {
    f"{len(every)} edits            {seconds:6.1f} s (at most {MOST_SECONDS:.0f})": seconds <= MOST_SECONDS,
    f"one per forward pass  {looped:6.1f} s, {seconds / looped:.3f} of it (at most {MOST_SHARE:.3f})": (
        seconds <= MOST_SHARE * looped
    ),
    f"farthest from the loop {farthest:.1e} (at most {MOST_DISTANCE:.0e})": farthest <= MOST_DISTANCE,
}
for line, fine in held.items():
    print(line if fine else f"{line}: DOES NOT HOLD")
sys.exit(0 if all(held.values()) else 1)
