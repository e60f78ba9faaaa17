"""What is measured on what: each part is one way of running the model, and the measures that share it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import xarray as xr
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from mesascope import analyses
from mesascope.activations import attending
from mesascope.analyses import Measure, inner, measure_all, repeated_tokens
from mesascope.analyses.inner_objectives import objectives
from mesascope.analyses.instrument import Instrument
from mesascope.analyses.stream.input_spectra import sample_without_sinks, spectra

BATCH = 2048  # tokens in a forward pass
LENS_TOKENS = 384  # tokens that lenses look at, spread over all sequences
INNER_TOKENS, INNER_LENGTH, INNER_QUERIES = 1024, 256, 64  # inner objectives: in all, a sequence, looked at in it
PIECES, PIECE_LENGTH = 2, 256  # sequences of attribution and similarity
REPEATED, REPEATS = 24, 8  # tokens before the repetition, sequences that repeat
EXCERPT = 48  # positions whose attention is shown
STREAMS = frozenset(("resid_pre", "resid_post"))  # there in every layer, of hybrids too
MAPS = 512  # tokens among which the inputs of linear maps are sampled


@dataclass(frozen=True, kw_only=True, eq=False)
class Material:
    """What a model is run on.

    Attributes:
        ids: the text.
        allowed: tokens to draw random sequences from.
        seed: of every draw.
    """

    ids: Int[Tensor, "batch pos"]
    allowed: Int[Tensor, " token"]
    seed: int = 0


Results = dict[str, xr.Dataset]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One way of running the model.

    Attributes:
        name: what it is called while it runs.
        instruments: what is measured, by name.
        run: gets the model, the material, and the instruments chosen; gives what each found.
        controls: which controls it has, and how many draws of each.
        costly: instruments that cost so much that of each control they have one draw.
    """

    name: str
    instruments: Mapping[str, Instrument]
    run: Callable[[PreTrainedModel, Material, Sequence[Instrument]], Results]
    controls: Mapping[str, int]
    costly: tuple[str, ...] = ()

    def drawn(self, draw: int) -> "Part":
        """What this draw of a control has: the first one everything."""
        cheap = {name: one for name, one in self.instruments.items() if draw == 0 or name not in self.costly}
        return replace(self, instruments=cheap)


def _whole(model: PreTrainedModel, material: Material, chosen: Sequence[Instrument]) -> Results:
    """Everything that is read from the whole text."""
    count, length = material.ids.shape
    return _measured(model, material.ids, chosen, _spread(length, max(2, LENS_TOKENS // count)))


def _inner(model: PreTrainedModel, material: Material, chosen: Sequence[Instrument]) -> Results:
    """Inner objectives, with gradients, on the beginnings of some sequences."""
    ids = material.ids[:, :INNER_LENGTH]
    ids = ids[: max(1, INNER_TOKENS // ids.shape[1])]
    return _measured(model, ids, chosen, _spread(ids.shape[1], INNER_QUERIES))


def _pieces(model: PreTrainedModel, material: Material, chosen: Sequence[Instrument]) -> Results:
    """What needs whole streams, on the beginnings of two sequences."""
    return _measured(model, material.ids[:PIECES, :PIECE_LENGTH], chosen)


def _repeats(model: PreTrainedModel, material: Material, chosen: Sequence[Instrument]) -> Results:
    """Random tokens that come twice."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2 * REPEATED
    length = min(REPEATED, context // 2, len(material.allowed.unique()) // 2)
    generator = torch.Generator().manual_seed(material.seed)
    return _measured(model, repeated_tokens(material.allowed, length, REPEATS, generator), chosen)


def _excerpt(model: PreTrainedModel, material: Material, chosen: Sequence[Instrument]) -> Results:
    """The first tokens of the text, with every head's attention."""
    return _measured(model, material.ids[:1, :EXCERPT], chosen)


def _maps(model: PreTrainedModel, material: Material, chosen: Sequence[Instrument]) -> Results:
    """What the linear maps read, at a sample of tokens that are no sinks."""
    ids = material.ids[:1, :MAPS].to(model.device)
    layers = attending(model, ids)
    sampled = sample_without_sinks(model, ids, layers=layers, seed=material.seed)
    return {one.name: one(sampled) for one in chosen}


def _measured(
    model: PreTrainedModel,
    ids: Int[Tensor, "batch pos"],
    chosen: Sequence[Instrument],
    queries: list[int] | None = None,
) -> Results:
    """Measures that share one capture."""
    wanted = [one for one in chosen if isinstance(one, Measure)]
    ids, size, some = ids.to(model.device), max(1, BATCH // ids.shape[1]), attending(model, ids[:1])
    depth = getattr(model.config.get_text_config(), "num_hidden_layers", len(some))
    if len(some) == depth:
        return measure_all(model, ids, wanted, batch_size=size, queries=queries)
    whole, heads = ([one for one in wanted if (one.needs <= STREAMS) == streams] for streams in (True, False))
    found = measure_all(model, ids, whole, batch_size=size, queries=queries) if whole else {}
    if heads:
        found |= measure_all(model, ids, heads, batch_size=size, queries=queries, layers=some)
    return found


def _spread(length: int, count: int) -> list[int]:
    """Positions spread evenly over a sequence, the first one and the last that has a next token among them."""
    return sorted(set(torch.linspace(0, length - 2, min(count, length - 1)).round().long().tolist()))


def _named(*instruments: Instrument) -> dict[str, Instrument]:
    """Instruments by name."""
    return {one.name: one for one in instruments}


UNTRAINED, DISORDERED = "random weights", "positions shuffled"
BOTH = {UNTRAINED: 2, DISORDERED: 2}
PARTS = (
    Part(
        name="the text",
        instruments=_named(analyses.norms, analyses.logit_lens, analyses.affine_lens, analyses.position),
        run=_whole,
        controls=BOTH,
        costly=("logit_lens", "affine_lens"),
    ),
    Part(
        name="inner objectives",
        instruments=_named(*map(inner, objectives.OBJECTIVES)),
        run=_inner,
        controls=BOTH,
        costly=("inner_readout",),
    ),
    Part(name="linear maps", instruments=_named(spectra), run=_maps, controls={UNTRAINED: 1}),
    Part(
        name="parts of the output",
        instruments=_named(analyses.token_attribution, analyses.token_similarity),
        run=_pieces,
        controls=BOTH,
    ),
    Part(name="pictures", instruments=_named(analyses.token_pictures), run=_pieces, controls={}),
    Part(
        name="repeated tokens",
        instruments=_named(analyses.roles, analyses.token_copying),
        run=_repeats,
        controls={UNTRAINED: 2},
        costly=("token_copying",),
    ),
    Part(name="an excerpt", instruments=_named(analyses.patterns, analyses.top_tokens), run=_excerpt, controls={}),
)
GROUPS = {"inner": [f"inner_{one.name}" for one in objectives.OBJECTIVES]}
NAMES = (*GROUPS, *(name for part in PARTS for name in part.instruments if not name.startswith("inner_")))


def choose(names: Sequence[str] | None) -> list[Part]:
    """The parts with the measures of these names, or with all.

    Raises:
        ValueError: there is no such measure.
    """
    known = {name for part in PARTS for name in part.instruments} | set(GROUPS)
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise ValueError(f"measures must be from {', '.join(NAMES)}, but got {', '.join(unknown)}")
    wanted = {each for name in names or known for each in GROUPS.get(name, [name])}
    chosen = (
        replace(part, instruments={name: one for name, one in part.instruments.items() if name in wanted})
        for part in PARTS
    )
    return [part for part in chosen if part.instruments]
