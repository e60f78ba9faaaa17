"""Recurrent transformers with dynamic halting, on logical inference: a part of the study `dynamic-halt`.

Its claim is decided at paper scale only: the sizes at laptop scale are not those of a pilot that has learned the task.
"""

from dataclasses import replace

from mesascope.studies.dynamic_halt import study
from mesascope.studies.dynamic_halt.conditions import ExpressionSetting, make_expression_condition, make_training
from mesascope.studies.dynamic_halt.expression_claims import logic_claims
from mesascope.studies.dynamic_halt.models import GUT, UT
from mesascope.studies.dynamic_halt.readers import LOGIC
from mesascope.tasks.expressions.logical_inference import PADDING, TOKENS, LogicalInference

SETTING = ExpressionSetting(
    label=LOGIC,
    task=LogicalInference(max_operators=2),  # ours
    paper_task=LogicalInference(),  # up to 6 operators and 4 variables, as in the data of the code
    training={
        "smoke": make_training(8, batch_size=64, learning_rate=5e-3, warmup=2, checkpoints=3),  # ours
        "laptop": make_training(1_000, batch_size=64, learning_rate=5e-3, warmup=100, checkpoints=5),  # ours
        "paper": make_training(
            50_000,  # ours
            batch_size=256,  # as in the code
            learning_rate=7e-4,  # as in the code
            warmup=4_000,  # as in the code
            checkpoints=11,  # ours
        ),
    },
    padding=TOKENS[PADDING],
    paper_iterations=15,  # as in the code
    paper_penalty=0.0,  # as in the code: halting has no pressure
)

STUDY = replace(
    study.STUDY,
    name="dynamic-halt-logic",
    title="Recurrent transformers with dynamic halting: logical inference",
    description="GUT and UT on logical inference: which of seven relations holds between two formulas. The models are "
    "those of the study `dynamic-halt`. The claim is decided at paper scale only, with formulas of up to 6 operators "
    "in training and 7 to 12 in the test; at laptop scale there are up to 2, and 3 to 4. Setting re-run, sizes ours: "
    "how pairs are drawn is ours, and there is no dropout.",
    conditions=tuple(make_expression_condition(SETTING, kind) for kind in (GUT, UT)),
    claims=logic_claims(),
    minutes={"smoke": 0.5, "laptop": 6.0, "paper": 400_000.0},
)
