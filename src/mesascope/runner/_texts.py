"""Checks of the formulas in the texts of a study, and of what its analyses return, before a run."""

from collections.abc import Iterator, Mapping

import xarray as xr

from mesascope.formulas import FormulaError, validate_formulas
from mesascope.runner._preflight import StudyInvalid
from mesascope.studies.base import Claim, Condition, Study

RESULT_TEXTS = ("title", "description", "tautology")  # attributes of variables


def check_texts(study: Study, label: str) -> None:
    """Check that the formulas in the texts of a study can be typeset.

    Args:
        study: The study.
        label: What messages call the study.

    Raises:
        StudyInvalid: A formula cannot be typeset; the message names the text.
    """
    _check_all(_list_texts(study), label)


def check_result_texts(results: Mapping[str, xr.Dataset], label: str) -> None:
    """Check that the formulas in the texts of variables can be typeset.

    Args:
        results: Datasets by name.
        label: What messages call the study.

    Raises:
        StudyInvalid: A formula cannot be typeset; the message names the result and the variable.
    """
    texts = (
        (f"the attribute {attribute} of the variable {variable} of {name}", str(array.attrs.get(attribute) or ""))
        for name, dataset in results.items()
        for variable, array in dataset.data_vars.items()
        for attribute in RESULT_TEXTS
    )
    _check_all(texts, label)


def _check_all(texts: Iterator[tuple[str, str]], label: str) -> None:
    for location, text in texts:
        try:
            validate_formulas(text)
        except FormulaError as error:
            raise StudyInvalid(f"{label}, {location}: {error}") from error


def _list_texts(study: Study) -> Iterator[tuple[str, str]]:
    """Yield the texts of a study that a page typesets, each with the name of its field."""
    yield from (("the title", study.title), ("the description", study.description))
    for factor in study.factors:
        yield f"the description of the factor {factor.name}", factor.description
        for level in factor.levels:
            yield f"the description of the level {factor.name}={level.name}", level.description
    for simulation in study.simulations:
        yield f"the title of the simulation {simulation.name}", simulation.title
        yield f"the description of the simulation {simulation.name}", simulation.description
    for condition in study.conditions:
        yield from _list_condition_texts(condition)
    for claim in study.claims:
        yield from _list_claim_texts(claim)


def _list_condition_texts(condition: Condition) -> Iterator[tuple[str, str]]:
    yield f"the title of the condition {condition.name}", condition.title
    for analysis in condition.analyses:
        yield f"the title of the analysis {analysis.name}", analysis.title
        yield f"the description of the analysis {analysis.name}", analysis.description


def _list_claim_texts(claim: Claim) -> Iterator[tuple[str, str]]:
    owner = f"of the claim {claim.name!r}"
    yield from ((f"the statement {owner}", claim.statement), (f"the source {owner}", claim.source))
    yield f"the description of the value {owner}", claim.value.description
    yield f"the description of the control {owner}", claim.control.description
    for requirement in claim.requirements:
        yield f"the statement of a requirement {owner}", requirement.statement
        yield f"the description of a requirement {owner}", requirement.value.description
