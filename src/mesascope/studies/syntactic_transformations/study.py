"""Syntactic transformations: look-up heads for rules, and transfer of a soft prefix from few examples.

Lindemann, Koller and Titov 2024 (arXiv 2407.04543). An encoder-decoder rewrites sentences by rules, one function per
label of a dependency tree that it does not see. Functions and rules follow the paper's code; sentences, sizes and
training are ours, chosen by the exact match of pilot seeds that are not among the study's seeds. All thresholds and
margins were fixed before the analysis of a trained model.
"""

from mesascope.models.encoder_decoder.config import EncoderDecoderConfig
from mesascope.studies.base import Condition, ScaleConfig, Study
from mesascope.studies.syntactic_transformations.citation import CITATION
from mesascope.studies.syntactic_transformations.claims import CLAIMS
from mesascope.studies.syntactic_transformations.lookup_masking import lookup_masking
from mesascope.studies.syntactic_transformations.prefix_transfer import prefix_transfer
from mesascope.studies.syntactic_transformations.rule_lookup import rule_lookup
from mesascope.studies.syntactic_transformations.transformation_accuracy import transformation_accuracy
from mesascope.tasks.syntax.edge_functions import NAMES
from mesascope.tasks.syntax.levels import ROOT_LABEL
from mesascope.tasks.syntax.transformations import SyntacticTransformations
from mesascope.train import AdamW, CosineSchedule, TrainingConfig

TASK = SyntacticTransformations(  # ours; 6 labels and 5 functions, and as many held-out pairs as rules
    num_levels=3,
    words_per_label=2,
    min_words=5,
    max_words=8,
    functions=("rev", "concat-rel", "rev-rel", "ignore-dep", "bracket-3"),
    max_rules=4,
    max_output=18,
)
PAPER_TASK = SyntacticTransformations(  # the 14 functions of the paper; sentences and labels are ours
    num_levels=4,
    words_per_label=20,
    min_words=5,
    max_words=16,
    functions=NAMES,
    max_rules=8,
    max_output=60,
    held_out=2,
)


def make_model(task: SyntacticTransformations, *, layers: int, width: int, heads: int) -> EncoderDecoderConfig:
    """Return the encoder-decoder of a task.

    Args:
        task: its task.
        layers: of the encoder and of the decoder.
        width: of the residual stream; that of the MLPs is twice as large.
        heads: of every attention.
    """
    return EncoderDecoderConfig(
        vocab_size=task.vocab_size,
        source_length=task.source_length,
        num_encoder_layers=layers,
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=2 * width,
        norm="layer",
        positions="learned",
        max_position_embeddings=max(task.source_length, 1 + task.max_output),
        pad_token_id=0,
        token_parts=list_token_parts(task),
    )


def list_token_parts(task: SyntacticTransformations) -> list[list[int]]:
    """Return the vectors whose sum is the embedding of each token.

    A rule has the vectors of its label and its function, as in the paper. A word has those of its level, its side and
    its number, from which its label is read, and which are other vectors than those of rules. Other tokens have one.

    Args:
        task: the task.
    """
    indices: dict[str, int] = {}
    return [[indices.setdefault(part, len(indices)) for part in _name_parts(text)] for text in task.texts]


def _name_parts(text: str) -> tuple[str, ...]:
    """Return the names of the parts of a token.

    >>> _name_parts("al:rev"), _name_parts("al3"), _name_parts("root3"), _name_parts("=")
    (('rule al', 'rule rev'), ('level a', 'side l', 'number 3'), ('level root', 'number 3'), ('=',))
    """
    label, is_rule, function = text.partition(":")
    if is_rule:
        return f"rule {label}", f"rule {function}"
    if not text[-1].isdecimal():
        return (text,)
    label = text.rstrip("0123456789")
    number = f"number {text.removeprefix(label)}"
    if label == ROOT_LABEL:
        return f"level {label}", number
    return f"level {label[0]}", f"side {label[1]}", number


def _make_training(steps: int, *, batch_size: int, learning_rate: float, warmup: int) -> TrainingConfig:
    return TrainingConfig(  # ours; the paper trains with Adafactor for one epoch, with denoising beside it
        steps=steps,
        batch_size=batch_size,
        optimizer=AdamW(lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.01),
        warmup=warmup,
        schedule=CosineSchedule(),
        checkpoints=4,
        spacing="even",
    )


SCALES = {
    "smoke": ScaleConfig(
        training=_make_training(10, batch_size=16, learning_rate=3e-3, warmup=2),
        sequences=128,
        evaluation_sequences=128,
    ),
    "laptop": ScaleConfig(
        training=_make_training(1_200, batch_size=64, learning_rate=3e-3, warmup=150),
        sequences=1_024,
        evaluation_sequences=1_024,
    ),
    "paper": ScaleConfig(
        training=_make_training(50_000, batch_size=128, learning_rate=5e-4, warmup=2_000),
        sequences=1_024,
        evaluation_sequences=1_024,
        task=PAPER_TASK,
        model=make_model(PAPER_TASK, layers=4, width=256, heads=8),
    ),
}

STUDY = Study(
    name="syntactic-transformations",
    title="Pre-training to perform syntactic transformations",
    description="",
    citation=CITATION,
    conditions=(
        Condition(
            task=TASK,
            model=make_model(TASK, layers=2, width=64, heads=4),
            scales=SCALES,
            analyses=(transformation_accuracy, rule_lookup, lookup_masking, prefix_transfer),
        ),
    ),
    claims=CLAIMS,
    seeds={"smoke": 2, "laptop": 5, "paper": 8},
    minutes={"smoke": 1.0, "laptop": 10.0, "paper": 4_000.0},
)
