"""What an instrument found, missed and imagined on the bench of planted models."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

Place = tuple[int, ...] | str  # (layer, head); (layer,); or a word for the whole model, such as an algorithm's name


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A mechanism at a place of one draw of a case: planted there, claimed there, or both.

    Attributes:
        case: its name.
        draw: which draw.
        label: of the mechanism.
        place: layer and head, layer, or a word for the whole model.
        called: what is there in truth.
    """

    case: str
    draw: int
    label: str
    place: Place
    called: str = ""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What an instrument claims of the bench, beside what is planted there. Printed, it is a table.

    Attributes:
        instrument: its name.
        draws: of every case.
        labels: the mechanisms that it speaks of.
        cases: names of those that it applies to.
        refused: why it does not apply to the others, by name.
        found: what is planted and claimed.
        missed: what is planted and not claimed.
        imagined: what is claimed and not planted.
    """

    instrument: str
    draws: int
    labels: tuple[str, ...]
    cases: tuple[str, ...]
    refused: Mapping[str, str]
    found: tuple[Mark, ...]
    missed: tuple[Mark, ...]
    imagined: tuple[Mark, ...]

    @property
    def recall(self) -> float:
        """The share of what is planted that was found; not a number where nothing is planted."""
        return _share(len(self.found), len(self.missed))

    @property
    def precision(self) -> float:
        """The share of what is claimed that is planted; not a number where nothing is claimed."""
        return _share(len(self.found), len(self.imagined))

    def of(self, *, label: str | None = None, case: str | None = None) -> "Findings":
        """The same for one mechanism, or one case."""

        def kept(marks: Sequence[Mark]) -> tuple[Mark, ...]:
            return tuple(one for one in marks if label in (None, one.label) and case in (None, one.case))

        return replace(
            self,
            labels=self.labels if label is None else (label,),
            cases=self.cases if case is None else (case,),
            found=kept(self.found),
            missed=kept(self.missed),
            imagined=kept(self.imagined),
        )

    def must_hold(self) -> "Findings":
        """Itself, if all that is planted was found and nothing else was.

        Raises:
            AssertionError: something was missed or imagined, or there was nothing to find.
        """
        must(
            bool(self.cases),
            f"{self.instrument} must apply to a case of the bench, but all were refused: {self._why()}",
        )
        for label in self.labels:
            one = self.of(label=label)
            must(
                bool(one.found or one.missed), f"{label!r} must be planted in a case that {self.instrument} applies to"
            )
        wrong = "; ".join(self.lines())
        must(not wrong, f"{self.instrument} must find all that is planted and nothing else, but {wrong}")
        return self

    def lines(self) -> list[str]:
        """What was missed and what was imagined, one line for each thing and each case."""
        return [
            f"{word} {label!r} of {called or 'the whole model'} in {case!r}, {_times(draws, self.draws)}: {place}"
            for word, marks in (("missed", self.missed), ("imagined", self.imagined))
            for (case, label, called), (draws, place) in _grouped(marks).items()
        ]

    def __str__(self) -> str:
        """The table, what is wrong, and what was refused."""
        width = max(map(len, ("mechanism", *self.labels)))
        rows = [f"{label:{width}}  {_numbers(self.of(label=label))}" for label in self.labels]
        return "\n".join(
            [
                f"{self.instrument}: {self.draws} draws of {len(self.cases)} cases, {len(self.refused)} not applicable",
                f"{'mechanism':{width}}  planted  found  missed  imagined  recall  precision",
                *rows,
                *self.lines(),
                *(f"not applicable to {', '.join(cases)}: {reason}" for reason, cases in self.reasons().items()),
            ]
        )

    def reasons(self) -> dict[str, list[str]]:
        """The cases that were refused, by the reason."""
        found: dict[str, list[str]] = {}
        for case, reason in self.refused.items():
            found.setdefault(reason, []).append(case)
        return found

    def _why(self) -> str:
        """The first reason for which a case was refused."""
        return next(iter(self.refused.values()), "there is none")


def must(holds: bool, otherwise: str) -> None:
    """Raise ``otherwise`` unless the condition holds."""
    if not holds:
        raise AssertionError(otherwise)


def share(value: float) -> str:
    """A recall or a precision in three digits, cut and not rounded: 1.00 means all."""
    return "-" if math.isnan(value) else f"{math.floor(value * 100) / 100:.2f}"


def _share(found: int, others: int) -> float:
    """A part of the whole."""
    return found / (found + others) if found + others else math.nan


def _numbers(one: Findings) -> str:
    """The columns of a row."""
    planted = len(one.found) + len(one.missed)
    counts = f"{planted:7}  {len(one.found):5}  {len(one.missed):6}  {len(one.imagined):8}"
    return f"{counts}  {share(one.recall):>6}  {share(one.precision):>9}"


def _grouped(marks: Sequence[Mark]) -> dict[tuple[str, str, str], tuple[int, str]]:
    """By case, mechanism and what is there: in how many draws, and where in the first of them."""
    key: Callable[[Mark], tuple[str, str, str]] = lambda one: (one.case, one.label, one.called)  # noqa: E731
    draws = Counter(key for key, _ in {(key(one), one.draw) for one in marks})
    first = {key(one): f"{_spelled(one.place)} in draw {one.draw}" for one in reversed(marks)}
    return {name: (draws[name], where) for name, where in first.items()}


def _spelled(place: Place) -> str:
    """A place in words."""
    if isinstance(place, str):
        return place
    return " ".join(f"{axis} {index}" for axis, index in zip(("layer", "head"), place, strict=False))


def _times(draws: int, of: int) -> str:
    """How often."""
    return f"{draws} of {of} draws"
