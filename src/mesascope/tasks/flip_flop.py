"""Flip-flop language modelling: a bit is written, ignored bits follow, and the last written bit must be read.

The task of Liu et al., Exposing Attention Glitches with Flip-Flop Language Modeling (arXiv 2306.00946), as used by Ray
Chowdhury & Caragea (arXiv 2402.00976).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from mesascope.argument_types import validate_fields
from mesascope.tasks.base import Batch
from mesascope.tasks.token_predictions import TokenTask, log_probabilities

WRITE, IGNORE, READ = 2, 3, 4  # tokens of the instructions; those of the bits are 0 and 1
TEXTS = ("0", "1", "w", "i", "r")
LAST_WRITTEN, LAST_BIT, MAJORITY, CHANCE = "last written bit", "last bit", "majority of bits", "chance"


@final
@dataclass(frozen=True, kw_only=True)
class FlipFlop(TokenTask):
    """Pairs of an instruction and a bit; a read gives the bit that was last written.

    After ``r`` (read), the bit is that of the last ``w`` (write). The first instruction is ``w`` and the last one is
    ``r``. Every other one is ``i`` (ignore) with the probability ``ignore``, and ``w`` or ``r`` with half of the rest
    each. Bits after ``w`` and ``i`` are uniform. Only bits after ``r`` are scored. Bits have the tokens 0 and 1, and
    ``w``, ``i``, ``r`` have 2, 3, 4.

    Attributes:
        length: number of tokens of a sequence, an even number; the last one is a target only.
        ignore: probability that an instruction is ``i``.

    Raises:
        ValueError: a field is out of range.

    >>> task = FlipFlop(length=12, ignore=0.5)
    >>> batch = task.sample(1, torch.Generator().manual_seed(4))
    >>> "".join(task.decode_token(token) for token in batch.inputs[0].tolist())
    'w1r1i0i1i0r'
    >>> batch.targets[0, -1]
    tensor(1)
    """

    length: int = 64
    ignore: float = 0.8

    def __post_init__(self) -> None:
        """Validate the fields."""
        validate_fields(self)
        if self.length < 4 or self.length % 2:
            raise ValueError(f"length must be an even number of at least 4, but got {self.length}")
        if not 0 <= self.ignore <= 1:
            raise ValueError(f"ignore must be from 0 to 1, but got {self.ignore}")

    @property
    def vocab_size(self) -> int:
        """Two bits and three instructions."""
        return len(TEXTS)

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """Draw ``n`` sequences.

        Args:
            n: number of sequences.
            generator: source of randomness.

        Returns:
            The batch. Its latents are ``stored bit`` and ``ignored pairs`` (batch, pos): the last written bit, and the
            number of pairs since it was written, at every position; at position 0, before the first bit, that bit.
        """
        pairs = self.length // 2
        draws = torch.rand(n, pairs, generator=generator)
        instructions = torch.where(draws < self.ignore, IGNORE, READ)
        instructions[draws >= (1 + self.ignore) / 2] = WRITE
        instructions[:, 0], instructions[:, -1] = WRITE, READ
        drawn = torch.randint(0, 2, (n, pairs), generator=generator)
        last_write = last_index(instructions == WRITE)
        stored = drawn.gather(1, last_write)
        bits = torch.where(instructions == READ, stored, drawn)
        tokens = torch.stack([instructions, bits], dim=2).flatten(1)
        since = (torch.arange(pairs) - last_write).repeat_interleave(2, dim=1)
        stored_bit = stored.repeat_interleave(2, dim=1)
        # at an instruction, its own bit is not yet known: the state is that of the pair before
        stored_bit[:, 2::2], since[:, 2::2] = stored[:, :-1], since[:, 1:-1:2] + 1
        inputs = tokens[:, :-1].contiguous()
        return Batch(
            inputs=inputs,
            targets=tokens[:, 1:].contiguous(),
            weight=(inputs == READ).float(),
            latents={
                "stored bit": stored_bit[:, :-1].contiguous(),
                "ignored pairs": since[:, :-1].contiguous(),
            },
        )

    def baselines(self, batch: Batch) -> Mapping[str, Float[Tensor, "batch pos d_out"]]:
        """Compute the log-probabilities of four predictors of the next bit.

        - last written bit: exact at the scored positions;
        - last bit: of any pair;
        - majority of bits: the more frequent bit so far, or each with probability 1/2 in a tie;
        - chance: each with probability 1/2.

        Args:
            batch: the sequences to predict.

        Returns:
            Log-probabilities by the name of the baseline; before the first bit, those of chance.
        """
        is_bit = batch.inputs < WRITE
        before = one_hot(torch.where(is_bit, batch.inputs, 0), 2) * is_bit[..., None]
        ones, zeros = before.cumsum(1)[..., 1], before.cumsum(1)[..., 0]
        is_written = is_bit & (batch.inputs.roll(1, dims=1) == WRITE)
        probabilities = {
            LAST_WRITTEN: self._select_last(batch.inputs, is_written),
            LAST_BIT: self._select_last(batch.inputs, is_bit),
            MAJORITY: 0.5 + (ones - zeros).sign() / 2,
            CHANCE: torch.full(batch.inputs.shape, 0.5, device=batch.inputs.device),
        }
        return {name: self._log_token_probabilities(one) for name, one in probabilities.items()}

    def expected_accuracy(self) -> dict[str, float]:
        """Compute the exact accuracy of every baseline at the last read.

        A tie of the majority counts as 1/2. Between the last write and the last read, the pairs are ignored or read;
        the number of pairs with each bit follows by convolution.

        Returns:
            Accuracies by the name of the baseline.

        >>> FlipFlop(length=4).expected_accuracy()
        {'last written bit': 1.0, 'last bit': 1.0, 'majority of bits': 1.0, 'chance': 0.5}
        """
        pairs = self.length // 2
        is_ignored = self.ignore if pairs > 2 else 0.0  # the first pair is a write
        return {
            LAST_WRITTEN: 1.0,
            LAST_BIT: 1 - is_ignored / 2,
            MAJORITY: _majority_accuracy(pairs, self.ignore),
            CHANCE: 0.5,
        }

    def decode_token(self, token: int) -> str:
        """Decode a token: ``0``, ``1``, ``w``, ``i`` or ``r``.

        Args:
            token: token index.
        """
        return TEXTS[token]

    def _select_last(self, inputs: Int[Tensor, "batch pos"], selected: Tensor) -> Float[Tensor, "batch pos"]:
        """Return the last selected bit as the probability of a 1; 1/2 before the first one."""
        exists = selected.cumsum(1) > 0
        return torch.where(exists, inputs.gather(1, last_index(selected)).float(), 0.5)

    def _log_token_probabilities(self, is_one: Float[Tensor, "batch pos"]) -> Float[Tensor, "batch pos token"]:
        probabilities = torch.zeros(*is_one.shape, self.vocab_size, device=is_one.device)
        probabilities[..., 0], probabilities[..., 1] = 1 - is_one, is_one
        return log_probabilities(probabilities)


def last_index(selected: Tensor) -> Int[Tensor, "batch pos"]:
    """Return the index of the last selected position up to each position; 0 before the first one.

    Args:
        selected: (batch, pos), whether a position is selected.
    """
    indices = torch.arange(selected.shape[1], device=selected.device)
    return torch.where(selected, indices, 0).cummax(1).values


def _majority_accuracy(pairs: int, ignore: float) -> float:
    """Return the accuracy of the majority before the last of ``pairs`` reads.

    The chain runs over pairs. Its state is the number of pairs with the stored bit minus the number of other pairs. A
    write stores the other bit with probability 1/2, which changes the sign of the difference.
    """
    write = read = (1 - ignore) / 2
    zero = pairs  # index of the difference 0
    chance = np.zeros(2 * pairs + 1)
    chance[zero + 1] = 1  # after the first write
    for _ in range(pairs - 2):
        more, fewer = np.roll(chance, 1), np.roll(chance, -1)
        # the bit of a write, or of an ignored pair, equals the stored one with probability 1/2
        flipped = np.roll(chance[::-1], 1)  # the other bit is stored: d becomes -d, and the new bit counts for it
        chance = read * more + ignore * (more + fewer) / 2 + write * (more + flipped) / 2
    return float(chance[zero + 1 :].sum() + chance[zero] / 2)
