"""A model without layers that wraps a function from inputs to predictions."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from mesascope.models.transformer import DecoderOutput


class PlantedFunction(PreTrainedModel):
    """A model whose predictions are the values of a function.

    Args:
        predict: function of inputs (batch, pos, d_in) that returns predictions (batch, pos, d_out).

    >>> PlantedFunction(lambda x: 2 * x)(torch.ones(1, 2, 1)).logits.flatten().tolist()
    [2.0, 2.0]
    """

    config_class = PretrainedConfig
    main_input_name = "inputs"

    def __init__(self, predict: Callable[[Tensor], Tensor]) -> None:
        super().__init__(PretrainedConfig())
        self.predict = predict
        self.unit_gain = nn.Parameter(torch.ones(()))  # callers read device and dtype from a parameter
        self.eval()

    def forward(self, inputs: Tensor, **_: Any) -> DecoderOutput:
        """Return the predictions.

        Args:
            inputs: input vectors, (batch, pos, d_in).

        Returns:
            The predictions as logits, (batch, pos, d_out).
        """
        return DecoderOutput(logits=self.unit_gain * self.predict(inputs))
