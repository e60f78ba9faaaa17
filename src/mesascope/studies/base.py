"""Studies as values: conditions that are trained and analysed, simulations of toy models, and claims."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from mesascope.analyses import Analysis
from mesascope.formulas import render_plain
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
from mesascope.studies._validation import (
    RESERVED_NAMES,
    SCALES,
    validate_conditions,
    validate_grid,
    validate_unique_names,
)
from mesascope.studies.cell_names import Cell, format_cell
from mesascope.studies.factors import (
    Factor,
    Level,
    apply_levels,
    drop_own_values,
    list_cells,
    make_settings,
    select_levels,
)
from mesascope.studies.toy_model import ToyModel
from mesascope.summaries import Summarised, Summary
from mesascope.tasks.base import Task
from mesascope.train import TrainingConfig

FIRST_SEEDS = {"smoke": 0, "laptop": 100, "paper": 1000}  # pilot runs used seeds below 100: verdicts need fresh ones

__all__ = [
    "RESERVED_NAMES",
    "SCALES",
    "Cell",
    "Citation",
    "Claim",
    "ClaimKind",
    "Condition",
    "Direction",
    "Factor",
    "Level",
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
        evaluation_sequences: held-out sequences from which losses are computed; by default 4,096 or more at laptop and
            paper scale, and those that are analysed at smoke scale. Fewer where a baseline is slow.
        task: replaces the condition's task at this scale.
        model: replaces the condition's decoder at this scale.
    """

    training: TrainingConfig
    sequences: int = 512
    evaluation_sequences: int | None = None
    task: Task | None = None
    model: DecoderConfig | None = None


@dataclass(frozen=True, kw_only=True, repr=False)
class Condition(Summarised):
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

    def summarise(self) -> Summary:
        """Return task, model, analyses and training of the condition."""
        config = self.model
        trainings = [(f"training at {name} scale", str(one.training)) for name, one in self.scales.items()]
        rows = [
            ("task", str(self.task)),
            ("model", f"{config.num_hidden_layers} layers of {config.num_attention_heads} heads"),
            ("analyses", ", ".join(one.name for one in self.analyses) or "none"),
            *trainings,
        ]
        name = f"Condition {self.name}" if self.name else "Main condition"
        title = f"{name}: {render_plain(self.title)}" if self.title else name
        return Summary(title=title, header=("", ""), rows=rows)

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


@dataclass(frozen=True, kw_only=True, repr=False)
class Study(Summarised):
    """One published study, as a value: nothing in it runs.

    Texts may have formulas in LaTeX between dollar signs, such as ``$x^2$``; a dollar sign is written ``\\$``.

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
        factors: choices that the paper leaves open, which the setting of the study decides in one way.
        grid: the levels at which the claims are judged by default, by factor and scale; a factor that is not named
            keeps the setting of the study.
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
    factors: tuple[Factor, ...] = field(default=())
    grid: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a study that cannot be run or judged."""
        validate_conditions(self.conditions)
        validate_unique_names(self)
        for label, by_scale in (("seeds", self.seeds), ("minutes", self.minutes)):
            if set(by_scale) != set(SCALES):
                raise ValueError(
                    f"{label} of a study needs the scales {', '.join(SCALES)}, but got {', '.join(by_scale)}"
                )
        validate_grid(self)

    def summarise(self) -> Summary:
        """Return conditions, simulations, claims and cost of the study."""
        conditions = [(one.name or "main condition", type(one.task).__name__) for one in self.conditions]
        scales = (f"{name} {self.seeds[name]} seeds, {self.minutes[name]:g} minutes" for name in SCALES)
        rows = [
            *conditions,
            *((one.name, render_plain(one.title)) for one in self.simulations),
            ("factors", ", ".join(f"{one.name} ({len(one.levels)})" for one in self.factors) or "none"),
            ("claims", f"{len(self.claims)}, {sum(one.by_paper for one in self.claims)} of them by the paper"),
            ("scales", "; ".join(scales)),
        ]
        title = f"Study {self.name}: {render_plain(self.title)} ({self.citation.short})"
        return Summary(title=title, header=("part", "content"), rows=rows)

    @property
    def main(self) -> Condition:
        """The main condition."""
        return self.conditions[0]

    @property
    def cell(self) -> str:
        """The name of its cell, such as ``block=bare,heads=4``; empty for a study without factors."""
        if self.factors:
            return format_cell(list_cells(self.factors, {})[0])
        return self.name.partition("[")[2].removesuffix("]")

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

    def list_cells(self, scale: str, varied: Mapping[str, Sequence[str]] | None = None) -> list[Cell]:
        """Return the cells in which a run judges the claims; the setting of the study is always the first.

        Args:
            scale: smoke, laptop or paper.
            varied: names of levels by the name of a factor, and values as text by the path of a setting, such as
                ``training.optimizer.lr``; the grid of the scale if None.

        Returns:
            one mapping from factors to levels per cell, without the settings that are as in the study.

        Raises:
            ValueError: there is no such factor, level or setting.
        """
        levels = self.grid.get(scale, {}) if varied is None else varied
        factors = (*self.factors, *make_settings(levels, self.conditions))
        return [drop_own_values(cell) for cell in list_cells(factors, levels)]

    def at_cell(self, cell: Cell, scale: str | None = None) -> "Study":
        """Return the study in another setting; the study itself in its own setting.

        Args:
            cell: the level of some factors, and values as text of settings; others keep the setting of the study.
            scale: the scale at which settings must be valid; by default, they must be valid at one, and change those at
                which they are.

        Returns:
            a study without factors, whose name ends in the cell's.

        Raises:
            ValueError: there is no such factor, level or setting, or a value is invalid.
        """
        settings = make_settings({name: [level] for name, level in cell.items()}, self.conditions)
        chosen = select_levels((*self.factors, *settings), cell)
        if all(level == factor.levels[0] for factor, level in chosen):
            return self
        return replace(
            self,
            name=f"{self.name}[{format_cell({factor.name: level.name for factor, level in chosen})}]",
            title=f"{self.title}: {', '.join(level.description for _, level in chosen)}",
            conditions=tuple(apply_levels(self.conditions, chosen, scale)),
            factors=(),
            grid={},
        )

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
