"""Circuits whose edges are known: a few planted heads and MLPs among decoys that read and write what nothing uses.

Every circuit comes with pairs of prompts in which each of its edges matters, and no other; and with reference prompts
of random tokens, with the edges that matter if other terms are those of references. The decoys carry information from
the tokens through the layers into dimensions of the residual stream that neither the circuit nor the output reads.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Int
from torch import Tensor

from mesascope.ground_truth.models._token_heads import (
    BOS_TOKEN,
    CONSTANT_DIM,
    D_HEAD,
    FIRST_ROW,
    HEADS,
    LOGIT_DIMS,
    PREVIOUS_DIMS,
    SCORE_MARGIN,
    SIN_DIM,
    TOKEN_DIMS,
    TOKEN_ROWS,
    TWO_BACK_DIMS,
    VOCABULARY,
    HeadWeights,
    attend_at_lag,
    attend_randomly,
    attend_to_match,
    attend_uniformly,
    write_copy,
)
from mesascope.ground_truth.models._token_mlps import (
    TOKEN_SHIFT,
    MlpWeights,
    add_decoy_units,
    detect_both,
    map_tokens,
    suppress_token,
)
from mesascope.ground_truth.models.tokens import PlantedHead, build_planted_language_model
from mesascope.models.transformer import Decoder

GAIN = 8.0  # logits that the last head of every circuit adds
PROMPT_LENGTH = 12  # tokens after the first
UNUSED_DIMS, MORE_UNUSED_DIMS = (
    slice(SIN_DIM + 1 + n * VOCABULARY, SIN_DIM + 1 + (n + 1) * VOCABULARY) for n in range(2)
)
MARK_TOKEN = 1  # a token that only some circuits use
# residual dimensions: whether an attended token is the mark
MARK_DIM, SECOND_MARK_DIM = SIN_DIM + 1 + 2 * VOCABULARY, SIN_DIM + 2 + 2 * VOCABULARY
MARK_ROW = FIRST_ROW + 1  # head dimension for it
Edge = tuple[str, str]
Head = tuple[int, str]  # a layer and a name
Pairs = tuple[Tensor, Tensor, Tensor, Tensor]  # clean and counterfactual prompts, answers, wrong answers
PairMaker = Callable[[Tensor], Pairs]
NUM_REFERENCES = 8


@dataclass(frozen=True, kw_only=True)
class CircuitPlan:
    """A circuit before its heads have numbers.

    Attributes:
        description: what it computes, in one sentence.
        heads: the heads by layer and name.
        edges: the edges; ``{name}`` stands for a head, as in ``{copy}.v``.
        make_pairs: makes clean and counterfactual prompts, answers and wrong answers from different tokens.
        reference_edges: the edges that matter if other terms are those of prompts of random tokens; ``edges`` if empty.
        mlps: functions that set the weights of MLPs, by layer. All layers then have an MLP with decoy units; ``None``:
            none has an MLP.
        num_layers: number of layers.
    """

    description: str
    heads: Mapping[Head, PlantedHead]
    edges: tuple[Edge, ...]
    make_pairs: PairMaker
    reference_edges: tuple[Edge, ...] = ()
    mlps: Mapping[int, Callable[[MlpWeights], None]] | None = None
    num_layers: int = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class KnownCircuit:
    """A model with a known circuit, and pairs of prompts in which its edges matter.

    Attributes:
        name: the name of the circuit.
        model: the model.
        clean: clean prompts.
        counterfactual: counterfactual prompts.
        answer: the token that continues each clean prompt.
        wrong_answer: another token.
        edges: the edges of the circuit.
        references: prompts of random tokens.
        reference_edges: the edges that matter if other terms are those of references.
    """

    name: str
    model: Decoder
    clean: Int[Tensor, "batch pos"]
    counterfactual: Int[Tensor, "batch pos"]
    answer: Int[Tensor, " batch"]
    wrong_answer: Int[Tensor, " batch"]
    edges: frozenset[Edge]
    references: Int[Tensor, "reference pos"]
    reference_edges: frozenset[Edge]


def _attend_to_both_conditions(query_dims: slice, key_dims: slice) -> Callable[[HeadWeights], None]:
    """Build a setter of attention to keys that match the query's token and are marked; else to the first position.

    The score of the first position is between that of one condition and that of both.
    """

    def set_attention(head: HeadWeights) -> None:
        attend_to_match(query_dims, key_dims, 1.5 * SCORE_MARGIN)(head)
        head.query[FIRST_ROW] *= 2
        head.query[MARK_ROW, CONSTANT_DIM] = head.query[TOKEN_ROWS.start, query_dims.start]
        head.key[MARK_ROW, MARK_DIM] = 1.0

    return set_attention


def _write_mark(dim: int) -> Callable[[HeadWeights], None]:
    """Build a setter of an output that is 1 in a residual dimension if the attended token is the mark."""

    def set_output(head: HeadWeights) -> None:
        head.value[TOKEN_ROWS.start, TOKEN_DIMS.start + MARK_TOKEN] = 1.0
        head.output[TOKEN_ROWS.start, dim] = 1.0

    return set_output


def _write_random(head: HeadWeights) -> None:
    """Write a random map of the token into dimensions that nothing reads."""
    head.value[:, TOKEN_DIMS] = torch.randn(D_HEAD, VOCABULARY, generator=head.generator) / VOCABULARY**0.5
    head.output[:, UNUSED_DIMS] = torch.randn(D_HEAD, VOCABULARY, generator=head.generator) / D_HEAD**0.5


DECOYS: tuple[tuple[PlantedHead, ...], ...] = (
    (
        *(
            PlantedHead(set_attention=attend_at_lag(lag), set_output=write_copy(UNUSED_DIMS, 1.0))
            for lag in range(1, 5)
        ),
        PlantedHead(set_attention=attend_randomly, set_output=_write_random),
        PlantedHead(set_attention=attend_uniformly, set_output=_write_random),
    ),
    (
        PlantedHead(
            set_attention=attend_to_match(TOKEN_DIMS, UNUSED_DIMS), set_output=write_copy(MORE_UNUSED_DIMS, 1.0)
        ),
        *(
            PlantedHead(
                set_attention=attend_at_lag(lag), set_output=write_copy(MORE_UNUSED_DIMS, 1.0, source=UNUSED_DIMS)
            )
            for lag in range(4)
        ),
        PlantedHead(set_attention=attend_randomly, set_output=_write_random),
    ),
)


def _change(tokens: Tensor, position: int, new: Tensor) -> Tensor:
    changed = tokens.clone()
    changed[:, position] = new
    return changed


def _change_copied_token(back: int) -> PairMaker:
    """Build pairs that differ in the token that is copied to the end."""

    def make_pairs(tokens: Tensor) -> Pairs:
        prompt, new = tokens[:, :PROMPT_LENGTH], tokens[:, PROMPT_LENGTH]
        position = PROMPT_LENGTH - 1 - back
        return prompt, _change(prompt, position, new), prompt[:, position], new

    return make_pairs


def _break_match(tokens: Tensor) -> Pairs:
    """Return pairs whose last token occurs before, or does not, and is followed by the answer."""
    prompt, new, other = tokens[:, :PROMPT_LENGTH], tokens[:, PROMPT_LENGTH], tokens[:, PROMPT_LENGTH + 1]
    prompt = _change(prompt, PROMPT_LENGTH - 1, prompt[:, 3])
    return prompt, _change(prompt, 3, new), prompt[:, 4], other


def _break_one_condition(tokens: Tensor) -> Pairs:
    """Return pairs in which the mark is missing, and pairs in which the match is."""
    prompt, new, other = tokens[:, :PROMPT_LENGTH], tokens[:, PROMPT_LENGTH], tokens[:, PROMPT_LENGTH + 1]
    prompt = _change(_change(prompt, 2, torch.tensor(MARK_TOKEN)), PROMPT_LENGTH - 1, prompt[:, 3])
    broken = _change(prompt, 2, new)
    broken[1::2] = _change(prompt, 3, new)[1::2]
    return prompt, broken, prompt[:, 4], other


def _change_query(tokens: Tensor) -> Pairs:
    """Return pairs that differ in the token before the last one; both tokens occur before, after a mark."""
    prompt, mark = tokens[:, :PROMPT_LENGTH], torch.tensor(MARK_TOKEN)
    prompt = _change(_change(prompt, 2, mark), 6, mark)
    first, second = prompt[:, 3], prompt[:, 7]
    return _change(prompt, PROMPT_LENGTH - 2, first), _change(prompt, PROMPT_LENGTH - 2, second), first, second


def _change_mapped_token(back: int) -> PairMaker:
    """Build pairs that differ in the token whose successor is the answer."""

    def make_pairs(tokens: Tensor) -> Pairs:
        prompt, changed, answer, wrong_answer = _change_copied_token(back)(tokens)
        return prompt, changed, (answer + TOKEN_SHIFT) % VOCABULARY, (wrong_answer + TOKEN_SHIFT) % VOCABULARY

    return make_pairs


def _break_one_mark(tokens: Tensor) -> Pairs:
    """Return pairs in which the first of two marks is missing, and pairs in which the second is."""
    prompt, new, other = tokens[:, :PROMPT_LENGTH], tokens[:, PROMPT_LENGTH], tokens[:, PROMPT_LENGTH + 1]
    mark, first, second = torch.tensor(MARK_TOKEN), PROMPT_LENGTH - 3, PROMPT_LENGTH - 6
    prompt = _change(_change(prompt, first, mark), second, mark)
    broken = _change(prompt, first, new)
    broken[1::2] = _change(prompt, second, new)[1::2]
    return prompt, broken, torch.full_like(other, MARK_TOKEN), other


def _add_mark(tokens: Tensor) -> Pairs:
    """Return pairs without a mark, and with one, which takes the copied token away."""
    prompt, other = tokens[:, :PROMPT_LENGTH], tokens[:, PROMPT_LENGTH + 1]
    return prompt, _change(prompt, PROMPT_LENGTH - 3, torch.tensor(MARK_TOKEN)), prompt[:, PROMPT_LENGTH - 4], other


_PREVIOUS = PlantedHead(set_attention=attend_at_lag(1), set_output=write_copy(PREVIOUS_DIMS, 1.0))
PLANS: Mapping[str, CircuitPlan] = MappingProxyType(
    {
        "copy": CircuitPlan(
            description="a head copies the token three positions back",
            heads={(0, "copy"): PlantedHead(set_attention=attend_at_lag(3), set_output=write_copy(LOGIT_DIMS, GAIN))},
            edges=(("embedding", "{copy}.v"), ("{copy}", "output")),
            make_pairs=_change_copied_token(3),
        ),
        "two paths": CircuitPlan(
            description="heads of both layers copy the token four positions back, each with half of the gain",
            heads={
                (layer, f"copy {layer}"): PlantedHead(
                    set_attention=attend_at_lag(4), set_output=write_copy(LOGIT_DIMS, GAIN / 2)
                )
                for layer in range(2)
            },
            edges=tuple(
                edge
                for layer in range(2)
                for edge in (("embedding", f"{{copy {layer}}}.v"), (f"{{copy {layer}}}", "output"))
            ),
            make_pairs=_change_copied_token(4),
        ),
        "two hops": CircuitPlan(
            description="a head of layer 1 copies what a head of layer 0 has written (value composition)",
            heads={
                (0, "previous"): _PREVIOUS,
                (1, "copy"): PlantedHead(
                    set_attention=attend_at_lag(2), set_output=write_copy(LOGIT_DIMS, GAIN, source=PREVIOUS_DIMS)
                ),
            },
            edges=(("embedding", "{previous}.v"), ("{previous}", "{copy}.v"), ("{copy}", "output")),
            make_pairs=_change_copied_token(3),
        ),
        "three hops": CircuitPlan(
            description="a token moves on by one position in each of three layers",
            heads={
                (0, "first"): _PREVIOUS,
                (1, "second"): PlantedHead(
                    set_attention=attend_at_lag(1), set_output=write_copy(TWO_BACK_DIMS, 1.0, source=PREVIOUS_DIMS)
                ),
                (2, "third"): PlantedHead(
                    set_attention=attend_at_lag(1), set_output=write_copy(LOGIT_DIMS, GAIN, source=TWO_BACK_DIMS)
                ),
            },
            edges=(
                ("embedding", "{first}.v"),
                ("{first}", "{second}.v"),
                ("{second}", "{third}.v"),
                ("{third}", "output"),
            ),
            make_pairs=_change_copied_token(3),
            num_layers=3,
        ),
        "induction": CircuitPlan(
            description="a head of layer 1 attends to positions after the present token (key composition)",
            heads={
                (0, "previous"): _PREVIOUS,
                (1, "induction"): PlantedHead(
                    set_attention=attend_to_match(TOKEN_DIMS, PREVIOUS_DIMS), set_output=write_copy(LOGIT_DIMS, GAIN)
                ),
            },
            edges=(("embedding", "{previous}.v"), ("{previous}", "{induction}.k"), ("{induction}", "output")),
            make_pairs=_break_match,
            reference_edges=(
                ("embedding", "{previous}.v"),
                ("embedding", "{induction}.q"),
                ("embedding", "{induction}.v"),
                ("{previous}", "{induction}.k"),
                ("{induction}", "output"),
            ),
        ),
        "two conditions": CircuitPlan(
            description="an induction head that attends to a match only if a mark stands before it",
            heads={
                (0, "previous"): _PREVIOUS,
                (0, "mark"): PlantedHead(set_attention=attend_at_lag(2), set_output=_write_mark(MARK_DIM)),
                (1, "both"): PlantedHead(
                    set_attention=_attend_to_both_conditions(TOKEN_DIMS, PREVIOUS_DIMS),
                    set_output=write_copy(LOGIT_DIMS, GAIN),
                ),
            },
            edges=(
                ("embedding", "{previous}.v"),
                ("embedding", "{mark}.v"),
                ("{previous}", "{both}.k"),
                ("{mark}", "{both}.k"),
                ("{both}", "output"),
            ),
            make_pairs=_break_one_condition,
            reference_edges=(
                ("embedding", "{previous}.v"),
                ("embedding", "{mark}.v"),
                ("embedding", "{both}.q"),
                ("embedding", "{both}.v"),
                ("{previous}", "{both}.k"),
                ("{mark}", "{both}.k"),
                ("{both}", "output"),
            ),
        ),
        "query": CircuitPlan(
            description="a head of layer 1 attends to the marked position with the previous token (query composition)",
            heads={
                (0, "previous"): _PREVIOUS,
                (0, "mark"): PlantedHead(set_attention=attend_at_lag(1), set_output=_write_mark(MARK_DIM)),
                (1, "match"): PlantedHead(
                    set_attention=_attend_to_both_conditions(PREVIOUS_DIMS, TOKEN_DIMS),
                    set_output=write_copy(LOGIT_DIMS, GAIN),
                ),
            },
            edges=(("embedding", "{previous}.v"), ("{previous}", "{match}.q"), ("{match}", "output")),
            make_pairs=_change_query,
            reference_edges=(
                ("embedding", "{previous}.v"),
                ("embedding", "{mark}.v"),
                ("embedding", "{match}.k"),
                ("embedding", "{match}.v"),
                ("{previous}", "{match}.q"),
                ("{mark}", "{match}.k"),
                ("{match}", "output"),
            ),
        ),
        "mapped token": CircuitPlan(
            description="an MLP maps the token that a head has copied to another token, which a head of layer 1 copies",
            heads={
                (0, "copy"): PlantedHead(set_attention=attend_at_lag(2), set_output=write_copy(PREVIOUS_DIMS, 1.0)),
                (1, "move"): PlantedHead(
                    set_attention=attend_at_lag(1), set_output=write_copy(LOGIT_DIMS, GAIN, source=TWO_BACK_DIMS)
                ),
            },
            mlps={0: map_tokens(PREVIOUS_DIMS, TWO_BACK_DIMS)},
            edges=(("embedding", "{copy}.v"), ("{copy}", "L0.MLP"), ("L0.MLP", "{move}.v"), ("{move}", "output")),
            make_pairs=_change_mapped_token(3),
        ),
        "both marks": CircuitPlan(
            description="an MLP raises the logit of a token if two heads find a mark (AND)",
            heads={
                (0, "first"): PlantedHead(set_attention=attend_at_lag(2), set_output=_write_mark(MARK_DIM)),
                (0, "second"): PlantedHead(set_attention=attend_at_lag(5), set_output=_write_mark(SECOND_MARK_DIM)),
            },
            mlps={1: detect_both(MARK_DIM, SECOND_MARK_DIM, MARK_TOKEN, GAIN)},
            edges=(
                ("embedding", "{first}.v"),
                ("embedding", "{second}.v"),
                ("{first}", "L1.MLP"),
                ("{second}", "L1.MLP"),
                ("L1.MLP", "output"),
            ),
            make_pairs=_break_one_mark,
        ),
        "suppression": CircuitPlan(
            description="an MLP takes a copied token away if a mark is there; the clean prompt has none",
            heads={
                (0, "copy"): PlantedHead(set_attention=attend_at_lag(3), set_output=write_copy(LOGIT_DIMS, GAIN)),
                (0, "mark"): PlantedHead(set_attention=attend_at_lag(2), set_output=_write_mark(MARK_DIM)),
            },
            mlps={1: suppress_token(MARK_DIM, GAIN)},
            edges=(("embedding", "{mark}.v"), ("{mark}", "L1.MLP"), ("L1.MLP", "output")),
            make_pairs=_add_mark,
            reference_edges=(("embedding", "{copy}.v"), ("{copy}", "output")),
        ),
    }
)


def build_known_circuit(name: str, seed: int = 0, num_pairs: int = 4) -> KnownCircuit:
    """Build a model with a known circuit, its heads and decoys in random order, and pairs of random tokens.

    Args:
        name: one of :data:`PLANS`.
        seed: seed of the order, of the weights of the decoys and of the tokens.
        num_pairs: number of pairs.

    Returns:
        The model, its pairs and the edges of the circuit.

    Raises:
        ValueError: If there is no such circuit.

    >>> sorted(build_known_circuit("copy", seed=1).edges)
    [('L0.H4', 'output'), ('embedding', 'L0.H4.v')]
    """
    if name not in PLANS:
        raise ValueError(f"a circuit must be one of {', '.join(PLANS)}, but got {name!r}")
    plan, generator = PLANS[name], torch.Generator().manual_seed(seed)
    heads: dict[tuple[int, int], PlantedHead] = {}
    names: dict[str, str] = {}
    for layer in range(plan.num_layers):
        order = torch.randperm(HEADS, generator=generator).tolist()
        own = {head: planted for (where, head), planted in plan.heads.items() if where == layer}
        for head, planted in own.items():
            number = order.pop()
            heads[layer, number], names[head] = planted, f"L{layer}.H{number}"
        heads |= {(layer, order.pop()): decoy for decoy in DECOYS[min(layer, 1)]}
    mlps = {layer: _add_decoys(plan.mlps.get(layer)) for layer in range(plan.num_layers)} if plan.mlps else None
    # different tokens in each sequence, none of which is the first token or the mark
    drawn = [torch.randperm(VOCABULARY - 2, generator=generator) for _ in range(num_pairs)]
    clean, counterfactual, answer, wrong_answer = plan.make_pairs(torch.stack(drawn) + MARK_TOKEN + 1)
    drawn = [torch.randperm(VOCABULARY - 2, generator=generator)[:PROMPT_LENGTH] for _ in range(NUM_REFERENCES)]
    references = torch.stack(drawn) + MARK_TOKEN + 1
    return KnownCircuit(
        name=name,
        model=build_planted_language_model(seed, heads, mlps=mlps, num_layers=plan.num_layers),
        clean=_prepend_first(clean),
        counterfactual=_prepend_first(counterfactual),
        answer=answer,
        wrong_answer=wrong_answer,
        edges=_name_edges(plan.edges, names),
        references=_prepend_first(references),
        reference_edges=_name_edges(plan.reference_edges or plan.edges, names),
    )


def _add_decoys(set_units: Callable[[MlpWeights], None] | None) -> Callable[[MlpWeights], None]:
    def set_all(mlp: MlpWeights) -> None:
        add_decoy_units(mlp, UNUSED_DIMS)
        if set_units is not None:
            set_units(mlp)

    return set_all


def _prepend_first(tokens: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch pos+1"]:
    return torch.cat([torch.full((len(tokens), 1), BOS_TOKEN), tokens], 1)


def _name_edges(edges: tuple[Edge, ...], names: Mapping[str, str]) -> frozenset[Edge]:
    return frozenset((sender.format_map(names), receiver.format_map(names)) for sender, receiver in edges)
