"""Next-token prediction by one layer of attention: collocations first, then which token of a sentence decides.

Huang, Liang and Yang, Non-asymptotic Convergence of Training Transformers for Next-token Prediction (arXiv 2409.17335).
Every token has a token that follows it, its collocation. In a sentence, the last token says in which order the others
count, and what follows is the collocation of the one that counts most. Logits are W_ov X softmax(X^T W_kq x_last) with
one unit vector for each token; W_ov is trained on pairs alone, then W_kq with W_ov as it is, both from 0 by steps of
one length along the gradient.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from scipy.optimize import nnls
from torch import Tensor

from mesascope.axes import label
from mesascope.store import ignore
from mesascope.studies.next_token_convergence.task import Language
from mesascope.studies.toy_model import Progress, Reduced, generator, line, looked_at, told

Matrix = Float[Tensor, "token token"]
Entry = tuple[int, int]
STAGES = ["collocations", "what decides"]
DESCENTS = ["steps of one length", "plain gradient descent"]
PATHS = [f"{stage}, {descent}" for stage in STAGES for descent in DESCENTS]
WINDOW = (1e-1, 1e-6)  # of the excess loss at first: where it is asked whether its logarithm falls along a line
EARLY = 1e-2  # likewise: where the second stage takes what the first has found
LEAST = 1e-10  # where the second stage stops: below, rounding would choose the direction


@final
@dataclass(frozen=True, kw_only=True)
class NextToken(Reduced):
    """The two stages, each also by plain gradient descent, which is the control. The first goes on until its loss is
    1e-6 of what it was; the second takes W_ov as it is at a hundredth: what tokens say is told by then, and not yet so
    surely that the loss no longer depends on where attention goes.

    Attributes:
        vocabulary: tokens.
        length: of a sentence.
        sentences: to train on.
        unseen: others, to see what was learned.
        rate: the length of a step; plain gradient descent multiplies the gradient with ten times as much.
        steps: of each stage.
        points: steps at which it is looked at.
    """

    vocabulary: int = 12
    length: int = 5
    sentences: int = 60
    unseen: int = 2_000
    rate: float = 0.1
    steps: int = 2_000
    points: int = 101

    def __post_init__(self) -> None:
        """Refuse what has no order to learn."""
        if not 2 <= self.length <= self.vocabulary:
            raise ValueError(
                f"length must lie between 2 and the vocabulary, {self.vocabulary}, since the tokens of a sentence "
                f"differ, but got {self.length}"
            )

    def simulate(self, seed: int, progress: Progress = ignore) -> xr.Dataset:
        """Excess losses, norms and directions over the steps, and what is made of unseen sentences."""
        draws = generator(seed)
        language = Language.drawn(self.vocabulary, draws)
        drawn = language.sentences(self.sentences + self.unseen, self.length, draws)
        shown, unseen = drawn[: self.sentences], drawn[self.sentences :]
        pairs = Stage.of_pairs(language)
        paths = [[self._descended(pairs, way, progress) for way in (True, False)]]
        if not paths[0][0].early.any():
            raise ValueError(
                f"steps must be enough for the loss of collocations to fall to {EARLY} of what it was, but after "
                f"{self.steps} it is {paths[0][0].excess[-1] / paths[0][0].excess[0]:.2g} of it; take more"
            )
        stage = Stage.of_sentences(language, shown, paths[0][0].early)  # on what steps of one length made of the pairs
        paths.append([self._descended(stage, way, progress) for way in (True, False)])
        found = xr.Dataset(_told(paths, self.steps, self.points))
        due = found["step"].values.tolist()
        about = "attention to the token that decides, mean over the sentences shown, by steps of one length"
        attended = np.array(paths[1][0].attention)[due]
        found["attention"] = label(attended, "step", units="1", about=about, coords={"step": due})
        right = [accuracy(language, each, paths[0][0].early, paths[1][0].at) for each in (shown, unseen)]
        known = language.told_by(shown, unseen)
        named = {"setting": ["shown", "unseen, order shown", "unseen, order not shown"]}
        scores = [right[0].mean(), _mean(right[1][known]), _mean(right[1][~known])]
        counts = [len(shown), int(known.sum()), int((~known).sum())]
        about = "share of sentences whose next token has the largest logit, after both stages"
        found["accuracy"] = label(torch.tensor(scores), "setting", units="1", about=about, coords=named)
        about = "sentences of each kind"
        found["count"] = label(torch.tensor(counts), "setting", units="sentences", about=about, coords=named)
        return found

    def _descended(self, stage: "Stage", even: bool, progress: Progress) -> "Path":
        """One stage from 0, by steps of one length or in proportion to the gradient."""
        at = torch.zeros(self.vocabulary, self.vocabulary, dtype=torch.float64, requires_grad=True)
        path = Path(at=torch.zeros_like(at), early=torch.zeros_like(at), excess=[], norm=[], direction=[], attention=[])
        for _ in told(self.steps, progress):
            loss = stage.loss(at)
            path.note(at.detach(), loss.item(), stage)
            if path.excess[-1] <= stage.least * path.excess[0]:
                break
            (slope,) = torch.autograd.grad(loss, at)
            step = self.rate * slope / slope.norm() if even else 10 * self.rate * slope
            at = (at.detach() - step).requires_grad_()
        path.stay(self.steps + 1)
        return path


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage:
    """What one of the two matrices is trained on.

    Attributes:
        loss: of the matrix.
        floor: what the loss tends to.
        margin: the smallest matrix that decides everything right by 1.
        least: where descent stops, as a share of the excess loss at first.
        attended: attention to the tokens that decide, where there is attention.
    """

    loss: Callable[[Matrix], Float[Tensor, ""]]
    floor: float
    margin: Matrix
    least: float
    attended: Callable[[Matrix], float] = lambda matrix: float("nan")

    @classmethod
    def of_pairs(cls, language: Language) -> "Stage":
        """W_ov: the collocation of every token has the largest logit."""

        def loss(matrix: Matrix) -> Float[Tensor, ""]:
            missed = torch.nn.functional.cross_entropy(matrix.mT, language.follows, reduction="none")
            return missed @ language.share

        above = [
            ((right, token), (other, token))
            for token, right in enumerate(language.follows.tolist())
            for other in range(len(language.share))
            if other != right
        ]
        return cls(loss=loss, floor=0.0, margin=max_margin(above, len(language.share)), least=WINDOW[1])

    @classmethod
    def of_sentences(cls, language: Language, sentences: Int[Tensor, "sentence pos"], values: Matrix) -> "Stage":
        """W_kq: the token that decides gets the most attention; ``values`` is W_ov."""
        rows, decides = torch.arange(len(sentences)), language.deciding(sentences)
        follows = language.next_token(sentences)

        def loss(matrix: Matrix) -> Float[Tensor, ""]:
            return torch.nn.functional.cross_entropy(logits(sentences, values, matrix), follows)

        floor = torch.nn.functional.cross_entropy(values[:, sentences[rows, decides]].mT, follows).item()
        above = {
            ((sentence[place], sentence[-1]), (other, sentence[-1]))
            for sentence, place in zip(sentences.tolist(), decides.tolist(), strict=True)
            for other in sentence
            if other != sentence[place]
        }

        def attended(matrix: Matrix) -> float:
            return attention(sentences, matrix)[rows, decides].mean().item()

        margin = max_margin(sorted(above), len(values))
        return cls(loss=loss, floor=floor, margin=margin, least=LEAST, attended=attended)


@dataclass(frozen=True, kw_only=True, eq=False)
class Path:
    """One descent: where it is, where its loss first was a hundredth, and what was seen on the way."""

    at: Matrix
    early: Matrix
    excess: list[float]
    norm: list[float]
    direction: list[float]
    attention: list[float]

    def note(self, at: Matrix, loss: float, stage: Stage) -> None:
        """Write down one step."""
        self.at.copy_(at)
        self.excess.append(loss - stage.floor)
        if not self.early.any() and self.excess[-1] <= EARLY * self.excess[0]:
            self.early.copy_(at)
        self.norm.append(at.norm().item())
        self.direction.append(torch.nn.functional.cosine_similarity(at.ravel(), stage.margin.ravel(), dim=0).item())
        self.attention.append(stage.attended(at))

    def stay(self, steps: int) -> None:
        """Where it was in the end it is in all steps to come."""
        for seen in (self.excess, self.norm, self.direction, self.attention):
            seen += seen[-1:] * (steps - len(seen))


def attention(sentences: Int[Tensor, "sentence pos"], scores: Matrix) -> Float[Tensor, "sentence pos"]:
    """How the last token of each sentence attends to all."""
    return scores[sentences, sentences[:, -1:]].softmax(1)


def logits(sentences: Int[Tensor, "sentence pos"], values: Matrix, scores: Matrix) -> Float[Tensor, "sentence token"]:
    """Of the next token."""
    return torch.einsum("sp,vsp->sv", attention(sentences, scores), values[:, sentences])


def accuracy(
    language: Language, sentences: Int[Tensor, "sentence pos"], values: Matrix, scores: Matrix
) -> Float[Tensor, " sentence"]:
    """1 where the right next token has the largest logit."""
    return (logits(sentences, values, scores).argmax(1) == language.next_token(sentences)).double()


def max_margin(above: Sequence[tuple[Entry, Entry]], size: int) -> Matrix:
    """The smallest matrix in which entries lie above others by 1: a least-distance problem, by non-negative least
    squares (Lawson and Hanson 1974, chapter 23).

    Raises:
        ValueError: no matrix does that.

    >>> max_margin([((0, 0), (1, 0))], 2).round(decimals=9).tolist()
    [[0.5, 0.0], [-0.5, 0.0]]
    """
    sides = np.zeros((len(above), size, size))
    for row, (high, low) in enumerate(above):
        sides[row][high] += 1
        sides[row][low] -= 1
    whole = np.vstack([sides.reshape(len(above), -1).T, np.ones(len(above))])
    wanted = np.append(np.zeros(size * size), 1.0)
    weights, distance = nnls(whole, wanted)
    if distance < 1e-9:
        raise ValueError("orders must not contradict each other, but no matrix puts these entries above those")
    left = whole @ weights - wanted
    return torch.from_numpy(-left[:-1] / left[-1]).view(size, size)


def _told(paths: Sequence[Sequence[Path]], steps: int, points: int) -> dict[str, xr.DataArray]:
    """What was seen of both stages by both descents."""
    due, flat = list(looked_at(steps, points)), [path for stage in paths for path in stage]
    found = {}
    for name, (units, about) in _MEANINGS.items():
        every = np.array([getattr(path, name) for path in flat])[:, due].T
        found[name] = label(every, "step", "stat", units=units, about=about, coords={"step": due, "stat": PATHS})
    found["excess"].attrs["scale"] = "log"
    for name in ("excess", "norm"):  # the claim is of a straight line
        found[name].attrs["steps"] = "even"
    straight, decades = np.array([fall(np.array(path.excess)) for path in flat]).T
    told_of = {
        "straight": (straight, "R² of a straight line through the logarithm of the excess loss, by steps"),
        "decades": (decades, "powers of ten over which that line is laid"),
        "norm_straight": (np.array([growth(p) for p in flat]), "R² of a straight line through the norm, by steps"),
    }
    for name, (values, about) in told_of.items():
        found[name] = label(values, "stat", units="1", about=about, coords={"stat": PATHS})
    return found


def fall(excess: Float[np.ndarray, " step"]) -> tuple[float, float]:
    """How straight the logarithm of the excess loss falls inside the window, and over how many powers of ten."""
    share = np.maximum(excess, 1e-300) / excess[0]
    inside = np.flatnonzero((share <= WINDOW[0]) & (share >= WINDOW[1]))
    if len(inside) < 3:
        return float("nan"), 0.0
    logs = np.log10(share[inside])
    return line(inside.astype(float), logs)[1], float(np.ptp(logs))


def growth(path: Path) -> float:
    """How straight the norm grows until the descent stops."""
    norm = np.array(path.norm)
    moving = np.append(True, np.diff(norm) != 0)
    return line(np.flatnonzero(moving).astype(float), norm[moving])[1]


def _mean(values: Float[Tensor, " sentence"]) -> float:
    """Their mean; not a number where there are none."""
    return values.mean().item() if len(values) else float("nan")


_MEANINGS = {
    "excess": ("nat", "cross-entropy above what it tends to"),
    "norm": ("1", "length of the matrix"),
    "direction": ("1", "cosine with the smallest matrix that decides everything right by a margin of 1"),
}
