"""The parts of an encoder-decoder that a decoder lacks: a block with cross-attention, and embeddings of parts."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mesascope.models.encoder_decoder.config import EncoderDecoderConfig
from mesascope.models.layers import (
    AttentionMask,
    DecoderAttention,
    DecoderBlock,
    DecoderMlp,
    HiddenStates,
    MultiHeadAttention,
    make_norm,
)

SourceMask = Float[Tensor, "#batch 1 query source"] | Bool[Tensor, "#batch 1 query source"]


class EncoderBlock(DecoderBlock):
    """A block of the encoder: self-attention to all positions and an optional MLP."""

    def __init__(self, config: EncoderDecoderConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.attention.is_causal = False


class SourceAttention(MultiHeadAttention):
    """Multi-head attention from the positions of the target to those of the source."""

    def __init__(self, config: EncoderDecoderConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx, is_causal=False)

    def forward(
        self, x: HiddenStates, source: Float[Tensor, "batch source d_model"], attention_mask: AttentionMask | None
    ) -> HiddenStates:
        """Return the attention output.

        Args:
            x: normalised residual stream of the decoder.
            source: output of the encoder.
            attention_mask: mask of the attention interface.
        """
        query = self.split_heads(self.q_proj(x))
        key, value = (self.split_heads(projection(source)) for projection in (self.k_proj, self.v_proj))
        return self.attend(query, key, value, attention_mask)


class CrossBlock(nn.Module):
    """A block of the decoder: self-attention, cross-attention and an optional MLP, each added to the stream."""

    def __init__(self, config: EncoderDecoderConfig, layer_idx: int) -> None:
        super().__init__()
        self.attention_norm, self.attention = make_norm(config), DecoderAttention(config, layer_idx)
        self.cross_norm, self.cross_attention = make_norm(config), SourceAttention(config, layer_idx)
        self.has_mlp = config.intermediate_size > 0
        if self.has_mlp:
            self.mlp_norm, self.mlp = make_norm(config), DecoderMlp(config)

    def forward(
        self,
        x: HiddenStates,
        source: Float[Tensor, "batch source d_model"],
        attention_mask: AttentionMask | None,
        source_mask: SourceMask | None,
        position_ids: Int[Tensor, "#batch pos"],
    ) -> HiddenStates:
        """Return the residual stream after the block.

        Args:
            x: residual stream.
            source: output of the encoder.
            attention_mask: mask of self-attention.
            source_mask: mask of cross-attention.
            position_ids: positions, for rotary embeddings.
        """
        x = x + self.attention(self.attention_norm(x), attention_mask, position_ids)
        x = x + self.cross_attention(self.cross_norm(x), source, source_mask)
        return x + self.mlp(self.mlp_norm(x)) if self.has_mlp else x


class SummedEmbedding(nn.Module):
    """Embeddings of tokens that are sums of the vectors of their parts.

    >>> embed = SummedEmbedding([[0], [1, 2]], width=4)
    >>> bool(torch.equal(embed(torch.tensor([[1]]))[0], embed.parts.weight[1:2] + embed.parts.weight[2:3]))
    True
    """

    def __init__(self, token_parts: list[list[int]], width: int) -> None:
        super().__init__()
        self.parts = nn.Embedding(1 + max(max(parts) for parts in token_parts), width)
        self.token_parts = token_parts

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> HiddenStates:
        """Return the embeddings of tokens.

        Args:
            tokens: tokens.
        """
        most = max(map(len, self.token_parts))
        indices = torch.tensor([parts + [0] * (most - len(parts)) for parts in self.token_parts], device=tokens.device)
        counts = torch.tensor([len(parts) for parts in self.token_parts], device=tokens.device)[tokens]
        is_part = torch.arange(most, device=tokens.device) < counts[..., None]
        return (self.parts(indices[tokens]) * is_part[..., None]).sum(-2)
