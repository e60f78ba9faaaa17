"""The recurrent transformer, a transformers model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.masking_utils import create_bidirectional_mask

from mesascope.models.layers import HiddenStates
from mesascope.models.recurrent.blocks import Memory, MemoryUpdate, RecurrentBlock
from mesascope.models.recurrent.chunks import invert_order, order_padding_last, reorder_positions, split_chunks
from mesascope.models.recurrent.config import RecurrentConfig
from mesascope.models.recurrent.halting import HaltedStates, HaltingUnit, run_until_halted
from mesascope.models.transformer import Decoder, DecoderOutput


@dataclass
class RecurrentOutput(DecoderOutput):
    """The output of a recurrent transformer; all but the logits are None without halting.

    Attributes:
        logits: at every position, the logits of the next token or the predicted vector.
        auxiliary_loss: ``halting_penalty`` times the mean of `expected_steps` over positions that are not padding.
        halting_probabilities: the halting probability in every step; 0 after a position has stopped, and at padding.
        halting_weights: the weight of the state after 0, 1, 2, ... steps; they sum to 1, except at padding.
        expected_steps: the mean number of steps under these weights; 0 at padding.
        num_steps: the number of steps that a position has taken; 0 at padding.
    """

    halting_probabilities: Float[Tensor, "iteration batch pos"] | None = None
    halting_weights: Float[Tensor, "state batch pos"] | None = None
    expected_steps: Float[Tensor, "batch pos"] | None = None
    num_steps: Int[Tensor, "batch pos"] | None = None


class RecurrentTransformer(Decoder):
    """A transformer that applies the same layers repeatedly, defined by a :class:`RecurrentConfig`.

    Padding is given by an attention mask, or by ``pad_token_id`` where there is none; it changes nothing at other
    positions, on whichever side it is.

    >>> config = RecurrentConfig(vocab_size=5, hidden_size=8, num_attention_heads=2, max_iterations=3)
    >>> output = RecurrentTransformer(config)(torch.zeros(2, 6, dtype=torch.int64))
    >>> output.logits.shape, output.expected_steps.shape
    (torch.Size([2, 6, 5]), torch.Size([2, 6]))
    """

    config_class = RecurrentConfig
    config: RecurrentConfig  # pyright: ignore[reportIncompatibleVariableOverride]  never replaced by another kind

    def _build_layers(self) -> None:
        config = self.config
        self.layers = nn.ModuleList(RecurrentBlock(config, layer) for layer in range(config.num_hidden_layers))
        self.halting = None if config.halt == "none" else HaltingUnit(config)
        self.memory_update = None if config.memory_slots is None else MemoryUpdate(config, config.num_hidden_layers)

    def forward(
        self,
        inputs: Float[Tensor, "batch pos d_in"] | Int[Tensor, "batch pos"] | None = None,
        input_ids: Int[Tensor, "batch pos"] | None = None,
        attention_mask: Int[Tensor, "_ _"] | Bool[Tensor, "_ _"] | None = None,
        position_ids: Int[Tensor, "#batch pos"] | None = None,
        **_: Any,
    ) -> RecurrentOutput:
        """Predict the next token or vector at every position.

        Args:
            inputs: vectors, or tokens.
            input_ids: tokens, under the argument name of transformers.
            attention_mask: (batch, pos), 0 at padding; by default, padding is where the input is ``pad_token_id``.
            position_ids: position of each input; by default 0, 1, 2, ... from the first input that is not padding.
            **_: ignored arguments of transformers.

        Returns:
            The logits or predicted vectors, and the halting probabilities.

        Raises:
            ValueError: there is no input, it is longer than ``max_position_embeddings``, the mask has another shape, or
                position ids restart in a model that cannot separate sequences.
        """
        inputs = self._validate_inputs(inputs, input_ids)
        attention_mask = self._find_padding(inputs, attention_mask)
        self._validate_positions(position_ids)
        positions = position_ids
        if positions is None and attention_mask is not None:
            positions = (attention_mask.long().cumsum(1) - 1).clamp(min=0)
        x, positions = self._embed_inputs(inputs, positions)
        if self.memory_update is not None:
            states, halted = self._run_chunks(self.memory_update, x, attention_mask, positions)
        else:
            mask = self._build_mask(x, attention_mask, position_ids)
            states, halted = self._run_steps(x, _is_real(x, attention_mask), mask, positions, None)
        logits = self.readout(self.final_norm(states))
        if halted is None:
            return RecurrentOutput(logits=logits)
        return RecurrentOutput(
            logits=logits,
            auxiliary_loss=self._penalize_steps(halted.expected_steps, attention_mask),
            halting_probabilities=halted.probabilities,
            halting_weights=halted.weights,
            expected_steps=halted.expected_steps,
            num_steps=halted.num_steps,
        )

    def order_positions(
        self,
        inputs: Float[Tensor, "batch pos d_in"] | Int[Tensor, "batch pos"],
        attention_mask: Int[Tensor, "batch pos"] | Bool[Tensor, "batch pos"] | None = None,
    ) -> Int[Tensor, "batch pos"]:
        """Return the positions of the inputs in the order in which they are divided into chunks: padding is last.

        Args:
            inputs: vectors, or tokens.
            attention_mask: 0 at padding; by default, padding is where the input is ``pad_token_id``.

        Raises:
            ValueError: the mask has another shape.
        """
        mask = self._find_padding(inputs, attention_mask)
        if mask is None:
            return torch.arange(inputs.shape[1], device=inputs.device).expand(inputs.shape[:2])
        return order_padding_last(mask.bool())

    def _run_steps(
        self,
        x: HiddenStates,
        is_real: Bool[Tensor, "batch pos"],
        mask: Tensor | None,
        positions: Int[Tensor, "#batch pos"],
        memory: Memory | None,
    ) -> tuple[HiddenStates, HaltedStates | None]:
        """Apply the layers repeatedly, until all positions have halted or the maximum number of steps is reached."""
        projected = [layer.project_memory(memory) for layer in self.layers if isinstance(layer, RecurrentBlock)]

        def run_step(states: HiddenStates) -> HiddenStates:
            for layer, keys_and_values in zip(self.layers, projected, strict=True):
                states = layer(states, mask, positions, keys_and_values)
            return states

        config = self.config
        if self.halting is not None:
            limits = {"max_iterations": config.max_iterations, "threshold": config.halting_threshold}
            halted = run_until_halted(run_step, self.halting, x, is_real, **limits)
            return halted.output, halted
        for _ in range(config.max_iterations):
            x = run_step(x)
        return x, None

    def _run_chunks(
        self,
        memory_update: MemoryUpdate,
        x: HiddenStates,
        attention_mask: Tensor | None,
        positions: Int[Tensor, "#batch pos"],
    ) -> tuple[HiddenStates, HaltedStates | None]:
        """Run one chunk after the other; each attends to itself, and to the memory that earlier chunks have written."""
        is_real = _is_real(x, attention_mask)
        order = order_padding_last(is_real) if attention_mask is not None else None
        x, is_real, positions = (
            each if order is None else reorder_positions(each, order)
            for each in (x, is_real, positions.expand(x.shape[:2]))
        )
        assert self.config.chunk_length is not None
        memory, results, masks = memory_update.start_memory(len(x)), [], {}
        chunks = split_chunks(self.config.chunk_length, x, is_real, positions)
        for number, (chunk, chunk_is_real, chunk_positions) in enumerate(chunks):
            padding = None if attention_mask is None else chunk_is_real
            key = chunk.shape[1] if padding is None else number  # without padding, chunks of a length share a mask
            if key not in masks:
                masks[key] = self._build_mask(chunk, padding, None)
            result = self._run_steps(chunk, chunk_is_real, masks[key], chunk_positions, memory)
            results.append(result)
            if number + 1 < len(chunks):
                source_mask = create_bidirectional_mask(
                    config=self.config, inputs_embeds=memory, attention_mask=padding, encoder_hidden_states=result[0]
                )
                memory = memory_update(memory, result[0], source_mask)
        states, halted = torch.cat([states for states, _ in results], dim=1), [each for _, each in results]
        order = None if order is None else invert_order(order)
        states = states if order is None else reorder_positions(states, order)
        return states, _join_chunks([each for each in halted if each is not None], states, order)

    def _build_mask(
        self, x: HiddenStates, attention_mask: Tensor | None, position_ids: Int[Tensor, "#batch pos"] | None
    ) -> Tensor | None:
        if self.config.mask == "full":
            return create_bidirectional_mask(config=self.config, inputs_embeds=x, attention_mask=attention_mask)
        return super()._build_mask(x, attention_mask, position_ids)

    def _penalize_steps(
        self, expected_steps: Float[Tensor, "batch pos"], attention_mask: Tensor | None
    ) -> Float[Tensor, ""] | None:
        if self.config.halting_penalty == 0:
            return None
        num_real = expected_steps.numel() if attention_mask is None else attention_mask.bool().sum().clamp(min=1)
        return self.config.halting_penalty * expected_steps.sum() / num_real

    def _validate_positions(self, position_ids: Int[Tensor, "#batch pos"] | None) -> None:
        """Raise if positions restart: the mask would separate the sequences, but means and memory would not."""
        separates = self.config.halt != "global" and self.config.chunk_length is None and self.config.mask == "causal"
        if position_ids is not None and not separates and bool((position_ids.diff(dim=1) < 0).any()):
            raise ValueError(
                "position_ids must not restart in a model with halt='global', chunks or a full mask, in which packed "
                "sequences would see each other; pass one sequence per row"
            )

    def _output_projections(self) -> Iterator[nn.Module]:
        yield from super()._output_projections()
        for block in self.layers:
            if isinstance(block, RecurrentBlock) and block.memory_attention is not None:
                yield block.memory_attention.o_proj
        if self.memory_update is not None:
            yield self.memory_update.attention.o_proj
            if self.memory_update.has_mlp:
                yield self.memory_update.mlp.down_proj


def _is_real(x: HiddenStates, attention_mask: Tensor | None) -> Bool[Tensor, "batch pos"]:
    """Return a mask that is False at padding."""
    if attention_mask is None:
        return torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    return attention_mask.bool()


def _join_chunks(
    chunks: Sequence[HaltedStates], states: HiddenStates, order: Int[Tensor, "batch pos"] | None
) -> HaltedStates | None:
    """Concatenate how the positions of chunks have halted; None without halting."""
    if not chunks:
        return None

    def join(parts: list[Tensor]) -> Tensor:
        joined = torch.cat(parts, dim=-1)
        return joined if order is None else joined.gather(-1, order.expand_as(joined))

    return HaltedStates(
        output=states,
        probabilities=join([chunk.probabilities for chunk in chunks]),
        weights=join([chunk.weights for chunk in chunks]),
        expected_steps=join([chunk.expected_steps for chunk in chunks]),
        num_steps=join([chunk.num_steps for chunk in chunks]),
    )


AutoConfig.register("mesascope_recurrent", RecurrentConfig, exist_ok=True)
AutoModel.register(RecurrentConfig, RecurrentTransformer, exist_ok=True)
AutoModelForCausalLM.register(RecurrentConfig, RecurrentTransformer, exist_ok=True)
