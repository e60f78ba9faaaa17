"""The blocks of recurrent transformers: a decoder block with a gate and attention to memory, and the memory update."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mesascope.models.config import DecoderConfig
from mesascope.models.layers import (
    AttentionMask,
    DecoderBlock,
    DecoderMlp,
    HiddenStates,
    MultiHeadAttention,
    make_norm,
)
from mesascope.models.recurrent.config import RecurrentConfig

Memory = Float[Tensor, "batch slot d_model"]
KeysAndValues = tuple[Float[Tensor, "batch kv_head source d_head"], Float[Tensor, "batch kv_head source d_head"]]


class CrossAttention(MultiHeadAttention):
    """Multi-head attention to other vectors, with norms before the queries and before the keys and values."""

    def __init__(self, config: DecoderConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx, is_causal=False)
        self.query_norm, self.source_norm = make_norm(config), make_norm(config)

    def project_source(self, source: Float[Tensor, "batch source d_model"]) -> KeysAndValues:
        """Return the keys and values of the vectors that are attended to.

        Args:
            source: these vectors.
        """
        source = self.source_norm(source)
        return self.split_heads(self.k_proj(source)), self.split_heads(self.v_proj(source))

    def forward(
        self, x: HiddenStates, source: KeysAndValues, attention_mask: AttentionMask | None = None
    ) -> HiddenStates:
        """Return the attention output.

        Args:
            x: the vectors that attend.
            source: the keys and values of the vectors that are attended to.
            attention_mask: mask of the attention interface; ``None`` for no mask.
        """
        return self.attend(self.split_heads(self.q_proj(self.query_norm(x))), *source, attention_mask)


class RecurrentBlock(DecoderBlock):
    """A block of a recurrent transformer.

    With x the input, the output is y = h + MLP(norm(h)), where h = x + attention(norm(x)) is followed by
    h <- h + attention(norm(h), norm(memory)) if there is memory. A gate g = sigmoid(MLP'(norm(h))) makes the output
    g y + (1 - g) x. Without a gate and memory, the block is that of the decoder.
    """

    def __init__(self, config: RecurrentConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.memory_attention = None if config.memory_slots is None else CrossAttention(config, layer_idx)
        self.gate = DecoderMlp(config) if config.gate else None

    def project_memory(self, memory: Memory | None) -> KeysAndValues | None:
        """Return the keys and values of the memory, which are the same in all steps of a chunk.

        Args:
            memory: the memory that earlier chunks have written; ``None`` without chunks.
        """
        if self.memory_attention is None or memory is None:
            return None
        return self.memory_attention.project_source(memory)

    def forward(
        self,
        x: HiddenStates,
        attention_mask: AttentionMask | None,
        position_ids: Int[Tensor, "#batch pos"],
        memory: KeysAndValues | None = None,
    ) -> HiddenStates:
        """Return the residual stream after the block.

        Args:
            x: residual stream.
            attention_mask: mask of the attention interface.
            position_ids: positions, for rotary embeddings.
            memory: keys and values of the memory that earlier chunks have written; ``None`` without chunks.
        """
        h = x + self.attention(self.attention_norm(x), attention_mask, position_ids)
        if self.memory_attention is not None and memory is not None:
            h = h + self.memory_attention(h, memory)
        if not self.has_mlp:
            return h
        normed = self.mlp_norm(h)
        y = h + self.mlp(normed)
        return y if self.gate is None else torch.lerp(x, y, self.gate(normed).sigmoid())


class MemoryUpdate(nn.Module):
    """The update of the memory after a chunk: memory attends to the chunk, and passes an MLP.

    The initial memory is a parameter. Its slots start at different random values: with equal ones, all slots would have
    equal gradients and stay equal.
    """

    def __init__(self, config: RecurrentConfig, layer_idx: int) -> None:
        super().__init__()
        assert config.memory_slots is not None
        self.initial_memory = nn.Embedding(config.memory_slots, config.hidden_size)
        self.attention = CrossAttention(config, layer_idx)
        self.has_mlp = config.intermediate_size > 0
        if self.has_mlp:
            self.mlp_norm, self.mlp = make_norm(config), DecoderMlp(config)

    def start_memory(self, batch_size: int) -> Memory:
        """Return the memory before the first chunk.

        Args:
            batch_size: number of sequences.
        """
        return self.initial_memory.weight.expand(batch_size, -1, -1)

    def forward(self, memory: Memory, chunk: HiddenStates, attention_mask: AttentionMask | None) -> Memory:
        """Return the memory after a chunk.

        Args:
            memory: the memory before the chunk.
            chunk: the states of the chunk.
            attention_mask: mask of the attention interface, over the positions of the chunk.
        """
        memory = memory + self.attention(memory, self.attention.project_source(chunk), attention_mask)
        return memory + self.mlp(self.mlp_norm(memory)) if self.has_mlp else memory
