"""Studies as values: conditions that are trained and analysed, simulations of toy models, and claims."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mesascope.analyses import Analysis
from mesascope.models.config import DecoderConfig
from mesascope.studies._citation import Citation
from mesascope.studies._claims import (
    Claim,
    ClaimKind,
    Direction,
    Quantity,
    Requirement,
    Results,
    select_last_step,
    select_untrained,
)
from mesascope.studies.toy_model import ToyModel
from mesascope.tasks.base import Task
from mesascope.train import TrainingConfig

SCALES = ("smoke", "laptop", "paper")
FIRST_SEEDS = {"smoke": 0, "laptop": 100, "paper": 1000}  # pilot runs used seeds below 100: verdicts need fresh ones
RESERVED_NAMES = ("own", "task", "model", "training", "sequences", "title")  # keys of a run's description

__all__ = [
    "RESERVED_NAMES",
    "SCALES",
    "Citation",
    "Claim",
    "ClaimKind",
    "Condition",
    "Direction",
    "Quantity",
    "Requirement",
    "Results",
    "ScaleConfig",
    "Simulation",
    "Study",
    "select_last_step",
    "select_untrained",
]


@dataclass(frozen=True, kw_only=True)
class ScaleConfig:
    """The size of one condition at one scale.

    Attributes:
        training: steps, batch size, optimiser, checkpoints.
        sequences: held-out sequences that are analysed.
        task: replaces the condition's task at this scale.
        model: replaces the condition's decoder at this scale.
    """

    training: TrainingConfig
    sequences: int = 512
    task: Task | None = None
    model: DecoderConfig | None = None


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One condition of a study: a task, a model, its training and the analyses that are applied to it.

    Attributes:
        name: prefix of its results, such as ``sgd`` in ``sgd_norms``; empty for the main condition.
        title: what differs from the main condition; appended to the titles of its results.
        task: the data-generating process.
        model: the decoder.
        scales: sizes at smoke, laptop and paper scale.
        analyses: all analyses of its checkpoints; the runner dispatches on their ``input``.
    """

    name: str = ""
    title: str = ""
    task: Task
    model: DecoderConfig
    scales: Mapping[str, ScaleConfig]
    analyses: tuple[Analysis, ...] = ()

    def result_name(self, analysis: Analysis) -> str:
        """Return the name under which a run keeps the results of an analysis.

        Args:
            analysis: one of the condition's.
        """
        return f"{self.name}_{analysis.name}" if self.name else analysis.name

    def task_at(self, scale: str) -> Task:
        """Return the task at a scale.

        Args:
            scale: smoke, laptop or paper.
        """
        return self.scales[scale].task or self.task

    def model_at(self, scale: str) -> DecoderConfig:
        """Return the decoder at a scale.

        Args:
            scale: smoke, laptop or paper.
        """
        return self.scales[scale].model or self.model


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """A toy model that a study simulates beside the decoders that it trains.

    Attributes:
        name: name of its results.
        title: heading of its section on a page.
        description: what the toy model is; printed above its figures.
        scales: the toy model at smoke, laptop and paper scale.
    """

    name: str
    title: str
    description: str
    scales: Mapping[str, ToyModel]


@dataclass(frozen=True, kw_only=True)
class Study:
    """One published study, as a value: nothing in it runs.

    Attributes:
        name: its name on the command line.
        title: its subject in one line.
        description: what is known of the paper's setting, and what is ours.
        citation: the paper.
        conditions: what is trained and analysed; the first one is the main condition and has no name.
        simulations: toy models that are simulated beside them.
        claims: decided from the results.
        seeds: training replicates, by scale.
        minutes: what a run takes on two cores, by scale.
    """

    name: str
    title: str
    description: str
    citation: Citation
    conditions: tuple[Condition, ...]
    simulations: tuple[Simulation, ...] = field(default=())
    claims: tuple[Claim, ...]
    seeds: Mapping[str, int]
    minutes: Mapping[str, float]

    def __post_init__(self) -> None:
        """Refuse a study that cannot be run or judged."""
        _validate_conditions(self.conditions)
        _validate_names(self)
        for label, by_scale in (("seeds", self.seeds), ("minutes", self.minutes)):
            if set(by_scale) != set(SCALES):
                raise ValueError(
                    f"{label} of a study needs the scales {', '.join(SCALES)}, but got {', '.join(by_scale)}"
                )

    @property
    def main(self) -> Condition:
        """The main condition."""
        return self.conditions[0]

    @property
    def results(self) -> list[str]:
        """The names of all its results."""
        names = [condition.result_name(one) for condition in self.conditions for one in condition.analyses]
        return [*names, *(simulation.name for simulation in self.simulations)]

    def select_seeds(self, scale: str, number: int | None = None) -> range:
        """Return the seeds of a run; runs at different scales share none.

        Args:
            scale: smoke, laptop or paper.
            number: number of seeds; that of the scale by default.

        Returns:
            consecutive seeds.
        """
        first = FIRST_SEEDS[scale]
        return range(first, first + (self.seeds[scale] if number is None else number))

    def condition(self, name: str) -> Condition:
        """Return the condition of a name.

        Args:
            name: of the condition; empty for the main condition.
        """
        return next(one for one in self.conditions if one.name == name)

    def simulation(self, name: str) -> Simulation:
        """Return the simulation of a name.

        Args:
            name: of the simulation.
        """
        return next(one for one in self.simulations if one.name == name)


def _validate_conditions(conditions: tuple[Condition, ...]) -> None:
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


def _validate_names(study: Study) -> None:
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
