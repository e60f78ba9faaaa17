"""Plain PyTorch modules, as users bring them: a GPT of their own, and a regression transformer around GPT2Model."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GPT2Config, GPT2Model


class FusedAttention(nn.Module):
    """Causal attention with one projection for queries, keys and values, by PyTorch's own function."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def split(self, x: Tensor) -> list[Tensor]:
        return [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.c_attn(x).chunk(3, -1)]

    def mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        return functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.mix(*self.split(x)).transpose(1, 2).flatten(2))


class HandMadeAttention(FusedAttention):
    """The same attention in operations of its own, which nothing intercepts."""

    def mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = query @ key.mT / math.sqrt(query.shape[-1])
        hidden = torch.ones_like(scores, dtype=torch.bool).triu(1)
        return scores.masked_fill(hidden, -math.inf).softmax(-1) @ value


class Block(nn.Module):
    def __init__(self, width: int, attention: nn.Module) -> None:
        super().__init__()
        self.ln_1, self.attn, self.ln_2 = nn.LayerNorm(width), attention, nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class SmallGPT(nn.Module):
    """A language model that returns logits and loss; without targets, the logits of the last position only."""

    def __init__(self, kind: type[FusedAttention] = FusedAttention, vocabulary: int = 23, width: int = 16) -> None:
        super().__init__()
        blocks = nn.ModuleList(Block(width, kind(width, 4)) for _ in range(3))
        embeddings = {"wte": nn.Embedding(vocabulary, width), "wpe": nn.Embedding(64, width)}
        self.transformer = nn.ModuleDict({**embeddings, "h": blocks, "ln_f": nn.LayerNorm(width)})
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.lm_head.weight = self.transformer["wte"].weight

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.transformer["wte"](tokens) + self.transformer["wpe"](positions)
        for block in self.transformer["h"]:
            x = block(x)
        x = self.transformer["ln_f"](x)
        if targets is None:
            return self.lm_head(x[:, [-1]]), None
        logits = self.lm_head(x)
        return logits, functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


class RegressionTransformer(nn.Module):
    """A transformer that reads the pairs of an unknown function, interleaved, and predicts its values."""

    def __init__(self, dim: int = 3, width: int = 16, implementation: str = "sdpa") -> None:
        super().__init__()
        config = GPT2Config(
            n_embd=width, n_layer=2, n_head=4, n_positions=64, vocab_size=1, attn_implementation=implementation
        )
        self.read_in, self.backbone, self.read_out = nn.Linear(dim, width), GPT2Model(config), nn.Linear(width, 1)

    def forward(self, xs: Tensor, ys: Tensor) -> Tensor:
        padded = functional.pad(ys[..., None], (0, xs.shape[-1] - 1))
        return self.predict(torch.stack([xs, padded], 2).flatten(1, 2))[:, ::2, 0]

    def predict(self, pairs: Tensor) -> Tensor:
        return self.read_out(self.backbone(inputs_embeds=self.read_in(pairs)).last_hidden_state)


def logits_of_gpt(module: nn.Module, tokens: Tensor) -> Tensor:
    """The forward function for `SmallGPT`: with targets, it returns logits at every position."""
    return module(tokens, tokens)[0]


def predictions_of_regression(module: nn.Module, pairs: Tensor) -> Tensor:
    """The forward function for `RegressionTransformer`."""
    assert isinstance(module, RegressionTransformer)
    return module.predict(pairs)
