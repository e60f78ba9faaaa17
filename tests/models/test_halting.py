"""Dynamic halting: weights, expected steps, models that were set by hand, and gradients."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from mesascope.models.recurrent.config import RecurrentConfig
from mesascope.models.recurrent.halting import HaltedStates, average_states, run_until_halted
from mesascope.models.recurrent.model import RecurrentTransformer
from recurrent_models import HALTING_KINDS, recurrent, some_tokens

MAX = 6


def halt_with(probabilities: Tensor, states: Tensor, threshold: float = 0.999) -> tuple[HaltedStates, list[Tensor]]:
    """Run steps that multiply by 2 and add 1, with given probabilities (iteration, batch, pos)."""
    given, seen = iter(probabilities), []

    def run_step(x: Tensor) -> Tensor:
        seen.append(x)
        return 2 * x + 1

    is_real = torch.ones(states.shape[:2], dtype=torch.bool)
    limits = {"max_iterations": len(probabilities), "threshold": threshold}
    return run_until_halted(run_step, lambda *_: next(given), states, is_real, **limits), seen


def expected_weights(probabilities: Sequence[float], threshold: float) -> list[float]:
    """The rule, one position at a time."""
    weights, halted = [0.0] * (len(probabilities) + 1), 0.0
    for step, p in enumerate(probabilities):
        share = p * (1 - halted)
        if halted + share >= threshold:
            weights[step] = 1 - halted
            return weights
        weights[step], halted = share, halted + share
    weights[-1] = 1 - halted
    return weights


@pytest.mark.parametrize("threshold", [0.5, 0.9, 0.999, 1.0])
def test_weights_follow_the_rule(threshold: float) -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(MAX, 4, 5, generator=generator, dtype=torch.float64)
    start = torch.randn(4, 5, 3, generator=generator, dtype=torch.float64)
    halted, _ = halt_with(p, start, threshold)
    states = [start]
    for _ in range(MAX):
        states.append(2 * states[-1] + 1)
    for b in range(4):
        for i in range(5):
            weights = torch.tensor(expected_weights(p[:, b, i].tolist(), threshold), dtype=torch.float64)
            torch.testing.assert_close(halted.weights[:, b, i], weights)
            expected = sum(w * s[b, i] for w, s in zip(weights, states, strict=True))
            torch.testing.assert_close(halted.output[b, i], expected)
            steps = sum(n * w for n, w in enumerate(weights))
            torch.testing.assert_close(halted.expected_steps[b, i], steps)
            stopped = weights.cumsum(0).sub(1).abs() < 1e-12
            assert halted.num_steps[b, i] == int(stopped.int().argmax())
    torch.testing.assert_close(halted.weights.sum(0), torch.ones(4, 5, dtype=torch.float64), atol=1e-14, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", HALTING_KINDS)
def test_weights_of_every_model_sum_to_one(kind: str) -> None:
    output = recurrent(kind)(some_tokens())
    torch.testing.assert_close(output.halting_weights.sum(0), torch.ones(3, 11), atol=1e-6, rtol=0)
    steps = torch.arange(6.0)[:, None, None]
    torch.testing.assert_close((steps * output.halting_weights).sum(0), output.expected_steps)
    assert (output.expected_steps <= output.num_steps + 1e-6).all()
    assert (output.halting_weights >= 0).all()


@pytest.mark.parametrize("step", range(1, MAX + 1))
def test_halting_with_certainty_in_a_step_gives_the_state_before_it(step: int) -> None:
    p = torch.zeros(MAX, 2, 3)
    p[step - 1] = 1
    halted, seen = halt_with(p, torch.randn(2, 3, 4))
    assert torch.equal(halted.output, seen[step - 1])
    assert (halted.expected_steps == step - 1).all()
    assert (halted.num_steps == step - 1).all()
    assert len(seen) == max(step, 2)  # no further steps are taken; at least two, so that a trace shows the repetition


def test_never_halting_gives_the_last_state() -> None:
    halted, seen = halt_with(torch.zeros(MAX, 2, 3), torch.randn(2, 3, 4))
    assert torch.equal(halted.output, 2 * seen[-1] + 1)
    assert (halted.num_steps == MAX).all()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["GUT", "GUTLB", "UT"])
@pytest.mark.parametrize("step", range(1, 6))
def test_a_model_that_must_halt_in_a_step_is_one_of_fewer_steps(kind: str, step: int) -> None:
    """With a bias that halts in one step for certain, the logits are those of so many fixed steps, bit for bit."""
    model, x = recurrent(kind), some_tokens()
    calls = iter([0.0] * (step - 1) + [1.0] * 99)
    certain: Callable[..., Tensor] = lambda before, *_: torch.full(before.shape[:2], next(calls))  # noqa: E731
    model.halting.forward = certain  # pyright: ignore[reportOptionalMemberAccess]
    fixed = recurrent(kind, halt="none", transition=False, max_iterations=max(step - 1, 1))
    fixed.load_state_dict({name: v for name, v in model.state_dict().items() if not name.startswith("halting")})
    if kind == "GUTLB":
        x = x[:, :4]  # a single chunk: the calls of several ones would have to be counted anew
    expected = fixed(x).logits if step > 1 else fixed.readout(fixed.final_norm(fixed.embed(x)))
    assert torch.equal(model(x).logits, expected)


def set_counter(halt: str, max_iterations: int = MAX, **fields: Any) -> RecurrentTransformer:
    """A model set by hand: coordinate 0 counts steps, coordinate 1 holds the token n; it halts when the count is n.

    The embedding of token n is (0, n). Attention writes nothing, and the MLP adds 1 to coordinate 0. The halting MLP
    computes 1000 (count - n + 0.5), whose GELU is 0 or at least 500, and subtracts 250.
    """
    shape: dict[str, Any] = {"vocab_size": 9, "hidden_size": 2, "num_attention_heads": 1, "intermediate_size": 1}
    names: dict[str, Any] = {"norm": "none", "positions": "none", "activation": "relu", "halt": halt}
    model = RecurrentTransformer(RecurrentConfig(**shape, **names, max_iterations=max_iterations, **fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embed.weight[:, 1] = torch.arange(9.0)
        model.layers[0].mlp.up_proj.bias.fill_(1.0)
        model.layers[0].mlp.down_proj.weight[0, 0] = 1.0
        assert model.halting is not None
        model.halting.hidden.weight[0, :2] = torch.tensor([1000.0, -1000.0])
        model.halting.hidden.bias[0] = 500.0
        model.halting.logit.weight[0, 0] = 1.0
        model.halting.logit.bias.fill_(-250.0)
        model.readout.weight[0, 0] = 1.0  # the first logit is the count
    return model


@torch.no_grad()
def test_a_counter_takes_exactly_as_many_steps_as_its_token_says() -> None:
    model, x = set_counter("token"), torch.tensor([[0, 3, 1, 6, 2, 5, 4, 8, 3]])
    output, expected = model(x), x.clamp(max=MAX)
    assert torch.equal(output.num_steps, expected)
    assert torch.equal(output.expected_steps, expected.float())
    assert torch.equal(output.logits[..., 0], expected.float())
    assert torch.equal(output.halting_weights.argmax(0), expected)
    assert set(output.halting_weights.unique().tolist()) == {0.0, 1.0}


@torch.no_grad()
@pytest.mark.parametrize("n", range(1, MAX + 1))
def test_a_counter_that_halts_by_the_mean_state_takes_as_many_steps_as_the_mean_token_says(n: int) -> None:
    x = torch.tensor([[n + 1, n, n - 1], [n, n, n]])
    assert (set_counter("global", mask="full")(x).num_steps == n).all()
    assert (set_counter("global", mask="causal")(x[1:]).num_steps == n).all()


@torch.no_grad()
def test_a_causal_counter_halts_by_the_running_mean() -> None:
    """Tokens 2, 4 and 0: the means up to them are 2, 3 and 2."""
    output = set_counter("global")(torch.tensor([[2, 4, 0]]))
    assert output.num_steps[0, 0] == 2
    x, counts = [2.0, 4.0, 0.0], [0, 0, 0]
    running = [True] * 3
    for _ in range(MAX):  # by hand: the mean of the counts up to a position, of which some have stopped
        stops = [sum(counts[: i + 1]) / (i + 1) - sum(x[: i + 1]) / (i + 1) + 0.5 > 0 for i in range(3)]
        running = [r and not s for r, s in zip(running, stops, strict=True)]
        counts = [c + r for c, r in zip(counts, running, strict=True)]
    assert output.num_steps[0].tolist() == counts


@torch.no_grad()
def test_a_counter_that_sees_the_transition_can_count_it() -> None:
    """The same MLP, moved to the state after the step, halts one step earlier."""
    model = set_counter("token", transition=True)
    assert model.halting is not None
    model.halting.hidden.weight[0] = torch.tensor([0.0, 0.0, 1000.0, -1000.0])
    x = torch.tensor([[1, 3, 2, 5]])
    assert torch.equal(model(x).num_steps, x - 1)


@torch.no_grad()
def test_means_count_real_positions_only() -> None:
    states = torch.randn(2, 5, 3)
    is_real = torch.tensor([[True, True, False, True, False], [False, False, True, True, True]])
    running, whole = (average_states(states, is_real, causal=causal) for causal in (True, False))
    for row in range(2):
        for position in range(5):
            chosen = states[row, : position + 1][is_real[row, : position + 1]]
            expected = chosen.mean(0) if len(chosen) else torch.zeros(3)
            torch.testing.assert_close(running[row, position], expected)
        torch.testing.assert_close(whole[row, 0], states[row][is_real[row]].mean(0))


@torch.no_grad()
def test_a_full_mask_has_one_mean_and_a_causal_one_many() -> None:
    full, causal = (recurrent("GUT", mask=mask)(some_tokens()).expected_steps for mask in ("full", "causal"))
    assert (full == full[:, :1]).all()
    assert len(full[:, 0].unique()) == 3
    assert len(causal.unique()) > 20


def test_halting_is_differentiable() -> None:
    """Numerically: of the output and the expected steps, with respect to probabilities and states."""
    p = torch.rand(MAX, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    start = torch.randn(2, 3, 4, dtype=torch.float64).requires_grad_()

    def run(p: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        halted, _ = halt_with(p, start, threshold=0.99)
        return halted.output, halted.expected_steps

    assert torch.autograd.gradcheck(run, (p, start))


def test_a_smaller_penalty_on_steps_is_a_smaller_auxiliary_loss() -> None:
    model, x = recurrent("GUT", halting_penalty=0.1), some_tokens()
    output = model(x)
    torch.testing.assert_close(output.auxiliary_loss, 0.1 * output.expected_steps.mean())
    output.auxiliary_loss.backward()
    assert model.halting is not None
    bias = model.halting.logit.bias
    assert bias.grad is not None
    assert bias.grad.item() < 0  # a larger bias halts earlier
    assert recurrent("GUT")(x).auxiliary_loss is None
    assert "auxiliary_loss" not in recurrent("UT without halting")(x)
