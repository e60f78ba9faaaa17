"""What studies share that train small decoders on prompts: how those are built and trained, and a claim."""

from mesascope.models.config import DecoderConfig
from mesascope.studies.base import Claim, last
from mesascope.studies.shared.selectors import likeness
from mesascope.tasks.regression import Regression
from mesascope.train import AdamW, Cosine, Training

ALIKE = 0.9  # ours


def training(steps: int, checkpoints: int = 6, warmup: int = 500) -> Training:
    """All ours but the optimiser's kind."""
    return Training(
        steps=steps,
        batch_size=64,
        optimizer=AdamW(lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01),
        warmup=min(warmup, steps // 5),
        schedule=Cosine(),
        clip=1.0,
        checkpoints=checkpoints,
    )


def decoder(task: Regression, layers: int) -> DecoderConfig:
    """All ours; the answer is read where an input stands, as in the papers."""
    return DecoderConfig(
        d_in=task.width,
        d_out=1,
        num_hidden_layers=layers,
        hidden_size=64,
        num_attention_heads=4,
        intermediate_size=256,
        norm="layer",
        positions="learned",
        max_position_embeddings=task.length,
    )


def beside(
    positions: int, *, vocab_size: int | None = None, d_in: int | None = None, d_out: int | None = None
) -> DecoderConfig:
    """A decoder that stands beside a reduced model: two layers and all else ours.

    Args:
        positions: the longest sequence.
        vocab_size: tokens, if it reads such.
        d_in, d_out: widths of what it reads and tells, if those are vectors.
    """
    return DecoderConfig(
        vocab_size=vocab_size,
        d_in=d_in,
        d_out=d_out,
        num_hidden_layers=2,
        num_attention_heads=4,
        hidden_size=64,
        intermediate_size=128,
        norm="layer",
        positions="learned",
        max_position_embeddings=positions,
    )


def least_squares_claim(name: str, sentence: str, paper: str) -> Claim:
    """Whether a model predicts what least squares predicts."""
    return Claim(
        name=name,
        sentence=sentence,
        source=f"{paper}; the threshold is ours",
        statistic=lambda results: last(likeness(results, "least squares")),
        about="share of the variance of its predictions that least squares explains",
        control=lambda results: last(likeness(results, "nearest neighbours")),
        control_about="the same for the mean of the nearest neighbours",
        direction="above",
        bound=ALIKE,
    )
