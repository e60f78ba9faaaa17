"""Transfer from few examples of a composition of rules, and what a tuned prefix has in common with rules."""

import torch
import xarray as xr
from transformers import PreTrainedModel

from mesascope.analyses.base import analysis
from mesascope.analyses.nulls import Null, with_null
from mesascope.axes import to_data_array
from mesascope.studies.syntactic_transformations.exact_match import (
    match_outputs,
    sample_seen_pairs,
    validate_model_and_task,
)
from mesascope.studies.syntactic_transformations.head_masks import draw_head_sets, list_encoder_heads
from mesascope.studies.syntactic_transformations.lookup_masking import OTHER_HEADS, measure_loss
from mesascope.studies.syntactic_transformations.prefix_tuning import (
    compute_cosines,
    draw_random_prefix,
    embed_rules,
    list_rules,
    score_readout,
    train_from_scratch,
    tune_prefix,
)
from mesascope.studies.syntactic_transformations.rule_lookup import find_lookup_heads
from mesascope.tasks.base import Batch, Task, seed_by_batch

TUNED, SCRATCH, RANDOM, RULES = "tuned prefix", "trained from scratch", "random prefix", "rules given"
SHUFFLED = "rules of the table shuffled"
PRECISION, RECALL, F = "precision", "recall", "F"


@analysis(
    title="Transfer from few examples",
    description="""
        Rules that do not occur together in training are to be found from examples; every single rule does occur. A soft
        prefix, one vector per slot, is tuned on them, and the weights of the model stay as they are. Exact
        match on other sentences, compared with a model of the same shape that is trained on the examples from scratch,
        with the pre-trained model with random vectors in place of the prefix (normally distributed, with the moments of
        embeddings of rules), and with the pre-trained model that is given the rules. Masking: loss of exact match when
        attention to the tuned prefix is masked in the look-up heads, which are found with rules as prefix; control:
        as many other heads of the encoder. Read-out: from every vector of the tuned prefix the rule with the most
        similar embedding (cosine); precision, recall and F of these rules. Control: labels of the table shuffled.
    """,
    input="model",
    steps="last",
)
def prefix_transfer(
    model: PreTrainedModel,
    task: Task,
    batch: Batch,
    examples: int = 50,
    tuning_steps: int = 300,
    draws: int = 20,
    seed: int = 0,
    sequences: int = 512,
) -> xr.Dataset:
    """Tune a prefix on few examples of a composition of rules, and compare it with other ways to transfer.

    Args:
        model: an `EncoderDecoder`.
        task: `SyntacticTransformations`.
        batch: its sequences; they seed the examples and the sequences in which look-up heads are found.
        examples: number of examples.
        tuning_steps: updates of the prefix, and of the model that is trained from scratch.
        draws: number of random prefixes and shuffled tables, and maximum number of sets of other heads.
        seed: of weights, random prefixes, shuffles and sets of heads.
        sequences: number of other sentences, and maximum number of sequences of the batch that are used.

    Returns:
        ``exact_match`` by predictor; ``lost`` and ``readout`` with their nulls; and ``cosine`` by slot and rule.

    Raises:
        UnsupportedModel: the model is of another type.
        ValueError: the task is another one, or has no held-out rules.
    """
    model, task = validate_model_and_task(model, task)
    if not task.held_out_rules:
        raise ValueError("the task must have rules that are held out together, but has none; set held_out_rules")
    rules, pairs, table = task.composition, list_rules(task), embed_rules(model, task)
    drawing = seed_by_batch(batch)
    few, test = (task.sample_with_rules(rules, n, drawing).to(batch.inputs.device) for n in (examples, sequences))
    prefix = tune_prefix(model, task, few, tuning_steps)
    generator = torch.Generator().manual_seed(seed)
    randoms = [draw_random_prefix(table, task.max_rules, generator) for _ in range(draws)]
    intact = match_outputs(model, test, prefix=prefix)
    matches = {
        TUNED: intact,
        SCRATCH: match_outputs(train_from_scratch(model, task, few, tuning_steps, seed), test),
        RANDOM: torch.stack([match_outputs(model, test, prefix=one) for one in randoms]),
        RULES: match_outputs(model, test),
    }
    heads = sorted(
        {
            head
            for one in find_lookup_heads(model, task, sample_seen_pairs(task, batch[:sequences])).values()
            for head in one
        }
    )
    others = [head for head in list_encoder_heads(model) if head not in heads]
    sets = draw_head_sets(others, len(heads), draws, seed) if heads else []
    lost, lost_null = (measure_loss(model, task, test, intact, one, prefix) for one in ([heads] if heads else [], sets))
    shuffles = [torch.randperm(len(pairs), generator=generator).tolist() for _ in range(draws)]
    readout = score_readout(prefix, table, pairs, rules)
    shuffled = [score_readout(prefix, table, [pairs[one] for one in order], rules) for order in shuffles]

    def label(values: object, *dims: str, about: str, **coords: list) -> xr.DataArray:
        array = torch.as_tensor(values, dtype=torch.float64)
        return to_data_array(array, *dims, units="1", description=about, coords=coords)

    def label_scores(values: object, about: str) -> xr.DataArray:
        return label(values, "stat", about=about, stat=[PRECISION, RECALL, F])

    about_lost = "loss of exact match when attention of look-up heads to the tuned prefix is masked"
    about_readout = "agreement of the rules that are read from the tuned prefix with the true ones"
    return xr.Dataset(
        {
            "exact_match": label(
                [float(one.double().mean()) for one in matches.values()],
                "predictor",
                about=f"fraction of sentences with the right output, after {examples} examples",
                predictor=list(matches),
            ),
            **with_null(
                "lost",
                label(lost, about=about_lost),
                Null(name=OTHER_HEADS, value=label(lost_null, about=f"the same for {OTHER_HEADS}")),
            ),
            **with_null(
                "readout",
                label_scores(readout, about_readout),
                Null(
                    name=SHUFFLED,
                    value=label_scores(
                        torch.tensor(shuffled, dtype=torch.float64).mean(0), f"{about_readout}; {SHUFFLED}"
                    ),
                ),
            ),
            "cosine": label(
                compute_cosines(prefix, table).cpu(),
                "_slot",
                "_rule",
                about="cosine of the vectors of the tuned prefix and the embeddings of rules",
                _rule=[":".join(pair) for pair in pairs],
            ),
        }
    )
