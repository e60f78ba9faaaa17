"""Description of a run in JSON types."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from mesascope.runner._evaluation import count_evaluation_sequences
from mesascope.studies.base import Condition, Study


def describe_run(study: Study, scale: str, seeds: Sequence[int]) -> dict[str, Any]:
    """Describe a run in JSON types: everything that determines its numbers.

    Args:
        study: The study.
        scale: The name of the scale.
        seeds: The training replicates.

    Returns:
        The description stored in ``run.json``.
    """
    return {
        "study": study.name,
        "title": study.title,
        "description": study.description,
        "scale": scale,
        "seeds": list(seeds),
        "citation": {**asdict(study.citation), "bibtex": study.citation.bibtex},
        **({"cell": study.cell} if study.cell else {}),
        **({"factors": _describe_factors(study)} if study.factors else {}),
        "parameters": _list_parameters(study, scale),
    }


def _describe_factors(study: Study) -> dict[str, Any]:
    return {
        factor.name: {
            "description": factor.description,
            "levels": {level.name: level.description for level in factor.levels},
        }
        for factor in study.factors
    }


def _list_parameters(study: Study, scale: str) -> dict[str, Any]:
    """Return the parameters of the main condition, then those of other conditions and of simulations by name."""
    parameters = {condition.name: _condition_parameters(condition, scale) for condition in study.conditions}
    parameters |= {
        simulation.name: {"title": simulation.title, "toy model": _to_plain(simulation.scales[scale])}
        for simulation in study.simulations
    }
    return parameters.pop("") | parameters


def _condition_parameters(condition: Condition, scale: str) -> dict[str, Any]:
    config = condition.scales[scale]
    title = {"title": condition.title} if condition.title else {}
    return title | {
        "task": _to_plain(condition.task_at(scale)),
        "model": {k: v for k, v in condition.model_at(scale).to_diff_dict().items() if k != "transformers_version"},
        "training": _to_plain(config.training),
        "sequences": config.sequences,
        "evaluation_sequences": count_evaluation_sequences(condition, scale),
    }


def _to_plain(value: Any) -> Any:
    """Convert a frozen dataclass to a mapping that names its class."""
    if is_dataclass(value) and not isinstance(value, type):
        return {
            "kind": type(value).__name__,
            **{one.name: _to_plain(getattr(value, one.name)) for one in fields(value)},
        }
    if isinstance(value, Mapping):
        return {key: _to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain(item) for item in value]
    return value
