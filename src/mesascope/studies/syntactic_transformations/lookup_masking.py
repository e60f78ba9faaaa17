"""Effect of look-up heads: their attention to the rules is masked, and that of other heads for comparison."""

from collections.abc import Mapping

import torch
import xarray as xr
from jaxtyping import Bool
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.analyses.base import analysis
from mesascope.analyses.nulls import Null, with_null
from mesascope.axes import to_data_array
from mesascope.models.encoder_decoder.model import EncoderDecoder
from mesascope.statistics import split_halves
from mesascope.studies.syntactic_transformations.exact_match import (
    find_slots,
    match_outputs,
    sample_seen_pairs,
    validate_model_and_task,
)
from mesascope.studies.syntactic_transformations.head_masks import draw_head_sets, list_encoder_heads, match_masked
from mesascope.studies.syntactic_transformations.rule_lookup import Head, find_lookup_heads
from mesascope.tasks.base import Batch, Task
from mesascope.tasks.syntax.transformations import SyntacticTransformations

OTHER_HEADS, OTHER_LABELS = "other heads", "look-up heads of other labels"
UNDEFINED = float("nan")


@analysis(
    title="Masking of look-up heads",
    description="""
        Loss of exact match when attention to the rules, and to them only, is masked in the look-up heads of any label.
        Control: as many heads of the encoder that are not look-up heads of any label, mean over sets of heads; with
        random heads among all, as in the paper, many sets would contain a look-up head of a small model. By label: the
        look-up heads of one label are masked, in sentences that have a word and a rule of this label; control: as many
        look-up heads of other labels that are none of this one; mean over labels that have such heads. Look-up heads
        are found in one half of the sentences, and masked in the other half; pairs of labels and functions are seen in
        training. A loss is not defined if there are no
        look-up heads, or fewer heads to compare with.
    """,
    input="model",
    steps="last",
)
def lookup_masking(
    model: PreTrainedModel, task: Task, batch: Batch, draws: int = 20, seed: int = 0, sequences: int = 1024
) -> xr.Dataset:
    """Compute the loss of exact match when the prefix is hidden from look-up heads.

    Args:
        model: an `EncoderDecoder`.
        task: `SyntacticTransformations`.
        batch: its sequences; they seed sequences with pairs that are seen in training.
        draws: maximum number of sets of other heads.
        seed: of their draw.
        sequences: maximum number of sequences.

    Returns:
        ``exact_match`` of the intact model; ``lost`` and ``label_lost``, each with its null; and ``heads``, the number
        of look-up heads of any label.

    Raises:
        UnsupportedModel: the model is of another type.
        ValueError: the task is another one.
    """
    model, task = validate_model_and_task(model, task)
    batch = sample_seen_pairs(task, batch[:sequences])
    finding, masking = (batch[half] for half in split_halves(len(batch)))
    by_label = find_lookup_heads(model, task, finding)
    heads = sorted({head for found in by_label.values() for head in found})
    intact = match_outputs(model, masking)
    others = [head for head in list_encoder_heads(model) if head not in heads]
    sets = draw_head_sets(others, len(heads), draws, seed)
    lost = measure_loss(model, task, masking, intact, [heads] if heads else [])
    lost_null = measure_loss(model, task, masking, intact, sets if heads else [])
    label_lost, label_null = _measure_labels(model, task, masking, intact, by_label, draws, seed)

    def label(value: float, description: str, units: str = "1") -> xr.DataArray:
        return to_data_array(value, units=units, description=description)

    about = "loss of exact match when attention of look-up heads to the rules is masked"
    about_label = f"{about}, by label of the rule, mean over labels"
    return xr.Dataset(
        {
            "exact_match": label(float(intact.double().mean()), "exact match of the intact model"),
            **with_null(
                "lost",
                label(lost, about).assign_attrs(headline=1),
                Null(name=OTHER_HEADS, value=label(lost_null, f"the same for {OTHER_HEADS}")),
            ),
            **with_null(
                "label_lost",
                label(label_lost, about_label),
                Null(name=OTHER_LABELS, value=label(label_null, f"the same for {OTHER_LABELS}")),
            ),
            "heads": label(len(heads), "number of look-up heads of any label", "heads"),
        }
    )


def measure_loss(
    model: EncoderDecoder,
    task: SyntacticTransformations,
    batch: Batch,
    intact: Bool[Tensor, " batch"],
    head_sets: list[list[Head]] | list[tuple[Head, ...]],
    prefix: Tensor | None = None,
) -> float:
    """Return the mean loss of exact match when the prefix is hidden from sets of heads; NaN if there is no set.

    Args:
        model: the model.
        task: its task.
        batch: its sequences.
        intact: whether the outputs of the intact model are right.
        head_sets: sets of heads of the encoder.
        prefix: vectors that take the place of the rules.
    """
    if not head_sets:
        return UNDEFINED
    masked = match_masked(model, batch, head_sets, task.max_rules, prefix)
    return float(intact.double().mean() - masked.double().mean())


def _measure_labels(
    model: EncoderDecoder,
    task: SyntacticTransformations,
    batch: Batch,
    intact: Bool[Tensor, " batch"],
    by_label: Mapping[str, tuple[Head, ...]],
    draws: int,
    seed: int,
) -> tuple[float, float]:
    """Return the mean over labels of the loss by masking their own look-up heads, and by masking those of others."""
    slots, label = find_slots(task, batch), batch.latents["label"][:, : task.source_length]
    losses = []
    for index, heads in enumerate(by_label.values()):
        other = sorted({head for found in by_label.values() for head in found} - set(heads))
        sets = draw_head_sets(other, len(heads), draws, seed) if heads else []
        rows = ((label == index) & (slots >= 0)).any(1).nonzero()[:, 0]
        if not sets or not len(rows):
            continue
        chosen, right = select_rows(batch, rows), intact[rows.cpu()]
        losses.append([measure_loss(model, task, chosen, right, one) for one in ([heads], sets)])
    if not losses:
        return UNDEFINED, UNDEFINED
    own, others = torch.tensor(losses, dtype=torch.float64).mean(0).tolist()
    return own, others


def select_rows(batch: Batch, rows: Tensor) -> Batch:
    """Return some sequences of a batch.

    Args:
        batch: the sequences.
        rows: their indices.
    """
    return Batch(
        inputs=batch.inputs[rows],
        targets=batch.targets[rows],
        weight=batch.weight[rows],
        latents={name: value[rows] for name, value in batch.latents.items()},
    )
