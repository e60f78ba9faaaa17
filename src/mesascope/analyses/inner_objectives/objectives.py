"""The inner objectives that residual updates are compared with; the decorator `objective` makes others."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from mesascope.activations import UnsupportedModel
from mesascope.analyses.inner_objectives.measure import Objective, compare_to_direction, objective
from mesascope.analyses.inner_objectives.sublayer import Sublayer

MAX_FAST_WEIGHT_TOKENS = 4  # tokens per sequence at which fast weights are computed
MAX_SCALE_ERROR = 1e-3  # maximum relative error of the scores as a multiple of the products of queries and keys
Stream = Float[Tensor, "batch query d_model"]
PerToken = Float[Tensor, "batch query"]


@objective(
    title="linear",
    description=r"""Minus the dot product of the representation and the update, $L(z) = -\langle z, u \rangle$ (the
    dual form of attention). The update is minus its gradient for any weights, so its descent is an identity and no
    evidence. Its value before the update, divided by both norms (the opposition), can be evidence.""",
    sites=("pattern", "value"),
    tautology=r"$u = -\nabla L$ and $L(x + u) = L(x) - \lVert u \rVert^2$, always",
)
def _linear_objective(z: Stream, sublayer: Sublayer) -> PerToken:
    return -(z * sublayer.u.to(z.dtype)).sum(-1)


def _linear_with_opposition(sublayer: Sublayer) -> dict[str, Tensor]:
    """Compute the linear objective, and ``before`` divided by both norms."""
    return {
        **_linear_objective.compute_quantities(sublayer),
        "opposition": -compare_to_direction(sublayer.x, sublayer.u)["cosine"],
    }


linear = replace(
    _linear_objective,
    name="linear",
    compute_quantities=_linear_with_opposition,
    quantities=(*_linear_objective.quantities, "opposition"),
)


@objective(
    title="quadratic",
    description=r"""Half of the attention-weighted squared distances from the projected values of the keys: $L(z) =
    \tfrac12 \sum_h \sum_i a_{h,t,i} \lVert z - o_{h,i} \rVert^2$, where $o_{h,i}$ is the value of key $i$ mapped by
    the output projection of head $h$. Its gradient is $H z - u$, up to the bias, for $H$ heads whose weights sum to
    1. Its descent depends on norms only and is no evidence. What depends on directions is the alignment, $1 - L(x) /
    N(x)$, where $N(x) = \tfrac12 \sum_h \sum_i a_{h,t,i} (\lVert x \rVert^2 + \lVert o_{h,i} \rVert^2)$ is the mean
    of $L(x)$ over projected values of the same norms in random directions. It is 1 where the representation equals
    every attended value, 0 in the mean over random directions, and -1 at the opposite.""",
    sites=("pattern", "value"),
    sublayers=("attention",),
    tautology=r"$L(x + u) - L(x) = \tfrac{H}{2} (\lVert x + u \rVert^2 - \lVert x \rVert^2) - \lVert u \rVert^2$ up "
    "to the bias, a function of norms",
)
def _quadratic_objective(z: Stream, sublayer: Sublayer) -> PerToken:
    return _quadratic_norm_part(z, sublayer) - (z * _projected_mixes(sublayer)).sum(-1)


def _quadratic_norm_part(z: Stream, sublayer: Sublayer) -> PerToken:
    """Return the mean of the quadratic objective over the projected values and their opposites."""
    gram = torch.einsum("hdm,hem->hde", sublayer.output_projection, sublayer.output_projection)
    squared_norms = torch.einsum("bhkd,hde,bhke->bhk", sublayer.values, gram, sublayer.values)
    weighted_norms = torch.einsum("bhqk,bhk->bq", sublayer.pattern, squared_norms)
    return (sublayer.pattern.sum((1, 3)) * z.square().sum(-1) + weighted_norms) / 2


def _projected_mixes(sublayer: Sublayer) -> Stream:
    return torch.einsum("bhqd,hdm->bqm", sublayer.head_mixes, sublayer.output_projection)


def _quadratic_with_alignment(sublayer: Sublayer) -> dict[str, Tensor]:
    """Compute the quadratic objective, and the part of ``before`` that depends on directions."""
    aligned = (sublayer.x * _projected_mixes(sublayer)).sum(-1)
    return {
        **_quadratic_objective.compute_quantities(sublayer),
        "alignment": aligned / _quadratic_norm_part(sublayer.x, sublayer),
    }


quadratic = replace(
    _quadratic_objective,
    name="quadratic",
    compute_quantities=_quadratic_with_alignment,
    quantities=(*_quadratic_objective.quantities, "alignment"),
)


@objective(
    title="Hopfield energy",
    description=r"""The energy of a continuous Hopfield network (Ramsauer et al. 2021) without its norm term
    $\tfrac12 \lVert z \rVert^2$, relative to a query that weights all keys equally: $E(z) = -\tfrac{1}{\beta} \sum_h
    \log \operatorname{mean}_i \exp(\beta \langle q_h(z), k_{h,i} \rangle)$, over the $n$ keys that are visible to a
    token. $q_h$ is the layer's own query map, including its norm and rotary embedding, and $\beta$ is the scale of
    its scores. The published energy is $E(z) + \tfrac12 \lVert z \rVert^2 - \tfrac{H}{\beta} \log n$; its norm term
    outweighs the keys, so its descent says whether the norm of a token falls. Where the layer normalises its input,
    $E$ does not depend on the norm of $z$. The energy does not depend on the order of the keys; in the control the
    update does.""",
    sites=("pattern", "value", "key", "query", "attn_scores"),
    sublayers=("attention",),
    depends_on_order=False,
)
def hopfield(z: Stream, sublayer: Sublayer) -> PerToken:
    """Return the energy of a continuous Hopfield network without its norm term, 0 for a query of zeros."""
    beta = sublayer.compute_once("scale", lambda: _fit_score_scale(sublayer))
    products = torch.einsum("bhqd,bhkd->bhqk", sublayer.compute_query(z), sublayer.keys)
    scores = (beta * products).masked_fill(~sublayer.visible_keys[:, None], -torch.inf)
    log_visible = sublayer.visible_keys.sum(-1).to(scores.dtype).log()[:, None]
    return -(scores.logsumexp(-1) - log_visible).sum(1) / beta


@objective(
    title="readout",
    description="""The loss on the true next token if the model stopped here: the final norm and the unembedding
    applied to the representation (logit lens; nostalgebraist 2020).""",
    max_tokens=16,
)
def readout(z: Stream, sublayer: Sublayer) -> PerToken:
    """Return the cross-entropy of the logit lens on the true next token."""
    targets, is_scored = sublayer.next_token_targets()
    loss = functional.cross_entropy(
        sublayer.readout.compute_output(z).float().flatten(0, 1), targets.flatten(), reduction="none"
    )
    return torch.where(is_scored, loss.view(targets.shape), torch.nan * loss.detach().view(targets.shape))


def _compare_fast_weight_step(sublayer: Sublayer) -> dict[str, Tensor]:
    """Compare the first gradient step of the fast weight of every head with the head mixes."""
    # the loss is quadratic along the step, so its value at the best step size needs no further pass
    before, step_output, slope, curvature = sublayer.compute_once("fast weight", lambda: _first_gradient_step(sublayer))
    comparison = compare_to_direction(step_output, sublayer.head_mixes)
    after = before - comparison["step_size"] * slope + comparison["step_size"].square() * curvature / 2
    return {name: value.double().nanmean(1) for name, value in {"before": before, "after": after, **comparison}.items()}


def _first_gradient_step(sublayer: Sublayer) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the loss at W = 0, the output of the first step, and the slope and the curvature of the loss along it."""
    key, value, visible = sublayer.keys.float(), sublayer.values.float(), sublayer.visible_keys.float()

    def map_keys(weight: Float[Tensor, "batch head query d e"]) -> Float[Tensor, "batch head query key e"]:
        return torch.einsum("bhkd,bhqde->bhqke", key, weight)

    def loss(errors: Float[Tensor, "batch head query key e"]) -> Float[Tensor, "batch head query"]:
        return torch.einsum("bhqke,bqk->bhq", errors.square(), visible) / 2

    with torch.enable_grad():
        weight = key.new_zeros(*sublayer.head_mixes.shape[:3], key.shape[-1], value.shape[-1]).requires_grad_()
        before = loss(map_keys(weight) - value[:, :, None])
        (gradient,) = torch.autograd.grad(before.sum(), weight)
    step_output = torch.einsum("bhqd,bhqde->bhqe", sublayer.queries.float(), -gradient)
    return (
        before.detach().double(),
        step_output,
        gradient.double().square().sum((-1, -2)),
        2 * loss(map_keys(gradient)).double(),
    )


fast_weight = Objective(
    name="fast_weight",
    title="fast weight",
    description=(
        r"The error of a linear map from keys to values, $L(W) = \tfrac12 \sum_i \lVert W k_i - v_i \rVert^2$ over the "
        "keys that are visible to a token, for each head. One gradient step from $W = 0$, applied to the query, is "
        "linear attention (von Oswald et al. 2023; Irie et al. 2022). This step is compared with the mixed values of "
        "the head, and the loss is evaluated at the best step size. Means over heads, at a few tokens of each "
        "sequence."
    ),
    compute_quantities=_compare_fast_weight_step,
    sites=("pattern", "value", "key", "query"),
    sublayers=("attention",),
    max_tokens=MAX_FAST_WEIGHT_TOKENS,
)


def _compare_to_loss_gradient(sublayer: Sublayer) -> dict[str, Tensor]:
    """Compare the update, and the update half a sequence away, with the negative gradient of the loss."""
    count = sublayer.u.shape[1]
    shifted_cosine = compare_to_direction(-sublayer.loss_gradient, sublayer.u.roll(count // 2, dims=1))["cosine"]
    missing = torch.full_like(shifted_cosine, torch.nan)
    return {
        **compare_to_direction(-sublayer.loss_gradient, sublayer.u),
        "cosine_null_other_positions": shifted_cosine if count > 1 else missing,
    }


outer = Objective(
    name="outer",
    title="outer loss",
    description=(
        "The training loss: the update is compared with the negative gradient of the next-token loss, summed over "
        "positions, with respect to the representation that the sublayer reads. Control: the update of the position "
        "half a sequence away."
    ),
    compute_quantities=_compare_to_loss_gradient,
    quantities=("cosine", "step_size", "unexplained", "cosine_null_other_positions"),
    sites=("pattern", "value", "resid_pre_grad", "attn_out_grad"),
)

OBJECTIVES = (linear, quadratic, hopfield, fast_weight, outer, readout)


def _fit_score_scale(sublayer: Sublayer) -> float:
    """Fit the factor between attention scores and the products of queries and keys.

    Raises:
        UnsupportedModel: the scores are not a multiple of the products, for example because of position biases.
    """
    score, products = sublayer.view["attn_scores"], torch.einsum("bhqd,bhkd->bhqk", sublayer.queries, sublayer.keys)
    is_visible = score.isfinite()
    score, products = score[is_visible].double(), products[is_visible].double()
    beta = ((score * products).sum() / products.square().sum()).item()
    relative_error = ((score - beta * products).norm() / score.norm()).item()
    if not relative_error <= MAX_SCALE_ERROR:
        raise UnsupportedModel(
            f"hopfield needs attention scores that are a multiple of the products of queries and keys, but in layer "
            f"{sublayer.view.layer} their relative error is {relative_error:.1e}; leave it out"
        )
    return beta
