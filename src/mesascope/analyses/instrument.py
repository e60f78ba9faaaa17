"""What an instrument is: a function with a name, a meaning and a place on the page."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import xarray as xr

Steps = Literal["all", "ends", "last"]
Kind = TypeVar("Kind", bound="Instrument")


@dataclass(frozen=True, kw_only=True)
class Instrument:
    """A function that returns a labelled Dataset, and what a reader must know about it.

    Attributes:
        name: how it is called on the command line, and its file in a run.
        title: a heading for people.
        about: what it computes, with its source: shown above its figures.
        compute: the function behind it.
        options: arguments of the function that differ from its defaults.
        steps: applied to all checkpoints, to the first and the last (ends), or to the last alone.
        order: place on the page.
    """

    name: str
    title: str
    about: str
    compute: Callable[..., xr.Dataset]
    options: Mapping[str, Any] = field(default_factory=dict)
    steps: Steps = "all"
    order: int = 50

    def __call__(self, *subject: Any, **options: Any) -> xr.Dataset:
        """Apply the instrument; what it returns says what made it, with which options."""
        used = {**self.options, **options}
        made_by = {"instrument": self.name, "title": self.title, "about": self.about, "order": self.order}
        noted = {f"option {name}": str(value) for name, value in used.items()}
        return self.compute(*subject, **used).assign_attrs(**made_by, **noted)

    def at(self, steps: Sequence[int]) -> list[int]:
        """Which of these checkpoints it is applied to."""
        chosen = {"all": steps, "ends": (steps[0], steps[-1]), "last": steps[-1:]}[self.steps]
        return sorted(set(chosen))

    def using(self: Kind, **options: Any) -> Kind:
        """The same instrument with other options."""
        return replace(self, options={**self.options, **options})


def instrument(
    *, title: str, steps: Steps = "all", order: int = 50
) -> Callable[[Callable[..., xr.Dataset]], Instrument]:
    """Make an instrument of a function: its name and docstring become the instrument's."""
    return lambda function: Instrument(**described(function), title=title, steps=steps, order=order)


def described(function: Callable[..., Any]) -> dict[str, Any]:
    """The name and the meaning of a function, as its definition and its docstring give them."""
    meaning = (function.__doc__ or "").split("Args:")[0].split(">>>")[0]
    return {"name": function.__name__, "about": " ".join(meaning.split()), "compute": function}
