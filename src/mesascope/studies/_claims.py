"""Claims of a study, and the quantities that decide them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import xarray as xr

from mesascope.argument_types import validate_fields, validate_type
from mesascope.studies._validation import SCALES

Results = Mapping[str, xr.Dataset]
Direction = Literal["above", "below"]
ClaimKind = Literal["replication", "simulation", "check"]


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A named number per seed, read from the results of a run.

    Attributes:
        description: the quantity in words, as a page prints it.
        read: reads it from the results; the returned array has the axis ``seed`` and no other. NaN for a seed in which
            the quantity is not defined, such as the gain of heads that do not exist.
        unit: of the numbers.
        models: in a claim of existence, the number of models of each seed that the number is the rate of.
    """

    description: str
    read: Callable[[Results], xr.DataArray]
    unit: str = "1"
    models: int = 1

    def per_seed(self, results: Results) -> np.ndarray:
        """Return the number of each seed.

        Args:
            results: Datasets of a run, by name.

        Raises:
            ValueError: the array has other axes than ``seed``.
        """
        values = self.read(results)
        if values.dims != ("seed",):
            raise ValueError(
                f"a quantity must have the axis seed and no other, but {self.description!r} has {values.dims}"
            )
        return values.values.astype(float)


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """A condition under which a claim can be judged, such as a model that has learned its task.

    Attributes:
        statement: the condition in words.
        value: the quantity that decides it.
        threshold: the number that its mean over seeds must lie beyond.
        direction: whether it must lie above or below the threshold.
    """

    statement: str
    value: Quantity
    threshold: float
    direction: Direction

    def __post_init__(self) -> None:
        """Refuse a requirement that could not be decided."""
        with _name_owner(f"the requirement {self.statement!r}"):
            validate_fields(self)

    def is_met(self, results: Results) -> bool:
        """Return whether the condition holds for a run.

        Args:
            results: Datasets of a run, by name.

        Returns:
            ``False`` also where the quantity is not defined for any seed.
        """
        values = self.value.per_seed(results)
        values = values[np.isfinite(values)]
        if not len(values):
            return False
        return bool(values.mean() > self.threshold if self.direction == "above" else values.mean() < self.threshold)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement that numbers can decide.

    Statement, source and descriptions may have formulas in LaTeX between dollar signs, such as ``$x^2$``; the name may
    not.

    Attributes:
        name: a short name.
        statement: what is claimed.
        source: who claims it, and where; ``ours`` where no paper does.
        value: the quantity that decides it.
        control: the same quantity where there is nothing to find.
        direction: whether the value must lie above or below the control.
        threshold: a fixed number that the value must lie beyond as well.
        margin: the smallest difference from the control that matters, in the unit of the value. For a claim of
            existence it is the smallest rate of models that matters.
        existence: whether the claim says that trained models have a property. The value is then 1 for a trained model
            that has it and 0 for one that has not, the control the same for untrained models, and the rates are
            compared by Fisher's exact test.
        by_paper: whether the paper makes the claim; Holm's correction covers the claims of a study that its paper
            makes.
        requirements: conditions without which the claim is not judged.
        kind: ``replication`` for a claim about trained models; ``simulation`` for a claim about a toy model whose seeds
            are draws of one deterministic process; ``check`` for a statement that holds by construction or whose
            control could not come out the other way. A check is not judged: it holds or fails.
        scales: scales at which the claim can be decided; at others it is not tested.
    """

    name: str
    statement: str
    source: str
    value: Quantity
    control: Quantity
    direction: Direction
    threshold: float | None = None
    margin: float = 0.0
    existence: bool = False
    by_paper: bool = False
    requirements: tuple[Requirement, ...] = ()
    kind: ClaimKind = "replication"
    scales: tuple[str, ...] = ("laptop", "paper")

    def __post_init__(self) -> None:
        """Refuse a claim that could not be judged."""
        with _name_owner(f"the claim {self.name!r}"):
            validate_fields(self)
            for requirement in self.requirements:
                validate_type("an element of requirements", requirement, Requirement)
        unknown = [scale for scale in self.scales if scale not in SCALES]
        if unknown or not self.scales:
            raise ValueError(
                f"the claim {self.name!r} must name scales among {', '.join(SCALES)}, but got "
                f"{repr(unknown[0]) if unknown else 'none'}"
            )
        if self.margin < 0:
            raise ValueError(f"a margin must be 0 or more, but that of {self.name!r} is {self.margin:g}")
        if self.existence and (self.direction != "above" or self.threshold is not None or not 0 < self.margin < 1):
            raise ValueError(
                f"a claim of existence needs direction='above', a margin between 0 and 1 and no threshold, but "
                f"{self.name!r} has {self.direction!r}, {self.margin:g} and {self.threshold}"
            )


def select_last_step(array: xr.DataArray) -> xr.DataArray:
    """Return the values of the trained model: those at the last checkpoint.

    Args:
        array: values with the axis ``step``.
    """
    return array.isel(step=-1, drop=True)


def select_untrained(array: xr.DataArray) -> xr.DataArray:
    """Return the values of the untrained model: those at step 0.

    Args:
        array: values with the axis ``step``.
    """
    return array.sel(step=0, drop=True)


@contextmanager
def _name_owner(owner: str) -> Iterator[None]:
    """Begin the message of a ValueError inside the context with what it is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{owner} is invalid: {error}") from error
