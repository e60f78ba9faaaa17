"""True positives, false negatives and false positives of an analysis on ground-truth models."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

Location = tuple[int, ...] | str  # (layer, head), (layer,), or a word about the whole model such as an algorithm's name


@dataclass(frozen=True, kw_only=True)
class Detection:
    """A mechanism at a location in one draw of a case: planted there, detected there, or both.

    Attributes:
        case: name of the case.
        draw: index of the draw.
        mechanism: name of the mechanism.
        location: layer and head, layer, or a word about the whole model.
        component: the true content of the location.
    """

    case: str
    draw: int
    mechanism: str
    location: Location
    component: str = ""


@dataclass(frozen=True, kw_only=True)
class DetectionReport:
    """The detections of an analysis on ground-truth models, compared with the truth. It prints as a table.

    Attributes:
        analysis: name of the analysis.
        draws: number of draws per case.
        mechanisms: the mechanisms that the analysis can detect.
        cases: names of the applicable cases.
        not_applicable: reason why a case is not applicable, by case name.
        true_positives: planted and detected.
        false_negatives: planted and not detected.
        false_positives: detected and not planted.
    """

    analysis: str
    draws: int
    mechanisms: tuple[str, ...]
    cases: tuple[str, ...]
    not_applicable: Mapping[str, str]
    true_positives: tuple[Detection, ...]
    false_negatives: tuple[Detection, ...]
    false_positives: tuple[Detection, ...]

    @property
    def recall(self) -> float:
        """The fraction of planted mechanisms that are detected; NaN if none is planted."""
        return _compute_fraction(len(self.true_positives), len(self.false_negatives))

    @property
    def precision(self) -> float:
        """The fraction of detections that are planted; NaN if there are none."""
        return _compute_fraction(len(self.true_positives), len(self.false_positives))

    def select(self, *, mechanism: str | None = None, case: str | None = None) -> "DetectionReport":
        """Restrict the report to one mechanism, to one case, or to both.

        Args:
            mechanism: name of the mechanism, all by default.
            case: name of the case, all by default.

        Returns:
            A report of the selected detections.
        """

        def filter_detections(detections: Sequence[Detection]) -> tuple[Detection, ...]:
            return tuple(
                mark for mark in detections if mechanism in (None, mark.mechanism) and case in (None, mark.case)
            )

        return replace(
            self,
            mechanisms=self.mechanisms if mechanism is None else (mechanism,),
            cases=self.cases if case is None else (case,),
            true_positives=filter_detections(self.true_positives),
            false_negatives=filter_detections(self.false_negatives),
            false_positives=filter_detections(self.false_positives),
        )

    def assert_exact(self) -> "DetectionReport":
        """Assert that every mechanism occurs in an applicable case and that recall and precision are 1.

        Returns:
            The report itself.

        Raises:
            AssertionError: there is a false negative or a false positive, or nothing to detect.
        """
        require(
            bool(self.cases),
            f"{self.analysis} must apply to a ground-truth model, but applies to none: {self._first_reason()}",
        )
        for mechanism in self.mechanisms:
            selected = self.select(mechanism=mechanism)
            require(
                bool(selected.true_positives or selected.false_negatives),
                f"{mechanism!r} must be planted in a case that {self.analysis} applies to, but is planted in none",
            )
        errors = "; ".join(self.describe_errors())
        require(not errors, f"{self.analysis} must detect every planted mechanism and nothing else, but has {errors}")
        return self

    def describe_errors(self) -> list[str]:
        """Describe the false negatives and false positives, one line per mechanism, case and component.

        Returns:
            The lines, without final full stops.
        """
        return [
            f"{kind} {label!r} for {component or 'the whole model'} in {case!r}, "
            f"{_format_draws(draws, self.draws)}: {location}"
            for kind, marks in (("false negative", self.false_negatives), ("false positive", self.false_positives))
            for (case, label, component), (draws, location) in _group_by_component(marks).items()
        ]

    def __str__(self) -> str:
        """Format the counts as a table, followed by the errors and the cases that are not applicable."""
        width = max(map(len, ("mechanism", *self.mechanisms)))
        rows = [f"{label:{width}}  {_format_counts(self.select(mechanism=label))}" for label in self.mechanisms]
        return "\n".join(
            [
                f"{self.analysis}: {self.draws} draws of {len(self.cases)} cases, {len(self.not_applicable)} "
                "not applicable",
                f"{'mechanism':{width}}  planted    TP    FN    FP  recall  precision",
                *rows,
                *self.describe_errors(),
                *(f"not applicable to {', '.join(cases)}: {reason}" for reason, cases in self.group_reasons().items()),
            ]
        )

    def group_reasons(self) -> dict[str, list[str]]:
        """Group the cases that are not applicable by reason.

        Returns:
            The names of the cases, by reason.
        """
        cases: dict[str, list[str]] = {}
        for case, reason in self.not_applicable.items():
            cases.setdefault(reason, []).append(case)
        return cases

    def _first_reason(self) -> str:
        return next(iter(self.not_applicable.values()), "no cases were given")


def require(condition: bool, message: str) -> None:
    """Raise an ``AssertionError`` unless a condition holds.

    Args:
        condition: the condition.
        message: message of the error.

    Raises:
        AssertionError: the condition does not hold.
    """
    if not condition:
        raise AssertionError(message)


def format_fraction(value: float) -> str:
    """Format a recall or a precision with two decimals, truncated so that only 1 is printed as 1.00.

    Args:
        value: a fraction, or NaN.

    Returns:
        The number, or ``-`` for NaN.

    >>> format_fraction(0.999), format_fraction(float("nan"))
    ('0.99', '-')
    """
    return "-" if math.isnan(value) else f"{math.floor(value * 100) / 100:.2f}"


def _compute_fraction(true_positives: int, errors: int) -> float:
    return true_positives / (true_positives + errors) if true_positives + errors else math.nan


def _format_counts(report: DetectionReport) -> str:
    planted = len(report.true_positives) + len(report.false_negatives)
    counts = (
        f"{planted:7}  {len(report.true_positives):4}  {len(report.false_negatives):4}  {len(report.false_positives):4}"
    )
    return f"{counts}  {format_fraction(report.recall):>6}  {format_fraction(report.precision):>9}"


def _group_by_component(detections: Sequence[Detection]) -> dict[tuple[str, str, str], tuple[int, str]]:
    """Return the number of draws and the first location, by case, mechanism and component."""
    key: Callable[[Detection], tuple[str, str, str]] = lambda mark: (mark.case, mark.mechanism, mark.component)  # noqa: E731
    draws = Counter(key for key, _ in {(key(mark), mark.draw) for mark in detections})
    first = {key(mark): f"{_format_location(mark.location)} in draw {mark.draw}" for mark in reversed(detections)}
    return {name: (draws[name], where) for name, where in first.items()}


def _format_location(location: Location) -> str:
    if isinstance(location, str):
        return location
    return " ".join(f"{axis} {index}" for axis, index in zip(("layer", "head"), location, strict=False))


def _format_draws(draws: int, total: int) -> str:
    return f"{draws} of {total} draws"
