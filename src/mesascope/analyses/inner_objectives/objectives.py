"""The inner objectives: what a layer may be said to descend. Each is a few lines; `objective` makes one of yours."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from mesascope.activations import UnsupportedModel
from mesascope.analyses.inner_objectives.measure import Objective, against, objective
from mesascope.analyses.inner_objectives.sublayer import Sublayer

FEW = 4  # tokens of a sequence at which fast weights are written out
FIT = 1e-3  # how far scores may be from a multiple of the products of queries and keys
Stream = Float[Tensor, "batch query d_model"]
PerToken = Float[Tensor, "batch query"]


@objective(title="linear", sites=("pattern", "value"), tautology="u = -grad L and L(x + u) = L(x) - |u|^2, always")
def _linear(z: Stream, at: Sublayer) -> PerToken:
    """Minus the product of the representation and the update: L(z) = -<z, u> (the dual form of attention). The update
    is minus its gradient whatever the weights, so its descent is an identity and evidence of nothing; what may be
    evidence is its value before the update, and that in proportion to both lengths (the opposition).
    """
    return -(z * at.u.to(z.dtype)).sum(-1)


def _with_opposition(at: Sublayer) -> dict[str, Tensor]:
    """The linear objective, and its value before the update in proportion to both lengths."""
    return {**_linear.read(at), "opposition": -against(at.x, at.u)["cosine"]}


linear = replace(_linear, name="linear", read=_with_opposition, quantities=(*_linear.quantities, "opposition"))


@objective(title="quadratic", sites=("pattern", "value"), sublayers=("attention",))
def quadratic(z: Stream, at: Sublayer) -> PerToken:
    """Half of the attention-weighted squared distances from what the heads offer: L(z) = 1/2 sum_h sum_i a[h,t,i]
    |z - o[h,i]|^2, with o[h,i] the value of key i through the output map of head h. Its gradient is H z - u, for H
    heads whose weights sum to 1, bias apart.
    """
    offered = torch.einsum("bhqd,hdm->bqm", at.mixed, at.projection)
    gram = torch.einsum("hdm,hem->hde", at.projection, at.projection)
    lengths = torch.einsum("bhkd,hde,bhke->bhk", at.values, gram, at.values)
    weighted = torch.einsum("bhqk,bhk->bq", at.pattern, lengths)
    return (at.pattern.sum((1, 3)) * z.square().sum(-1) - 2 * (z * offered).sum(-1) + weighted) / 2


@objective(
    title="Hopfield energy",
    sites=("pattern", "value", "key", "query", "score"),
    sublayers=("attention",),
    ordered=False,
)
def hopfield(z: Stream, at: Sublayer) -> PerToken:
    """The energy of a continuous Hopfield network (Ramsauer et al. 2021): E(z) = -(1/beta) sum_h logsumexp_i(beta
    <q_h(z), k[h,i]>) + 1/2 |z|^2. q_h is the layer's own query map, norm and rotary positions included, and beta the
    scale of its scores. It does not depend on the order of the keys; in the control the update does.
    """
    beta = at.once("scale", lambda: _scale(at))
    products = torch.einsum("bhqd,bhkd->bhqk", at.query(z), at.keys)
    scores = (beta * products).masked_fill(~at.visible[:, None], -torch.inf)
    return z.square().sum(-1) / 2 - scores.logsumexp(-1).sum(1) / beta


@objective(title="read-out", most=16)
def readout(z: Stream, at: Sublayer) -> PerToken:
    """The loss on the true next token if the model stopped here: its own final norm and output map applied to the
    representation (the logit lens; nostalgebraist 2020).
    """
    targets, known = at.next_token()
    loss = functional.cross_entropy(at.frame.readout(z).float().flatten(0, 1), targets.flatten(), reduction="none")
    return torch.where(known, loss.view(targets.shape), torch.nan * loss.detach().view(targets.shape))


def _fast_weight(at: Sublayer) -> dict[str, Tensor]:
    """The first gradient step of every head's fast weight, held against what the head mixes.

    Along the step the loss is a parabola, so its value at the best step needs no further pass.
    """
    before, seen, slope, bend = at.once("fast weight", lambda: _first_step(at))
    found = against(seen, at.mixed)
    after = before - found["step_size"] * slope + found["step_size"].square() * bend / 2
    return {name: value.double().nanmean(1) for name, value in {"before": before, "after": after, **found}.items()}


def _first_step(at: Sublayer) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss at W = 0, the step from there as the query sees it, the loss's slope along it and how it bends."""
    key, value, visible = at.keys.float(), at.values.float(), at.visible.float()

    def mapped(weight: Float[Tensor, "batch head query d e"]) -> Float[Tensor, "batch head query key e"]:
        return torch.einsum("bhkd,bhqde->bhqke", key, weight)

    def loss(misses: Float[Tensor, "batch head query key e"]) -> Float[Tensor, "batch head query"]:
        return torch.einsum("bhqke,bqk->bhq", misses.square(), visible) / 2

    with torch.enable_grad():
        weight = key.new_zeros(*at.mixed.shape[:3], key.shape[-1], value.shape[-1]).requires_grad_()
        before = loss(mapped(weight) - value[:, :, None])
        (gradient,) = torch.autograd.grad(before.sum(), weight)
    seen = torch.einsum("bhqd,bhqde->bhqe", at.queries.float(), -gradient)
    return before.detach().double(), seen, gradient.double().square().sum((-1, -2)), 2 * loss(mapped(gradient)).double()


fast_weight = Objective(
    name="fast_weight",
    title="fast weight",
    about=(
        "How well a linear map would send keys to values: L(W) = 1/2 sum_i |W k_i - v_i|^2 over the keys that a token "
        "sees, for each head. One gradient step from W = 0, applied to the query, is linear attention (von Oswald et "
        "al. 2023; Irie et al. 2022); it is held against what the head really mixes, and the loss is read at the step "
        "size that fits that best. Means over heads, at a few tokens of each sequence."
    ),
    read=_fast_weight,
    sites=("pattern", "value", "key", "query"),
    sublayers=("attention",),
    most=FEW,
)


def _outer(at: Sublayer) -> dict[str, Tensor]:
    """The update against minus the gradient of the loss; and that of the position half the sequence away."""
    count = at.u.shape[1]
    elsewhere = against(-at.gradient, at.u.roll(count // 2, dims=1))["cosine"]
    absent = torch.full_like(elsewhere, torch.nan)
    return {**against(-at.gradient, at.u), "cosine_elsewhere": elsewhere if count > 1 else absent}


outer = Objective(
    name="outer",
    title="outer loss",
    about=(
        "Whether an update moves the token down the loss that training minimises: the update against minus the "
        "gradient of the next-token loss, summed over positions, by the representation that the sublayer reads."
    ),
    read=_outer,
    quantities=("cosine", "step_size", "unexplained", "cosine_elsewhere"),
    sites=("pattern", "value", "resid_pre_grad", "attn_write_grad"),
)

OBJECTIVES = (linear, quadratic, hopfield, fast_weight, outer, readout)


def _scale(at: Sublayer) -> float:
    """By what the layer multiplies the products of queries and keys.

    Raises:
        UnsupportedModel: its scores are more than that, as with position biases.
    """
    score, products = at.view["score"], torch.einsum("bhqd,bhkd->bhqk", at.queries, at.keys)
    seen = score.isfinite()
    score, products = score[seen].double(), products[seen].double()
    beta = ((score * products).sum() / products.square().sum()).item()
    miss = ((score - beta * products).norm() / score.norm()).item()
    if not miss <= FIT:
        raise UnsupportedModel(
            f"hopfield needs scores that are a multiple of the products of queries and keys, but in layer "
            f"{at.view.layer} they miss it by {miss:.1e}; leave it out"
        )
    return beta
