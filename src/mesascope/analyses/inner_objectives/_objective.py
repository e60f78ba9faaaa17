"""Objective: a function of the representation that residual updates may descend."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from mesascope.activations import SUBLAYERS
from mesascope.analyses.inner_objectives.sublayer import Sublayer


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A function of the representation that residual updates may descend.

    Attributes:
        name: the name of the objective; its results are called ``inner_<name>``.
        title: heading of its section on a page.
        description: its formula with its source; printed above its figures.
        compute_quantities: function from a sublayer to one number per token (batch, query) for each of its quantities,
            except ``descends``, which follows from ``before`` and ``after``.
        value_fn: the objective as a function of the representation and the sublayer, if it is one.
        quantities: names from `QUANTITIES` in `mesascope.analyses.inner_objectives._summary`.
        sites: sites of the layer that it needs besides the residual stream and the residual updates.
        sublayers: the sublayers whose updates are compared with it.
        tautology: the reason why its descent is an identity or a function of norms, if it is; such results are marked
            and support no claim.
        max_tokens: maximum number of tokens per sequence, evenly subsampled; ``None`` for all.
    """

    name: str
    title: str
    description: str
    compute_quantities: Callable[[Sublayer], Mapping[str, Tensor]]
    value_fn: Callable[[Tensor, Sublayer], Tensor] | None = None
    quantities: tuple[str, ...] = ("before", "after", "descends", "cosine", "step_size", "unexplained")
    sites: tuple[str, ...] = ()
    sublayers: tuple[str, ...] = SUBLAYERS
    tautology: str = ""
    max_tokens: int | None = None
