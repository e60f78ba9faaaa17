"""What heads do on random tokens that come twice: previous-token, induction, duplicate-token heads and sinks."""

import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mesascope.activations import Capture, Reduction
from mesascope.analyses.base import measure
from mesascope.analyses.loss import per_position
from mesascope.axes import label

BAND = 4.0  # a score must be so many standard deviations of the draws above their mean
DRAWS = 20
LEAST_MASS = 0.3  # ours: share of the attention that a place must have, whatever the band says
LEAST_OVERLAP = 0.9  # ours: a head that shares nine tenths of its attention with the uniform one averages
FEWEST = 4  # tokens: with fewer, the place after the previous occurrence is also the place before the query
FIRST_QUERY = 2  # before it previous, first and self are one place, and all heads look alike

ROLES = {
    "previous token": "attention to the position before the query",
    "first token": "attention to the first position",
    "self": "attention to the query's own position",
    "induction": "attention to the position after the query's token came before, second half",
    "duplicate token": "attention to the position where the query's token came before, second half",
    "uniform": "share in common with uniform attention: one minus the total variation distance",
}
BY_CONTENT = ("induction", "duplicate token")


def repeated_tokens(
    allowed: Int[Tensor, " token"],
    length: int,
    count: int,
    generator: torch.Generator,
    bos: int | None = None,
    plain: int | None = None,
) -> Int[Tensor, "batch pos"]:
    """Random tokens that come twice (Olsson et al. 2022), and as a control sequences in which nothing comes twice.

    No token is drawn twice, so that it is never in doubt where a token came before.

    Args:
        allowed: the tokens to draw from: none that are special.
        length: tokens before the repetition; sequences have twice as many.
        count: sequences that repeat; they come first.
        generator: of the draws.
        bos: a token put before every sequence, for models that are used to one.
        plain: sequences that do not repeat; as many by default.

    Raises:
        ValueError: too few tokens to draw from, or a length too short to tell places apart.

    >>> tokens = repeated_tokens(torch.arange(20), 4, 1, torch.Generator().manual_seed(0), bos=99)
    >>> tokens.shape, tokens[0, 1:5].equal(tokens[0, 5:])
    (torch.Size([2, 9]), True)
    """
    if length < FEWEST or count < 1:
        raise ValueError(f"length must be {FEWEST} or more and count 1 or more, but got {length} and {count}")
    plain = count if plain is None else plain
    unlike = allowed.unique()
    if len(unlike) < 2 * length:
        raise ValueError(f"there must be {2 * length} different tokens to draw from, but got {len(unlike)}")
    order = torch.stack([torch.randperm(len(unlike), generator=generator) for _ in range(count + plain)])
    drawn = unlike[order[:, : 2 * length]]
    drawn[:count, length:] = drawn[:count, :length]
    return drawn if bos is None else torch.cat([torch.full_like(drawn[:, :1], bos), drawn], dim=1)


def role_scores(pattern: Float[Tensor, "batch head query key"]) -> Float[Tensor, "batch head stat"]:
    """The scores of :data:`ROLES`, averaged over the queries where they are defined.

    Args:
        pattern: one layer's, of sequences such as `repeated_tokens` gives; an odd length means a first extra token.
    """
    late, length = _second_half(pattern.shape[-1])
    query = torch.arange(FIRST_QUERY, pattern.shape[-1])
    places = [
        (query, query - 1),
        (query, torch.zeros_like(query)),
        (query, query),
        (late, late - length + 1),
        (late, late - length),
    ]
    masses = [pattern[:, :, at, key].double().mean(-1) for at, key in places]
    return torch.stack([*masses, _overlap(pattern)], dim=-1).float()


def role_nulls(pattern: Float[Tensor, "batch head query key"]) -> Float[Tensor, "batch head stat draw"]:
    """What the masses of :data:`ROLES` would be with the keys of each row shuffled: attention to a random visible key,
    averaged over all queries, then over those of the second half.
    """
    batch, heads, length = pattern.shape[:3]
    (start, *_), _ = _second_half(length)
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(DRAWS):
        visible = torch.rand(batch, length, generator=generator) * torch.arange(1, length + 1)
        key = visible.long().to(pattern.device)[:, None, :, None].expand(-1, heads, -1, -1)
        mass = pattern.gather(-1, key)[..., 0].double()
        found.append(torch.stack([mass[:, :, FIRST_QUERY:].mean(-1), mass[:, :, start:].mean(-1)], dim=-1))
    return torch.stack(found, dim=-1).float()


@measure(
    title="What heads do where tokens repeat",
    sites=["prediction"],
    reductions={
        "role_scores": Reduction(site="pattern", fn=role_scores, axes=("batch", "head", "stat")),
        "role_nulls": Reduction(site="pattern", fn=role_nulls, axes=("batch", "head", "stat", "draw")),
    },
    order=41,
)
def roles(recorded: Capture) -> xr.Dataset:
    """Where heads look in sequences of random tokens that come twice (Olsson et al. 2022): at the token before, at the
    first one, at themselves, at where the same token came before (duplicate token) or at what followed it there
    (induction), and how near they are to uniform attention. A head has a role where its score is above the bound: a
    stated size (mass 0.3, overlap with uniform attention 0.9), and 4 standard deviations above a null. The null of a
    mass is the same row with its keys shuffled; that of the overlap a row drawn at random from all possible rows. What
    is found by content must vanish where tokens do not repeat: for induction and duplicate tokens, the bound stands on
    top of the attention to the same places in sequences without repetition. The loss is that of the same tokens when
    they come first, when they come again, and where nothing repeats.

    Args:
        recorded: a capture of what `repeated_tokens` gives.
    """
    repeats = _repeats(recorded.inputs)
    scores = recorded["role_scores"].double()
    score, plain = scores[:, repeats].mean(1), scores[:, ~repeats].mean(1)
    null, edge = _nulls(recorded["role_nulls"][:, repeats].double().mean(1), recorded.inputs.shape[1])
    bound = torch.maximum(edge, _sizes(plain))
    layers = {"layer": list(recorded.layers)}
    stats = layers | {"stat": list(ROLES)}

    def table(values: Tensor, about: str, **attrs: str | int) -> xr.DataArray:
        return label(values, "layer", "head", "stat", units="1", about=about, coords=stats).assign_attrs(**attrs)

    held = {"control_of": "score"}
    return xr.Dataset(
        {
            "score": table(score, "attention where tokens come twice", headline=1),
            "score_null": table(null, "the same with the keys of each row shuffled", control="keys shuffled", **held),
            "score_plain": table(plain, "the same where no token comes twice", control="no repetition", **held),
            "score_bound": table(bound, "above which a head has the role"),
            "role": label(
                _named(score > bound), "layer", "head", units="text", about="the roles of each head", coords=layers
            ),
            **_losses(recorded, repeats),
        }
    )


def _second_half(length: int) -> tuple[Int[Tensor, " query"], int]:
    """The positions of the second half, and how long it is."""
    return torch.arange(length - length // 2, length), length // 2


def _overlap(pattern: Float[Tensor, "batch head query key"]) -> Float[Tensor, "batch head"]:
    """What rows have in common with uniform attention over visible keys; head by head, to hold no second pattern."""
    share = 1 / torch.arange(1, pattern.shape[-1] + 1, device=pattern.device)[:, None]
    rows = [
        torch.minimum(pattern[:, head, FIRST_QUERY:], share[FIRST_QUERY:].to(pattern))
        for head in range(pattern.shape[1])
    ]
    return torch.stack([row.double().sum(-1).mean(-1) for row in rows], dim=1)


def _repeats(inputs: Tensor) -> Bool[Tensor, " batch"]:
    """Which sequences come twice; all others must not repeat at all."""
    if inputs.is_floating_point():
        raise ValueError("roles needs tokens, but the inputs are vectors; use position and similarity")
    half = inputs.shape[1] // 2
    first, second = inputs[:, -2 * half : -half], inputs[:, -half:]
    same = (first == second).all(-1)
    unlike = [len(row.unique()) for row in inputs[:, -2 * half :]]
    once = torch.tensor(unlike, device=inputs.device) == 2 * half
    twice = same & (torch.tensor(unlike, device=inputs.device) == half)
    if half < FEWEST or not (once | twice).all() or not once.any() or not twice.any():
        raise ValueError(
            f"roles needs sequences of {FEWEST} or more different tokens that come twice, and others where none does, "
            f"but got {int(twice.sum())} and {int(once.sum())} of {len(inputs)}; make them with repeated_tokens"
        )
    return twice


def _nulls(
    shuffled: Float[Tensor, "layer head 2 draw"], length: int
) -> tuple[Float[Tensor, "layer head stat"], Float[Tensor, "layer head stat"]]:
    """The mean of each score's null, and the upper edge of its band."""
    anywhere, late = shuffled.unbind(2)
    overlap = _random_overlap(length).to(shuffled).expand_as(late)
    by_stat = {name: late if name in BY_CONTENT else anywhere for name in ROLES} | {"uniform": overlap}
    draws = torch.stack([by_stat[name] for name in ROLES], dim=2)
    return draws.mean(-1), draws.mean(-1) + BAND * draws.std(-1)


def _random_overlap(length: int) -> Float[Tensor, " draw"]:
    """The overlap with uniform attention of rows drawn uniformly from all rows that sum to 1; 1 - (1 - 1/n)^n for n
    keys.
    """
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(DRAWS):
        rows = -torch.rand(length, length, generator=generator, dtype=torch.float64).log().tril()
        found.append(_overlap((rows / rows.sum(-1, keepdim=True))[None, None])[0, 0])
    return torch.stack(found)


def _sizes(plain: Float[Tensor, "layer head stat"]) -> Float[Tensor, "layer head stat"]:
    """The stated size of each score, on top of what is there without any repetition where a role is one of content."""
    least = torch.tensor([LEAST_OVERLAP if name == "uniform" else LEAST_MASS for name in ROLES])
    content = torch.tensor([name in BY_CONTENT for name in ROLES])
    return least.to(plain) + plain * content.to(plain)


def _named(marked: Bool[Tensor, "layer head stat"]) -> list[list[str]]:
    """The names of what is marked."""
    return [[", ".join(n for n, yes in zip(ROLES, head, strict=True) if yes) for head in layer] for layer in marked]


def _losses(recorded: Capture, repeats: Bool[Tensor, " batch"]) -> dict[str, xr.DataArray]:
    """The mean loss on tokens that come first, that come again, and in the second half where none comes again."""
    tokens, prediction = recorded.inputs, recorded["prediction"]
    loss = torch.cat(
        [per_position(prediction[n : n + 1, :-1].float(), tokens[n : n + 1, 1:]) for n in range(len(tokens))]
    )
    half = tokens.shape[1] // 2
    again, first = loss[:, 1 - half :], loss[:, 1 - 2 * half : -half]
    values = {
        "loss_first": (first[repeats], "mean loss on tokens that come for the first time"),
        "loss_again": (again[repeats], "mean loss on the same tokens when they come again"),
        "loss_plain": (again[~repeats], "mean loss at the same positions where no token comes again"),
    }
    return {name: label(loss.mean(), units="nat", about=about) for name, (loss, about) in values.items()}
