"""What heads do where a token has come before, in whatever sequences a model is used to."""

import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mesascope.activations import Capture
from mesascope.analyses.base import measure
from mesascope.analyses.heads.repeated_tokens import BAND, BY_CONTENT, LEAST_MASS
from mesascope.axes import label

Rows = Bool[Tensor, "batch query key"]


@measure(title="Where heads look when a token comes again", sites=["pattern"], steps="ends", order=44)
def repeats(recorded: Capture, draws: int = 10, seed: int = 0) -> xr.Dataset:
    """Attention to the places where the query's token came before (duplicate token) and to those after them
    (induction; Olsson et al. 2022), averaged over the queries whose token came before. Unlike `roles` it needs no
    sequences of its own, so what a head does in sequences that follow a rule is seen there. Null: the same attention
    at the places of another sequence, query by query, so that a head which looks as far back whatever stands there
    has the same score as its null. A head has a role where its score is above the null by 0.3 and by 4 standard
    deviations over draws.

    Args:
        recorded: a capture of tokens.
        draws: how many exchanges of sequences make the null.
        seed: of the exchanges.

    Raises:
        ValueError: the inputs are no tokens, there is one sequence alone, or no token ever comes again.
    """
    tokens, pattern = recorded.inputs, recorded["pattern"]
    if tokens.is_floating_point() or len(tokens) < 2:
        raise ValueError(f"repeats needs two sequences of tokens or more, but got {tuple(tokens.shape)} {tokens.dtype}")
    if len(recorded.queries) < tokens.shape[1]:
        raise ValueError("repeats needs the rows of all queries, but queries= picked some; leave it out")
    places = places_before(tokens)
    if not places["induction"].any():
        raise ValueError("repeats needs tokens that come again, but in these sequences none does")
    score = torch.stack([_mass(pattern, places[name]) for name in BY_CONTENT], -1)
    generator = torch.Generator().manual_seed(seed)
    other = [torch.randint(1, len(tokens), (1,), generator=generator).item() for _ in range(draws)]
    null = torch.stack(
        [torch.stack([_mass(pattern, places[name].roll(int(k), 0)) for name in BY_CONTENT], -1) for k in other]
    )
    bound = null.mean(0) + torch.clamp(BAND * null.std(0), min=LEAST_MASS)
    names = {"layer": list(recorded.layers), "stat": list(BY_CONTENT)}

    def table(values: Tensor, about: str, **attrs: str | int) -> xr.DataArray:
        return label(values, "layer", "head", "stat", units="1", about=about, coords=names).assign_attrs(**attrs)

    return xr.Dataset(
        {
            "score": table(score, "attention where the query's token came before", headline=1),
            "score_null": table(
                null.mean(0),
                "the same at the places of other sequences",
                control_of="score",
                control="places of other sequences",
            ),
            "score_bound": table(bound, "above which a head has the role"),
        }
    )


def places_before(tokens: Int[Tensor, "batch pos"]) -> dict[str, Rows]:
    """For each query, the earlier keys that hold its token (duplicate token), and those after them (induction).

    >>> places = places_before(torch.tensor([[5, 6, 7, 5]]))
    >>> places["duplicate token"][0, 3].tolist(), places["induction"][0, 3].tolist()
    ([True, False, False, False], [False, True, False, False])
    """
    length = tokens.shape[1]
    same = (tokens[:, :, None] == tokens[:, None]) & torch.ones(length, length, device=tokens.device).tril(-1).bool()
    after = torch.zeros_like(same)
    after[:, :, 1:] = same[:, :, :-1]
    itself = torch.eye(length, device=tokens.device).bool()
    return {"duplicate token": same, "induction": after & ~itself}


def _mass(pattern: Float[Tensor, "layer batch head query key"], places: Rows) -> Float[Tensor, "layer head"]:
    """The attention to these places, averaged over the queries that have any."""
    found = torch.einsum("lbhqk,bqk->lhbq", pattern.float(), places.float())
    counted = places.any(-1)
    return found[:, :, counted].double().mean(-1)
