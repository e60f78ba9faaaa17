"""An instrument held against models whose mechanism is known."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence

import xarray as xr

from mesascope.activations import NothingChanged
from mesascope.analyses import Measure, measure_all
from mesascope.analyses.instrument import Instrument
from mesascope.ground_truth.cases import BENCH
from mesascope.ground_truth.cases.case import Case
from mesascope.ground_truth.findings import Findings, Mark, Place

Claims = Mapping[str, Iterable[Place]]


def check_instrument(
    instrument: Instrument | Callable[..., xr.Dataset],
    found: Callable[[xr.Dataset], Claims],
    draws: int = 20,
    cases: Sequence[Case] = BENCH,
) -> Findings:
    """What an instrument finds, misses and imagines on models whose mechanisms were planted, and on their decoys.

    A case that the instrument refuses by a ``ValueError`` (such as ``UnsupportedModel``), in every draw, is not
    applicable: it is counted and named with the reason.

    Args:
        instrument: a measure, a sweep (model, task, batch), or a function of model and batch.
        found: gets what the instrument returned; returns the places where it claims each mechanism that it speaks of,
            as the bench calls it (:class:`mesascope.testing.Case`), without any where it sees none.
        draws: of nuisance weights, places of heads, and sequences.
        cases: planted models; all of the bench by default.

    Raises:
        ValueError: a case was refused in some draws, but not in all.

    >>> from mesascope.analyses import similarity
    >>> from mesascope.testing import heads_where
    >>> def found(data):
    ...     return {"prefers the unlike": heads_where(data["role"] == -1)}
    >>> print(check_instrument(similarity, found, draws=1, cases=BENCH[:5]).must_hold())
    similarity: 1 draws of 5 cases, 0 not applicable
    mechanism           planted  found  missed  imagined  recall  precision
    prefers the unlike        1      1       0         0    1.00       1.00
    """
    marks: dict[str, list[Mark]] = {"found": [], "missed": [], "imagined": []}
    refused, claimed = {}, {}
    for case in cases:
        reasons = {}
        for draw in range(draws):
            try:
                claimed[case.name, draw] = {k: set(v) for k, v in found(_applied(instrument, case, draw)).items()}
            except ValueError as error:
                reasons[draw] = str(error)
        if reasons and len(reasons) < draws:
            raise ValueError(f"{case.name} must be refused in all draws or in none, but: {reasons}")
        if reasons:
            refused[case.name] = reasons[0]
    labels = tuple(dict.fromkeys(label for claims in claimed.values() for label in claims))
    applied = [case for case in cases if case.name not in refused]
    for case in applied:
        for draw in range(draws):
            truth, called = case.truth(draw), case.called(draw)
            for label in labels:
                planted, here = set(truth.get(label, ())), claimed[case.name, draw].get(label, set())
                kinds = {"found": planted & here, "missed": planted - here, "imagined": here - planted}
                for kind, places in kinds.items():
                    marks[kind] += [
                        Mark(case=case.name, draw=draw, label=label, place=place, called=called.get(place, ""))
                        for place in sorted(places)
                    ]
    return Findings(
        instrument=_name(instrument),
        draws=draws,
        labels=labels,
        cases=tuple(case.name for case in applied),
        refused=refused,
        **{kind: tuple(each) for kind, each in marks.items()},
    )


def _applied(instrument: Instrument | Callable[..., xr.Dataset], case: Case, draw: int) -> xr.Dataset:
    """What the instrument returns on one draw."""
    model, batch = case.build(draw), case.sequences(draw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingChanged)  # heads that do nothing belong to the bench
        if isinstance(instrument, Measure):
            return measure_all(model, batch, [instrument])[instrument.name]
        if isinstance(instrument, Instrument):
            return instrument(model, case.task, batch)
        return instrument(model, batch)


def _name(instrument: Instrument | Callable[..., xr.Dataset]) -> str:
    """What the instrument is called."""
    return instrument.name if isinstance(instrument, Instrument) else getattr(instrument, "__name__", "instrument")
