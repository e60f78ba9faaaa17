"""A function from inputs to predictions, dressed as a model: it predicts like one, and has nothing inside."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from mesascope.models.transformer import DecoderOutput


class PlantedFunction(PreTrainedModel):
    """A model whose predictions are those of a function.

    Args:
        predict: gets inputs (batch, pos, d_in), returns predictions (batch, pos, d_out).

    >>> PlantedFunction(lambda x: 2 * x)(torch.ones(1, 2, 1)).logits.flatten().tolist()
    [2.0, 2.0]
    """

    config_class = PretrainedConfig
    main_input_name = "inputs"

    def __init__(self, predict: Callable[[Tensor], Tensor]) -> None:
        super().__init__(PretrainedConfig())
        self.predict = predict
        self.gain = nn.Parameter(torch.ones(()))  # a model has weights, which say on what device and in what type it is
        self.eval()

    def forward(self, inputs: Tensor, **_: Any) -> DecoderOutput:
        """The predictions."""
        return DecoderOutput(logits=self.gain * self.predict(inputs))
