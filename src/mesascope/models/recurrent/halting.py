"""Dynamic halting: adaptive computation time, by the state of every position or by the mean state.

A step maps the states s[l-1] of all positions to s[l], and s[0] are the embeddings. In step l, a position halts with
probability p[l], so that its output is

    sum_l p[l] * (1 - p[1]) * ... * (1 - p[l-1]) * s[l-1]  +  (1 - p[1]) * ... * (1 - p[L]) * s[L].

A position stops in the step in which its total probability of having halted reaches the threshold. The state before
that step is its last one: it has the whole remaining weight, and later steps of other positions see it unchanged.
(Graves 2016, arXiv 1603.08983; Dehghani et al. 2019, arXiv 1807.03819; Ray Chowdhury and Caragea 2024,
arXiv 2402.00976.)
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mesascope.models.layers import HiddenStates
from mesascope.models.recurrent.config import RecurrentConfig

MIN_ITERATIONS = 2  # a layer that may be called again is called twice at least, so that every trace shows it


class HaltingUnit(nn.Module):
    """The MLP that computes halting probabilities, from states or from their mean."""

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__()
        self.uses_mean, self.transition, self.causal = (
            config.halt == "global",
            config.transition,
            config.mask == "causal",
        )
        self.hidden = nn.Linear(config.hidden_size * (2 if config.transition else 1), config.hidden_size)
        self.activation = nn.GELU()
        self.logit = nn.Linear(config.hidden_size, 1)

    def forward(
        self, before: HiddenStates, after: HiddenStates, is_real: Bool[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos"]:
        """Return the probability of halting in a step, at every position.

        Args:
            before: the states before the step.
            after: the states after the step.
            is_real: False at padding, which has no part in means.
        """
        states = torch.cat([before, after], dim=-1) if self.transition else before
        if self.uses_mean:
            states = average_states(states, is_real, causal=self.causal)
        return self.logit(self.activation(self.hidden(states))).sigmoid().squeeze(-1).expand(is_real.shape)


def average_states(
    states: Float[Tensor, "batch pos width"], is_real: Bool[Tensor, "batch pos"], *, causal: bool
) -> Float[Tensor, "batch means width"]:
    """Average states over the positions that are not padding.

    Args:
        states: the states.
        is_real: False at padding.
        causal: average up to each position, instead of over the sequence.

    Returns:
        The mean up to every position, or one mean.
    """
    weight = is_real[..., None].to(states.dtype)
    states = states * weight
    if causal:
        return states.cumsum(1) / weight.cumsum(1).clamp(min=1)
    return states.sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class HaltedStates:
    """The states of positions that have halted, and how they have.

    Attributes:
        output: the weighted sum of the states.
        probabilities: the halting probability in every step; 0 after a position has stopped, and at padding.
        weights: the weight of the state after 0, 1, 2, ... steps; they sum to 1, except at padding, where they are 0.
        expected_steps: the sum of the numbers of steps times their weights; 0 at padding.
        num_steps: the number of steps after which the state of a position did not change any more; 0 at padding.
    """

    output: Float[Tensor, "batch pos d_model"]
    probabilities: Float[Tensor, "iteration batch pos"]
    weights: Float[Tensor, "state batch pos"]
    expected_steps: Float[Tensor, "batch pos"]
    num_steps: Int[Tensor, "batch pos"]


def run_until_halted(
    run_step: Callable[[HiddenStates], HiddenStates],
    halting: Callable[[HiddenStates, HiddenStates, Bool[Tensor, "batch pos"]], Float[Tensor, "batch pos"]],
    states: HiddenStates,
    is_real: Bool[Tensor, "batch pos"],
    *,
    max_iterations: int,
    threshold: float,
) -> HaltedStates:
    """Take steps until every position has halted, or the maximum number of steps.

    Args:
        run_step: the function from states to the states after one more step.
        halting: the function from the states before and after a step, and `is_real`, to halting probabilities.
        states: the states before the first step.
        is_real: False at padding, which takes no steps.
        max_iterations: the maximum number of steps.
        threshold: total probability at which a position stops.

    Returns:
        The output and the halting probabilities.
    """
    running, remaining = is_real, is_real.to(states.dtype)
    output, expected_steps, num_steps = (
        torch.zeros_like(states),
        torch.zeros_like(remaining),
        is_real.new_zeros(()).int(),
    )
    probabilities, weights = [], []
    for iteration in range(max_iterations):
        if iteration >= MIN_ITERATIONS and not running.any():
            break
        after = run_step(states)
        probability = halting(states, after, is_real) * running
        stops = running & (1 - remaining * (1 - probability) >= threshold)
        weight = remaining * torch.where(stops, 1.0, probability)
        output = torch.addcmul(output, weight[..., None], states)
        remaining, running = remaining - weight, running & ~stops
        states = torch.where(running[..., None], after, states)
        expected_steps, num_steps = expected_steps + remaining, num_steps + running
        probabilities.append(probability)
        weights.append(weight)
    unused = [torch.zeros_like(remaining)] * (max_iterations - len(weights))
    return HaltedStates(
        output=torch.addcmul(output, remaining[..., None], states),
        probabilities=torch.stack([*probabilities, *unused]),
        weights=torch.stack([*weights, *unused, remaining]),
        expected_steps=expected_steps,
        num_steps=num_steps,
    )
