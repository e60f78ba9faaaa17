"""Decoder, training and claim that the studies of in-context learning share."""

from mesascope.models.config import DecoderConfig
from mesascope.studies.base import Claim, Quantity, select_last_step
from mesascope.studies.shared.selectors import select_similarity
from mesascope.tasks.regression import Regression
from mesascope.train import AdamW, CosineSchedule, TrainingConfig

MIN_SIMILARITY = 0.9  # ours: fraction of the variance of the predictions that an algorithm must explain
SMALL_DECODER = {"hidden_size": 64, "num_attention_heads": 4, "norm": "layer", "positions": "learned"}  # ours


def make_icl_training(steps: int, checkpoints: int = 6, warmup: int = 500) -> TrainingConfig:
    """Return the training config of small decoders; only the kind of optimiser is taken from the papers.

    Args:
        steps: optimiser steps.
        checkpoints: number of saved checkpoints.
        warmup: steps of the linear warmup; a fifth of ``steps`` where that is less.

    Returns:
        AdamW with gradient clipping and a cosine schedule.
    """
    return TrainingConfig(
        steps=steps,
        batch_size=64,
        optimizer=AdamW(lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01),
        warmup=min(warmup, steps // 5),
        schedule=CosineSchedule(),
        clip=1.0,
        checkpoints=checkpoints,
    )


def make_regression_decoder(task: Regression, layers: int) -> DecoderConfig:
    """Return the decoder for a regression task; it predicts y at the position of x, as in the papers.

    Args:
        task: gives the input dimension and the context length.
        layers: number of layers.

    Returns:
        a decoder of width 64 with 4 heads per layer; the sizes are ours.
    """
    return DecoderConfig(
        d_in=task.input_dim,
        d_out=1,
        num_hidden_layers=layers,
        intermediate_size=256,
        max_position_embeddings=task.length,
        **SMALL_DECODER,
    )


def make_two_layer_decoder(
    positions: int, *, vocab_size: int | None = None, d_in: int | None = None, d_out: int | None = None
) -> DecoderConfig:
    """Return the two-layer decoder that is trained on the task of a toy model.

    Args:
        positions: maximum sequence length.
        vocab_size: number of tokens; None for a decoder of vectors.
        d_in, d_out: dimensions of input and output vectors; None for a decoder of tokens.

    Returns:
        a decoder of width 64 with 4 heads per layer; the sizes are ours.
    """
    return DecoderConfig(
        vocab_size=vocab_size,
        d_in=d_in,
        d_out=d_out,
        num_hidden_layers=2,
        intermediate_size=128,
        max_position_embeddings=positions,
        **SMALL_DECODER,
    )


def least_squares_claim(name: str, statement: str, paper: str) -> Claim:
    """Return the claim that a model predicts as least squares does.

    Args:
        name, statement: of the claim.
        paper: authors and year.
    """
    return Claim(
        name=name,
        statement=statement,
        source=f"{paper}; the threshold is ours",
        value=Quantity(
            description="fraction of the variance of the model's predictions that least squares explains",
            read=lambda results: select_last_step(select_similarity(results, "least squares")),
        ),
        control=Quantity(
            description="the same fraction for the mean of the nearest neighbours",
            read=lambda results: select_last_step(select_similarity(results, "nearest neighbours")),
        ),
        direction="above",
        threshold=MIN_SIMILARITY,
    )
