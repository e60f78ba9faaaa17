"""Formulas of a run that cannot be typeset. The page shows their source, and names them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mesascope.formulas import list_formula_problems

if TYPE_CHECKING:
    from mesascope.report.load_run import ResultFile

VERDICT_TEXTS = ("statement", "source", "description", "control_description")  # a reason repeats them
RESULT_TEXTS = ("title", "description", "tautology")


def find_formula_problems(
    run: Mapping[str, Any], verdicts: Sequence[Mapping[str, Any]], results: Sequence["ResultFile"]
) -> list[str]:
    """Return a message for each formula of the texts of a run that cannot be typeset.

    Such a run was written by an older version, or by other programs: texts are checked before a run.

    Args:
        run: the contents of ``run.json``.
        verdicts: the verdicts of the claims.
        results: the result files.

    Returns:
        Messages that name the file and the field.
    """
    texts = (*_list_run_texts(run), *_list_verdict_texts(verdicts), *_list_result_texts(results))
    return [f"{location}: {problem}" for location, text in texts for problem in list_formula_problems(text)]


def _list_run_texts(run: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in ("title", "description"):
        yield f"run.json: the {name}", str(run.get(name) or "")
    for name, factor in _items(run.get("factors")):
        yield from _list_factor_texts(name, factor)
    for name, condition in _items(run.get("parameters")):
        if isinstance(condition, Mapping):
            yield f"run.json: the title of {name}", str(condition.get("title") or "")


def _list_factor_texts(name: str, factor: Any) -> Iterator[tuple[str, str]]:
    if isinstance(factor, Mapping):
        yield f"run.json: the description of the factor {name}", str(factor.get("description") or "")
        for level, words in _items(factor.get("levels")):
            yield f"run.json: the description of the level {name}={level}", str(words)


def _list_verdict_texts(verdicts: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    for verdict in verdicts:
        for name in VERDICT_TEXTS:
            yield f"verdicts.json: the {name} of the claim {verdict.get('name')!r}", str(verdict.get(name) or "")


def _list_result_texts(results: Sequence["ResultFile"]) -> Iterator[tuple[str, str]]:
    for result in results:
        parts = [] if result.data is None else [("", result.data), *result.data.data_vars.items()]
        for variable, part in parts:
            owner = f" of {variable}" if variable else ""
            for name in RESULT_TEXTS:
                yield f"results/{result.file}: the {name}{owner}", str(part.attrs.get(name) or "")


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    yield from value.items() if isinstance(value, Mapping) else ()
