"""Claims of Lindemann et al. 2024 on transformations, look-up heads and transfer from few examples.

Thresholds and margins are ours and were fixed before the analysis of a trained model. We do not know the paper's
tables of accuracy; the directions are those of its text. At first, the claim on unseen pairs was the first claim of the
paper, and the requirement of all others. Pilot models did not apply unseen pairs. After them, it became a claim of
ours, because all pairs occur in the paper's training; the claim on new sentences was added; and claims on look-up heads
and on transfer were made to require pairs that are seen in training, and to be measured on them. No threshold or margin
was changed.
"""

import xarray as xr

from mesascope.studies.base import Claim, Quantity, Requirement, Results, select_last_step, select_untrained
from mesascope.studies.syntactic_transformations.citation import CITATION
from mesascope.studies.syntactic_transformations.prefix_transfer import RANDOM, SCRATCH, TUNED, F
from mesascope.studies.syntactic_transformations.transformation_accuracy import OTHER, OWN, SEEN, UNSEEN

PAPER, OURS = CITATION.short, "ours"
MIN_EXACT_MATCH, MIN_EXACT_MATCH_GAIN = 0.95, 0.05  # ours
MIN_LOOKUPS, MIN_LOOKUP_GAIN = 0.8, 0.1  # ours; a look-up head of the paper is one with a weight of 0.5 on the slot
LOSS_FACTOR = 3  # over the loss by other heads; ours
MIN_LOSS_GAIN = 0.05  # of exact match; ours
MIN_F_GAIN = 0.1  # ours


def _read_match(distribution: str, predictor: str, about: str) -> Quantity:
    return Quantity(
        description=about,
        read=lambda results: select_last_step(results["transformation_accuracy"]["exact_match"]).sel(
            distribution=distribution, predictor=predictor, drop=True
        ),
    )


LEARNED = Requirement(
    statement=f"exact match on new sentences, with pairs seen in training, is above {MIN_EXACT_MATCH:.0%}",
    value=_read_match(SEEN, OWN, "exact match on new sentences, with pairs seen in training"),
    threshold=MIN_EXACT_MATCH,
    direction="above",
)


def _transformation_claim(name: str, statement: str, source: str, distribution: str, about: str) -> Claim:
    return Claim(
        name=name,
        statement=statement,
        source=f"{source}; the threshold is ours",
        value=_read_match(distribution, OWN, about),
        control=_read_match(distribution, OTHER, "the same with the rules of another sentence"),
        direction="above",
        threshold=MIN_EXACT_MATCH,
        margin=MIN_EXACT_MATCH_GAIN,
        by_paper=source.startswith(PAPER),
    )


def _transformation_claims() -> tuple[Claim, ...]:
    return (
        _transformation_claim(
            "new sentences are transformed",
            "The model transforms new sentences by rules whose pairs of a label and a function occurred in training.",
            f"{PAPER}, which tests on new trees",
            SEEN,
            "exact match on new sentences, with pairs seen in training",
        ),
        _transformation_claim(
            "unseen pairs are applied",
            "The model applies pairs of a label and a function that did not occur in training.",
            f"{OURS}: a rule is the sum of a vector of its label and one of its function",
            UNSEEN,
            "exact match on unseen pairs",
        ),
    )


def _best_head(*, trained: bool) -> Quantity:
    select_step = select_last_step if trained else select_untrained
    return Quantity(
        description="largest fraction over heads of words that attend to the rule for their label"
        + ", untrained" * (not trained),
        read=lambda results: select_step(results["rule_lookup"]["score"]).max(("layer", "head")),
    )


def _worst_label(about: str, *, trained: bool) -> Quantity:
    select_step = select_last_step if trained else select_untrained

    def read_worst(results: Results) -> xr.DataArray:
        return select_step(results["rule_lookup"]["label_score"]).max(("layer", "head")).min("_label")

    return Quantity(description=about, read=read_worst)


def _lookup_claims() -> tuple[Claim, ...]:
    def read_null(results: Results) -> xr.DataArray:
        return select_last_step(results["rule_lookup"]["score_null"]).max(("layer", "head"))

    about = "fraction of the words of a label that attend to its rule, of the best head, lowest over labels"
    return (
        Claim(
            name="a head looks up rules",
            statement="A head of the encoder attends from most words to the rule for their label.",
            source=f"{PAPER}: such heads are found in the last layers of the encoder, and one serves most labels; the "
            "threshold is ours",
            value=_best_head(trained=True),
            control=_best_head(trained=False),
            direction="above",
            threshold=MIN_LOOKUPS,
            margin=MIN_LOOKUP_GAIN,
            by_paper=True,
            requirements=(LEARNED,),
        ),
        Claim(
            name="heads look up labels and not positions",
            statement="Words attend to the rule for their label more than to that for another one.",
            source=f"{OURS}: rules are sorted by label, so that a position could stand in for a label",
            value=_best_head(trained=True),
            control=Quantity(description="the same with the slots of every sentence exchanged", read=read_null),
            direction="above",
            margin=MIN_LOOKUP_GAIN,
            requirements=(LEARNED,),
        ),
        Claim(
            name="every label has a look-up head",
            statement="For every label, a head of the encoder attends from most of its words to its rule.",
            source=f"{PAPER}, which finds the heads by label; the threshold is ours",
            value=_worst_label(about, trained=True),
            control=_worst_label(f"{about}, untrained", trained=False),
            direction="above",
            threshold=MIN_LOOKUPS,
            margin=MIN_LOOKUP_GAIN,
            by_paper=True,
            requirements=(LEARNED,),
        ),
    )


def _read_loss(analysis: str, variable: str, about: str, factor: int = 1) -> Quantity:
    return Quantity(
        description=about,
        read=lambda results: factor * select_last_step(results[analysis][variable]),
    )


def _masking_claims() -> tuple[Claim, ...]:
    about = "loss of exact match when attention of look-up heads to the rules is masked"
    by_label = f"{about}, heads of one label, mean over labels"
    return (
        Claim(
            name="look-up heads are needed",
            statement=f"Masking the attention of look-up heads to the rules costs at least {LOSS_FACTOR} times as much "
            "as masking that of equally many other heads.",
            source=f"{PAPER}, which compares with random heads; the factor is ours",
            value=_read_loss("lookup_masking", "lost", about),
            control=_read_loss(
                "lookup_masking", "lost_null", f"{LOSS_FACTOR} times the loss for as many other heads", LOSS_FACTOR
            ),
            direction="above",
            margin=MIN_LOSS_GAIN,
            by_paper=True,
            requirements=(LEARNED,),
        ),
        Claim(
            name="look-up heads are specific to labels",
            statement="Masking the look-up heads of a label costs more, in sentences with its rule, than masking those "
            "of other labels.",
            source=f"{PAPER}, which compares with other look-up heads",
            value=_read_loss("lookup_masking", "label_lost", by_label),
            control=_read_loss("lookup_masking", "label_lost_null", "the same for look-up heads of other labels"),
            direction="above",
            margin=MIN_LOSS_GAIN,
            by_paper=True,
            requirements=(LEARNED,),
        ),
    )


def _read_transfer(predictor: str) -> Quantity:
    return Quantity(
        description=f"exact match on a composition of rules that is held out, {predictor}",
        read=lambda results: select_last_step(results["prefix_transfer"]["exact_match"]).sel(
            predictor=predictor, drop=True
        ),
    )


def _transfer_claim(name: str, statement: str, control: str, source: str) -> Claim:
    return Claim(
        name=name,
        statement=statement,
        source=source,
        value=_read_transfer(TUNED),
        control=_read_transfer(control),
        direction="above",
        margin=MIN_EXACT_MATCH_GAIN,
        by_paper=source.startswith(PAPER),
        requirements=(LEARNED,),
    )


def _read_f(variable: str, about: str) -> Quantity:
    return Quantity(
        description=about,
        read=lambda results: select_last_step(results["prefix_transfer"][variable]).sel(stat=F, drop=True),
    )


def _transfer_claims() -> tuple[Claim, ...]:
    return (
        _transfer_claim(
            "a tuned prefix needs few examples",
            "A prefix that is tuned on few examples of a composition is better than a model that is trained on them "
            "from scratch.",
            SCRATCH,
            f"{PAPER}: pre-training helps few-shot learning of syntactic tasks",
        ),
        _transfer_claim(
            "a prefix must be tuned",
            "A prefix that is tuned on few examples of a composition is better than a random one.",
            RANDOM,
            f"{OURS}: the pre-trained model may do without rules",
        ),
        Claim(
            name="look-up heads are used again",
            statement="Masking the attention of the same look-up heads costs more than masking other heads with the "
            "tuned prefix, too.",
            source=f"{PAPER}, which masks the heads after fine-tuning",
            value=_read_loss(
                "prefix_transfer", "lost", "loss of exact match when look-up heads cannot see the tuned prefix"
            ),
            control=_read_loss("prefix_transfer", "lost_null", "the same for as many other heads"),
            direction="above",
            margin=MIN_LOSS_GAIN,
            by_paper=True,
            requirements=(LEARNED,),
        ),
        Claim(
            name="rules are read from a tuned prefix",
            statement="The tuned prefix resembles the embeddings of the rules of the composition.",
            source=f"{PAPER}, which reads rules from a tuned prefix by cosine",
            value=_read_f("readout", "F of the rules that are read from the tuned prefix"),
            control=_read_f("readout_null", "the same with the rules of the table shuffled"),
            direction="above",
            margin=MIN_F_GAIN,
            by_paper=True,
            requirements=(LEARNED,),
        ),
    )


CLAIMS = (*_transformation_claims(), *_lookup_claims(), *_masking_claims(), *_transfer_claims())
