"""Panels that combine variables of several result files."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import xarray as xr

from mesascope.formulas import render_plain
from mesascope.report.load_run import ResultFile
from mesascope.report.plotting.controls import control_name
from mesascope.report.plotting.figure import Panel
from mesascope.report.plotting.variable import PlotVariable, is_numeric, is_uncertainty, prepare_variable

VariableFilter = Callable[[xr.DataArray], bool]


@dataclass(frozen=True, kw_only=True)
class CombinedPanel:
    """A panel made from several files.

    Attributes:
        panel: the panel.
        used_variables: names of the variables by file that the panel shows, which need no panel of their own.
        files: the files that contain its data.
    """

    panel: Panel
    used_variables: Mapping[str, frozenset[str]]
    files: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class PanelQuantity:
    """A quantity that can be selected in a panel: a variable, or one label of its axis ``stat``.

    Attributes:
        file: the name of its file.
        group: the title of its file.
        name: its name in the list.
        variable: the variable.
        array: its numbers at the last step, averaged over seeds.
        stat: the index along ``stat``; None for a whole variable.
    """

    file: str
    group: str
    name: str
    variable: PlotVariable
    array: xr.DataArray
    stat: int | None = None

    def select_in_control(self, control: xr.DataArray) -> xr.DataArray:
        """Select the same quantity in a control, by label if labels are known, else by index.

        Args:
            control: a control of the variable.

        Returns:
            The control without the axis ``stat``.

        Raises:
            KeyError: if the control has labels, but not this one.
        """
        if self.stat is None or "stat" not in control.dims:
            return control
        if "stat" in control.coords and "stat" in self.variable.array.coords:
            return control.sel(stat=self.variable.array["stat"].values[self.stat])
        return control.isel(stat=self.stat)


def find_quantities(results: Sequence[ResultFile], fits: VariableFilter, controls: bool) -> Iterator[PanelQuantity]:
    """Find the quantities of all files that a panel can show, at the last step and averaged over seeds.

    Args:
        results: the result files.
        fits: a predicate on the variable without ``seed``, ``step``, ``draw`` and ``stat``.
        controls: whether controls are quantities of their own.

    Returns:
        An iterator over quantities, one for each label of ``stat``.
    """
    for result in results:
        data = result.data if result.data is not None else xr.Dataset()
        for name in map(str, data.data_vars):
            owner = data[name].attrs.get("control_of")
            if not is_numeric(data[name]) or is_uncertainty(data, name) or (owner in data.data_vars and not controls):
                continue
            variable = prepare_variable(data, name)
            array = average_last_step(variable)
            if fits(array.isel(stat=0) if "stat" in array.dims else array):
                yield from _split_by_stat(result, variable, array, format_variable_title(data, name))


def format_variable_title(data: xr.Dataset, name: str) -> str:
    """Return the name of a variable in a list; a control is preceded by the variable that it belongs to.

    Args:
        data: the variables of a file.
        name: the name of the variable.

    Returns:
        The display name.
    """
    owner = data[name].attrs.get("control_of")
    if owner in data.data_vars:
        return f"{prepare_variable(data, str(owner)).title}: {control_name(data[name])}"
    return prepare_variable(data, name).title


def average_last_step(variable: PlotVariable, array: xr.DataArray | None = None) -> xr.DataArray:
    """Average a variable over seeds and draws at the last step.

    Args:
        variable: the variable.
        array: numbers to use instead of the variable's own.

    Returns:
        Numbers without ``seed``, ``step`` and ``draw``.
    """
    array = variable.array if array is None else array
    array = array.isel(step=-1) if "step" in array.dims else array
    return array.mean([d for d in ("seed", "draw") if d in array.dims])


def _split_by_stat(
    result: ResultFile, variable: PlotVariable, array: xr.DataArray, name: str
) -> Iterator[PanelQuantity]:
    group = render_plain(result.title)
    if "stat" not in array.dims:
        yield PanelQuantity(file=result.file, group=group, name=name, variable=variable, array=array)
        return
    for k, label in enumerate(variable.list_labels("stat")):
        part, label_name = array.isel(stat=k, drop=True), f"{name}: {label}"
        yield PanelQuantity(file=result.file, group=group, name=label_name, variable=variable, array=part, stat=k)


def group_by_file(pairs: Sequence[tuple[str, str]]) -> dict[str, frozenset[str]]:
    """Group variable names by file.

    Args:
        pairs: pairs of file and variable name.

    Returns:
        The set of names of each file.

    >>> sorted(group_by_file([("a.nc", "x"), ("a.nc", "y")])["a.nc"])
    ['x', 'y']
    """
    files = dict.fromkeys(file for file, _ in pairs)
    return {file: frozenset(name for where, name in pairs if where == file) for file in files}
