"""Algorithms for sequences of symbols: predictions are probabilities, from counts of what followed what.

A pair's input is two indicators side by side: of a symbol, and of the one before it.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.tasks.algorithms import Algorithm, Number, Path, Ticks
from mesascope.tasks.icl.context import Examples

SMOOTHED = ("single symbols", "pairs", "triples")
ADDED = (1e-3, 10.0)
SURE = (0.01, 1.0)
Matches = Float[Tensor, "batch place pair"]


def algorithms(symbols: int) -> Sequence[Algorithm]:
    """All of them, for so many symbols.

    How often each symbol has come (single symbols), has come after the present one (pairs: what an induction head
    counts) and after the present one and the one before it (triples), with ``added`` to every count; what followed the
    last match of the present symbol, with the probability ``sure`` (last match); and the present symbol itself.
    """
    return [
        _counted("single symbols", lambda shown: torch.ones_like(_of(shown, slice(symbols)))),
        _counted("pairs", lambda shown: _of(shown, slice(symbols))),
        _counted(
            "triples", lambda shown: _of(shown, slice(symbols)) * _of(shown, slice(symbols, 2 * symbols)).clamp_max(1)
        ),
        _last_match(symbols),
        _again(symbols),
    ]


def _of(shown: Examples, features: slice) -> Matches:
    """Which pairs agree with what is asked, in some of the features."""
    return torch.einsum("bpnf,bpf->bpn", shown.known[..., features], shown.asked[..., features])


def _counted(name: str, matching) -> Algorithm:
    """Shares among the pairs that match."""

    def predict(shown: Examples, ticks: Ticks, added: Number) -> Path:
        count = torch.einsum("bpn,bpns->bps", matching(shown), shown.following)
        more = count + added
        return (more / more.sum(-1, keepdim=True))[None]

    return Algorithm(name=name, predict=predict, parameters={"added": ADDED})


def _last_match(symbols: int) -> Algorithm:
    """What followed the last match, else any."""

    def predict(shown: Examples, ticks: Ticks, sure: Number) -> Path:
        match = _of(shown, slice(symbols))
        place = torch.arange(1, match.shape[-1] + 1, device=match.device)
        latest = (match * place).argmax(-1)
        found = shown.following.gather(2, latest[..., None, None].expand(-1, -1, 1, symbols))[:, :, 0]
        found = torch.where(match.sum(-1, keepdim=True) > 0, found, 1 / symbols)
        return (sure * found + (1 - sure) / symbols)[None]

    return Algorithm(name="the last match", predict=predict, parameters={"sure": SURE})


def _again(symbols: int) -> Algorithm:
    """The present symbol once more."""

    def predict(shown: Examples, ticks: Ticks, sure: Number) -> Path:
        return (sure * shown.asked[..., :symbols] + (1 - sure) / symbols)[None]

    return Algorithm(name="the same again", predict=predict, parameters={"sure": SURE})
