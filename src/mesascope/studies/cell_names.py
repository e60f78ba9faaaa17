"""Names of the cells of a study's factors, such as ``block=bare,heads=4``."""

from collections.abc import Mapping

Cell = Mapping[str, str]  # the level of every factor, by the factor's name


def format_cell(cell: Cell) -> str:
    """Return the name of a cell, from which :func:`parse_cell` returns it.

    Args:
        cell: the level of every factor.

    >>> format_cell({"block": "bare", "heads": "four"})
    'block=bare,heads=four'
    """
    return ",".join(f"{factor}={level}" for factor, level in cell.items())


def parse_cell(text: str) -> Cell:
    """Return the cell of a name.

    Args:
        text: such as ``block=bare,heads=four``.

    Raises:
        ValueError: the text has another form.

    >>> parse_cell("block=bare,heads=four")
    {'block': 'bare', 'heads': 'four'}
    """
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(factor and level for factor, _, level in pairs):
        raise ValueError(f"a cell must have the form FACTOR=LEVEL,FACTOR=LEVEL, but got {text!r}")
    return {factor: level for factor, _, level in pairs}
