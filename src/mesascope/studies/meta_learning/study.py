"""A meta-learning perspective: an inner optimisation across layers inside the forward pass, an outer one in training.

Wu & Varshney 2023 (arXiv 2310.05884; Findings of ACL 2024). Known to us are the abstract, what the captions of the
figures say and the idea of the proposition. The generator of their sequences, the equation of their inner loss, sizes
and training were not found, so these are ours, and so is every threshold.
"""

from dataclasses import replace

from mesascope import analyses
from mesascope.analyses.causal.head_importance import causes
from mesascope.analyses.inner_objectives import objectives
from mesascope.analyses.inner_objectives.measure import inner
from mesascope.analyses.stream.input_spectra import gram
from mesascope.analyses.training.history_attention import history_attention
from mesascope.models.config import DecoderConfig
from mesascope.studies.base import Arm, Citation, Scale, Setup, Study
from mesascope.studies.meta_learning.claims import claims
from mesascope.tasks.seeded import Seeded
from mesascope.tasks.text import Text
from mesascope.train import SGD, AdamW, Cosine, Training

TASK = Seeded(symbols=23, generators=12, first=3, length=24)  # ours
FEWER = Seeded(symbols=11, generators=6, first=2, length=16)  # ours: learned in hundreds of steps
FEWEST = Seeded(symbols=7, generators=3, first=2, length=12)  # ours: what a smoke run can open
TEXT = Text(vocabulary=512, length=64)  # ours
WIKITEXT = "hub:Salesforce/wikitext:wikitext-103-raw-v1"  # caption of figure 4: Wikitext-103

SHAPE = {
    "vocab_size": TASK.symbols,
    "num_hidden_layers": 4,  # ours
    "hidden_size": 64,  # ours
    "num_attention_heads": 4,  # ours
    "intermediate_size": 128,  # ours
    "norm": "layer",  # as GPT
    "positions": "learned",  # as GPT
    "max_position_embeddings": TASK.length,
}
SMALL = {"num_hidden_layers": 3, "hidden_size": 32, "intermediate_size": 64}  # ours: a history of 0.3 GB a seed


def training(steps: int, checkpoints: int, batch_size: int = 64) -> Training:
    """All ours."""
    return Training(
        steps=steps,
        batch_size=batch_size,
        optimizer=AdamW(lr=3e-3, betas=(0.9, 0.99), weight_decay=0.01),
        warmup=min(200, steps // 5),
        schedule=Cosine(),
        checkpoints=checkpoints,
    )


def descent(steps: int, checkpoints: int, batch_size: int = 8) -> Training:
    """Gradient descent with momentum and decay, whose dual form is exact; every step is written down. All ours."""
    return Training(
        steps=steps,
        batch_size=batch_size,
        optimizer=SGD(lr=0.1, momentum=0.9, weight_decay=1e-3),
        warmup=min(50, steps // 5),
        schedule=Cosine(final=0.1),
        checkpoints=checkpoints,
        history=True,
    )


INNER = tuple(inner(one) for one in objectives.OBJECTIVES)
CLUSTERS = replace(analyses.clusters, title="Clusters of representations (after their figure 1)", order=9)
FIGURE_2 = tuple(replace(one, title=f"{one.title} (after their figure 2)") for one in INNER)
FIGURE_3 = replace(history_attention, title="Attention over the training history (after their figure 3)")
FIGURE_4 = tuple(replace(one, title=f"{one.title} (after their figure 4)", steps="ends") for one in INNER)
FIGURE_5 = replace(analyses.token_pictures, title="Pictures of tokens (after their figure 5)")

DESCENT = Arm(
    name="sgd",
    title="gradient descent, fewer generators",
    task=FEWER,
    model=DecoderConfig(**{**SHAPE, **SMALL, "vocab_size": FEWER.symbols, "max_position_embeddings": FEWER.length}),
    setups={
        "smoke": Setup(training=descent(30, checkpoints=2), sequences=64),
        "laptop": Setup(training=descent(500, checkpoints=8), sequences=256),
        "paper": Setup(training=descent(2_000, checkpoints=12), sequences=1024),
    },
    retrospects=(FIGURE_3,),
)

PROSE = Arm(
    name="text",
    title="real text",
    task=TEXT,
    model=DecoderConfig(**{**SHAPE, "vocab_size": TEXT.vocabulary, "max_position_embeddings": TEXT.length}),
    setups={
        "smoke": Setup(training=training(10, checkpoints=2, batch_size=8), sequences=8),
        "laptop": Setup(training=training(1_200, checkpoints=8, batch_size=32), sequences=64),
        "paper": Setup(
            training=training(20_000, checkpoints=12),
            sequences=256,
            task=replace(TEXT, source=WIKITEXT, instead="prose", characters=50_000_000),
        ),
    },
    measures=(*FIGURE_4, analyses.norms, analyses.logit_lens, analyses.affine_lens, FIGURE_5),
    sweeps=(causes,),
)

STUDY = Study(
    name="meta-learning",
    title="Inner and outer optimisation of a causal language model",
    about=(
        "Sequences that hidden generators dictate (the paper's seeds), and real text; a GPT-style decoder predicts the "
        "next token. A re-run of the paper's setting, worded from its abstract and captions: the generators, the inner "
        "objectives, all sizes and thresholds are ours. A smaller decoder is trained beside by gradient descent with "
        "momentum, which makes its dual form exact, and keeps its whole history on disk: 1 GB at laptop scale, 10 at "
        "paper scale."
    ),
    citation=Citation(
        key="wu2024metalearning",
        authors="Wu, Xinbo and Varshney, Lav R.",
        title="A Meta-Learning Perspective on Transformers for Causal Language Modeling",
        year=2024,
        venue="Findings of ACL 2024, arXiv:2310.05884",
        url="https://arxiv.org/abs/2310.05884",
    ),
    task=TASK,
    model=DecoderConfig(**SHAPE),
    scales={
        "smoke": Scale(training=training(30, checkpoints=2, batch_size=16), sequences=64, task=FEWEST, minutes=1.5),
        "laptop": Scale(training=training(2_400, checkpoints=10), sequences=1024, minutes=12.0),
        "paper": Scale(training=training(20_000, checkpoints=16), seeds=8, sequences=4096, minutes=240.0),
    },
    measures=(
        analyses.behaviour,
        *FIGURE_2,
        CLUSTERS,
        analyses.pictures,
        analyses.norms,
        analyses.logit_lens,
        analyses.affine_lens,
    ),
    sweeps=(gram, causes.using(first=TASK.first)),
    arms=(DESCENT, PROSE),
    claims=claims(),
)
