"""The parts of a decoder block: attention (softmax or linear), MLP, norms and position embeddings."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mesascope.models.config import DecoderConfig

HiddenStates = Float[Tensor, "batch pos d_model"]
HeadVectors = Float[Tensor, "batch head pos d_head"]
AttentionMask = Float[Tensor, "#batch 1 query key"] | Bool[Tensor, "#batch 1 query key"]


def eager_attention_forward(
    module: nn.Module,
    query: HeadVectors,
    key: Float[Tensor, "batch kv_head source d_head"],
    value: Float[Tensor, "batch kv_head source d_head"],
    attention_mask: Float[Tensor, "#batch 1 query key"] | None,
    scaling: float,
    **_: object,
) -> tuple[Float[Tensor, "batch pos head d_head"], Float[Tensor, "batch head query key"]]:
    """Compute attention by two batched matrix products, with a softmax between them unless attention is linear.

    In a softmax layer the mask is added to the scores; in a linear layer masked weights are set to 0. With a
    multiplicative mask the scores of later keys are 0 and take part in the softmax.

    Args:
        module: the attention module.
        query: queries.
        key: keys.
        value: values.
        attention_mask: additive mask, a large negative number at masked keys; ``None`` for no mask.
        scaling: factor on the scores.
        **_: ignored arguments of the attention interface.

    Returns:
        The head outputs before the output projection, and the attention weights.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = torch.matmul(query, key.mT)
    if scaling != 1.0:
        scores = scores * scaling
    if module.multiplicative_mask:
        scores = scores.tril()
    if module.linear:
        weights = scores if attention_mask is None else scores.masked_fill(attention_mask < 0, 0.0)
    else:
        weights = (scores if attention_mask is None else scores + attention_mask).softmax(-1)
    return torch.matmul(weights, value).transpose(1, 2), weights


class MultiHeadAttention(nn.Module):
    """The projections of multi-head attention, and its call through the attention interface of transformers."""

    def __init__(self, config: DecoderConfig, layer_idx: int, *, is_causal: bool) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = is_causal
        self.linear = config.attention == "linear"
        self.multiplicative_mask = config.mask == "multiplicative"
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = 1.0 if self.linear else self.head_dim**-0.5
        kv_width = config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, kv_width)
        self.v_proj = nn.Linear(config.hidden_size, kv_width)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def attend(
        self,
        query: HeadVectors,
        key: Float[Tensor, "batch kv_head source d_head"],
        value: Float[Tensor, "batch kv_head source d_head"],
        attention_mask: AttentionMask | None,
    ) -> HiddenStates:
        """Return the attention output of given queries, keys and values.

        Args:
            query: queries.
            key: keys.
            value: values.
            attention_mask: mask of the attention interface.
        """
        attention_function = ALL_ATTENTION_FUNCTIONS.get_interface(
            str(self.config._attn_implementation), eager_attention_forward
        )
        z, _ = attention_function(self, query, key, value, attention_mask, scaling=self.scaling, dropout=0.0)
        return self.o_proj(z.flatten(2))

    def split_heads(self, x: Float[Tensor, "batch pos width"]) -> Float[Tensor, "batch heads pos d_head"]:
        """Return projected vectors, split into heads.

        Args:
            x: the output of a projection.
        """
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class DecoderAttention(MultiHeadAttention):
    """Multi-head self-attention with an output projection."""

    def __init__(self, config: DecoderConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx, is_causal=config.mask == "causal")
        self.rotary = config.positions == "rotary"

    def forward(
        self, x: HiddenStates, attention_mask: AttentionMask | None, position_ids: Int[Tensor, "#batch pos"]
    ) -> HiddenStates:
        """Return the attention output.

        Args:
            x: normalised residual stream.
            attention_mask: mask of the attention interface.
            position_ids: positions, for rotary embeddings.

        Returns:
            The output of the output projection.
        """
        query, key, value = (self.split_heads(proj(x)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        if self.rotary:
            query, key = apply_rotary(query, position_ids), apply_rotary(key, position_ids)
        return self.attend(query, key, value, attention_mask)


class DecoderMlp(nn.Module):
    """An MLP with one hidden layer."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        activations = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh}
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = activations[config.activation]()
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: HiddenStates) -> HiddenStates:
        """Return the MLP output.

        Args:
            x: normalised residual stream.

        Returns:
            The output of the down projection.
        """
        return self.down_proj(self.activation(self.up_proj(x)))


class DecoderBlock(nn.Module):
    """A decoder block: attention and an optional MLP, each added to the residual stream."""

    def __init__(self, config: DecoderConfig, layer_idx: int) -> None:
        super().__init__()
        self.norm_position = config.norm_position
        self.post = self.norm_position == "post"
        self.attention_norm = make_norm(config)
        self.attention = DecoderAttention(config, layer_idx)
        self.has_mlp = config.intermediate_size > 0
        if self.has_mlp:
            self.mlp_norm, self.mlp = make_norm(config), DecoderMlp(config)

    def forward(
        self, x: HiddenStates, attention_mask: AttentionMask | None, position_ids: Int[Tensor, "#batch pos"]
    ) -> HiddenStates:
        """Return the residual stream after the block.

        Args:
            x: residual stream.
            attention_mask: mask of the attention interface.
            position_ids: positions, for rotary embeddings.
        """
        fused_sublayer = FUSED_SUBLAYERS.get(str(self.attention.config._attn_implementation))
        if self.norm_position == "output":
            x = x + self.attention_norm(self.attention(x, attention_mask, position_ids))
            return x + self.mlp_norm(self.mlp(x)) if self.has_mlp else x
        if fused_sublayer is not None:
            x = fused_sublayer(self, x)
        else:
            x = x + self.attention(x if self.post else self.attention_norm(x), attention_mask, position_ids)
        if self.post:
            x = self.attention_norm(x)
            return self.mlp_norm(x + self.mlp(x)) if self.has_mlp else x
        return x + self.mlp(self.mlp_norm(x)) if self.has_mlp else x


FUSED_SUBLAYERS: dict[str, Callable[[DecoderBlock, HiddenStates], HiddenStates]] = {}
"""Attention implementations that compute norm, projections, attention and residual sum in one call, by name."""


def make_norm(config: DecoderConfig) -> nn.Module:
    """Build the norm of a configuration; the identity if it has none.

    Args:
        config: the decoder's configuration.

    Returns:
        The norm over the residual stream.
    """
    if config.norm == "none":
        return nn.Identity()
    return {"layer": nn.LayerNorm, "rms": nn.RMSNorm}[config.norm](config.hidden_size, eps=1e-5)


def apply_rotary(x: HeadVectors, position_ids: Int[Tensor, "#batch pos"]) -> HeadVectors:
    """Apply rotary position embeddings (Su et al. 2021).

    Coordinates i and i + d_head / 2 of a head are rotated by the angle position / 10000^(2 i / d_head).

    Args:
        x: queries or keys.
        position_ids: positions.

    Returns:
        The rotated vectors.
    """
    half = x.shape[-1] // 2
    rates = 10000.0 ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angles = (position_ids[..., None].float() * rates)[:, None]
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def sinusoidal_positions(position_ids: Int[Tensor, "#batch pos"], width: int) -> Float[Tensor, "#batch pos d_model"]:
    """Compute sinusoidal position embeddings (Vaswani et al. 2017), with geometrically spaced wavelengths.

    Args:
        position_ids: positions.
        width: width of the embedding, an even number.

    Returns:
        The sines, followed by the cosines.
    """
    rates = torch.exp(-math.log(10000.0) * torch.arange(0, width, 2, device=position_ids.device) / width)
    angles = position_ids[..., None].float() * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
