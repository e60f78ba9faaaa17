"""Induction and duplicate-token scores on ordinary sequences, where tokens recur naturally."""

import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mesascope.activations import Capture
from mesascope.analyses.base import analysis
from mesascope.analyses.heads.repeated_tokens import CONTENT_ROLES
from mesascope.analyses.heads.role_counts import MIN_ATTENTION, with_role_counts
from mesascope.analyses.nulls import NULL_BAND_WIDTH, NUM_UNTRAINED_DRAWS, Null, with_null
from mesascope.axes import to_data_array

Rows = Bool[Tensor, "batch query key"]


@analysis(
    title="Induction on natural sequences",
    description=f"""
        Attention to earlier occurrences of the query's token (duplicate token) and to the tokens after them (induction;
        Olsson et al. 2022), averaged over the queries whose token has occurred before. Unlike repeated_token_heads it
        needs no sequences of random tokens, and so also shows what heads do in sequences that follow a rule. Null: the
        attention to the corresponding positions of another sequence, query by query; a head that attends to a fixed
        distance for all tokens has the same score as its null. A head has a role where its score exceeds the
        null by {MIN_ATTENTION} and by {NULL_BAND_WIDTH:g} standard deviations over draws.
    """,
    sites=["pattern"],
    steps="ends",
    untrained_draws=NUM_UNTRAINED_DRAWS,
)
def natural_induction(acts: Capture, draws: int = 10, seed: int = 0) -> xr.Dataset:
    """Compute induction and duplicate-token scores of every head on ordinary sequences of tokens.

    Args:
        acts: a capture of tokens, with ``pattern``.
        draws: number of exchanges of sequences that the null is averaged over.
        seed: seed of the exchanges.

    Returns:
        ``score`` by layer, head and statistic (``induction``, ``duplicate token``), ``score_null``,
        ``score_threshold`` above which a head has the role, and ``role_count`` by layer and role.

    Raises:
        ValueError: the inputs are vectors, there is one sequence, or no token recurs.
    """
    tokens, pattern = acts.inputs, acts["pattern"]
    if tokens.is_floating_point() or len(tokens) < 2:
        raise ValueError(
            f"natural_induction needs two sequences of tokens or more, but got {tuple(tokens.shape)} {tokens.dtype}"
        )
    if len(acts.queries) < tokens.shape[1]:
        raise ValueError("natural_induction needs all queries, but queries= selected some; omit queries=")
    occurrences = earlier_occurrences(tokens)
    if not occurrences["induction"].any():
        raise ValueError("natural_induction needs tokens that recur, but none does in these sequences; capture others")
    score = torch.stack([_attention_to_keys(pattern, occurrences[name]) for name in CONTENT_ROLES], -1)
    generator = torch.Generator().manual_seed(seed)
    shifts = [torch.randint(1, len(tokens), (1,), generator=generator).item() for _ in range(draws)]
    null = torch.stack(
        [
            torch.stack([_attention_to_keys(pattern, occurrences[name].roll(int(k), 0)) for name in CONTENT_ROLES], -1)
            for k in shifts
        ]
    )
    threshold = null.mean(0) + torch.clamp(NULL_BAND_WIDTH * null.std(0), min=MIN_ATTENTION)
    names = {"layer": list(acts.layers), "stat": list(CONTENT_ROLES)}

    def label_scores(values: Tensor, about: str) -> xr.DataArray:
        return to_data_array(values, "layer", "head", "stat", units="1", description=about, coords=names)

    control = label_scores(null.mean(0), "the same attention at the positions of another sequence")
    found = xr.Dataset(
        {
            **with_null(
                "score",
                label_scores(score, "attention to, and after, earlier occurrences of the query's token").assign_attrs(
                    headline=1
                ),
                Null(name="positions of other sequences", value=control),
            ),
            "score_threshold": label_scores(threshold, "score above which a head has the role"),
        }
    )
    return with_role_counts("natural_induction", found)


def earlier_occurrences(tokens: Int[Tensor, "batch pos"]) -> dict[str, Rows]:
    """Return masks of the earlier keys with the query's token, and of the keys after them.

    Args:
        tokens: token ids.

    Returns:
        ``duplicate token``, the earlier keys that hold the query's token, and ``induction``, the keys after those.

    >>> keys = earlier_occurrences(torch.tensor([[5, 6, 7, 5]]))
    >>> keys["duplicate token"][0, 3].tolist(), keys["induction"][0, 3].tolist()
    ([True, False, False, False], [False, True, False, False])
    """
    length = tokens.shape[1]
    same_token = (tokens[:, :, None] == tokens[:, None]) & torch.ones(length, length, device=tokens.device).tril(
        -1
    ).bool()
    after = torch.zeros_like(same_token)
    after[:, :, 1:] = same_token[:, :, :-1]
    itself = torch.eye(length, device=tokens.device).bool()
    return {"duplicate token": same_token, "induction": after & ~itself}


def _attention_to_keys(pattern: Float[Tensor, "layer batch head query key"], keys: Rows) -> Float[Tensor, "layer head"]:
    attention = torch.einsum("lbhqk,bqk->lhbq", pattern.float(), keys.float())
    has_keys = keys.any(-1)
    return attention[:, :, has_keys].double().mean(-1)
