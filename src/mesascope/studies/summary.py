"""Summaries of studies: what the command line prints about a study, as plain values that need no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mesascope.studies._citation import Citation

if TYPE_CHECKING:
    from mesascope.studies.base import Study


@dataclass(frozen=True, kw_only=True)
class ScaleSummary:
    """The size of a study at one scale: number of seeds, training steps, and minutes on two CPU cores."""

    name: str
    seeds: int
    steps: int
    minutes: float


@dataclass(frozen=True, kw_only=True)
class SimulationSummary:
    """The title and the description of a simulation of a toy model."""

    title: str
    description: str


@dataclass(frozen=True, kw_only=True)
class ConditionSummary:
    """The title of a condition, and the titles of its analyses by name."""

    title: str
    analyses: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class ClaimSummary:
    """The name, statement and source of a claim."""

    name: str
    statement: str
    source: str


@dataclass(frozen=True, kw_only=True)
class FactorSummary:
    """The name and description of a factor, the descriptions of its levels by name, and the levels run by scale."""

    name: str
    description: str
    levels: Mapping[str, str]
    grid: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class StudySummary:
    """The parts of a study that the command line prints.

    Attributes:
        title, description, citation: as of the study.
        scales: its scales, from the smallest to the largest.
        simulations: its simulations of toy models.
        conditions: its conditions with their analyses.
        claims: its claims.
        factors: what its paper leaves open.
    """

    title: str
    description: str
    citation: Citation
    scales: tuple[ScaleSummary, ...]
    simulations: tuple[SimulationSummary, ...]
    conditions: tuple[ConditionSummary, ...]
    claims: tuple[ClaimSummary, ...]
    factors: tuple[FactorSummary, ...] = ()


def summarize_study(study: "Study") -> StudySummary:
    """Return the summary of a study.

    Args:
        study: the study.

    Returns:
        its summary, which holds no task, model or function.
    """
    configs = study.main.scales
    return StudySummary(
        title=study.title,
        description=study.description,
        citation=study.citation,
        scales=tuple(
            ScaleSummary(name=name, seeds=study.seeds[name], steps=config.training.steps, minutes=study.minutes[name])
            for name, config in configs.items()
        ),
        simulations=tuple(
            SimulationSummary(title=simulation.title, description=simulation.description)
            for simulation in study.simulations
        ),
        conditions=tuple(
            ConditionSummary(title=condition.title, analyses={one.name: one.title for one in condition.analyses})
            for condition in study.conditions
        ),
        claims=tuple(
            ClaimSummary(name=claim.name, statement=claim.statement, source=claim.source) for claim in study.claims
        ),
        factors=tuple(
            FactorSummary(
                name=factor.name,
                description=factor.description,
                levels={level.name: level.description for level in factor.levels},
                grid={scale: varied[factor.name] for scale, varied in study.grid.items() if factor.name in varied},
            )
            for factor in study.factors
        ),
    )


def parse_summary(data: Mapping[str, Any]) -> StudySummary:
    """Return the summary that ``dataclasses.asdict`` turned into plain data.

    Args:
        data: the plain data, as read from JSON.

    Returns:
        the summary.
    """
    return StudySummary(
        title=data["title"],
        description=data["description"],
        citation=Citation(**data["citation"]),
        scales=tuple(ScaleSummary(**scale) for scale in data["scales"]),
        simulations=tuple(SimulationSummary(**simulation) for simulation in data["simulations"]),
        conditions=tuple(ConditionSummary(**condition) for condition in data["conditions"]),
        claims=tuple(ClaimSummary(**claim) for claim in data["claims"]),
        factors=tuple(
            FactorSummary(**{**factor, "grid": {scale: tuple(levels) for scale, levels in factor["grid"].items()}})
            for factor in data.get("factors", ())
        ),
    )
