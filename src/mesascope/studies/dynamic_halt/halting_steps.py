"""The number of steps that a model with halting takes: on average, and by the nesting depth of expressions."""

import torch
import xarray as xr
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.analyses.base import analysis
from mesascope.axes import to_data_array
from mesascope.statistics import normalized_ranks
from mesascope.studies.dynamic_halt.answers import CHUNK
from mesascope.tasks.base import Batch, Task

DEPTH, DEPTH_AT_LENGTH = "depth", "depth at equal length"
TAKEN, EXPECTED = "steps taken", "expected steps"
Steps = Float[Tensor, " batch"]


@analysis(
    title="Steps until halting",
    description="""
        Steps taken: the number of steps after which the state of a position has not changed any more, averaged over the
        positions of a sequence that are not padding. It is what the forward pass costs. Expected steps: the mean number
        of steps under the weights with which states are averaged, which the penalty in training lowers. For
        expressions: both by the number of nested lists or operators, and their rank correlation (Spearman) with this
        depth over sequences; and the same as a partial rank correlation, given the length of the expression, since deep
        expressions are long. An untrained model takes all steps, and its expected steps depend on the tokens.
    """,
    input="model",
    steps="ends",
)
def halting_steps(model: PreTrainedModel, task: Task, batch: Batch) -> xr.Dataset:
    """Compute how many steps a model takes.

    Args:
        model: a recurrent transformer with halting.
        task: its task.
        batch: sequences of the task.

    Returns:
        ``mean_steps`` by statistic; for tasks with the latent ``depth``, also ``steps_by_depth`` by statistic and depth
        (NaN where no sequence has it), and ``depth_correlation`` by statistic, with depth and with depth at equal
        length.

    Raises:
        ValueError: the model has no halting.
    """
    taken, expected = count_halting_steps(model, batch)
    values = torch.stack([taken, expected])
    coords = {"stat": [TAKEN, EXPECTED]}
    about = "number of steps, mean over sequences"
    results = {"mean_steps": to_data_array(values.mean(1), "stat", units="steps", description=about, coords=coords)}
    if "depth" not in batch.latents:
        return xr.Dataset(results)
    depth, length = batch.latents["depth"].cpu(), find_real_positions(model, batch).sum(1).cpu()
    depths = torch.arange(int(depth.min()), int(depth.max()) + 1)
    has_depth = (depth == depths[:, None]).double()
    results["steps_by_depth"] = to_data_array(
        values @ has_depth.T / has_depth.sum(1),
        "stat",
        "_depth",
        units="steps",
        description="number of steps by nesting depth, mean over sequences",
        coords=coords | {"_depth": depths.tolist()},
    ).assign_attrs(view="curves")
    correlations = [[rank_correlation(x, depth), partial_rank_correlation(x, depth, length)] for x in values]
    results["depth_correlation"] = to_data_array(
        correlations,
        "stat",
        "_correlated_with",
        units="1",
        description="rank correlation of the number of steps with the nesting depth",
        coords=coords | {"_correlated_with": [DEPTH, DEPTH_AT_LENGTH]},
    ).assign_attrs(center=0)
    return xr.Dataset(results)


def find_real_positions(model: PreTrainedModel, batch: Batch) -> Bool[Tensor, "batch pos"]:
    """Return a mask that is False where a sequence is padded.

    Args:
        model: its configuration says which token is padding.
        batch: the sequences.
    """
    padding = model.config.pad_token_id
    return torch.ones_like(batch.inputs, dtype=torch.bool) if padding is None else batch.inputs != padding


@torch.no_grad()
def count_halting_steps(model: PreTrainedModel, batch: Batch) -> tuple[Steps, Steps]:
    """Return the number of steps taken and the expected one, averaged over the positions of each sequence.

    Args:
        model: a recurrent transformer with halting.
        batch: the sequences.

    Returns:
        steps taken, and expected steps.

    Raises:
        ValueError: the model has no halting.
    """
    if getattr(model.config, "halt", "none") == "none":
        raise ValueError(
            "steps are counted in a model with halting, but this one has none; set halt to token or global"
        )
    counts = []
    for start in range(0, len(batch), CHUNK):
        chunk = batch[start : start + CHUNK]
        output, num_real = model(chunk.inputs), find_real_positions(model, chunk).sum(1)
        counts.append(
            [steps.sum(1).double().cpu() / num_real.cpu() for steps in (output.num_steps, output.expected_steps)]
        )
    taken, expected = (torch.cat(parts) for parts in zip(*counts, strict=True))
    return taken, expected


def rank_correlation(x: Shaped[Tensor, " batch"], y: Shaped[Tensor, " batch"]) -> float:
    """Return Spearman's rank correlation; 0 if one side is constant.

    Args:
        x, y: one number per sequence.

    >>> rank_correlation(torch.tensor([1, 2, 3]), torch.tensor([1.0, 4.0, 9.0]))
    1.0
    """
    return round(float(normalized_ranks(x.double()) @ normalized_ranks(y.double())), 12)


def partial_rank_correlation(
    x: Shaped[Tensor, " batch"], y: Shaped[Tensor, " batch"], given: Shaped[Tensor, " batch"]
) -> float:
    """Return the rank correlation of two quantities after the ranks of a third are regressed out of both.

    Args:
        x, y: one number per sequence.
        given: the third quantity.

    Returns:
        (r_xy - r_xz r_yz) / sqrt((1 - r_xz^2) (1 - r_yz^2)); 0 if the third quantity determines x or y.
    """
    xy, xz, yz = rank_correlation(x, y), rank_correlation(x, given), rank_correlation(y, given)
    unexplained = (1 - xz**2) * (1 - yz**2)
    return (xy - xz * yz) / unexplained**0.5 if unexplained > 0 else 0.0
