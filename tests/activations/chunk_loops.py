"""Loops over chunks in plain PyTorch, which compute what captures of recurrent transformers with chunks must hold."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mesascope.models.recurrent.model import RecurrentTransformer
from recurrent_models import recurrent

Key = tuple[str, int, int]  # a site, the layer (0 for the memory), and the iteration (the chunk for the memory)
EditFn = Callable[[str, int, int, int, Tensor, Tensor], Tensor]  # site, layer, iteration, chunk, value, columns
UPDATES = ["attn_out", "cross_attn_out", "mlp_out"]
MEMORY = ["memory_resid_pre", "memory_attn_out", "memory_mlp_out", "memory_resid_post"]
SIDES = ["none", "left", "right", "between"]


def chunked(kind: str, **fields: Any) -> RecurrentTransformer:
    """A model of chunks of 4 positions; if it halts, its positions stop at different steps."""
    model = recurrent(kind, **{"num_hidden_layers": 2} | ({"max_iterations": 8} if kind != "TLB" else {}) | fields)
    if model.halting is not None:
        with torch.no_grad():
            model.halting.logit.weight.mul_(0.1)
            model.halting.logit.bias.zero_()
    return model


def padded(side: str) -> Tensor | None:
    """A mask of 3 sequences of 11 positions; padding between inputs, too."""
    if side == "none":
        return None
    mask = torch.ones(3, 11, dtype=torch.long)
    mask[1, :4] = mask[2, :1] = 0
    if side == "between":
        mask = mask.roll(3, 1)
    return mask.flip(1) if side == "right" else mask


def stream_sites(model: RecurrentTransformer) -> list[str]:
    """Sites of the stream that the model has: a gate mixes its updates."""
    return ["resid_pre", "resid_post"] + ([] if model.config.gate else UPDATES)


def leave(site: str, layer: int, iteration: int, chunk: int, value: Tensor, columns: Tensor) -> Tensor:
    """An edit that changes nothing."""
    return value


def run_by_hand(
    model: RecurrentTransformer, x: Tensor, mask: Tensor | None = None, edit: EditFn = leave
) -> dict[Any, Any]:
    """Every site of whole sequences by (site, layer, iteration), NaN where an iteration did not run in a chunk.

    Sites of the memory are (batch, chunk, slot, d_model) by (site, 0, 0). Also the logits, the columns of every chunk,
    the number of iterations by chunk, and the halting probabilities.
    """
    real = torch.ones_like(x, dtype=torch.bool) if mask is None else mask.bool()
    rows = [[*row.nonzero()[:, 0].tolist(), *(~row).nonzero()[:, 0].tolist()] for row in real]
    columns, places = torch.tensor(rows), (real.long().cumsum(1) - 1).clamp(min=0)
    embedded, (batch, length) = model.embed(x), x.shape
    memory = model.memory_update.initial_memory.weight.expand(batch, -1, -1)
    chunks = list(columns.split(model.config.chunk_length, 1))
    found: dict[Any, Any] = {"columns": chunks, "ran": [], "chunks": torch.zeros_like(x)}
    outputs = torch.zeros_like(embedded)
    probabilities = torch.zeros(model.config.max_iterations, batch, length)
    for number, at in enumerate(chunks):
        found["chunks"] = found["chunks"].scatter(1, at, number)
        states, part_real = embedded.gather(1, wide(at, embedded)), real.gather(1, at)
        output, sites, p = run_chunk(model, states, part_real, places.gather(1, at), memory, number, at, edit)
        for key, value in sites.items():
            whole = found.setdefault(key, torch.full((batch, length, value.shape[-1]), torch.nan))
            found[key] = whole.scatter(1, wide(at, value), value)
        outputs = outputs.scatter(1, wide(at, output), output)
        found["ran"].append(len(p))
        for iteration, each in enumerate(p):
            probabilities[iteration] = probabilities[iteration].scatter(1, at, each)
        if number + 1 < len(chunks):
            memory, sites = update_memory(model, memory, output, part_real, number, edit)
            for site, value in sites.items():
                found.setdefault(site, torch.full((batch, len(chunks), *value.shape[1:]), torch.nan))[:, number] = value
    return found | {"logits": model.readout(model.final_norm(outputs)), "p": probabilities}


def wide(columns: Tensor, like: Tensor) -> Tensor:
    return columns[..., None].expand(*columns.shape, like.shape[-1])


def run_chunk(model, states, real, places, memory, chunk, at, edit) -> tuple[Tensor, dict[Key, Tensor], list[Tensor]]:
    """The output of a chunk, its sites, and its halting probabilities; a list of None without halting."""
    visible = real[:, None] & torch.ones(real.shape[1], real.shape[1], dtype=torch.bool).tril()
    bias = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)[:, None]
    found: dict[Key, Tensor] = {}
    running, rest, output, probabilities = real, real.float(), torch.zeros_like(states), []
    for iteration in range(model.config.max_iterations):
        if model.halting is not None and iteration >= 2 and not running.any():
            break
        after = states
        for layer in range(len(model.layers)):
            after = run_block(model, layer, iteration, chunk, after, bias, places, memory, at, edit, found)
        if model.halting is None:
            states = after
            probabilities.append(torch.zeros(real.shape))
            continue
        p = torch.where(running, halting_probability(model, states, after, real), 0.0)
        stops = running & (1 - rest * (1 - p) >= model.config.halting_threshold)
        weight = torch.where(stops, rest, rest * p)
        output = output + weight[..., None] * states
        rest, running = rest - weight, running & ~stops
        states = torch.where(running[..., None], after, states)
        probabilities.append(p)
    return (states if model.halting is None else output + rest[..., None] * states), found, probabilities


def run_block(model, layer, iteration, chunk, x, bias, places, memory, at, edit, found) -> Tensor:
    block = model.layers[layer]

    def record(site: str, value: Tensor) -> Tensor:
        found[site, layer, iteration] = edit(site, layer, iteration, chunk, value, at)
        return found[site, layer, iteration]

    x = record("resid_pre", x)
    h = x + record("attn_out", block.attention(block.attention_norm(x), bias, places))
    h = h + record("cross_attn_out", block.memory_attention(h, block.project_memory(memory)))
    normed = block.mlp_norm(h)
    y = h + record("mlp_out", block.mlp(normed))
    y = y if block.gate is None else x + block.gate(normed).sigmoid() * (y - x)
    return record("resid_post", y)


def update_memory(model, memory, states, real, chunk, edit) -> tuple[Tensor, dict[tuple[str, int, int], Tensor]]:
    update, found = model.memory_update, {}

    def record(site: str, value: Tensor) -> Tensor:
        found[site, 0, 0] = edit(site, 0, 0, chunk, value, torch.arange(value.shape[1]).expand(value.shape[:2]))
        return found[site, 0, 0]

    memory = record("memory_resid_pre", memory)
    bias = torch.zeros(real.shape).masked_fill(~real, torch.finfo(torch.float32).min)[:, None, None]
    bias = bias.expand(-1, -1, memory.shape[1], -1)
    memory = memory + record("memory_attn_out", update.attention(memory, update.attention.project_source(states), bias))
    memory = memory + record("memory_mlp_out", update.mlp(update.mlp_norm(memory)))
    return record("memory_resid_post", memory), found


def halting_probability(model: RecurrentTransformer, before: Tensor, after: Tensor, real: Tensor) -> Tensor:
    unit, read = model.halting, torch.cat([before, after], -1) if model.config.transition else before
    if model.config.halt == "global":
        seen = real[..., None].float()
        read = (read * seen).cumsum(1) / seen.cumsum(1).clamp(min=1)
    return unit.logit(functional.gelu(unit.hidden(read))).sigmoid()[..., 0]
