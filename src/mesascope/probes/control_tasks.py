"""Control tasks of probes: labels that a probe can learn only by memorising the type of a token."""

import torch
from jaxtyping import Int
from torch import Tensor

from mesascope.argument_types import validate_arguments

MAX_DRAWS = 1_000


@validate_arguments
def draw_control_labels(
    types: Int[Tensor, " row"], labels: Int[Tensor, " row"], generator: torch.Generator
) -> Int[Tensor, " row"]:
    """Draw a random label for every token type from the distribution of the labels (Hewitt & Liang 2019).

    Draws in which all rows have one label are repeated.

    Args:
        types: token type of every row.
        labels: labels of the task.
        generator: source of the labels.

    Returns:
        The label of every row, which is a function of its type.

    Raises:
        ValueError: there is one type, or one label.

    >>> types, labels = torch.tensor([4, 7, 4, 7]), torch.tensor([0, 1, 1, 0])
    >>> control = draw_control_labels(types, labels, torch.Generator().manual_seed(0))
    >>> bool(control[0] == control[2] != control[1])
    True
    """
    if types.shape != labels.shape:
        raise ValueError(f"types must be one for each of {len(labels)} labels, but there are {len(types)}")
    present, number = types.unique(return_inverse=True)
    if len(present) < 2 or len(labels.unique()) < 2:
        raise ValueError(
            f"a control task needs two token types and two labels or more, but got {len(present)} types and "
            f"{len(labels.unique())} labels; choose other positions, or pass types that vary"
        )
    for _ in range(MAX_DRAWS):
        drawn = labels[torch.randint(len(labels), (len(present),), generator=generator)]
        if (drawn != drawn[0]).any():
            return drawn[number]
    raise ValueError(
        f"a control task needs two labels, but {MAX_DRAWS} draws had one, since nearly all rows have the same label; "
        "balance the classes"
    )
