"""Decoder, training, claim and requirement that the studies of in-context learning share."""

from collections.abc import Sequence

import xarray as xr

from mesascope.analyses.algorithms.identify import TRAINING_DISTRIBUTION
from mesascope.models.config import DecoderConfig
from mesascope.studies.base import Claim, Quantity, Requirement, Results, select_last_step
from mesascope.studies.shared.selectors import select_shifted_similarity
from mesascope.tasks.regression import Regression
from mesascope.train import AdamW, CosineSchedule, TrainingConfig

MIN_SIMILARITY = 0.9  # ours: fraction of the variance of the predictions that an algorithm must explain
MIN_LEAD = 0.005  # ours: difference of two similarities; planted algorithms lead their closest rivals by .006 or more
MAX_FITTED_GAIN = 0.02  # ours: similarity that a rival may gain by hyperparameters, which least squares lacks
MAX_FINAL_ERROR = 0.1  # ours: of the error of predicting 0
MAX_ERROR_RATIO = 1.2  # ours: over the error of the best predictor that is known
MIN_LOG_ERROR_CHANGE = 0.02  # ours: of the log10 error, about 5 % of the error
MIN_RATIO_CHANGE = 0.05  # ours: of a ratio of two errors
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


def least_squares_claim(
    name: str,
    statement: str,
    source: str,
    requirement: Requirement,
    *,
    distributions: Sequence[str] = (TRAINING_DISTRIBUTION,),
    result: str = "which_algorithm",
) -> Claim:
    """Return the claim that a model predicts as least squares does, and not as a fitted algorithm does.

    Args:
        name, statement, source: of the claim.
        requirement: that the model has learned its task.
        distributions: of the sequences; the lowest similarity counts.
        result: name of the result of `which_algorithm`.
    """
    where = "" if len(distributions) == 1 else ", lowest over the distributions"
    return Claim(
        name=name,
        statement=statement,
        source=source,
        value=Quantity(
            description=f"fraction of the variance of the model's predictions that least squares explains{where}",
            read=lambda results: select_shifted_similarity(results, "least squares", distributions, result=result),
        ),
        control=Quantity(
            description=f"the same fraction for the best of all other algorithms, less {MAX_FITTED_GAIN:g} for their "
            "fitted hyperparameters",
            read=lambda results: (
                select_rival_similarity(results, "least squares", distributions, result=result) - MAX_FITTED_GAIN
            ),
        ),
        direction="above",
        threshold=MIN_SIMILARITY,
        by_paper=True,
        requirements=(requirement,),
    )


def select_rival_similarity(
    results: Results,
    predictor: str,
    distributions: Sequence[str] = (TRAINING_DISTRIBUTION,),
    *,
    nested: Sequence[str] = (),
    result: str = "which_algorithm",
) -> xr.DataArray:
    """Return the similarity of the trained model and the most similar algorithm other than one.

    Args:
        results: of a run.
        predictor: name of the algorithm that is left out.
        distributions: of the sequences; the lowest similarity counts.
        nested: names of algorithms that are left out, too, because they contain ``predictor`` as a limit.
        result: name of the result of `which_algorithm`.

    Returns:
        similarity of the predictions with the axis seed; hyperparameters are fitted on other sequences.
    """
    similarity = select_last_step(results[result]["similarity"]).sel(stat="predictions", drop=True)
    lowest = similarity.sel(distribution=list(distributions)).min("distribution", skipna=False)
    return lowest.drop_sel(predictor=[predictor, *nested]).max("predictor")


def final_error_requirement(subject: str = "the model", result: str = "loss_vs_baselines") -> Requirement:
    """Return the requirement that a model of a noiseless task has learned it, in terms of its error after the context.

    Args:
        subject: the model in words.
        result: name of the result of `loss_vs_baselines`.
    """

    def read_ratio(results: Results) -> xr.DataArray:
        error = select_last_step(results[result]["error"]).isel(pos=-1, drop=True)
        return error.sel(predictor="model", drop=True) / error.sel(predictor="zero", drop=True)

    return Requirement(
        statement=f"after the whole context, the error of {subject} is at most {100 * MAX_FINAL_ERROR:g} % of that of "
        "predicting 0",
        value=Quantity(description="squared error at the last position over that of predicting 0", read=read_ratio),
        threshold=MAX_FINAL_ERROR,
        direction="below",
    )


def make_constant_control(quantity: Quantity, constant: float, description: str) -> Quantity:
    """Return a control that is the same number for every seed.

    Args:
        quantity: the quantity that is compared with it.
        constant: the number.
        description: the control in words.
    """
    return Quantity(
        description=description,
        read=lambda results: xr.full_like(quantity.read(results), constant, dtype=float),
        unit=quantity.unit,
    )
