"""The parts of a decoder block: attention (softmax or linear), MLP, norms, positions."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mesascope.models.config import DecoderConfig

Stream = Float[Tensor, "batch pos d_model"]
Heads = Float[Tensor, "batch head pos d_head"]


def eager_attention_forward(
    module: nn.Module,
    query: Heads,
    key: Float[Tensor, "batch kv_head pos d_head"],
    value: Float[Tensor, "batch kv_head pos d_head"],
    attention_mask: Float[Tensor, "#batch 1 query key"] | None,
    scaling: float,
    **_: object,
) -> tuple[Float[Tensor, "batch pos head d_head"], Float[Tensor, "batch head query key"]]:
    """Two batched products with a softmax between them, or, in a linear layer, with nothing between them.

    The mask is added to the scores of a softmax layer; a linear layer sets what it forbids to zero. Where ``zeroed``,
    the scores of later keys are 0, and stay in the softmax.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = torch.matmul(query, key.mT)
    if scaling != 1.0:
        scores = scores * scaling
    if module.zeroed:
        scores = scores.tril()
    if module.linear:
        weights = scores if attention_mask is None else scores.masked_fill(attention_mask < 0, 0.0)
    else:
        weights = (scores if attention_mask is None else scores + attention_mask).softmax(-1)
    return torch.matmul(weights, value).transpose(1, 2), weights


class Attention(nn.Module):
    """Attention heads that read the normed stream and write to it through one output projection."""

    def __init__(self, config: DecoderConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = config.visible == "past"
        self.linear = config.attention == "linear"
        self.zeroed = config.visible == "zeroed"
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = 1.0 if self.linear else self.head_dim**-0.5
        self.rotary = config.positions == "rotary"
        kv_width = config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, kv_width)
        self.v_proj = nn.Linear(config.hidden_size, kv_width)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        x: Stream,
        attention_mask: Float[Tensor, "#batch 1 query key"] | Bool[Tensor, "#batch 1 query key"] | None,
        position_ids: Int[Tensor, "#batch pos"],
    ) -> Stream:
        """What the heads write, given what they read."""
        query, key, value = (self._split(proj(x)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        if self.rotary:
            query, key = rotate(query, position_ids), rotate(key, position_ids)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(str(self.config._attn_implementation), eager_attention_forward)
        mixed, _ = attend(self, query, key, value, attention_mask, scaling=self.scaling, dropout=0.0)
        return self.o_proj(mixed.reshape(x.shape))

    def _split(self, x: Float[Tensor, "batch pos width"]) -> Float[Tensor, "batch heads pos d_head"]:
        """Cut the last axis into heads."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class Mlp(nn.Module):
    """One hidden layer, applied to every position alone."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        activations = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh}
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = activations[config.activation]()
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Stream) -> Stream:
        """What the MLP writes, given what it reads."""
        return self.down_proj(self.activation(self.up_proj(x)))


class Block(nn.Module):
    """Attention, then the MLP if there is one; each adds to the residual stream."""

    def __init__(self, config: DecoderConfig, layer_idx: int) -> None:
        super().__init__()
        self.norm_position = config.norm_position
        self.post = self.norm_position == "post"
        self.attention_norm = make_norm(config)
        self.attention = Attention(config, layer_idx)
        self.has_mlp = config.intermediate_size > 0
        if self.has_mlp:
            self.mlp_norm, self.mlp = make_norm(config), Mlp(config)

    def forward(
        self,
        x: Stream,
        attention_mask: Float[Tensor, "#batch 1 query key"] | Bool[Tensor, "#batch 1 query key"] | None,
        position_ids: Int[Tensor, "#batch pos"],
    ) -> Stream:
        """The residual stream after this block."""
        whole = SUBLAYERS.get(str(self.attention.config._attn_implementation))
        if self.norm_position == "output":
            x = x + self.attention_norm(self.attention(x, attention_mask, position_ids))
            return x + self.mlp_norm(self.mlp(x)) if self.has_mlp else x
        if whole is not None:
            x = whole(self, x)
        else:
            x = x + self.attention(x if self.post else self.attention_norm(x), attention_mask, position_ids)
        if self.post:
            x = self.attention_norm(x)
            return self.mlp_norm(x + self.mlp(x)) if self.has_mlp else x
        return x + self.mlp(self.mlp_norm(x)) if self.has_mlp else x


SUBLAYERS: dict[str, Callable[[Block, Stream], Stream]] = {}
"""Attention implementations that take the norm in front, the maps and the residual sum with them, by name."""


def make_norm(config: DecoderConfig) -> nn.Module:
    """The norm that the configuration asks for; no norm is the identity."""
    if config.norm == "none":
        return nn.Identity()
    return {"layer": nn.LayerNorm, "rms": nn.RMSNorm}[config.norm](config.hidden_size, eps=1e-5)


def rotate(x: Heads, position_ids: Int[Tensor, "#batch pos"]) -> Heads:
    """Rotary positions (Su et al. 2021): pair i of a head turns by position / 10000^(2 i / d_head)."""
    half = x.shape[-1] // 2
    rates = 10000.0 ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angles = (position_ids[..., None].float() * rates)[:, None]
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def sinusoids(position_ids: Int[Tensor, "#batch pos"], width: int) -> Float[Tensor, "#batch pos d_model"]:
    """Fixed positions (Vaswani et al. 2017): sines and cosines of geometrically spaced wavelengths."""
    rates = torch.exp(-math.log(10000.0) * torch.arange(0, width, 2, device=position_ids.device) / width)
    angles = position_ids[..., None].float() * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
