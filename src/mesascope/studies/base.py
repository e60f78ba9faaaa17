"""What a study is: a task, a model, their training, the instruments, and the claims they decide."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import xarray as xr

from mesascope.analyses import Measure
from mesascope.analyses.instrument import Instrument
from mesascope.models.config import DecoderConfig
from mesascope.studies.toy_model import Reduced
from mesascope.tasks.base import Task
from mesascope.train import Training

SCALES = ("smoke", "laptop", "paper")
TAKEN = ("own", "task", "model", "training", "sequences", "title")  # these say something else in a run

Results = Mapping[str, xr.Dataset]
PerSeed = Callable[[Results], xr.DataArray]


@dataclass(frozen=True, kw_only=True)
class Citation:
    """A paper."""

    key: str
    authors: str
    title: str
    year: int
    venue: str
    url: str

    @property
    def bibtex(self) -> str:
        """An entry to paste."""
        fields = {
            "author": self.authors,
            "title": "{" + self.title + "}",
            "year": str(self.year),
            "journal": self.venue,
            "url": self.url,
        }
        body = "".join(f"  {name} = {{{value}}},\n" for name, value in fields.items())
        return f"@article{{{self.key},\n{body}}}"


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How much of everything in one setting.

    Attributes:
        training: steps, batch, optimiser, checkpoints.
        sequences: held-out sequences that are opened.
        task: where sequences come from at this scale, if not from the setting's own task.
        model: the decoder at this scale, if not the setting's own.
    """

    training: Training
    sequences: int = 512
    task: Task | None = None
    model: DecoderConfig | None = None


@dataclass(frozen=True, kw_only=True)
class Scale(Setup):
    """How much of everything: smoke shows that it runs, laptop answers the question, paper is thorough.

    Attributes:
        seeds: training replicates.
        minutes: what a run takes on two cores, for a reader who decides whether to start it.
    """

    seeds: int = 3
    minutes: float


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One setting that a study trains and opens: its own, or another beside it.

    Attributes:
        name: prefix of its results, such as ``sgd`` in ``sgd_norms``; empty for the study's own setting.
        title: what is different here, put behind the title of every instrument.
        task: where sequences come from.
        model: the decoder.
        setups: smoke, laptop and paper.
        measures: applied to captures of held-out sequences.
        sweeps: applied to the model itself: a function of model, task and batch.
        retrospects: applied to what training left behind: a function of past, model and batch.
        trails: applied to all checkpoints at once: a function of the trail of parameters.
    """

    name: str = ""
    title: str = ""
    task: Task
    model: DecoderConfig
    setups: Mapping[str, Setup]
    measures: tuple[Measure, ...] = ()
    sweeps: tuple[Instrument, ...] = ()
    retrospects: tuple[Instrument, ...] = ()
    trails: tuple[Instrument, ...] = ()

    @property
    def instruments(self) -> tuple[Instrument, ...]:
        """All that is applied to it."""
        return (*self.measures, *self.sweeps, *self.retrospects, *self.trails)

    def result(self, one: Instrument) -> str:
        """What the results of an instrument are called."""
        return f"{self.name}_{one.name}" if self.name else one.name

    def task_at(self, scale: str) -> Task:
        """Where sequences come from at this scale."""
        return self.setups[scale].task or self.task

    def model_at(self, scale: str) -> DecoderConfig:
        """The decoder at this scale."""
        return self.setups[scale].model or self.model


@dataclass(frozen=True, kw_only=True)
class Theory:
    """A reduced model that a study simulates beside the decoders that it trains.

    Attributes:
        name: what its results are called.
        title: a heading for people.
        setups: the reduced model at smoke, laptop and paper scale.
        order: place on the page.
    """

    name: str
    title: str
    setups: Mapping[str, Reduced]
    order: int = 10

    @property
    def about(self) -> str:
        """What the reduced model is, in its own words."""
        return " ".join((type(self.setups["laptop"]).__doc__ or "").split("Attributes:")[0].split())


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence that numbers can decide.

    Attributes:
        name: a short name.
        sentence: what is claimed.
        source: who claims it, and where; ours where it is ours.
        statistic: one number per seed; not a number where the seed has nothing to say (no such head, say).
        about: what the statistic is, in words.
        control: the same number where there is nothing to find.
        control_about: what the control is, in words.
        direction: whether the statistic must lie above or below the control.
        bound: a fixed number that the statistic must lie beyond, too.
        unit: of the statistic.
        scales: where the claim can be decided; elsewhere it is not tested.
    """

    name: str
    sentence: str
    source: str
    statistic: PerSeed
    about: str
    control: PerSeed
    control_about: str
    direction: Literal["above", "below"]
    bound: float | None = None
    unit: str = "1"
    scales: tuple[str, ...] = ("laptop", "paper")


@dataclass(frozen=True, kw_only=True)
class Study:
    """One published study, as a value: nothing in it runs.

    Attributes:
        name: how it is called on the command line.
        title: what it is about.
        about: what is known of the paper's setting, and what is ours.
        citation: the paper.
        task: where sequences come from.
        model: the decoder.
        scales: smoke, laptop and paper.
        measures: applied to captures of held-out sequences.
        sweeps: applied to the model itself: a function of model, task and batch.
        retrospects: applied to what training left behind, where it keeps a history.
        trails: applied to all checkpoints at once.
        arms: other settings that are trained and opened beside this one.
        theories: reduced models that are simulated beside them.
        claims: decided from the results.
    """

    name: str
    title: str
    about: str
    citation: Citation
    task: Task
    model: DecoderConfig
    scales: Mapping[str, Scale]
    measures: tuple[Measure, ...]
    sweeps: tuple[Instrument, ...] = field(default=())
    retrospects: tuple[Instrument, ...] = field(default=())
    trails: tuple[Instrument, ...] = field(default=())
    arms: tuple[Arm, ...] = field(default=())
    theories: tuple[Theory, ...] = field(default=())
    claims: tuple[Claim, ...]

    def __post_init__(self) -> None:
        """Refuse a study that cannot be run or judged."""
        if set(self.scales) != set(SCALES):
            raise ValueError(f"a study needs the scales {', '.join(SCALES)}, but got {', '.join(self.scales)}")
        for arm in self.arms:
            if not arm.name.isidentifier() or arm.name in TAKEN or set(arm.setups) != set(SCALES):
                raise ValueError(
                    f"an arm needs a word as its name, none of {', '.join(TAKEN)}, and the scales "
                    f"{', '.join(SCALES)}, but got {arm.name!r} with {', '.join(arm.setups)}"
                )
        taken = (*TAKEN, *(arm.name for arm in self.arms))
        for theory in self.theories:
            if not theory.name.isidentifier() or theory.name in taken or set(theory.setups) != set(SCALES):
                raise ValueError(
                    f"a theory needs a word as its name, none of {', '.join(taken)}, and the scales "
                    f"{', '.join(SCALES)}, but got {theory.name!r} with {', '.join(theory.setups)}"
                )
        names = self.results
        if len(set(names)) < len(names):
            raise ValueError(f"the names of a study's results must differ, but got {', '.join(names)}")
        for arm in self.settings:
            without = [name for name, setup in arm.setups.items() if not setup.training.history]
            if arm.retrospects and without:
                raise ValueError(
                    f"{', '.join(one.name for one in arm.retrospects)} needs a training with history=True, but at "
                    f"{', '.join(without)} there is none"
                )
        if len({claim.name for claim in self.claims}) < len(self.claims):
            raise ValueError("the names of a study's claims must differ")

    @property
    def results(self) -> list[str]:
        """What its results are called."""
        found = [arm.result(one) for arm in self.settings for one in arm.instruments]
        return [*found, *(theory.name for theory in self.theories)]

    @property
    def settings(self) -> tuple[Arm, ...]:
        """Its own setting and those beside it."""
        own = Arm(
            task=self.task,
            model=self.model,
            setups=self.scales,
            measures=self.measures,
            sweeps=self.sweeps,
            retrospects=self.retrospects,
            trails=self.trails,
        )
        return (own, *self.arms)


def last(array: xr.DataArray) -> xr.DataArray:
    """The trained model: the last checkpoint."""
    return array.isel(step=-1, drop=True)


def untrained(array: xr.DataArray) -> xr.DataArray:
    """The model before training: the first checkpoint, at step 0."""
    return array.sel(step=0, drop=True)


def per_seed(values: xr.DataArray) -> np.ndarray:
    """The numbers of a statistic, one per seed."""
    if values.dims != ("seed",):
        raise ValueError(f"a claim's statistic must have the axis seed and no other, but has {values.dims}")
    return values.values.astype(float)
