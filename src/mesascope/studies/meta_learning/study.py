"""The meta-learning view of language models: inner optimisation across layers, outer optimisation in training.

Wu & Varshney 2024 (arXiv 2310.05884; Findings of ACL 2024). Known to us are the abstract, the captions of the figures
and the idea of the proposition. The generators of the sequences, the inner objectives, sizes, training and all
thresholds are ours.
"""

from dataclasses import replace

from mesascope import analyses
from mesascope.analyses.causal.head_ablation import head_ablation
from mesascope.analyses.inner_objectives import objectives
from mesascope.analyses.inner_objectives.measure import inner
from mesascope.analyses.stream.input_spectra import input_spectra
from mesascope.analyses.training.history_attention import history_attention
from mesascope.models.config import DecoderConfig
from mesascope.studies.base import Condition, ScaleConfig, Study
from mesascope.studies.meta_learning.citation import CITATION
from mesascope.studies.meta_learning.claims import meta_learning_claims
from mesascope.tasks.seeded import SeededSequences
from mesascope.tasks.text import TextTask
from mesascope.train import SGD, AdamW, CosineSchedule, TrainingConfig

TASK = SeededSequences(num_symbols=23, num_generators=12, prefix_length=3, length=24)  # ours
SGD_TASK = SeededSequences(num_symbols=11, num_generators=6, prefix_length=2, length=16)  # ours: learned in 500 steps
SMOKE_TASK = SeededSequences(num_symbols=7, num_generators=3, prefix_length=2, length=12)  # ours: small for smoke runs
TEXT_TASK = TextTask(vocab_size=512, length=64)  # ours
WIKITEXT = "hub:Salesforce/wikitext:wikitext-103-raw-v1"  # caption of figure 4: Wikitext-103

SHAPE = {
    "vocab_size": TASK.num_symbols,
    "num_hidden_layers": 4,  # ours
    "hidden_size": 64,  # ours
    "num_attention_heads": 4,  # ours
    "intermediate_size": 128,  # ours
    "norm": "layer",  # as GPT
    "positions": "learned",  # as GPT
    "max_position_embeddings": TASK.length,
}
SGD_SIZES = {"num_hidden_layers": 3, "hidden_size": 32, "intermediate_size": 64}  # ours: 0.3 GB of history per seed


def _make_adamw_training(steps: int, checkpoints: int, batch_size: int = 64) -> TrainingConfig:
    return TrainingConfig(  # ours: the paper's training is not known
        steps=steps,
        batch_size=batch_size,
        optimizer=AdamW(lr=3e-3, betas=(0.9, 0.99), weight_decay=0.01),
        warmup=min(200, steps // 5),
        schedule=CosineSchedule(),
        checkpoints=checkpoints,
    )


def _make_sgd_training(steps: int, checkpoints: int, batch_size: int = 8) -> TrainingConfig:
    return TrainingConfig(  # ours: the dual form is exact for SGD with momentum and weight decay
        steps=steps,
        batch_size=batch_size,
        optimizer=SGD(lr=0.1, momentum=0.9, weight_decay=1e-3),
        warmup=min(50, steps // 5),
        schedule=CosineSchedule(final_fraction=0.1),
        checkpoints=checkpoints,
        history=True,
    )


INNER = tuple(inner(objective) for objective in objectives.OBJECTIVES)
FIGURE_1 = replace(analyses.clusters, title="Clusters of representations (compare Figure 1 of the paper)")
FIGURE_2 = tuple(replace(one, title=f"{one.title} (compare Figure 2 of the paper)") for one in INNER)
FIGURE_3 = replace(history_attention, title="Attention over the training history (compare Figure 3 of the paper)")
FIGURE_4 = tuple(replace(one, title=f"{one.title} (compare Figure 4 of the paper)", steps="ends") for one in INNER)
FIGURE_5 = replace(analyses.token_projections, title="Projections of tokens (compare Figure 5 of the paper)")

SGD_CONDITION = Condition(
    name="sgd",
    title="SGD, fewer generators",
    task=SGD_TASK,
    model=DecoderConfig(
        **{**SHAPE, **SGD_SIZES, "vocab_size": SGD_TASK.num_symbols, "max_position_embeddings": SGD_TASK.length}
    ),
    scales={
        "smoke": ScaleConfig(training=_make_sgd_training(30, checkpoints=2), sequences=64),
        "laptop": ScaleConfig(training=_make_sgd_training(500, checkpoints=8), sequences=256),
        "paper": ScaleConfig(training=_make_sgd_training(2_000, checkpoints=12), sequences=1024),
    },
    analyses=(analyses.loss_vs_baselines, FIGURE_3),
)

TEXT_CONDITION = Condition(
    name="text",
    title="real text",
    task=TEXT_TASK,
    model=DecoderConfig(**{**SHAPE, "vocab_size": TEXT_TASK.vocab_size, "max_position_embeddings": TEXT_TASK.length}),
    scales={
        "smoke": ScaleConfig(training=_make_adamw_training(10, checkpoints=2, batch_size=8), sequences=8),
        "laptop": ScaleConfig(training=_make_adamw_training(1_200, checkpoints=8, batch_size=32), sequences=64),
        "paper": ScaleConfig(
            training=_make_adamw_training(20_000, checkpoints=12),
            sequences=256,
            task=replace(TEXT_TASK, source=WIKITEXT, fallback="prose", max_characters=50_000_000),
        ),
    },
    analyses=(
        analyses.loss_vs_baselines,
        *FIGURE_4,
        analyses.norms,
        analyses.logit_lens,
        analyses.affine_lens,
        FIGURE_5,
        head_ablation.using(groups=False),
    ),
)

STUDY = Study(
    name="meta-learning",
    title="Inner and outer optimisation of a causal language model",
    description=(
        "A GPT-style decoder is trained on sequences from hidden generators (the paper's seeds), and on real text, to "
        "predict the next token. The setting follows the paper's abstract and captions; generators, inner "
        "objectives, sizes and thresholds are ours. A smaller decoder is trained by SGD with momentum, for which "
        "the dual form is exact; its training history is stored on disk: 1.5 GB at laptop scale, 10 GB at paper "
        "scale."
    ),
    citation=CITATION,
    conditions=(
        Condition(
            task=TASK,
            model=DecoderConfig(**SHAPE),
            scales={
                "smoke": ScaleConfig(
                    training=_make_adamw_training(30, checkpoints=2, batch_size=16), sequences=64, task=SMOKE_TASK
                ),
                "laptop": ScaleConfig(training=_make_adamw_training(2_400, checkpoints=10), sequences=1024),
                "paper": ScaleConfig(training=_make_adamw_training(20_000, checkpoints=16), sequences=4096),
            },
            analyses=(
                analyses.loss_vs_baselines,
                *FIGURE_2,
                FIGURE_1,
                analyses.projections,
                analyses.norms,
                analyses.logit_lens,
                analyses.affine_lens,
                input_spectra,
                head_ablation.using(first=TASK.prefix_length, groups=False),
            ),
        ),
        SGD_CONDITION,
        TEXT_CONDITION,
    ),
    claims=meta_learning_claims(),
    seeds={"smoke": 3, "laptop": 5, "paper": 8},
    minutes={"smoke": 1.5, "laptop": 16.0, "paper": 240.0},
)
