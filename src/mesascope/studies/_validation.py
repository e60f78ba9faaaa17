"""Checks of a study when it is defined."""

from typing import TYPE_CHECKING

from mesascope.studies.factors import list_cells

if TYPE_CHECKING:
    from mesascope.studies.base import Condition, Study

SCALES = ("smoke", "laptop", "paper")
RESERVED_NAMES = (
    "own",
    "task",
    "model",
    "training",
    "sequences",
    "evaluation_sequences",
    "title",
)  # keys of a run's description


def validate_conditions(conditions: "tuple[Condition, ...]") -> None:
    """Refuse conditions without a main one, without a scale, or with an analysis that lacks its history.

    Args:
        conditions: of a study.
    """
    if not conditions or conditions[0].name:
        raise ValueError(
            "the first condition of a study must be the main one, without a name, but got "
            + (repr(conditions[0].name) if conditions else "none")
        )
    for condition in conditions:
        if set(condition.scales) != set(SCALES):
            raise ValueError(
                f"a condition needs the scales {', '.join(SCALES)}, but {condition.name or 'the main condition'!r} has "
                f"{', '.join(condition.scales)}"
            )
        without = [name for name, config in condition.scales.items() if not config.training.history]
        of_history = [one.name for one in condition.analyses if one.input == "history"]
        if of_history and without:
            raise ValueError(
                f"{', '.join(of_history)} needs TrainingConfig(history=True) at every scale, but lacks it at "
                f"{', '.join(without)}"
            )


def validate_unique_names(study: "Study") -> None:
    """Refuse names that collide or are reserved, and simulations without a scale.

    Args:
        study: the study.
    """
    names = [*(one.name for one in study.conditions[1:]), *(one.name for one in study.simulations)]
    for name in names:
        if not name.isidentifier() or name in RESERVED_NAMES or names.count(name) > 1:
            raise ValueError(
                f"the name of a condition or simulation must be a unique identifier other than "
                f"{', '.join(RESERVED_NAMES)}, but got {name!r}"
            )
    for simulation in study.simulations:
        if set(simulation.scales) != set(SCALES):
            raise ValueError(
                f"a simulation needs the scales {', '.join(SCALES)}, but {simulation.name!r} has "
                f"{', '.join(simulation.scales)}"
            )
    for kind, given_names in (("results", study.results), ("claims", [claim.name for claim in study.claims])):
        if len(set(given_names)) < len(given_names):
            raise ValueError(f"the names of a study's {kind} must differ, but got {', '.join(given_names)}")


def validate_grid(study: "Study") -> None:
    """Refuse a grid of unknown scales, factors or levels, and factors of unknown conditions.

    Args:
        study: the study.
    """
    conditions = {condition.name for condition in study.conditions}
    for factor in study.factors:
        unknown = [name for name in factor.conditions if name not in conditions]
        if unknown:
            raise ValueError(f"the conditions of the factor {factor.name!r} must exist, but {unknown[0]!r} does not")
    for scale, varied in study.grid.items():
        if scale not in SCALES:
            raise ValueError(f"the scales of a grid must be among {', '.join(SCALES)}, but got {scale!r}")
        for cell in list_cells(study.factors, varied):
            study.at_cell(cell)
