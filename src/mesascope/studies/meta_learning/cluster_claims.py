"""Claims about clusters: representations of tokens with the same label, over depth and training."""

import xarray as xr

from mesascope.studies.base import Claim, Quantity, Results, select_last_step, select_untrained
from mesascope.studies.meta_learning.citation import COMPANION
from mesascope.studies.meta_learning.representation_claims import PAPER

EXCESS_F1 = "pairwise F1 of k-means with {}, minus that with permuted labels,"
GENERATOR_SOURCE = (
    f"{PAPER}, figure 1; by task, of which a generator is our form: {COMPANION.short} ({COMPANION.venue})"
)
F1_MARGIN = 0.05  # ours, fixed after a run of 3 seeds: a twentieth of the range of F1


def cluster_claims() -> tuple[Claim, ...]:
    """Return the claims on figure 1: representations cluster by generator, and by next token.

    Clusters by next token are a check, since a model whose loss is low must separate next tokens after its last layer.
    """
    return (_generator_training_claim(), _generator_layer_claim(), _next_token_check())


def _generator_training_claim() -> Claim:
    return Claim(
        name="clusters by generator: training",
        statement="Training makes representations cluster more by generator.",
        source=GENERATOR_SOURCE,
        value=_trained_excess("generator"),
        control=_untrained_excess("generator"),
        direction="above",
        margin=F1_MARGIN,
        by_paper=True,
    )


def _generator_layer_claim() -> Claim:
    return Claim(
        name="clusters by generator: layers",
        statement="Representations cluster by generator more after the last layer than at the embedding.",
        source=GENERATOR_SOURCE,
        value=Quantity(
            description=f"{EXCESS_F1.format('generator')} after the last layer",
            read=lambda results: select_last_step(_compute_excess_f1(results, "generator")).isel(layer=-1, drop=True),
        ),
        control=Quantity(
            description="the same difference at the embedding",
            read=lambda results: select_last_step(_compute_excess_f1(results, "generator")).isel(layer=0, drop=True),
        ),
        direction="above",
        margin=F1_MARGIN,
        by_paper=True,
    )


def _next_token_check() -> Claim:
    return Claim(
        name="clusters by next token: training",
        statement="Training makes representations cluster more by next token.",
        source=f"{PAPER}, figure 1; follows from a low loss",
        value=_trained_excess("next token"),
        control=_untrained_excess("next token"),
        direction="above",
        kind="check",
    )


def _trained_excess(label: str) -> Quantity:
    return Quantity(
        description=f"{EXCESS_F1.format(label)} maximum over layers",
        read=lambda results: _max_over_layers(select_last_step(_compute_excess_f1(results, label))),
    )


def _untrained_excess(label: str) -> Quantity:
    return Quantity(
        description="the same difference in the untrained model",
        read=lambda results: _max_over_layers(select_untrained(_compute_excess_f1(results, label))),
    )


def _compute_excess_f1(results: Results, label: str) -> xr.DataArray:
    """Subtract the value with permuted labels, since F1 is high for any large cluster."""
    scores = results["clusters"].sel(stat=label, drop=True)
    return scores["pairwise_f1"] - scores["pairwise_f1_null"].mean("draw")


def _max_over_layers(values: xr.DataArray) -> xr.DataArray:
    return values.isel(layer=slice(1, None)).max("layer")  # without the embedding
