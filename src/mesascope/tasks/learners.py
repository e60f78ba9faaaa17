"""Learners that are fitted anew to the pairs of every prompt, at every place: trees, boosted trees, a small network.

What Garg et al. (arXiv 2208.01066) hold transformers against where functions are not linear. A fit for every prompt and
place is slow, so they stand beside models as oracles, not among the algorithms that a model is named after.
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mesascope.tasks.algorithms import Algorithm, Path, Ticks
from mesascope.tasks.icl.context import Examples

LEVELS = tuple(range(1, 7))
ROUNDS, SHRINKAGE = 20, 0.3  # of boosting; the shrinkage is the default of XGBoost
RATE = 5e-3  # of Adam, for networks; as in the authors' code
NETWORK_STEPS = 1000  # ours
ROWS = 64  # sequences whose networks are trained side by side

Vectors = Float[np.ndarray, "pair feature"]
Numbers = Float[np.ndarray, "pair out"]


def greedy_tree(*, signs: bool = False) -> Algorithm:
    """A regression tree, grown greedily by squared error (scikit-learn's), cut at so many levels.

    Args:
        signs: whether it is told that only the signs of coordinates matter.
    """

    def predict(shown: Examples, ticks: Ticks) -> Path:
        from sklearn.tree import DecisionTreeRegressor

        weight = shown.known.new_zeros(len(ticks), *shown.known.shape[:3])
        for row, place, known, following, asked in _prompts(shown, signs):
            grown = DecisionTreeRegressor(random_state=0).fit(known, following, check_input=False)
            ways = grown.tree_.decision_path(np.vstack([asked, known])).toarray()
            way = ways[0].nonzero()[0]  # from the root to the leaf: scikit-learn numbers nodes in that order
            for number, tick in enumerate(ticks):
                inside = ways[1:, way[min(tick, len(way) - 1)]]
                weight[number, row, place, : len(known)] = torch.from_numpy(inside / inside.sum())
        return (weight[..., None, :] @ shown.following)[..., 0, :]

    return Algorithm(name=_told("greedy tree", signs), predict=predict, ticks=LEVELS, unit="level")


def boosted_trees(*, signs: bool = False) -> Algorithm:
    """Gradient boosting of trees of depth 3 (scikit-learn's), 20 rounds.

    Args:
        signs: whether they are told that only the signs of coordinates matter.
    """

    def predict(shown: Examples, ticks: Ticks) -> Path:
        from sklearn.ensemble import GradientBoostingRegressor

        _refuse_gradients(shown, "boosted trees")
        found = shown.asked.new_zeros(*shown.asked.shape[:-1], shown.following.shape[-1])
        for row, place, known, following, asked in _prompts(shown, signs):
            for out, answers in enumerate(following.T):
                trees = GradientBoostingRegressor(n_estimators=ROUNDS, learning_rate=SHRINKAGE, random_state=0)
                trees.fit(known, answers)
                found[row, place, out] = float(trees.predict(asked)[0])
        return found[None]

    return Algorithm(name=_told("boosted trees", signs), predict=predict)


def trained_network(hidden: int) -> Algorithm:
    """A network with one hidden layer of rectifiers, trained by Adam on the mean squared error of the pairs so far.

    Args:
        hidden: units; the paper trains networks of the size that answers.
    """

    def predict(shown: Examples, ticks: Ticks) -> Path:
        _refuse_gradients(shown, "a trained network")
        chunks = [
            _trained(shown.rows(slice(start, start + ROWS)), hidden, ticks)
            for start in range(0, len(shown.known), ROWS)
        ]
        return torch.cat(chunks, dim=1)

    return Algorithm(name="trained network", predict=predict, ticks=(NETWORK_STEPS,), unit="step")


def _trained(shown: Examples, hidden: int, ticks: Ticks) -> Path:
    """What the networks predict after so many steps, one for every prompt and place, trained side by side: Adam treats
    every number alone. Where nothing has been seen, 0.
    """
    known, following, asked = shown.known.float(), shown.following.float(), shown.asked.float()
    *lead, pairs, features = known.shape
    mask = (torch.arange(pairs, device=known.device) < shown.seen[:, None]).float()[..., None]
    count = shown.seen.clamp_min(1).float()[:, None, None]
    generator = torch.Generator().manual_seed(0)

    def drawn(rows: int, columns: int) -> nn.Parameter:
        weight = torch.randn(*lead, rows, columns, generator=generator) / max(rows, 1) ** 0.5
        return nn.Parameter(weight.to(known))

    into, bias, out = drawn(features, hidden), nn.Parameter(known.new_zeros(*lead, 1, hidden)), drawn(hidden, 1)

    def answer(x: Tensor) -> Tensor:
        return (x @ into + bias).relu() @ out

    if following.shape[-1] != 1:
        raise ValueError(f"a trained network predicts one number, but answers have {following.shape[-1]}")
    adam, path = torch.optim.Adam([into, bias, out], lr=RATE), []
    with torch.enable_grad():
        for step in range(1, max(ticks) + 1):
            adam.zero_grad()
            ((answer(known) - following) * mask / count.sqrt()).square().sum().backward()
            adam.step()
            if step in ticks:
                path.append(answer(asked[..., None, :]).detach()[..., 0, :].double())
    return torch.stack(path) * (shown.seen > 0)[:, None]


def _prompts(shown: Examples, signs: bool) -> Iterator[tuple[int, int, Vectors, Numbers, Vectors]]:
    """By sequence and place: the inputs seen, their answers, and what is asked; where anything has been seen."""
    known, asked = ((x.sign() if signs else x).detach().float().cpu().numpy() for x in (shown.known, shown.asked))
    following = shown.following.detach().cpu().numpy()
    for row in range(len(known)):
        for place, seen in enumerate(shown.seen.tolist()):
            if seen:
                yield row, place, known[row, place, :seen], following[row, place, :seen], asked[row, place, None]


def _refuse_gradients(shown: Examples, what: str) -> None:
    """Refuse to differentiate through a fit."""
    if any(part.requires_grad for part in (shown.known, shown.following, shown.asked)):
        raise ValueError(f"{what} cannot be differentiated by what a prompt shows, but gradients are asked for")


def _told(name: str, signs: bool) -> str:
    """Its name, with what it is told."""
    return f"{name} of signs" if signs else name
