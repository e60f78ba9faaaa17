"""Look-up heads: heads of the encoder with which words attend to the rule for their label."""

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations import capture
from mesascope.analyses import lookup_heads
from mesascope.analyses.base import analysis
from mesascope.analyses.heads.encoder_decoder.lookup import MIN_LOOKUPS, MIN_WEIGHT
from mesascope.analyses.nulls import Null, with_null
from mesascope.axes import to_data_array
from mesascope.models.encoder_decoder.model import EncoderDecoder
from mesascope.studies.syntactic_transformations.exact_match import (
    find_slots,
    sample_seen_pairs,
    validate_model_and_task,
)
from mesascope.tasks.base import Batch, Task
from mesascope.tasks.syntax.transformations import SyntacticTransformations

OTHER_WORDS = "words of other labels"
Head = tuple[int, int]  # layer and head


@analysis(
    title="Look-up heads for rules",
    description=f"""
        Fraction of the words with a rule for their label with which a head of the encoder attends to this rule: it has
        the largest attention weight of the query, {MIN_WEIGHT} or more (Lindemann, Koller & Titov 2024). Null: the
        slots of every sentence are exchanged at random. By label: the same among words of one label; null: the fraction
        of words of other labels that attend to the rule for this label, since the rule for the first label, if there is
        one, is always the first. Pairs of labels and functions are seen in training. Role by label: 1 for a fraction of
        {MIN_LOOKUPS} or more that is above its null.
    """,
    input="model",
    steps="ends",
)
def rule_lookup(model: PreTrainedModel, task: Task, batch: Batch, seed: int = 0, sequences: int = 512) -> xr.Dataset:
    """Compute how often words attend to the rule for their label, by head of the encoder.

    Args:
        model: an `EncoderDecoder`.
        task: `SyntacticTransformations`.
        batch: its sequences; they seed sequences with pairs that are seen in training.
        seed: of the exchange of slots.
        sequences: maximum number of sequences.

    Returns:
        ``score`` and ``role`` by layer and head, as of `lookup_heads`, with the null of ``score``; and
        ``label_score`` and ``label_role`` by layer, head and label, with the null of ``label_score``.

    Raises:
        UnsupportedModel: the model is of another type.
        ValueError: the task is another one.
    """
    model, task = validate_model_and_task(model, task)
    return score_lookup(model, task, sample_seen_pairs(task, batch[:sequences]), seed)


def score_lookup(model: EncoderDecoder, task: SyntacticTransformations, batch: Batch, seed: int = 0) -> xr.Dataset:
    """Compute how often words of given sequences attend to the rule for their label.

    Args:
        model: the model.
        task: its task.
        batch: the sequences.
        seed: of the exchange of slots.

    Returns:
        the variables of `rule_lookup`.
    """
    encoder = capture(model, batch, ["encoder.pattern"]).encoder
    slots = find_slots(task, batch)
    overall = lookup_heads(encoder, slots, seed=seed)
    weight, attended = encoder["pattern"].max(-1)
    own, other = _score_labels(task, batch, torch.where(weight >= MIN_WEIGHT, attended, -1))
    role = ((own >= MIN_LOOKUPS) & (own > other)).int()
    names = list(task.labels.names)
    coords = {"layer": list(encoder.layers), "_label": names}

    def label(values: Tensor, about: str) -> xr.DataArray:
        return to_data_array(values, "layer", "head", "_label", units="1", description=about, coords=coords)

    null = Null(name=OTHER_WORDS, value=label(other, f"fraction of {OTHER_WORDS} that attend to the rule for a label"))
    by_label = {
        **with_null("label_score", label(own, "fraction of the words of a label that attend to its rule"), null),
        "label_role": label(role, "1: look-up head of a label").assign_attrs(categorical=1),
    }
    return xr.Dataset({**overall.data_vars, **by_label})


def find_lookup_heads(
    model: EncoderDecoder, task: SyntacticTransformations, batch: Batch
) -> dict[str, tuple[Head, ...]]:
    """Return the look-up heads of every label.

    Args:
        model: the model.
        task: its task.
        batch: sequences of the task.

    Returns:
        layers and heads, by the name of the label.
    """
    role = score_lookup(model, task, batch)["label_role"]
    return {
        name: tuple((int(layer), int(head)) for layer, head in np.argwhere(role.sel(_label=name).values))
        for name in task.labels.names
    }


def _score_labels(
    task: SyntacticTransformations, batch: Batch, attended: Int[Tensor, "layer batch head query"]
) -> tuple[Float[Tensor, "layer head label"], Float[Tensor, "layer head label"]]:
    """Return the fraction of words of each label, and of other labels, that attend to the rule for the label."""
    label = batch.latents["label"][:, : task.source_length]
    rule_label = batch.latents["rule label"][:, : task.max_rules]
    scores = []
    for index in range(len(task.labels.names)):
        is_rule = rule_label == index
        slot = torch.where(is_rule.any(1), is_rule.int().argmax(1), -1)[:, None]
        looks_up = (attended == slot[:, None]).double().transpose(1, 2)  # layer, head, batch, query
        is_own = (label == index) & (slot >= 0)
        is_other = (label >= 0) & (label != index) & (slot >= 0)
        scores.append(torch.stack([looks_up[:, :, words].mean(-1) for words in (is_own, is_other)]))
    own, other = torch.stack(scores, -1)
    return own, other
