"""One training step of one model in several libraries; training.py runs each in an environment of its own.

    python benchmarks/steps.py WHO THREADS

Reads a number from every line and answers with the seconds that so many steps took. Every step is the same work: a
batch of affine recurrences, forward, mean squared error of the next term, backward, the norm of the gradient, clipping
at 1, one fused AdamW update, and the loss as a number.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

BATCH, LENGTH, LAYERS, HEADS, WIDTH = 256, 20, 3, 4, 64
FRESH = 64  # sequences a step where each step has its own

Step = Callable[[], float]


def data(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Terms of recurrences x' = a x + b, and those that come next."""
    a, b, x = (torch.randn(batch, 1, generator=generator) for _ in range(3))
    terms = [x]
    for _ in range(LENGTH):
        terms.append(a.clamp(-1, 1) * terms[-1] + b)
    sequence = torch.stack(terms, dim=1)
    return sequence[:, :-1], sequence[:, 1:]


def by_hand(model: nn.Module, fresh: int = 0) -> Step:
    """The step as one writes it in a notebook; on ``fresh`` new sequences each time, or always on the same."""
    generator = torch.Generator().manual_seed(0)
    kept = data(BATCH, generator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step() -> float:
        inputs, targets = data(fresh, generator) if fresh else kept
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


class Sdpa(nn.Module):
    """Attention as PyTorch gives it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        heads = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        mixed = nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(x.shape))


class Plain(nn.Module):
    """A pre-norm decoder of attention alone."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.readout = nn.Linear(1, WIDTH), nn.Linear(WIDTH, 1)
        self.position = nn.Parameter(0.02 * torch.randn(LENGTH, WIDTH))
        self.layers = nn.ModuleList(Sdpa() for _ in range(LAYERS))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(LAYERS + 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.position
        for norm, layer in zip(self.norms, self.layers, strict=False):
            x = x + layer(norm(x))
        return self.readout(self.norms[-1](x))


def plain() -> Step:
    """PyTorch with scaled_dot_product_attention."""
    return by_hand(Plain())


def lens(norm: str | None = "LN", fresh: int = 0) -> Step:
    """TransformerLens 2: its blocks, final norm and readout, on embedded vectors."""
    from transformer_lens import (  # pyright: ignore[reportMissingImports]  in an environment of its own
        HookedTransformer,
        HookedTransformerConfig,
    )

    shape = {"n_layers": LAYERS, "n_heads": HEADS, "d_model": WIDTH, "d_head": WIDTH // HEADS, "n_ctx": LENGTH}
    config = HookedTransformerConfig(**shape, d_vocab=1, attn_only=True, normalization_type=norm, device="cpu")

    class Lens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.inside = nn.Linear(1, WIDTH), HookedTransformer(config)
            self.position = nn.Parameter(0.02 * torch.randn(LENGTH, WIDTH))
            for unused in (self.inside.embed, self.inside.pos_embed):
                unused.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.inside(self.embed(x) + self.position, start_at_layer=0, return_type="logits")

    return by_hand(Lens(), fresh)


def lens_affine() -> Step:
    """The model of the affine study, which has no norm, with new sequences at every step."""
    return lens(None, FRESH)


def gpt2() -> Step:
    """GPT-2 of transformers, as Garg et al. use it: with its MLP, and without dropout."""
    from transformers import GPT2Config, GPT2Model

    shape = {
        "n_positions": LENGTH,
        "n_embd": WIDTH,
        "n_layer": LAYERS,
        "n_head": HEADS,
        "vocab_size": 1,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    config = GPT2Config(**shape, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False)

    class Gpt2(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.inside, self.readout = nn.Linear(1, WIDTH), GPT2Model(config), nn.Linear(WIDTH, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.readout(self.inside(inputs_embeds=self.embed(x)).last_hidden_state)

    return by_hand(Gpt2())


def mesascope() -> Step:
    """The update of our own loop."""
    from mesascope.models.transformer import Decoder, DecoderConfig
    from mesascope.tasks.affine import Affine
    from mesascope.train import AdamW, ConstantSchedule, TrainingConfig
    from mesascope.train._step import run_training_step

    task = Affine(length=LENGTH)
    shape: dict[str, Any] = {"num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "hidden_size": WIDTH}
    model = Decoder(DecoderConfig(d_in=1, d_out=1, norm="layer", max_position_embeddings=LENGTH, **shape))
    training = TrainingConfig(steps=1, batch_size=BATCH, optimizer=AdamW(lr=1e-3), schedule=ConstantSchedule())
    optimizer = training.optimizer.build_optimizer(model)
    batch = task.sample(BATCH, torch.Generator().manual_seed(0))
    return lambda: run_training_step(model.train(), optimizer, task, batch, training, 0, "the benchmark")[0]


def main(who: str, threads: int) -> None:
    """Warm up, then step as often as is asked for."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    step = {"mesascope": mesascope, "plain": plain, "lens": lens, "lens_affine": lens_affine, "gpt2": gpt2}[who]()
    for _ in range(4):
        step()
    loss = step()
    print(f"ready {loss:.3f}", flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(line)):
            step()
        print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
