"""Causes beside roles: what every head is worth, and what it is called, in one table."""

import numpy as np
import xarray as xr
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.analyses import Measure, copying, measure_all, position, similarity, token_copying, token_similarity
from mesascope.analyses.heads.labels import role_names
from mesascope.analyses.heads.natural_induction import places_before, repeats
from mesascope.analyses.heads.token_similarity import FIRST
from mesascope.analyses.instrument import instrument
from mesascope.axes import label
from mesascope.interventions.head_effects import KINDS, beyond, head_effects, interval
from mesascope.interventions.metrics import task_loss
from mesascope.tasks.base import Batch, Task

LEAST_SHARE = 0.01  # ours: of the intact loss; a smaller change is no effect, however sure


@instrument(title="Causes beside roles", steps="ends", order=49)
def causes(
    model: PreTrainedModel, task: Task, batch: Batch, first: int = 0, seed: int = 0, sequences: int = 256
) -> xr.Dataset:
    """What every head is worth beside what it is called. Effect: how much the loss rises when the head's output is
    replaced by its mean over sequences at the same position (mean), or by what it is on another sequence (resample).
    A head has an effect where, for one of the two, the 95 % interval over sequences (bootstrap) excludes 0 and the
    change is at least a hundredth of the intact loss, either way. Roles are those that the other instruments found:
    similarity and copying, where the head looks (its largest share, 0.3 or more), and for tokens what it does when one
    comes again. A role without an effect is a correlation and is marked "no effect"; a head with an effect that no
    instrument has a name for is marked "no role". Control: the change that replacing by the mean makes in the
    stream, turned at random before it is added, which is as large and says nothing; where that costs as much, any
    disturbance does.

    Args:
        model: a model that capture supports.
        task: whose loss is meant.
        batch: two sequences or more; the loss is the mean over their positions from ``first`` on.
        first: positions before this one are left out.
        seed: of the exchange of sequences, of the turns and of the bootstrap.
        sequences: at most so many of the batch are used.
    """
    batch = batch[:sequences]
    found = effects(model, task, batch, first, seed)
    role = role_names(measure_all(model, batch, named_by(batch)))
    mark = label(
        marks(role.values, found["caused"].any("stat").values),
        "layer",
        "head",
        units="text",
        about="the roles of each head, and whether it has an effect",
    )
    return found.assign(role=role, mark=mark)


def effects(model: PreTrainedModel, task: Task, batch: Batch, first: int = 0, seed: int = 0) -> xr.Dataset:
    """What every head is worth, how sure that is, and what as large a change costs that says nothing.

    Args:
        model, task, batch, first, seed: as of :data:`causes`.

    Returns:
        ``effect`` with ``low``, ``high`` and ``caused`` by layer, head and kind of ablation; ``effect_turned`` by layer
        and head; and the intact ``loss``.

    Raises:
        UnsupportedModel: no map from heads to the stream is known.
        ValueError: there is one sequence alone, or no position from ``first`` on.

    >>> import torch
    >>> from mesascope.ground_truth.models.vectors import planted
    >>> from mesascope.tasks.affine import Affine
    >>> batch = Affine().sample(32, torch.Generator().manual_seed(0))
    >>> effects(planted("copying"), Affine(), batch)["caused"].any("stat").values.tolist()
    [[True, False, False, False]]
    """
    found = head_effects(model, batch, task_loss(task, batch, first), seed=seed)
    intact, effect = float(found.intact.mean()), found.rise.mean(-1)
    low, high = interval(found.rise, seed)
    caused = beyond(low, high, effect, LEAST_SHARE * abs(intact))
    unit, control = "units of the loss", "as large a change, turned at random"

    def table(values: Tensor, about: str, units: str = unit, **attrs: str | int) -> xr.DataArray:
        axes, coords = (("stat",), {"stat": list(KINDS)}) if values.ndim == 3 else ((), {})
        return label(values, "layer", "head", *axes, units=units, about=about, coords=coords).assign_attrs(**attrs)

    return xr.Dataset(
        {
            "effect": table(effect, "rise of the loss without this head", view="causes", headline=1, center=0),
            "effect_turned": table(
                found.turned.mean(-1), f"rise of the loss by {control}", control_of="effect", control=control
            ),
            "low": table(low, "lower end of the effect's 95 % interval over sequences"),
            "high": table(high, "upper end of the effect's 95 % interval over sequences"),
            "caused": table(caused.int(), "1 where the interval excludes 0 and the size is a hundredth or more", "1"),
            "loss": label(intact, units=unit, about="loss of the intact model"),
        }
    )


def named_by(batch: Batch) -> list[Measure]:
    """The instruments that name the heads of a model of these sequences: of vectors, or of tokens."""
    if batch.inputs.is_floating_point():
        return [similarity, position, *([copying] if batch.inputs.shape == batch.targets.shape else [])]
    again = places_before(batch.inputs)["induction"].any()
    long = batch.inputs.shape[1] > FIRST
    return [position, token_copying, *([token_similarity] if long else []), *([repeats] if again else [])]


def marks(roles: np.ndarray, caused: np.ndarray) -> list[list[str]]:
    """What stands in the cells of the map: roles as they are where they have an effect, and said so where not.

    >>> marks(np.array([["copying", "copying", "", ""]]), np.array([[True, False, True, False]]))
    [['copying', 'copying, no effect', 'no role', 'neither']]
    """
    words = {(True, True): "{}", (True, False): "{}, no effect", (False, True): "no role", (False, False): "neither"}
    return [
        [words[bool(role), bool(effect)].format(role) for role, effect in zip(*row, strict=True)]
        for row in zip(roles.tolist(), caused.tolist(), strict=True)
    ]
