"""Recurrent transformers with dynamic halting, on flip-flop and ListOps.

Ray Chowdhury and Caragea 2024 (arXiv 2402.00976). The abstract names the tasks, the models and the questions. Models
and halting follow the authors' code; no table of results is known to us. Setting re-run, sizes ours: paper scale has
the sizes of the code where they are known. Sizes and training at laptop scale are ours, chosen by the accuracy of one
pilot seed that is not among the study's seeds. All margins and thresholds are ours.
"""

from mesascope.studies.base import Study
from mesascope.studies.dynamic_halt.citation import CITATION
from mesascope.studies.dynamic_halt.claims import CLAIMS
from mesascope.studies.dynamic_halt.conditions import make_expression_condition, make_flip_flop_condition, make_training
from mesascope.studies.dynamic_halt.models import EXPRESSION_MODELS, FLIP_FLOP_MODELS
from mesascope.studies.dynamic_halt.readers import LIST_OPS
from mesascope.tasks.expressions.list_ops import ListOps
from mesascope.tasks.expressions.list_trees import PADDING

LIST_OPS_TASK = ListOps(max_length=10, max_arguments=2, list_probability=0.5)  # ours
LIST_OPS_PAPER_TASK = ListOps(max_length=100)  # up to 100 tokens and 5 arguments, as in the data of the code
LIST_OPS_TRAINING = {
    "smoke": make_training(8, batch_size=64, learning_rate=5e-3, warmup=2, checkpoints=3),  # ours
    "laptop": make_training(1_200, batch_size=64, learning_rate=5e-3, warmup=100, checkpoints=5),  # ours
    "paper": make_training(
        100_000,  # ours; up to 100 epochs of about 90,000 expressions in the code
        batch_size=32,  # as in the code
        learning_rate=7e-4,  # ours
        warmup=1_000,  # as in the code
        checkpoints=11,
        weight_decay=0.1,  # as in the code
    ),
}

STUDY = Study(
    name="dynamic-halt",
    title="Recurrent transformers with dynamic halting",
    description="",
    citation=CITATION,
    conditions=(
        *(
            make_expression_condition(
                LIST_OPS, kind, LIST_OPS_TASK, LIST_OPS_PAPER_TASK, LIST_OPS_TRAINING, padding=PADDING
            )
            for kind in EXPRESSION_MODELS
        ),
        *map(make_flip_flop_condition, FLIP_FLOP_MODELS),
    ),
    claims=CLAIMS,
    seeds={"smoke": 2, "laptop": 5, "paper": 8},
    minutes={"smoke": 1.0, "laptop": 15.0, "paper": 700_000.0},
)
