"""What every head is worth, sequence by sequence, beside a change of the same size that says nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mesascope.activations import Capture, Edit, Stem, capture
from mesascope.interventions.batched import POSITIONS, branched
from mesascope.interventions.edits import mean, resample
from mesascope.interventions.metrics import Metric
from mesascope.tasks.base import Batch

KINDS = ("mean", "resample")
LEVEL = 0.95
RESAMPLES = 1000

Turns = tuple[Int[Tensor, "batch d_model"], Float[Tensor, "batch d_model"]]


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadEffects:
    """How much a metric rises when the output of a head is replaced.

    Attributes:
        intact: the metric of each sequence, nothing being replaced.
        rise: its rise, by layer, head and kind (:data:`KINDS`).
        turned: its rise when a change as large as mean ablation's is added to the stream in a direction that says
            nothing, by layer and head.
    """

    intact: Float[Tensor, " batch"]
    rise: Float[Tensor, "layer head kind batch"]
    turned: Float[Tensor, "layer head batch"]


def head_effects(
    model: nn.Module, inputs: Tensor | Batch, metric: Metric, *, seed: int = 0, positions: int = POSITIONS
) -> HeadEffects:
    """What a metric does without each head: its output replaced by its mean over sequences at the same position
    (mean), or by what it is on another sequence (resample).

    Control: what replacing by the mean changes in the stream is turned at random before it is added (coordinates
    exchanged and signs drawn anew, differently for each sequence), so that the change is as large and says nothing. A
    head whose replacement costs no more than that is at a place where any disturbance costs.

    Args:
        model: any model that capture supports and in which heads write to the stream through a known map.
        inputs: tokens, vectors, or a batch of a task; two sequences or more.
        metric: one number for each sequence, such as :func:`mesascope.interventions.metrics.task_loss`.
        seed: of the exchange of sequences, and of the turns.
        positions: sequences times length of all edits that run as one.

    Raises:
        UnsupportedModel: no map from heads to the stream is known; ValueError: there is one sequence alone.

    >>> from mesascope.interventions.metrics import task_loss
    >>> from mesascope.ground_truth.models.vectors import planted
    >>> from mesascope.tasks.affine import Affine
    >>> batch = Affine().sample(16, torch.Generator().manual_seed(0))
    >>> found = head_effects(planted("previous"), batch, task_loss(Affine(), batch))
    >>> found.rise.shape, int(found.rise[0, :, 0].mean(-1).argmax())
    (torch.Size([1, 4, 2, 16]), 0)
    """
    recorded = capture(model, inputs, ["head_out"])
    kinds = (mean("head_out", recorded), resample("head_out", recorded, seed=seed))
    layers, heads = recorded["head_out"].shape[0], recorded["head_out"].shape[3]
    places = [(layer, head) for layer in recorded.layers for head in range(heads)]
    removed = [replace(kind, where={"layer": layer, "head": head}) for layer, head in places for kind in kinds]
    drawn = turns(len(recorded.inputs), recorded.frame.output_projection.shape[-1], seed)
    moved = [turned(recorded, layer, head, kinds[0], drawn) for layer, head in places]
    intact, rise = rises(model, inputs, removed, metric, positions)
    _, disturbed = rises(model, inputs, moved, metric, positions)
    return HeadEffects(
        intact=intact, rise=rise.reshape(layers, heads, len(kinds), -1), turned=disturbed.reshape(layers, heads, -1)
    )


def rises(
    model: nn.Module, inputs: Tensor | Batch, edits: Sequence[Edit], metric: Metric, positions: int = POSITIONS
) -> tuple[Float[Tensor, " batch"], Float[Tensor, "edit batch"]]:
    """The metric of each sequence, and its rise under each edit."""
    stem = Stem(model, inputs, edits[0].site)
    stem.check({edits[0].site: edits[0].layers(stem.layers)})
    intact = metric(stem.prediction)
    value, _ = branched(stem, edits, metric, positions=positions)
    return intact.cpu(), (value - intact).cpu()


def interval(values: Float[Tensor, "*place batch"], seed: int = 0) -> tuple[Float[Tensor, "*place"], ...]:
    """Both ends of the 95 % interval of the mean over sequences: percentiles of 1,000 bootstrap resamples.

    Args:
        values: one number for each sequence, last.
        seed: of the resamples; all places share them.

    >>> low, high = interval(torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]]))
    >>> low.tolist()[0], high.tolist()[0], bool(low[1] > 0)
    (0.0, 0.0, True)
    """
    count = values.shape[-1]
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    means = values.double() @ torch.from_numpy(drawn).double().T / count
    ends = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    low, high = means.quantile(ends, dim=-1)
    return low, high


def beyond(
    low: Float[Tensor, "*place"], high: Float[Tensor, "*place"], mean: Float[Tensor, "*place"], least: float
) -> Tensor:
    """Where an interval excludes 0 and the mean is at least so large."""
    return ((low > 0) | (high < 0)) & (mean.abs() >= least)


def turns(sequences: int, width: int, seed: int) -> Turns:
    """For each sequence an order of the stream's coordinates, and signs for them."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(sequences, width, generator=generator).argsort(1)
    return order, torch.randint(2, (sequences, width), generator=generator).float() * 2 - 1


def turned(recorded: Capture, layer: int, head: int, kind: Edit, drawn: Turns) -> Edit:
    """An edit that adds to what attention writes as much as replacing the head's output would change, turned."""
    assert kind.source is not None
    place = recorded.layers.index(layer)
    change = (kind.source[layer] - recorded["head_out"][place])[:, :, head]
    written = change @ recorded.frame.output_projection[place, head].to(change)
    order, sign = (one.to(written.device)[:, None] for one in drawn)
    away = written.gather(-1, order.expand_as(written)) * sign
    return Edit(site="attn_write", where={"layer": layer}, fn=torch.add, source={layer: away})
