"""Sequences for the planted language model: BOS, a permutation of a few tokens, and one of them again."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mesascope.ground_truth.models.tokens import TOKEN_DECOYS, TOKEN_MECHANISMS, build_planted_language_model
from mesascope.models.transformer import Decoder

NUM_TOKENS = 6
PREVIOUS_HEAD, TWO_BACK_HEAD, INDUCTION_HEAD = 3, 5, 5


def build_induction_model() -> Decoder:
    """The induction circuit, and a decoy: a head that writes the token two back, which nothing reads."""
    heads = {
        (0, PREVIOUS_HEAD): TOKEN_MECHANISMS["previous token"],
        (0, TWO_BACK_HEAD): TOKEN_DECOYS["two back"][1],
        (1, INDUCTION_HEAD): TOKEN_MECHANISMS["induction"],
    }
    return build_planted_language_model(heads=heads)


class PlantedSequences:
    """Sequences [BOS, a permutation, one of its tokens], whose answer is the token after the repeated one."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        order = torch.stack([torch.randperm(NUM_TOKENS, generator=generator) for _ in range(count)])
        self.half = order + 1
        at = torch.randint(0, NUM_TOKENS - 1, (count, 1), generator=generator)
        self.answer = self.half.gather(1, at + 1)[:, 0]
        self.tokens = torch.cat([torch.zeros(count, 1, dtype=torch.long), self.half, self.half.gather(1, at)], 1)

    def find_answer_by(self, other: "PlantedSequences") -> tuple[Tensor, Tensor]:
        """The answer if position p followed the token that it follows in other sequences, and where there is one."""
        at = (other.half == self.tokens[:, -1:]).int().argmax(1)
        return self.half.gather(1, (at + 1).clamp(max=NUM_TOKENS - 1)[:, None])[:, 0], at < NUM_TOKENS - 1


def previous_token(tokens: Tensor) -> Tensor:
    return torch.cat([torch.full_like(tokens[:, :1], -1), tokens[:, :-1]], 1)


def two_back(tokens: Tensor) -> Tensor:
    return previous_token(previous_token(tokens))


def own_token(tokens: Tensor) -> Tensor:
    return tokens


def last_token(tokens: Tensor) -> Tensor:
    return tokens[:, -1]


def answer(tokens: Tensor) -> Tensor:
    """The token after the earlier occurrence of the last one."""
    at = (tokens[:, :-1] == tokens[:, -1:]).int().argmax(1)
    return tokens.gather(1, at[:, None] + 1)[:, 0]


def snapshot(model: nn.Module) -> tuple[object, ...]:
    """What an instrument must leave as it is: weights, modes, hooks, forward functions and the global generator."""
    modules = [(one.training, len(one._forward_hooks), len(one._forward_pre_hooks)) for one in model.modules()]
    own = [sorted(vars(one)) for one in model.modules()]
    weights = [one.detach().clone().numpy().tobytes() for one in model.parameters()]
    return modules, own, weights, torch.get_rng_state().numpy().tobytes()


def untouched(model: nn.Module, call: Callable[[], object]) -> bool:
    model.train()
    before = snapshot(model)
    call()
    after = snapshot(model)
    model.eval()
    return before == after
