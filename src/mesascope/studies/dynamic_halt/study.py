"""Recurrent transformers with dynamic halting, on flip-flop and ListOps.

Ray Chowdhury and Caragea 2024 (arXiv 2402.00976). The abstract names the tasks, the models and the questions. Models
and halting follow the authors' code; no table of results is known to us. Setting re-run, sizes ours: paper scale has
the sizes of the code where they are known. Sizes and training at laptop scale are ours, chosen by the accuracy of one
pilot seed that is not among the study's seeds. All margins and thresholds are ours.
"""

from mesascope.studies.base import Study
from mesascope.studies.dynamic_halt.citation import CITATION
from mesascope.studies.dynamic_halt.conditions import (
    ExpressionSetting,
    make_expression_condition,
    make_flip_flop_condition,
    make_training,
)
from mesascope.studies.dynamic_halt.expression_claims import list_ops_claims
from mesascope.studies.dynamic_halt.flip_flop_claims import flip_flop_claims
from mesascope.studies.dynamic_halt.halting_claims import halting_claims
from mesascope.studies.dynamic_halt.models import EXPRESSION_MODELS, FLIP_FLOP_MODELS
from mesascope.studies.dynamic_halt.readers import LIST_OPS
from mesascope.tasks.expressions.list_ops import ListOps
from mesascope.tasks.expressions.list_trees import PADDING

LIST_OPS_SETTING = ExpressionSetting(
    label=LIST_OPS,
    task=ListOps(max_length=10, max_arguments=2, list_probability=0.5),  # ours
    paper_task=ListOps(max_length=100),  # up to 100 tokens and 5 arguments, as in the data of the code
    training={
        "smoke": make_training(8, batch_size=64, learning_rate=5e-3, warmup=2, checkpoints=3),  # ours
        "laptop": make_training(900, batch_size=64, learning_rate=5e-3, warmup=100, checkpoints=5),  # ours
        "paper": make_training(
            100_000,  # ours; up to 100 epochs of about 90,000 expressions in the code
            batch_size=32,  # as in the code
            learning_rate=7e-4,  # ours
            warmup=1_000,  # as in the code
            checkpoints=11,  # ours
            weight_decay=0.1,  # as in the code
        ),
    },
    padding=PADDING,
    paper_iterations=10,  # as in the code
    paper_penalty=0.1,  # as in the code
)

STUDY = Study(
    name="dynamic-halt",
    title="Recurrent transformers with dynamic halting",
    description="Transformers that apply one block repeatedly decide by themselves when to stop. The paper compares "
    "recurrence over depth (universal transformer, UT; with a gate and one decision to halt for all positions, by the "
    "states before and after a step, GUT) with recurrence over chunks of the sequence, which pass on a memory "
    "(temporal latent bottleneck, TLB; with the parts of GUT, GUTLB). Here they are trained on flip-flop, in which "
    "the last written bit must be read after ignored ones, and GUT, its ablations and UT on ListOps, nested lists of "
    "digits to be evaluated, together with a model that has the gate and takes a fixed number of steps. The abstract "
    "names tasks, models and questions, and no results; we know none of the paper's tables, and take the direction of "
    "its claims from a public summary. Setting re-run, sizes ours: models of width 32, flip-flop of 32 tokens and "
    "ListOps of up to 10 tokens at laptop scale. Positions are rotary instead of XPos, chunks have a fixed length, "
    "and attention of UT reads the states, so that UT and GUT differ in gate and halting only. The penalty on steps "
    "is 0.05 on ListOps and 0.01 on flip-flop at laptop scale, and 0.1 at paper scale, as in the code: with 0.1, a "
    "pilot model on longer expressions stopped after 1.2 of 6 steps. Flip-flop is causal: a position halts by the "
    "mean state up to it, and steps taken are averaged over positions. On ListOps all positions of a sequence halt "
    "together. Logical inference is the study `dynamic-halt-logic`. Long Range Arena is not re-run. Pilots show what "
    "laptop scale cannot decide. All pilot models read every bit of sparse sequences of 32 tokens, so that sparse "
    "sequences need the length of paper scale. On ListOps, GUT reached an accuracy of 0.69, 0.77 and 0.79 after 350, "
    "700 and 1,000 steps, where ignoring nested lists reaches 0.69; on longer expressions no pilot model was better "
    "than that baseline, 0.27, so that they need the steps of paper scale. In a first run of the study, models on "
    "flip-flop were trained for 400 steps, and two ablations of GUT read 0.968 and 0.979 of the bits; they are "
    "trained for 600 since.",
    citation=CITATION,
    conditions=(
        *(make_expression_condition(LIST_OPS_SETTING, kind) for kind in EXPRESSION_MODELS),
        *map(make_flip_flop_condition, FLIP_FLOP_MODELS),
    ),
    claims=(*flip_flop_claims(), *list_ops_claims(), *halting_claims()),
    seeds={"smoke": 2, "laptop": 5, "paper": 8},
    minutes={"smoke": 1.0, "laptop": 20.0, "paper": 700_000.0},
)
