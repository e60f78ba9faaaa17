"""Models with known answers and known steps, for tests of the study of dynamic halting."""

from typing import Any

import torch
from torch import Tensor

from mesascope.models.config import DecoderConfig
from mesascope.models.recurrent.config import RecurrentConfig
from mesascope.models.recurrent.model import RecurrentOutput, RecurrentTransformer
from mesascope.models.transformer import Decoder, DecoderOutput
from mesascope.tasks.base import Batch
from mesascope.tasks.expressions.list_ops import EXACT, ListOps
from mesascope.tasks.expressions.list_trees import ANSWER, CLOSE, NUM_DIGITS, PADDING
from mesascope.tasks.flip_flop import FlipFlop

LIST_OPS = ListOps(max_length=10, max_arguments=2, list_probability=0.5)
SHAPE: dict[str, Any] = {"hidden_size": 8, "num_attention_heads": 2, "max_position_embeddings": 64}


def wrap_inputs(inputs: Tensor) -> Batch:
    return Batch(inputs=inputs, targets=inputs, weight=torch.ones(inputs.shape))


class BaselineModel(Decoder):
    """A model that predicts as a baseline of a task does."""

    def __init__(self, task: FlipFlop | ListOps, name: str) -> None:
        super().__init__(DecoderConfig(vocab_size=task.vocab_size, **SHAPE))
        self.task, self.name = task, name

    def forward(self, inputs: Tensor | None = None, *_: Any, **__: Any) -> DecoderOutput:
        assert inputs is not None
        return DecoderOutput(logits=self.task.baselines(wrap_inputs(inputs))[self.name])


class DepthModel(RecurrentTransformer):
    """A model whose steps are set by a rule, and which is right if it takes as many steps as lists are nested.

    ``rule`` is ``depth``: as many steps as lists are nested; ``length``: a step for every three tokens; ``constant``:
    three steps.
    """

    def __init__(self, rule: str, max_iterations: int = 6) -> None:
        fields = {"halt": "global", "mask": "full", "pad_token_id": PADDING, "max_iterations": max_iterations}
        super().__init__(RecurrentConfig(vocab_size=LIST_OPS.vocab_size, **SHAPE, **fields))
        self.rule = rule

    def forward(self, inputs: Tensor | None = None, *_: Any, **__: Any) -> RecurrentOutput:
        assert inputs is not None
        is_list = (inputs >= NUM_DIGITS) & (inputs < CLOSE)
        depth = (is_list.int() - (inputs == CLOSE).int()).cumsum(1).amax(1)
        length = (inputs != PADDING).sum(1)
        steps = {"depth": depth, "length": length // 3, "constant": torch.full_like(depth, 3)}[self.rule]
        steps = steps.clamp(max=self.config.max_iterations)
        logits = LIST_OPS.baselines(wrap_inputs(inputs))[EXACT].clone()
        logits[steps < depth] = logits[steps < depth].roll(1, dims=-1)
        num_steps = torch.where(inputs != PADDING, steps[:, None], 0)
        return RecurrentOutput(logits=logits, num_steps=num_steps, expected_steps=num_steps / 2)


def sample_expressions(n: int = 400) -> Batch:
    batch = LIST_OPS.sample(n, torch.Generator().manual_seed(3))
    assert (batch.inputs == ANSWER).any(1).all()
    return batch
