"""Inner objectives: comparison of residual updates with the descent of a function of the representation.

With attention weights and values frozen at the forward pass, an objective is a scalar function of one token's
representation. For every layer and sublayer it is evaluated before and after the residual update, and the update is
compared with the negative gradient, which is computed by autograd.
"""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.activations import SUBLAYER_OUTPUTS, SUBLAYERS, LayerReduction, LayerView
from mesascope.analyses.base import Analysis
from mesascope.analyses.inner_objectives._objective import Objective
from mesascope.analyses.inner_objectives._summary import (
    per_token_quantities,
    result_name,
    summarize_quantities,
)
from mesascope.analyses.inner_objectives.sublayer import Sublayer
from mesascope.analyses.stream.norms import norms
from mesascope.argument_types import validate_arguments
from mesascope.statistics import evenly_spaced_indices

NUM_SHUFFLES = 2  # key orders of the control
SHUFFLE_SITES = {"pattern", "value"}  # sites from which the control is computed
PerToken = Float[Tensor, "batch query"]


def objective(
    *,
    title: str,
    description: str,
    sites: tuple[str, ...] = (),
    sublayers: tuple[str, ...] = SUBLAYERS,
    tautology: str = "",
    depends_on_order: bool = True,
    max_tokens: int | None = None,
) -> Callable[[Callable[[Tensor, Sublayer], Tensor]], Objective]:
    """Make an objective from a function of the representations (batch, query, d_model) and the frozen sublayer.

    The name of the function becomes the name of the objective. The function returns one number per token; autograd
    computes the gradient.

    Args:
        title: heading of its section on a page.
        description: its formula with its source; printed above its figures.
        sites: sites of the layer that it needs besides the residual stream and the residual updates.
        sublayers: the sublayers whose updates are compared with it.
        tautology: the reason why its descent is an identity, if it is.
        depends_on_order: whether its value depends on which key has which attention weight; if not, value and gradient
            are computed once for all key orders of the control.
        max_tokens: maximum number of tokens per sequence, evenly subsampled, for expensive objectives.

    Returns:
        a decorator.

    >>> @objective(title="Length", description="Half of the squared norm of the representation.")
    ... def length(z, sublayer):
    ...     return z.square().sum(-1) / 2
    >>> inner(length).name
    'inner_length'
    """

    def decorate(function: Callable[[Tensor, Sublayer], Tensor]) -> Objective:
        return Objective(
            name=function.__name__,
            description=" ".join(description.split()),
            title=title,
            compute_quantities=partial(compare_update_to_gradient, function, depends_on_order),
            value_fn=function,
            sites=sites,
            sublayers=sublayers,
            tautology=tautology,
            max_tokens=max_tokens,
        )

    return decorate


def compare_update_to_gradient(
    value_fn: Callable[[Tensor, Sublayer], Tensor], depends_on_order: bool, sublayer: Sublayer
) -> dict[str, Tensor]:
    """Evaluate an objective before and after an update, and compare the update with the negative gradient.

    Args:
        value_fn: the objective.
        depends_on_order: whether its value depends on which key has which attention weight.
        sublayer: the sublayer.

    Returns:
        ``before``, ``after``, and the quantities of :func:`compare_to_direction`, all (batch, query).
    """

    def compute_gradient() -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z = sublayer.x.detach().clone().requires_grad_()
            before = value_fn(z, sublayer)
            return before.detach(), torch.autograd.grad(before.sum(), z)[0]

    before, gradient = (
        compute_gradient() if depends_on_order else sublayer.compute_once(f"start of {value_fn!r}", compute_gradient)
    )
    with torch.no_grad():
        after = value_fn(sublayer.x + sublayer.u, sublayer)
    return {"before": before, "after": after, **compare_to_direction(-gradient, sublayer.u)}


def compare_to_direction(
    direction: Float[Tensor, "*rest d"], update: Float[Tensor, "*rest d"]
) -> dict[str, Float[Tensor, "*rest"]]:
    """Compare an update u with a direction d: cosine, best step size <d, u> / |d|², and the unexplained fraction.

    Args:
        direction: the direction d, such as the negative gradient.
        update: the residual update u.

    Returns:
        ``cosine``; ``step_size``; and ``unexplained``, the fraction of |u|² that remains after the best step.
    """
    direction, update = direction.double(), update.double()
    dot_product, squared_norm = (direction * update).sum(-1), direction.square().sum(-1)
    cosine = dot_product / (squared_norm.sqrt() * update.norm(dim=-1))
    return {"cosine": cosine, "step_size": dot_product / squared_norm, "unexplained": 1 - cosine.square()}


@validate_arguments
def inner(inner_objective: Objective, seed: int = 0) -> Analysis:
    """Make the analysis ``inner_<objective>``: an objective before and after every update, and the update's descent.

    Means are over the tokens of the capture's ``queries``. Attention sinks (the first token of a sequence, and every
    token whose norm exceeds ten medians) are averaged separately. Control: the attention weights assigned to the
    visible keys in a random order.

    Args:
        inner_objective: an objective of :mod:`mesascope.analyses.inner_objectives.objectives`, or your own.
        seed: seed of the key orders of the control.

    Returns:
        the analysis.
    """
    required_sites = {"resid_pre", "attn_out", *inner_objective.sites}
    optional = ("mlp_out",) if "mlp" in inner_objective.sublayers else ()
    has_shuffled_control = "attention" in inner_objective.sublayers and required_sites >= SHUFFLE_SITES
    result_axes = ("batch", "query", "sublayer", "stat")
    axes = {result_name(inner_objective, "real"): result_axes} | (
        {result_name(inner_objective, "shuffled"): (*result_axes, "draw")} if has_shuffled_control else {}
    )
    reduction = LayerReduction(
        sites=tuple(sorted(required_sites)),
        optional_sites=optional,
        fn=partial(_reduce_layer, inner_objective, has_shuffled_control, seed),
        axes=axes,
    )
    return Analysis(
        name=f"inner_{inner_objective.name}",
        title=f"Inner objective: {inner_objective.title}",
        description=inner_objective.description,
        compute=partial(summarize_quantities, inner_objective),
        sites=(),
        reductions={f"inner_{inner_objective.name}": reduction, **norms.reductions},
    )


def _reduce_layer(
    inner_objective: Objective, has_shuffled_control: bool, seed: int, view: LayerView
) -> dict[str, Tensor]:
    """Compute all quantities of one layer for every query; NaN at queries that the objective leaves out."""
    count, num_quantities = len(view.queries), len(per_token_quantities(inner_objective))
    token_indices = evenly_spaced_indices(count, inner_objective.max_tokens or count)
    view = view.select_queries(token_indices)
    missing = torch.full((len(view.inputs), count, num_quantities), torch.nan, dtype=torch.float64)
    names = [name for name in inner_objective.sublayers if SUBLAYER_OUTPUTS[name] in view]
    sublayers = {name: Sublayer(view=view, name=name) for name in names}

    def compute_rows(sublayer: Sublayer) -> Tensor:
        return missing.index_copy(1, token_indices, _stack_quantities(inner_objective, sublayer))

    observed = [compute_rows(sublayers[name]) if name in sublayers else missing for name in SUBLAYERS]
    results = {result_name(inner_objective, "real"): torch.stack(observed, dim=2)}
    if has_shuffled_control:
        shuffled = sublayers["attention"].with_shuffled_keys(NUM_SHUFFLES, seed)
        draws = torch.stack([compute_rows(each) for each in shuffled], -1)
        both = torch.stack([draws, missing[..., None].expand_as(draws)], dim=2)
        results[result_name(inner_objective, "shuffled")] = both
    return results


def _stack_quantities(inner_objective: Objective, sublayer: Sublayer) -> Float[Tensor, "batch query stat"]:
    quantities = inner_objective.compute_quantities(sublayer)
    return torch.stack(
        [quantities[name].detach().double().cpu() for name in per_token_quantities(inner_objective)], dim=-1
    )
