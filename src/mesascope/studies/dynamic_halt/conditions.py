"""The conditions of the study: sizes and training of every model, on flip-flop and on expressions."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from mesascope.analyses.base import Analysis
from mesascope.models.config import DecoderConfig
from mesascope.models.recurrent.config import RecurrentConfig
from mesascope.studies.base import Condition, ScaleConfig
from mesascope.studies.dynamic_halt.accuracy import answer_accuracy, shifted_answer_accuracy
from mesascope.studies.dynamic_halt.halting_steps import halting_steps
from mesascope.studies.dynamic_halt.models import CHUNK_WISE, GUTLB, TITLES, UT, make_model
from mesascope.studies.dynamic_halt.readers import FLIP_FLOP, TASK_TITLES, name_condition
from mesascope.studies.dynamic_halt.shifts import list_distributions
from mesascope.studies.dynamic_halt.step_limits import step_limits, takes_equal_steps
from mesascope.tasks.base import Task
from mesascope.tasks.expressions.list_ops import ListOps
from mesascope.tasks.expressions.logical_inference import LogicalInference
from mesascope.tasks.flip_flop import FlipFlop
from mesascope.train import AdamW, ConstantSchedule, CosineSchedule, TrainingConfig
from mesascope.train.schedules import LearningRateSchedule

Expressions = ListOps | LogicalInference
Shape = Mapping[str, Any]

SMALL: Shape = MappingProxyType(  # ours
    {
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "layers": 4,
        "chunk_length": 8,
        "memory_slots": 4,
    }
)
EXPRESSION_PAPER: Shape = MappingProxyType(  # as in the code; there are no chunks
    {**SMALL, "hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 1_024}
)
FLIP_FLOP_PAPER: Shape = MappingProxyType(  # as in the code
    {**EXPRESSION_PAPER, "intermediate_size": 2_048, "layers": 6, "chunk_length": 100, "memory_slots": 10}
)
FLIP_FLOP_TASK, FLIP_FLOP_PAPER_TASK = FlipFlop(length=32), FlipFlop(length=512)  # ours; as in the code
FLIP_FLOP_ITERATIONS, FLIP_FLOP_PENALTY = 4, 0.01  # ours
GUTLB_ITERATIONS = 2  # ours; half of those of GUT, as in the code
FLIP_FLOP_PAPER_ITERATIONS, FEWER_PAPER_ITERATIONS = 20, 10  # as in the code; of UT and GUTLB
PAPER_PENALTY = 0.1  # as in the code
EXPRESSION_ITERATIONS, EXPRESSION_PENALTY = 4, 0.05  # ours


@dataclass(frozen=True, kw_only=True)
class ExpressionSetting:
    """A task of expressions, whose answer follows the last token, and how models are trained on it.

    Attributes:
        label: of the task, a key of `TASK_TITLES`.
        task: at smoke and laptop scale.
        paper_task: at paper scale.
        training: by scale.
        padding: token that is padding.
        paper_iterations: largest number of steps at paper scale.
        paper_penalty: factor of the expected number of steps in the loss at paper scale.
    """

    label: str
    task: Expressions
    paper_task: Expressions
    training: Mapping[str, TrainingConfig]
    padding: int
    paper_iterations: int
    paper_penalty: float


def make_training(
    steps: int,
    *,
    batch_size: int,
    learning_rate: float,
    warmup: int,
    checkpoints: int,
    weight_decay: float = 0.01,
    schedule: LearningRateSchedule | None = None,
) -> TrainingConfig:
    """Return a training with AdamW, as in the paper's code; betas and gradient clipping are ours.

    Args:
        steps: optimiser steps.
        batch_size: sequences of a step.
        learning_rate: the largest one.
        warmup: steps of the linear warm-up.
        checkpoints: number of saved checkpoints, evenly spaced.
        weight_decay: of AdamW.
        schedule: of the learning rate; cosine by default.
    """
    return TrainingConfig(
        steps=steps,
        batch_size=batch_size,
        optimizer=AdamW(lr=learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay),
        warmup=warmup,
        schedule=CosineSchedule() if schedule is None else schedule,
        checkpoints=checkpoints,
        spacing="even",
    )


def _make_flip_flop_training(kind: str) -> dict[str, TrainingConfig]:
    """Return the training on flip-flop by scale; at the larger rate, a pilot of GUTLB read 98 % of the bits only."""
    rate, steps = (3e-3, 500) if kind in CHUNK_WISE else (5e-3, 600)  # ours
    return {
        "smoke": make_training(8, batch_size=16, learning_rate=rate, warmup=2, checkpoints=3),  # ours
        "laptop": make_training(steps, batch_size=16, learning_rate=rate, warmup=50, checkpoints=5),  # ours
        "paper": make_training(  # as in the code; checkpoints are ours
            10_000,
            batch_size=16,
            learning_rate=3e-4,
            warmup=0,
            checkpoints=11,
            weight_decay=0.1,
            schedule=ConstantSchedule(),
        ),
    }


def make_flip_flop_condition(kind: str) -> Condition:
    """Return the condition in which a model is trained on flip-flop.

    Args:
        kind: of the model.
    """

    def make(task: FlipFlop, shape: Shape, iterations: int, penalty: float) -> DecoderConfig:
        return make_model(
            kind,
            vocab_size=task.vocab_size,
            max_position_embeddings=2 * task.length,
            max_iterations=iterations,
            halting_penalty=penalty,
            **shape,
        )

    iterations = GUTLB_ITERATIONS if kind == GUTLB else FLIP_FLOP_ITERATIONS
    paper_iterations = FEWER_PAPER_ITERATIONS if kind in (UT, GUTLB) else FLIP_FLOP_PAPER_ITERATIONS
    return _make_condition(
        FLIP_FLOP,
        kind,
        FLIP_FLOP_TASK,
        make(FLIP_FLOP_TASK, SMALL, iterations, FLIP_FLOP_PENALTY),
        _make_flip_flop_training(kind),
        FLIP_FLOP_PAPER_TASK,
        make(FLIP_FLOP_PAPER_TASK, FLIP_FLOP_PAPER, paper_iterations, PAPER_PENALTY),
    )


def make_expression_condition(setting: ExpressionSetting, kind: str) -> Condition:
    """Return the condition in which a model is trained on expressions.

    Args:
        setting: task and training.
        kind: of the model.
    """

    def make(task: Expressions, shape: Shape, iterations: int, penalty: float) -> DecoderConfig:
        return make_model(
            kind,
            vocab_size=task.vocab_size,
            max_position_embeddings=max(one.length for one in list_distributions(task).values()),
            max_iterations=iterations,
            halting_penalty=penalty,
            mask="full",  # as in the code; with global halting, one decision for all positions
            pad_token_id=setting.padding,
            **shape,
        )

    return _make_condition(
        setting.label,
        kind,
        setting.task,
        make(setting.task, SMALL, EXPRESSION_ITERATIONS, EXPRESSION_PENALTY),
        setting.training,
        setting.paper_task,
        make(setting.paper_task, EXPRESSION_PAPER, setting.paper_iterations, setting.paper_penalty),
    )


def _make_condition(
    label: str,
    kind: str,
    task: Task,
    model: DecoderConfig,
    training: Mapping[str, TrainingConfig],
    paper_task: Task,
    paper_model: DecoderConfig,
) -> Condition:
    analyses: list[Analysis] = [answer_accuracy, shifted_answer_accuracy]
    if isinstance(model, RecurrentConfig) and model.halt != "none":
        analyses.append(halting_steps)
    if isinstance(model, RecurrentConfig) and model.max_iterations > 1 and takes_equal_steps(model):
        analyses.append(step_limits)
    paper = ScaleConfig(training=training["paper"], sequences=4_096, task=paper_task, model=paper_model)
    return Condition(
        name=name_condition(label, kind),
        title=f"{TASK_TITLES[label]}, {TITLES[kind]}",
        task=task,
        model=model,
        scales={
            "smoke": ScaleConfig(training=training["smoke"], sequences=64),
            "laptop": ScaleConfig(training=training["laptop"], sequences=1_024),
            "paper": paper,
        },
        analyses=tuple(analyses),
    )
