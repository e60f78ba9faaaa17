"""Updates against hand-written ones, schedules against their formulas, state that comes back bit for bit."""

import math
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mesascope.models.config import DecoderConfig
from mesascope.models.transformer import Decoder
from mesascope.train import SGD, AdaFactor, AdamW, ConstantSchedule, CosineSchedule, InverseSqrtSchedule, LinearSchedule
from mesascope.train._optimizer_state import restore_state, state_tensors
from mesascope.train.optim import OptimizerConfig
from mesascope.train.schedules import LearningRateSchedule, scheduled_learning_rate


def decoder(**options) -> Decoder:
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "num_hidden_layers": 1,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "norm": "layer",
    } | options
    return Decoder(DecoderConfig(d_in=1, d_out=1, **config))


def descend(model: Decoder, optimizer: torch.optim.Optimizer, steps: int) -> list[dict[str, torch.Tensor]]:
    """Some updates; the gradients that they followed."""
    followed = []
    for step in range(steps):
        optimizer.zero_grad()
        inputs = torch.randn(4, 5, 1, generator=torch.Generator().manual_seed(step))
        model(inputs).logits.square().mean().backward()
        followed.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        optimizer.step()
    return followed


def decays(name: str) -> bool:
    return name.endswith("_proj.weight") or name == "readout.weight"


def test_adamw_is_the_update_of_its_paper() -> None:
    rule = AdamW(lr=0.01, betas=(0.8, 0.95), weight_decay=0.1)
    model = decoder()
    expected = {name: p.detach().clone().double() for name, p in model.named_parameters()}
    gradients = descend(model, rule.build_optimizer(model), 5)
    for name, x in expected.items():
        m = v = torch.zeros_like(x)
        for t, gradient in enumerate(gradients, 1):
            g = gradient[name].double()
            m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
            x -= 0.01 * 0.1 * x if decays(name) else 0
            x -= 0.01 * (m / (1 - 0.8**t)) / ((v / (1 - 0.95**t)).sqrt() + rule.eps)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.double(), expected[name], atol=1e-6, rtol=1e-5)


def test_sgd_has_heavy_ball_momentum() -> None:
    model = decoder()
    expected = {name: p.detach().clone().double() for name, p in model.named_parameters()}
    gradients = descend(model, SGD(lr=0.05, momentum=0.9, weight_decay=0.1).build_optimizer(model), 5)
    for name, x in expected.items():
        velocity = torch.zeros_like(x)
        for gradient in gradients:
            velocity = 0.9 * velocity + gradient[name].double() + (0.1 * x if decays(name) else 0)
            x -= 0.05 * velocity
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.double(), expected[name], atol=1e-6, rtol=1e-5)


def rms(x: torch.Tensor) -> torch.Tensor:
    return x.square().mean().sqrt()


def test_adafactor_is_the_update_of_its_paper() -> None:
    """Moves in proportion to a tensor's own size, from averages of squares over rows and over columns."""
    rule, eps = AdaFactor(lr=0.01), torch.finfo(torch.float32).eps
    model = decoder()
    expected = {name: p.detach().clone().double() for name, p in model.named_parameters()}
    gradients = descend(model, rule.build_optimizer(model), 5)
    for name, x in expected.items():
        rows = columns = whole = torch.zeros(())
        for t, gradient in enumerate(gradients, 1):
            g, weight = gradient[name].double(), t**-0.8
            rows = (1 - weight) * rows + weight * g.square().mean(-1, keepdim=True)
            if g.ndim > 1:
                columns = (1 - weight) * columns + weight * g.square().mean(-2, keepdim=True)
                whole = rows * columns / rows.mean(-2, keepdim=True)
            else:
                whole = (1 - weight) * whole + weight * g**2
            moved = g / whole.nan_to_num().sqrt().clamp(min=eps)
            x -= 0.01 * max(rms(x), torch.tensor(1e-3)) * moved / max(rms(moved), torch.tensor(1.0))
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.double(), expected[name], atol=1e-6, rtol=1e-4)


def test_adafactor_moves_a_larger_matrix_by_more() -> None:
    model, larger = decoder(), decoder()
    weight, scaled = model.layers[0].attention.q_proj.weight, larger.layers[0].attention.q_proj.weight
    with torch.no_grad():
        scaled *= 10
    before, before_scaled = weight.detach().clone(), scaled.detach().clone()
    for one, matrix in ((model, weight), (larger, scaled)):
        matrix.grad = torch.ones_like(matrix)
        AdaFactor(lr=0.01).build_optimizer(one).step()
    torch.testing.assert_close(scaled - before_scaled, 10 * (weight - before))


def test_adafactor_holds_the_rate_at_one_over_the_square_root_of_the_steps() -> None:
    model, slower = decoder(), decoder()
    for one, rate in ((model, 5.0), (slower, 1.0)):
        descend(one, AdaFactor(lr=rate).build_optimizer(one), 3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), slower.parameters(), strict=True))


@pytest.mark.parametrize("options", [{}, {"share_layers": True, "num_hidden_layers": 3}], ids=["plain", "shared"])
def test_decay_spares_biases_norms_embeddings_and_positions(options: dict) -> None:
    model = decoder(**options)
    decayed, spared = (group["params"] for group in AdamW(weight_decay=0.1).build_optimizer(model).param_groups)
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert {names[p] for p in decayed} == {name for name in names.values() if decays(name)}
    assert {"embed.weight", "position_embed.weight", "final_norm.weight"} <= {names[p] for p in spared}
    assert len(decayed) + len(spared) == len(names)


def test_a_tied_read_out_is_an_embedding() -> None:
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(vocab_size=5, hidden_size=8, num_attention_heads=2, tie_word_embeddings=True))
    decayed, _ = (group["params"] for group in AdamW().build_optimizer(model).param_groups)
    assert not any(p is model.readout.weight for p in decayed)


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (ConstantSchedule(), [0.5, 1, 1, 1, 1, 1]),
        (LinearSchedule(final_fraction=0.2), [0.5, 1, 1, 0.8, 0.6, 0.4]),
        (InverseSqrtSchedule(constant_fraction=0.25), [0.5, 1, 1, 1, math.sqrt(1 / 2), math.sqrt(1 / 3)]),
        (CosineSchedule(), [0.5, 1, 1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
    ],
)
def test_schedules(schedule: LearningRateSchedule, values: list[float]) -> None:
    rates = [scheduled_learning_rate(step, steps=6, warmup=2, peak=3.0, schedule=schedule) for step in range(6)]
    assert rates == pytest.approx([3.0 * value for value in values])


def test_one_over_the_square_root_is_that_of_t5() -> None:
    """A constant rate for k = 100 of n = 10,000 steps, then 1 / sqrt(t): 1 / sqrt(max(t, k)) but for a factor."""
    schedule = InverseSqrtSchedule(constant_fraction=0.01)
    for t in (0, 1, 50, 100, 101, 400, 2_500, 9_999):
        found = scheduled_learning_rate(t, steps=10_000, warmup=0, peak=3.0, schedule=schedule)
        assert found == pytest.approx(30 / math.sqrt(max(t, 100)))


@pytest.mark.parametrize("early", [0.0, -0.1, 1.0, 2.0])
def test_a_rate_that_is_infinite_or_never_falls_is_refused(early: float) -> None:
    with pytest.raises(ValueError, match="constant_fraction must be between 0 and 1, but got"):
        InverseSqrtSchedule(constant_fraction=early)


@pytest.mark.parametrize(
    "rule", [AdamW(), AdaFactor(), SGD(momentum=0.9), SGD()], ids=["AdamW", "AdaFactor", "momentum", "SGD"]
)
def test_state_comes_back_from_a_file_bit_for_bit(rule: OptimizerConfig, tmp_path) -> None:
    model, other = decoder(), decoder()
    optimizer, restored = rule.build_optimizer(model), rule.build_optimizer(other)
    descend(model, optimizer, 3)
    save_file(state_tensors(optimizer, model), tmp_path / "state.safetensors")
    other.load_state_dict(model.state_dict())
    restore_state(restored, other, load_file(tmp_path / "state.safetensors"))
    descend(model, optimizer, 3)
    descend(other, restored, 3)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_state_of_another_model_is_refused() -> None:
    model = decoder()
    with pytest.raises(ValueError, match=r"but it has no parameter layers\.9"):
        restore_state(AdamW().build_optimizer(model), model, {"layers.9/exp_avg": torch.zeros(1)})
