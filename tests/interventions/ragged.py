"""Prompts of unequal length, padded on either side, and means over those that have a column."""

import pytest
import torch
import xarray as xr

from cases import spread
from mesascope.activations import capture
from mesascope.interventions import logit_difference

LENGTHS, WIDTH = (5, 8, 5, 8), 9  # the first or the last column is padding in all of them
DIFFERENCE = logit_difference(3, 5)
CLOSE = {"atol": 1e-5, "rtol": 1e-5}

both_models = pytest.mark.parametrize(("name", "side"), [("gpt2", "left"), ("llama", "right")])
every_case = pytest.mark.parametrize(
    ("name", "side"), spread([("gpt2", "left"), ("llama", "left"), ("llama", "right")], 2)
)


def prompts(seed: int = 0, lengths: tuple[int, ...] = LENGTHS) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, 20, (1, length), generator=generator) for length in lengths]


def start(length: int, side: str) -> int:
    return WIDTH - length if side == "left" else 0


def padded(texts: list[torch.Tensor], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = torch.zeros(2, len(texts), WIDTH, dtype=torch.long)
    for row, text in enumerate(texts):
        columns = slice(start(text.shape[1], side), start(text.shape[1], side) + text.shape[1])
        ids[row, columns], mask[row, columns] = text[0], 1
    return ids, mask


def values_of(dataset: xr.Dataset, name: str = "value") -> torch.Tensor:
    return torch.tensor(dataset[name].values).double()


def mean_alone(results: list[xr.Dataset], name: str = "value") -> torch.Tensor:
    return torch.stack([values_of(one, name) for one in results]).mean(0)


def column_means(model, texts: list[torch.Tensor], site: str, side: str) -> list[dict[int, torch.Tensor]]:
    """By prompt and layer: the mean, at each of its positions, over the prompts with an input in the same column."""
    acts = [capture(model, text, [site])[site][:, 0] for text in texts]
    total, count = torch.zeros(len(acts[0]), WIDTH, *acts[0].shape[2:]), torch.zeros(WIDTH)
    columns = [slice(start(one.shape[1], side), start(one.shape[1], side) + one.shape[1]) for one in acts]
    for one, part in zip(acts, columns, strict=True):
        total[:, part] += one
        count[part] += 1
    average = total / count.clamp(min=1).view(-1, *[1] * (total.ndim - 2))
    return [{layer: average[layer, part][None] for layer in range(len(average))} for part in columns]


def take(old: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    return source
