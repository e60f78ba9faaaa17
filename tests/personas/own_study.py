"""A task, an analysis and a study in one file, as a user writes them by docs/adding-a-study.md."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
import xarray as xr

from mesascope.activations import Capture
from mesascope.analyses import analysis, loss_vs_baselines
from mesascope.analyses.nulls import Null, with_null
from mesascope.axes import to_data_array
from mesascope.models.config import DecoderConfig
from mesascope.studies.base import (
    SCALES,
    Citation,
    Claim,
    Condition,
    Quantity,
    Requirement,
    Results,
    ScaleConfig,
    Study,
    select_last_step,
    select_untrained,
)
from mesascope.tasks.base import Batch, Task
from mesascope.train import AdamW, TrainingConfig


@final
@dataclass(frozen=True, kw_only=True)
class FirstTerm(Task):
    """Predict the first input of the sequence."""

    length: int = 8

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        x = torch.randn(n, self.length, 1, generator=generator)
        return Batch(inputs=x, targets=x[:, :1].expand_as(x), weight=torch.ones(n, self.length))

    def loss(self, prediction: torch.Tensor, batch: Batch) -> torch.Tensor:
        return (prediction - batch.targets).square().sum(-1)

    def baselines(self, batch: Batch) -> dict[str, torch.Tensor]:
        first = batch.inputs[:, :1].expand_as(batch.inputs)
        return {"exact": first, "zero": torch.zeros_like(first), "copy": batch.inputs}


@analysis(
    title="Attention to the first position",
    description="""Attention weight at the first position, averaged over sequences and over all later queries.
    Null: a head that attends to all visible positions alike.""",
    sites=["pattern"],
)
def first_attention(acts: Capture) -> xr.Dataset:
    pattern = acts["pattern"]  # (layer, batch, head, query, key)
    score = pattern[..., 1:, 0].mean((1, 3))  # (layer, head)
    uniform = (1 / torch.arange(2, pattern.shape[3] + 1)).mean().expand_as(score)

    def label(values: torch.Tensor, description: str) -> xr.DataArray:
        return to_data_array(values, "layer", "head", units="1", description=description)

    null = Null(name="uniform attention", value=label(uniform, "the same for uniform attention"))
    return xr.Dataset(with_null("score", label(score, "attention to the first position"), null))


def read_attention(select_step: Callable[[xr.DataArray], xr.DataArray]) -> Callable[[Results], xr.DataArray]:
    """The head that attends most to the first position, for every seed."""

    def read(results: Results) -> xr.DataArray:
        return select_step(results["first_attention"]["score"]).sel(layer=0, drop=True).max("head")

    return read


def read_error(results: Results) -> xr.DataArray:
    return select_last_step(results["loss_vs_baselines"]["scored"]).sel(predictor="model", drop=True)


STUDY = Study(
    name="first-term",
    title="Heads that attend to the first term",
    description="One layer of attention learns to predict the first input of a sequence.",
    citation=Citation(
        key="own2026", authors="Own, An", title="None", year=2026, venue="unpublished", url="https://example.org"
    ),
    conditions=(
        Condition(
            task=FirstTerm(),
            model=DecoderConfig(
                d_in=1,  # ours, as all that follows
                d_out=1,
                num_hidden_layers=1,
                hidden_size=16,
                num_attention_heads=2,
                intermediate_size=0,
                max_position_embeddings=8,
            ),
            analyses=(loss_vs_baselines, first_attention),
            scales={
                scale: ScaleConfig(
                    training=TrainingConfig(steps=120, optimizer=AdamW(lr=2e-2), warmup=10, checkpoints=2),
                    sequences=128,
                )
                for scale in SCALES
            },
        ),
    ),
    claims=(
        Claim(
            name="a head attends to the first term",
            statement="A head pays 20 % more attention to the first term than before training.",
            source="ours",
            value=Quantity(description="attention to the first term", read=read_attention(select_last_step)),
            control=Quantity(description="the same, untrained", read=read_attention(select_untrained)),
            direction="above",
            margin=0.2,
            requirements=(
                Requirement(
                    statement="the error of the model is below 5 % of that of predicting 0",
                    value=Quantity(description="error of the model", read=read_error),
                    threshold=0.05,
                    direction="below",
                ),
            ),
            scales=SCALES,  # so easy that smoke scale trains it to the end
        ),
    ),
    seeds=dict.fromkeys(SCALES, 5),
    minutes=dict.fromkeys(SCALES, 0.1),
)
