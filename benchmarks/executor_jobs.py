"""The job of executors.py, which other processes can import."""

import time
from collections.abc import Callable

import torch

STEPS = 2000


def train(seed: int, progress: Callable[..., None], log: Callable[[str], None]) -> float:
    """Train a small regression, with progress ten times a second like a study; return the processor time."""
    torch.set_num_threads(1)
    start, last = time.process_time(), 0.0
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(256, 64, generator=generator)
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.GELU(), torch.nn.Linear(128, 1))
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = (model(x) - x[:, :1]).square().mean()
        loss.backward()
        optimizer.step()
        if time.perf_counter() - last > 0.1:
            last = time.perf_counter()
            progress(step, STEPS, 0.0)
    return time.process_time() - start
