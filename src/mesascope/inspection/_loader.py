"""Loading of the inspected checkpoints, one model at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mesascope.activations import WrappedModule
from mesascope.inspection._checkpoints import ModelCheckpoint
from mesascope.models.load import load_pretrained, make_untrained_factory
from mesascope.models.quantized.schemes import Quantization


@dataclass
class CheckpointLoader:
    """Loader of the checkpoints that keeps one model at a time in memory.

    Attributes:
        checkpoints: The checkpoints, in ascending order of steps.
        device: The device of the models.
        dtype: The data type of their weights.
        trust_remote_code: Whether Python code that comes with a model may run.
        stream_layers: Whether the weights of each layer are read from files whenever it runs.
        quantize: How the weights are quantised when they are loaded.
        device_map: How the weights are spread over devices, memory and disk.
        given: A model that the user has in memory, with its tokenizer; nothing is loaded then.
        loaded: The model in memory, if any, with its checkpoint and tokenizer.
        build_untrained: The factory of untrained models, after the first use.
        untrained_model: The untrained model in memory, if any, with its seed.
    """

    checkpoints: Sequence[ModelCheckpoint]
    device: str
    dtype: torch.dtype
    trust_remote_code: bool = False
    stream_layers: bool = False
    quantize: Quantization | None = None
    device_map: str | None = None
    given: tuple[PreTrainedModel, PreTrainedTokenizerBase | None] | None = None
    loaded: tuple[ModelCheckpoint, PreTrainedModel, PreTrainedTokenizerBase | None] | None = None
    build_untrained: Callable[[int], PreTrainedModel] | None = None
    untrained_model: tuple[int, PreTrainedModel] | None = None

    @property
    def last_checkpoint(self) -> ModelCheckpoint:
        """The last checkpoint, for which controls are computed."""
        return self.checkpoints[-1]

    def load_with_tokenizer(
        self, checkpoint: ModelCheckpoint
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
        """Load a checkpoint and its tokenizer, unless it is in memory.

        Args:
            checkpoint: One of the checkpoints.

        Returns:
            The model, and its tokenizer or None.
        """
        if self.given is not None:
            return self.given
        if self.loaded is None or self.loaded[0] != checkpoint:
            self.loaded = None
            model, tokenizer = load_pretrained(
                checkpoint.name,
                self.dtype,
                self.device,
                checkpoint.revision,
                trust_remote_code=self.trust_remote_code,
                require_tokenizer=False,
                stream_layers=self.stream_layers,
                quantize=self.quantize,
                device_map=self.device_map,
            )
            self.loaded = (checkpoint, model, tokenizer)
        return self.loaded[1:]

    def load_model(self, checkpoint: ModelCheckpoint) -> PreTrainedModel:
        """Load a checkpoint, unless it is in memory.

        Args:
            checkpoint: One of the checkpoints.

        Returns:
            The model.
        """
        return self.load_with_tokenizer(checkpoint)[0]

    def load_untrained(self, seed: int) -> PreTrainedModel:
        """Return the same architecture with random weights; the trained model is freed first.

        Args:
            seed: The seed of the weights.
        """
        if self.build_untrained is None:
            model = self.load_model(self.last_checkpoint)
            is_wrapped = isinstance(model, WrappedModule)
            self.build_untrained = model.build_untrained if is_wrapped else make_untrained_factory(model)
        self.loaded = None
        if self.untrained_model is None or self.untrained_model[0] != seed:
            self.untrained_model = None
            self.untrained_model = (seed, self.build_untrained(seed))
        return self.untrained_model[1]
