"""Ablation effect of every head per sequence, with a norm-matched random perturbation as control."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mesascope.activations import BatchedEdits, Capture, Edit, InputsLike, capture
from mesascope.argument_types import validate_arguments
from mesascope.interventions._batched import MAX_BATCH_POSITIONS, run_batched_edits
from mesascope.interventions.edits import mean, resample
from mesascope.interventions.metrics import Metric
from mesascope.interventions.run_inputs import prepare_run
from mesascope.statistics import MIN_LOSS

ABLATION_KINDS = ("mean", "resample")
ROUNDING = 1e-12  # of a loss in double precision, relative

SignedPermutations = tuple[Int[Tensor, "batch d_model"], Float[Tensor, "batch d_model"]]


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadAblationEffects:
    """Increase of a metric when heads are ablated.

    Attributes:
        intact: the metric of each sequence without an edit.
        effect: increase of the metric, by layer, head and kind of ablation (`ABLATION_KINDS`).
        perturbation_effect: increase under a random perturbation of ``attn_out`` with the norm of the change by mean
            ablation, by layer and head.
    """

    intact: Float[Tensor, " batch"]
    effect: Float[Tensor, "layer head kind batch"]
    perturbation_effect: Float[Tensor, "layer head batch"]


@validate_arguments
def head_ablation_effects(
    model: nn.Module,
    inputs: InputsLike,
    metric: Metric,
    *,
    attention_mask: Any = None,
    seed: int = 0,
    max_positions: int = MAX_BATCH_POSITIONS,
) -> HeadAblationEffects:
    """Measure the effect of ablating each head: mean ablation and resample ablation of its ``z``.

    Control: a norm-matched random perturbation. The change of ``attn_out`` by mean ablation is randomised before it is
    added: its coordinates are permuted and their signs redrawn, differently for each sequence. Its norm is the same,
    but it carries no information. If ablating a head has no larger effect, any perturbation there has that effect.

    With padding, means are over the sequences that have an input in the column, and each sequence is resampled from
    those with the same padding (`mesascope.interventions.mean`, `mesascope.interventions.resample`).

    Args:
        model: any model that `capture` supports and whose output projections are known.
        inputs: tokens, vectors, a batch of a task, or the output of a tokenizer with its attention mask;
            two sequences or more, with padding two or more of each length.
        metric: one number per sequence, such as `mesascope.interventions.metrics.task_loss`.
        attention_mask: (batch, pos), 1 where an input is not padding.
        seed: seed of the resampling and of the perturbations.
        max_positions: maximum of sequences times length over all edits that run as one batch.

    Returns:
        The metric without an edit, and its increase under each edit.

    Raises:
        UnsupportedModel: If a layer has no linear output projection.
        ValueError: If there is one sequence, or with padding one of some length, or the metric would take padding for
            inputs.

    >>> from mesascope.interventions.metrics import task_loss
    >>> from mesascope.ground_truth.models.vectors import build_planted_model
    >>> from mesascope.tasks.affine import Affine
    >>> batch = Affine().sample(16, torch.Generator().manual_seed(0))
    >>> found = head_ablation_effects(build_planted_model("previous"), batch, task_loss(Affine(), batch))
    >>> found.effect.shape, int(found.effect[0, :, 0].mean(-1).argmax())
    (torch.Size([1, 4, 2, 16]), 0)
    """
    run = prepare_run(model, inputs, attention_mask)
    activations = capture(model, run.inputs, ["z"], attention_mask=run.mask).unrolled()
    ablations = (mean("z", activations), resample("z", activations, seed=seed))
    layers, heads = activations["z"].shape[0], activations["z"].shape[3]
    head_indices = [(layer, head) for layer in activations.layers for head in range(heads)]
    ablation_edits = [
        replace(kind, where={"layer": layer, "head": head}) for layer, head in head_indices for kind in ablations
    ]
    permutations = draw_signed_permutations(
        len(activations.inputs), activations.readout.output_projection.shape[-1], seed
    )
    perturbation_edits = [
        build_perturbation_edit(activations, layer, head, ablations[0], permutations) for layer, head in head_indices
    ]
    intact, effect = measure_edit_effects(model, run.inputs, ablation_edits, metric, max_positions, run.mask)
    _, perturbation_effect = measure_edit_effects(
        model, run.inputs, perturbation_edits, metric, max_positions, run.mask
    )
    return HeadAblationEffects(
        intact=intact,
        effect=effect.reshape(layers, heads, len(ablations), -1),
        perturbation_effect=perturbation_effect.reshape(layers, heads, -1),
    )


def measure_edit_effects(
    model: nn.Module,
    inputs: InputsLike,
    edits: Sequence[Edit],
    metric: Metric,
    max_positions: int = MAX_BATCH_POSITIONS,
    attention_mask: Any = None,
) -> tuple[Float[Tensor, " batch"], Float[Tensor, "edit batch"]]:
    """Measure the increase of a metric under each of several edits.

    Args:
        model: any model that `capture` supports.
        inputs: tokens, vectors, a batch of a task, or the output of a tokenizer with its attention mask.
        edits: edits of one site.
        metric: one number per sequence.
        max_positions: maximum of sequences times length over all edits that run as one batch.
        attention_mask: (batch, pos), 1 where an input is not padding; an edit leaves padding as it is.

    Returns:
        The metric of each sequence without an edit, and its increase under each edit.

    Raises:
        UnsupportedModel: If the output for one sequence depends on the other sequences in the batch.
        ValueError: If the metric or the source of an edit does not fit the padding.
    """
    edit_runner = BatchedEdits(model, inputs, edits[0].site, attention_mask=attention_mask)
    if edit_runner.attention_mask is not None:
        for edit in edits:
            edit_runner.validate_edit(edit)
    edit_runner.validate_sites({edits[0].site: edits[0].edited_layers(edit_runner.num_layers)})
    intact = metric(edit_runner.unedited_output, edit_runner.attention_mask)
    value, _ = run_batched_edits(edit_runner, edits, metric, max_positions=max_positions)
    return intact.cpu(), (value - intact).cpu()


def log_factor(intact: Float[Tensor, " batch"], increase: Float[Tensor, "*edit batch"]) -> Float[Tensor, "*edit batch"]:
    """Return log10 of the factor by which an edit multiplies the loss of each sequence.

    The mean of these logarithms over sequences is not decided by a few sequences with a large loss, as the ratio of the
    mean losses is.

    Args:
        intact: loss of each sequence without an edit, 0 or more.
        increase: increase of the loss under each edit.

    Returns:
        log10 of the edited over the intact loss. Losses below `mesascope.statistics.MIN_LOSS` count as
        that much.

    Raises:
        ValueError: If a loss is negative.

    >>> log_factor(torch.tensor([1.0, 2.0]), torch.tensor([[9.0, 0.0]])).tolist()
    [[1.0, 0.0]]
    """
    intact = intact.double()
    edited = intact + increase.double()
    if (intact < 0).any() or (edited < -ROUNDING * intact).any():
        raise ValueError("a factor of the loss needs losses of 0 or more, but one is negative; pass a loss as metric")
    return edited.clamp_min(MIN_LOSS).log10() - intact.clamp_min(MIN_LOSS).log10()


def mask_significant(
    low: Float[Tensor, "*place"], high: Float[Tensor, "*place"], mean: Float[Tensor, "*place"], min_effect: float
) -> Tensor:
    """Return a mask of the entries whose interval excludes 0 and whose mean is large enough.

    Args:
        low: lower end of the interval.
        high: upper end of the interval.
        mean: mean of the effect.
        min_effect: minimum of ``abs(mean)``.

    Returns:
        True where the effect is significant.
    """
    return ((low > 0) | (high < 0)) & (mean.abs() >= min_effect)


def draw_signed_permutations(num_sequences: int, d_model: int, seed: int) -> SignedPermutations:
    """Draw a random signed permutation of the coordinates of the residual stream for each sequence.

    Args:
        num_sequences: number of sequences.
        d_model: number of coordinates.
        seed: seed of the permutations and signs.

    Returns:
        The permutations and the signs.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(num_sequences, d_model, generator=generator).argsort(1)
    return order, torch.randint(2, (num_sequences, d_model), generator=generator).float() * 2 - 1


def build_perturbation_edit(
    activations: Capture, layer: int, head: int, ablation: Edit, permutations: SignedPermutations
) -> Edit:
    """Build an edit that perturbs ``attn_out`` by a signed permutation of the change that an ablation makes.

    Args:
        activations: run that recorded ``z``.
        layer: index of the layer.
        head: index of the head.
        ablation: edit that replaces ``z``.
        permutations: permutation and signs for each sequence.

    Returns:
        An edit of ``attn_out`` whose change has the norm of the change by the ablation.
    """
    assert ablation.source is not None
    layer_index = activations.layers.index(layer)
    change = (ablation.source[layer] - activations["z"][layer_index])[:, :, head]
    attn_out_change = change @ activations.readout.output_projection[layer_index, head].to(change)
    order, sign = (one.to(attn_out_change.device)[:, None] for one in permutations)
    perturbation = attn_out_change.gather(-1, order.expand_as(attn_out_change)) * sign
    return Edit(site="attn_out", where={"layer": layer}, fn=torch.add, source={layer: perturbation})
