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


def split_reference(text: str) -> tuple[str, str]:
    """Return the name or file of a study, and the name of a cell; empty for the study itself.

    Args:
        text: such as ``affine[heads=4]`` or ``my_study.py``; a path may have brackets of its own.

    >>> split_reference("affine[heads=4]"), split_reference("a[1]/my_study.py"), split_reference("[x]")
    (('affine', 'heads=4'), ('a[1]/my_study.py', ''), ('[x]', ''))
    """
    name, _, cell = text.removesuffix("]").rpartition("[")
    return (name, cell) if text.endswith("]") and name and "=" in cell else (text, "")
