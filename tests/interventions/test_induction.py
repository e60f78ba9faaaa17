"""On a real model: without the induction heads that are found, tokens that come again are no longer predicted.

The tour says as much, with zeros in place of means, from its `pip install` on: that takes minutes.
"""

from pathlib import Path

import pytest
import torch

from mesascope.activations import Edit, capture
from mesascope.analyses import repeated_token_heads, sample_repeated_tokens
from mesascope.analyses.sequence_losses import loss_per_position
from mesascope.models.load import load_pretrained

GGUF = Path(__file__).parents[2] / ".models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
LENGTH, COUNT = 24, 2


@pytest.mark.slow
@pytest.mark.needs_smollm2
def test_induction_heads_carry_the_prediction_of_what_comes_again():
    if not GGUF.exists():
        pytest.skip("SmolLM2-135M-Instruct is fetched by `make models`")
    model, tokenizer = load_pretrained(GGUF)
    special = set(tokenizer.all_special_ids)
    allowed = torch.tensor([token for token in range(len(tokenizer)) if token not in special])
    generator = torch.Generator().manual_seed(0)
    x = sample_repeated_tokens(allowed, LENGTH, COUNT, generator, bos=tokenizer.bos_token_id)
    recorded = capture(model, x, ["output", "z"], reduce=repeated_token_heads.reductions)
    found, means = repeated_token_heads(recorded), recorded["z"].mean((1, 2))
    assert float(found["loss_again"]) < 0.5 * float(found["loss_again_null"])
    names = found["role"].values
    every = [(layer, head) for layer in range(names.shape[0]) for head in range(names.shape[1])]
    induction = [place for place in every if "induction" in names[place]]
    assert 3 <= len(induction) <= 30
    others = [place for place in every if place not in induction]
    draws = [torch.randperm(len(others), generator=generator)[: len(induction)].tolist() for _ in range(3)]
    intact = float(found["loss_again"])
    rise = _loss_without(model, x[:COUNT], induction, means) - intact
    random = [_loss_without(model, x[:COUNT], [others[n] for n in draw], means) - intact for draw in draws]
    assert rise > 2.0
    assert rise > 3 * max(random)


def _loss_without(model, x: torch.Tensor, heads: list[tuple[int, int]], means: torch.Tensor) -> float:
    """The loss on tokens that come again, with these heads replaced by their mean over sequences and positions."""

    def edit(layer: int) -> Edit:
        mine = [head for of, head in heads if of == layer]
        return Edit(site="z", where={"layer": layer, "head": mine}, fn=lambda old: means[layer, mine].expand_as(old))

    edits = [edit(layer) for layer in sorted({layer for layer, _ in heads})]
    prediction = capture(model, x, ["output"], edits=edits, check=False)["output"]
    return float(loss_per_position(prediction[:, -LENGTH:-1], x[:, 1 - LENGTH :]).mean())
