"""Panels that gather variables of many files, and what they took."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import xarray as xr

from mesascope.report.load_run import Result
from mesascope.report.plotting.controls import control_name
from mesascope.report.plotting.figure import Panel
from mesascope.report.plotting.variable import Shown, numeric, prepare

Fits = Callable[[xr.DataArray], bool]


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """A panel made from several files.

    Attributes:
        panel: what is drawn.
        taken: names of variables by file, which need not be drawn again.
        files: where its numbers stand.
    """

    panel: Panel
    taken: Mapping[str, frozenset[str]]
    files: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """One quantity that can be chosen in a panel: a variable, or one label of its dim ``stat``.

    Attributes:
        file: where it stands.
        group: the title of that file.
        name: what it is called in a list.
        shown: the variable.
        array: its numbers at the last step, averaged over seeds.
        stat: which label of ``stat`` it is, counted from 0; None where it is a whole variable.
    """

    file: str
    group: str
    name: str
    shown: Shown
    array: xr.DataArray
    stat: int | None = None

    def same(self, control: xr.DataArray) -> xr.DataArray:
        """The same quantity in a control, found by its label where labels are known.

        Raises:
            KeyError: the control has labels, and this is none of them.
        """
        if self.stat is None or "stat" not in control.dims:
            return control
        if "stat" in control.coords and "stat" in self.shown.array.coords:
            return control.sel(stat=self.shown.array["stat"].values[self.stat])
        return control.isel(stat=self.stat)


def quantities(results: Sequence[Result], fits: Fits, controls: bool) -> Iterator[Quantity]:
    """All that fits in any file: at the last step, averaged over seeds, one for each label of ``stat``.

    Args:
        results: the files.
        fits: whether a variable can be shown by this panel, judged without ``seed``, ``step``, ``draw`` and ``stat``.
        controls: whether controls are quantities of their own.
    """
    for result in results:
        data = result.data if result.data is not None else xr.Dataset()
        for name in map(str, data.data_vars):
            owner = data[name].attrs.get("control_of")
            if not numeric(data[name]) or (owner in data.data_vars and not controls):
                continue
            shown = prepare(data, name)
            array = flat(shown)
            if fits(array.isel(stat=0) if "stat" in array.dims else array):
                yield from _each(result, shown, array, title(data, name))


def title(data: xr.Dataset, name: str) -> str:
    """What a variable is called in a list: a control says whose it is."""
    owner = data[name].attrs.get("control_of")
    if owner in data.data_vars:
        return f"{prepare(data, str(owner)).title}: {control_name(data[name])}"
    return prepare(data, name).title


def flat(shown: Shown, array: xr.DataArray | None = None) -> xr.DataArray:
    """Numbers at the last step, averaged over seeds and draws."""
    array = shown.array if array is None else array
    array = array.isel(step=-1) if "step" in array.dims else array
    return array.mean([d for d in ("seed", "draw") if d in array.dims])


def _each(result: Result, shown: Shown, array: xr.DataArray, called: str) -> Iterator[Quantity]:
    """One quantity, or one for each label."""
    if "stat" not in array.dims:
        yield Quantity(file=result.file, group=result.title, name=called, shown=shown, array=array)
        return
    for k, label in enumerate(shown.names("stat")):
        one, name = array.isel(stat=k, drop=True), f"{called}: {label}"
        yield Quantity(file=result.file, group=result.title, name=name, shown=shown, array=one, stat=k)


def by_file(pairs: Sequence[tuple[str, str]]) -> dict[str, frozenset[str]]:
    """Names grouped by file, from pairs of file and name.

    >>> sorted(by_file([("a.nc", "x"), ("a.nc", "y")])["a.nc"])
    ['x', 'y']
    """
    files = dict.fromkeys(file for file, _ in pairs)
    return {file: frozenset(name for where, name in pairs if where == file) for file in files}
