"""Head scores on repeated random tokens: previous-token, induction and duplicate-token heads, and sinks."""

import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mesascope.activations import Capture, LayerReduction, LayerView
from mesascope.analyses.base import analysis
from mesascope.analyses.heads.role_counts import MIN_ATTENTION, with_role_counts
from mesascope.analyses.heads.role_scores import (
    FIRST_QUERY,
    ROLES,
    sample_random_overlap,
    sample_role_nulls,
    score_roles,
)
from mesascope.analyses.nulls import NUM_UNTRAINED_DRAWS, Null, null_band, with_null
from mesascope.analyses.sequence_losses import loss_per_position
from mesascope.argument_types import validate_arguments
from mesascope.axes import to_data_array

MIN_OVERLAP = 0.9  # ours: minimum overlap with uniform attention of a head that averages
MIN_LENGTH = 4  # tokens: with fewer, the position after the earlier occurrence is also the position before the query

CONTENT_ROLES = ("induction", "duplicate token")


@validate_arguments
def sample_repeated_tokens(
    allowed: Int[Tensor, " token"],
    length: int,
    count: int,
    generator: torch.Generator,
    bos: int | None = None,
    num_controls: int | None = None,
) -> Int[Tensor, "batch pos"]:
    """Sample sequences of random tokens that are repeated once (Olsson et al. 2022), and controls without repetition.

    No token is drawn twice for a sequence, so that every token has at most one earlier occurrence.

    Args:
        allowed: tokens to draw from, without special tokens.
        length: number of tokens before the repetition; sequences have twice as many.
        count: number of sequences with repetition; they come first.
        generator: source of the draws.
        bos: token prepended to every sequence, for models that were trained with one.
        num_controls: number of sequences without repetition; ``count`` by default.

    Returns:
        tokens, the sequences with repetition before the others.

    Raises:
        ValueError: there are too few tokens to draw from, or the length is too short to separate the scores.

    >>> tokens = sample_repeated_tokens(torch.arange(20), 4, 1, torch.Generator().manual_seed(0), bos=99)
    >>> tokens.shape, tokens[0, 1:5].equal(tokens[0, 5:])
    (torch.Size([2, 9]), True)
    """
    if length < MIN_LENGTH or count < 1:
        raise ValueError(f"length must be {MIN_LENGTH} or more and count 1 or more, but got {length} and {count}")
    num_controls = count if num_controls is None else num_controls
    distinct = allowed.unique()
    if len(distinct) < 2 * length:
        raise ValueError(
            f"there must be {2 * length} different tokens to draw from, but got {len(distinct)}; reduce length"
        )
    order = torch.stack([torch.randperm(len(distinct), generator=generator) for _ in range(count + num_controls)])
    drawn = distinct[order[:, : 2 * length]]
    drawn[:count, length:] = drawn[:count, :length]
    return drawn if bos is None else torch.cat([torch.full_like(drawn[:, :1], bos), drawn], dim=1)


def _reduce_roles(view: LayerView) -> dict[str, Tensor]:
    pattern, visible = view["pattern"], view.visible_keys.any(1, keepdim=True)
    num_visible = visible.sum(-1)[:, 0].expand(len(pattern), -1)
    if int(num_visible[:, FIRST_QUERY:].min()) == 0:
        raise ValueError(f"repeated_token_heads needs a visible key for each query, but layer {view.layer} hides all")
    return {
        "role_scores": score_roles(pattern, visible),
        "role_nulls": sample_role_nulls(pattern, visible),
        "num_visible": num_visible,
    }


@analysis(
    title="Head roles on repeated tokens",
    description=f"""
        Attention of each head in sequences of random tokens that are repeated once (Olsson et al. 2022): to the
        previous token, to the first token, to the query itself, to the earlier occurrence of the query's token
        (duplicate token) and to the token after it (induction); and the overlap with uniform attention. A head has a
        role where its score is above a threshold, which is the larger of a minimum ({MIN_ATTENTION} of the attention,
        {MIN_OVERLAP} of the overlap) and the mean of a null plus 4 standard deviations. The null of an attention
        score shuffles the keys of each row, that of the overlap draws rows uniformly from all rows that sum to 1. For
        induction and duplicate tokens the minimum is added to the attention to the same positions in sequences without
        repetition, because an effect of content must vanish there. The loss is that of tokens at their first
        occurrence, of the same tokens at their repetition, and at the same positions without repetition.
    """,
    sites=["output"],
    reductions={
        "roles": LayerReduction(
            sites=("pattern",),
            fn=_reduce_roles,
            axes={
                "role_scores": ("batch", "head", "stat"),
                "role_nulls": ("batch", "head", "stat", "draw"),
                "num_visible": ("batch", "query"),
            },
        ),
    },
    untrained_draws=NUM_UNTRAINED_DRAWS,
)
def repeated_token_heads(acts: Capture) -> xr.Dataset:
    """Compute head scores and roles on repeated random tokens, with shuffled keys and no repetition as nulls.

    Args:
        acts: a capture of sequences of :func:`sample_repeated_tokens`.

    Returns:
        ``score`` by layer, head and statistic (:data:`ROLES`), ``score_null``, ``score_null_no_repetition`` and
        ``score_threshold``; ``role`` by layer and head, as text; ``role_count`` by layer and role; ``loss_first``,
        ``loss_again`` and ``loss_again_null``, in nats.

    Raises:
        ValueError: the inputs are vectors, or sequences other than those of :func:`sample_repeated_tokens`.
    """
    has_repetition = _find_repetition(acts.inputs)
    scores = acts["role_scores"].double()
    score, without_repetition = scores[:, has_repetition].mean(1), scores[:, ~has_repetition].mean(1)
    null, edge = _null_and_upper_edge(
        acts["role_nulls"][:, has_repetition].double().mean(1), acts["num_visible"][:, has_repetition][:, 0]
    )
    threshold = torch.maximum(edge, _minimum_scores(without_repetition))
    layers = {"layer": list(acts.layers)}
    stats = layers | {"stat": list(ROLES)}

    def label_scores(values: Tensor, about: str) -> xr.DataArray:
        return to_data_array(values, "layer", "head", "stat", units="1", description=about, coords=stats)

    nulls = (
        Null(name="keys shuffled", value=label_scores(null, "the same score with the keys of each row shuffled")),
        Null(
            name="no repetition",
            value=label_scores(without_repetition, "the same score in sequences without repetition"),
        ),
    )
    roles, about = _name_roles(score > threshold), "the roles of each head"
    found = xr.Dataset(
        {
            **with_null("score", label_scores(score, "attention where tokens repeat").assign_attrs(headline=1), *nulls),
            "score_threshold": label_scores(threshold, "score above which a head has the role"),
            "role": to_data_array(roles, "layer", "head", units="text", description=about, coords=layers),
            **_mean_losses(acts, has_repetition),
        }
    )
    return with_role_counts("repeated_token_heads", found)


def _find_repetition(inputs: Tensor) -> Bool[Tensor, " batch"]:
    # mask of the sequences with repetition; all others must have none
    if inputs.is_floating_point():
        raise ValueError(
            "repeated_token_heads needs tokens, but the inputs are vectors; use positional_attention and similarity"
        )
    half = inputs.shape[1] // 2
    first, second = inputs[:, -2 * half : -half], inputs[:, -half:]
    same_halves = (first == second).all(-1)
    num_distinct = [len(row.unique()) for row in inputs[:, -2 * half :]]
    once = torch.tensor(num_distinct, device=inputs.device) == 2 * half
    twice = same_halves & (torch.tensor(num_distinct, device=inputs.device) == half)
    if half < MIN_LENGTH or not (once | twice).all() or not once.any() or not twice.any():
        raise ValueError(
            f"repeated_token_heads needs sequences of {MIN_LENGTH} or more different tokens that are repeated once, "
            f"and sequences without repetition, but got {int(twice.sum())} and {int(once.sum())} of {len(inputs)}; "
            "make them with sample_repeated_tokens"
        )
    return twice


def _null_and_upper_edge(
    shuffled: Float[Tensor, "layer head 2 draw"], num_visible: Int[Tensor, "layer query"]
) -> tuple[Float[Tensor, "layer head stat"], Float[Tensor, "layer head stat"]]:
    # mean of each score's null, and upper edge of its band
    anywhere, late = shuffled.unbind(2)
    by_count = {
        counts: sample_random_overlap(torch.tensor(counts)) for counts in {tuple(one.tolist()) for one in num_visible}
    }
    overlap = torch.stack([by_count[tuple(one.tolist())] for one in num_visible]).to(shuffled)[:, None].expand_as(late)
    by_stat = {name: late if name in CONTENT_ROLES else anywhere for name in ROLES} | {"uniform": overlap}
    draws = torch.stack([by_stat[name] for name in ROLES], dim=2)
    return draws.mean(-1), null_band(draws.movedim(-1, 0))[1]


def _minimum_scores(without_repetition: Float[Tensor, "layer head stat"]) -> Float[Tensor, "layer head stat"]:
    # minimum score; roles that depend on content must exceed their score without repetition by it
    minimum = torch.tensor([MIN_OVERLAP if name == "uniform" else MIN_ATTENTION for name in ROLES])
    content = torch.tensor([name in CONTENT_ROLES for name in ROLES])
    return minimum.to(without_repetition) + without_repetition * content.to(without_repetition)


def _name_roles(has_role: Bool[Tensor, "layer head stat"]) -> list[list[str]]:
    return [[", ".join(n for n, yes in zip(ROLES, head, strict=True) if yes) for head in layer] for layer in has_role]


def _mean_losses(acts: Capture, has_repetition: Bool[Tensor, " batch"]) -> dict[str, xr.DataArray]:
    tokens, prediction = acts.inputs, acts["output"]
    loss = torch.cat(
        [loss_per_position(prediction[n : n + 1, :-1].float(), tokens[n : n + 1, 1:]) for n in range(len(tokens))]
    )
    half = tokens.shape[1] // 2
    second, first = loss[:, 1 - half :], loss[:, 1 - 2 * half : -half]

    def label_mean(loss: Float[Tensor, "batch pos"], about: str) -> xr.DataArray:
        return to_data_array(loss.mean(), units="nat", description=about)

    without_repetition = label_mean(second[~has_repetition], "mean loss at the same positions without repetition")
    repeated = label_mean(second[has_repetition], "mean loss on the same tokens at their repetition")
    return {
        "loss_first": label_mean(first[has_repetition], "mean loss on tokens at their first occurrence"),
        **with_null("loss_again", repeated, Null(name="no repetition", value=without_repetition)),
    }
