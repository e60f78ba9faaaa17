"""The conditions of the study: tasks, sizes and training of every model, at each scale."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from mesascope.analyses.base import Analysis
from mesascope.models.config import DecoderConfig
from mesascope.models.recurrent.config import RecurrentConfig
from mesascope.studies.base import Condition, ScaleConfig
from mesascope.studies.dynamic_halt.accuracy import answer_accuracy, shifted_answer_accuracy
from mesascope.studies.dynamic_halt.halting_steps import halting_steps
from mesascope.studies.dynamic_halt.models import GUTLB, TITLES, UT, make_model
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

FLIP_FLOP_TASK, FLIP_FLOP_PAPER_TASK = FlipFlop(length=32), FlipFlop(length=512)  # ours; as in the code

SMALL: Mapping[str, Any] = MappingProxyType(  # ours
    {
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "layers": 4,
        "max_iterations": 4,
        "chunk_length": 8,
        "memory_slots": 4,
    }
)
FLIP_FLOP_PAPER: Mapping[str, Any] = MappingProxyType(  # as in the code
    {
        "hidden_size": 512,
        "num_attention_heads": 8,
        "intermediate_size": 2_048,
        "layers": 6,
        "max_iterations": 20,
        "chunk_length": 100,
        "memory_slots": 10,
    }
)
FLIP_FLOP_PAPER_ITERATIONS = {UT: 10, GUTLB: 10}  # as in the code, otherwise 20
EXPRESSION_PAPER: Mapping[str, Any] = MappingProxyType(
    {**FLIP_FLOP_PAPER, "intermediate_size": 1_024, "layers": 4, "max_iterations": 10}  # as in the code, for ListOps
)
FLIP_FLOP_PENALTY, PENALTY, PAPER_PENALTY = 0.01, 0.01, 0.1  # ours; ours; of the code


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
    """Return a training with AdamW, as in the paper's code; gradient clipping is ours.

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


def make_flip_flop_condition(kind: str) -> Condition:
    """Return the condition in which a model is trained on flip-flop.

    Args:
        kind: of the model.
    """
    task, paper_task = FLIP_FLOP_TASK, FLIP_FLOP_PAPER_TASK

    def make(task: FlipFlop, penalty: float, shape: Mapping[str, Any]) -> DecoderConfig:
        positions = 2 * task.length
        fields = {"vocab_size": task.vocab_size, "max_position_embeddings": positions, "halting_penalty": penalty}
        return make_model(kind, **{**fields, **shape})

    iterations = FLIP_FLOP_PAPER_ITERATIONS.get(kind, FLIP_FLOP_PAPER["max_iterations"])
    paper_model = make(paper_task, PAPER_PENALTY, {**FLIP_FLOP_PAPER, "max_iterations": iterations})
    small = {"batch_size": 16, "learning_rate": 3e-3}  # ours
    scales = {
        "smoke": ScaleConfig(training=make_training(8, warmup=2, checkpoints=3, **small), sequences=64),
        "laptop": ScaleConfig(training=make_training(400, warmup=50, checkpoints=5, **small), sequences=1_024),
        "paper": ScaleConfig(
            training=make_training(
                10_000,
                batch_size=16,
                learning_rate=3e-4,
                warmup=0,
                checkpoints=11,
                weight_decay=0.1,
                schedule=ConstantSchedule(),
            ),  # as in the code
            sequences=4_096,
            task=paper_task,
            model=paper_model,
        ),
    }
    return _make_condition(FLIP_FLOP, kind, task, make(task, FLIP_FLOP_PENALTY, SMALL), scales)


def make_expression_condition(
    label: str,
    kind: str,
    task: Expressions,
    paper_task: Expressions,
    training: Mapping[str, TrainingConfig],
    *,
    padding: int,
) -> Condition:
    """Return the condition in which a model is trained on expressions, whose answer follows the last token.

    Args:
        label: of the task, a key of `TASK_TITLES`.
        kind: of the model.
        task: at smoke and laptop scale.
        paper_task: at paper scale.
        training: by scale.
        padding: token that is padding.
    """

    def make(task: Expressions, penalty: float, shape: Mapping[str, Any]) -> DecoderConfig:
        longest = max(one.length for one in list_distributions(task).values())
        return make_model(
            kind,
            vocab_size=task.vocab_size,
            max_position_embeddings=longest,
            halting_penalty=penalty,
            mask="full",  # as in the code, and one decision to halt for all positions
            pad_token_id=padding,
            **shape,
        )

    scales = {
        "smoke": ScaleConfig(training=training["smoke"], sequences=64),
        "laptop": ScaleConfig(training=training["laptop"], sequences=1_024),
        "paper": ScaleConfig(
            training=training["paper"],
            sequences=4_096,
            task=paper_task,
            model=make(paper_task, PAPER_PENALTY, EXPRESSION_PAPER),
        ),
    }
    return _make_condition(label, kind, task, make(task, PENALTY, SMALL), scales)


def _make_condition(
    label: str, kind: str, task: Task, model: DecoderConfig, scales: Mapping[str, ScaleConfig]
) -> Condition:
    analyses: list[Analysis] = [answer_accuracy, shifted_answer_accuracy]
    if isinstance(model, RecurrentConfig) and model.halt != "none":
        analyses.append(halting_steps)
    if isinstance(model, RecurrentConfig) and model.max_iterations > 1 and takes_equal_steps(model):
        analyses.append(step_limits)
    return Condition(
        name=name_condition(label, kind),
        title=f"{TASK_TITLES[label]}, {TITLES[kind]}",
        task=task,
        model=model,
        scales=scales,
        analyses=tuple(analyses),
    )
