"""Analyses: functions that return a labelled Dataset, and what a reader must know about each."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import xarray as xr
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations import (
    Capture,
    EncoderDecoderCapture,
    InputsLike,
    LayerReduction,
    NotRecorded,
    Reduction,
    capture,
    get_site,
)
from mesascope.activations.sites import STACKS
from mesascope.analyses.iterations import NUM_BLOCKS
from mesascope.argument_types import validate_arguments, validate_call, validate_type
from mesascope.formulas import render_plain
from mesascope.summaries import Summarised, Summary

AnalysisInput = Literal["capture", "model", "history", "checkpoints"]
AnalysisSteps = Literal["all", "ends", "last"]
_COUNTS = ("draws", "shuffles", "starts", "sequences", "examples", "num_attended", "max_points", "k")
MIN_OPTIONS = {**dict.fromkeys(_COUNTS, 1), "first": 0}  # smallest values of options


@dataclass(frozen=True, kw_only=True, repr=False)
class Analysis(Summarised):
    """A function that returns a labelled Dataset, and what a reader must know about it.

    ``input`` says what the function is called with, besides its options:

    - ``capture``: a :class:`~mesascope.activations.Capture` of held-out sequences; it cannot reach the model.
    - ``model``: the model, the task and a batch; it runs the model itself, with edits for example.
    - ``history``: the training history, the model and a batch.
    - ``checkpoints``: all checkpoints of one training.

    Attributes:
        name: its name on the command line, and the name of its file in a run.
        title: heading of its section on a page.
        description: what it computes, with its source; printed above its figures. It may have formulas in LaTeX
            between dollar signs, such as ``$x^2$``; a dollar sign is written ``\\$``.
        compute: the function.
        input: what the function is called with.
        sites: sites that must be recorded (``input="capture"``).
        reductions: tensors computed from large sites during the forward pass, by name (``input="capture"``).
        supports_padding: whether it leaves out the padding of sequences of different lengths; others refuse it.
        options: arguments of the function that differ from its defaults.
        steps: whether it is applied to all checkpoints, to the first and the last (``ends``), or to the last one.
        untrained_draws: number of further untrained models of the same shape that a run applies it to, as a null of
            head roles (``input="capture"`` or ``"model"``).
        evaluation: whether a run applies it to the losses of the model and of the baselines on all evaluation
            sequences (:class:`~mesascope.analyses.sequence_losses.SequenceLosses`) instead of a capture of the fewer
            sequences that are analysed (``input="capture"``).
        stacks: the stacks of an encoder-decoder whose captures it accepts, ``encoder`` or ``decoder``
            (``input="capture"``).
    """

    name: str
    title: str
    description: str
    compute: Callable[..., xr.Dataset]
    input: AnalysisInput = "capture"
    sites: tuple[str, ...] = ()
    reductions: Mapping[str, Reduction | LayerReduction] = field(default_factory=dict)
    supports_padding: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    steps: AnalysisSteps = "all"
    untrained_draws: int = 0
    evaluation: bool = False
    stacks: tuple[str, ...] = ()

    def __call__(self, *subject: Any, **options: Any) -> xr.Dataset:
        """Apply the analysis.

        Args:
            subject: what ``input`` says; it may be given by name, too.
            options: further arguments of the function, by name.

        Returns:
            the results; their attributes name the analysis and its options. For a capture of a model that repeats its
            layers, their axis ``layer`` counts calls (`mesascope.analyses.split_iterations`).

        Raises:
            NotRecorded: the capture lacks a site or a reduction.
            TypeError: an argument is missing, or has another name than those of the function.
            ValueError: an argument has another type, or is out of its range; the capture has padding, and the analysis
                would take it for inputs; or the model halts, and the capture is not unrolled with
                ``include_stopped=True``.
        """
        given = {**self.options, **options}
        bound = self._bind(subject, given)
        name, first = next(iter(bound.arguments.items()))
        self._validate_stack(first)
        if not self.supports_padding and isinstance(first, Capture) and first.attention_mask is not None:
            raise ValueError(
                f"{self.name} needs sequences of one length, but some of the capture's are padded; capture sequences "
                "of each length separately"
            )
        self._validate_arguments(bound.arguments)
        attrs: dict[str, Any] = {"analysis": self.name, "title": self.title, "description": self.description}
        if isinstance(first, Capture) and first.num_blocks is not None:
            attrs[NUM_BLOCKS] = first.num_blocks
            if not self._reads_outputs_only:
                bound.arguments[name] = first.unrolled()
        required = [name for name, one in bound.signature.parameters.items() if one.default is one.empty]
        option_attrs = {f"option {name}": str(value) for name, value in given.items() if name not in required}
        try:
            return self.compute(*bound.args, **bound.kwargs).assign_attrs(**attrs, **option_attrs)
        except NotRecorded as error:
            missing = self._describe_missing(first) if isinstance(first, Capture) else ""
            if not missing:
                raise
            raise NotRecorded(f"{error.args[0].partition(';')[0]}; {self.name} needs {missing}") from None

    def _bind(self, subject: tuple[Any, ...], given: Mapping[str, Any]) -> inspect.BoundArguments:
        signature = inspect.signature(self.compute)
        try:
            return signature.bind(*subject, **given)
        except TypeError as error:
            names = ", ".join(signature.parameters)
            raise TypeError(f"the arguments of {self.name} must be {names}, but got: {error}") from None

    def _validate_arguments(self, arguments: Mapping[str, Any]) -> None:
        """Check the types of arguments, counts and positions."""
        name, first = next(iter(arguments.items()))
        validate_call(self.compute, arguments, {name: f"the capture of {self.name}"} if self.input == "capture" else {})
        for option, minimum in MIN_OPTIONS.items():
            if option in arguments and arguments[option] < minimum:
                raise ValueError(f"{option} of {self.name} must be {minimum} or more, but got {arguments[option]}")
        if isinstance(first, Capture):
            length = first.inputs.shape[1]
            if arguments.get("first", 0) >= length:
                raise ValueError(
                    f"first of {self.name} must be a position, but got {arguments['first']} with {length} positions"
                )

    def _describe_missing(self, subject: Any) -> str:
        """Return which reductions a capture lacks, and what to do; empty if it has all."""
        names = {name: how.axes if isinstance(how, LayerReduction) else [name] for name, how in self.reductions.items()}
        missing = ", ".join(name for name, parts in names.items() if not set(parts) <= set(subject.axes))
        return missing and f"{missing}; pass reduce={self.name}.reductions to capture, or use run_analyses"

    def _validate_stack(self, subject: Any) -> None:
        """Check that the analysis is defined for a capture of an encoder-decoder or of chunks, if it is given one."""
        takes_chunks = self._reads_outputs_only or set(STACKS) <= set(self.stacks)
        if isinstance(subject, Capture) and subject.chunks is not None and not takes_chunks:
            raise ValueError(
                f"{self.name} is defined for models that process all positions at once, but got the capture of a model "
                "with chunks and a memory between them; omit it"
            )
        if isinstance(subject, EncoderDecoderCapture):
            raise ValueError(
                f"{self.name} needs the capture of one stack, but got that of an encoder-decoder; pass its encoder or "
                "its decoder"
            )
        if isinstance(subject, Capture) and subject.stack is not None and subject.stack not in self.stacks:
            accepted = f"captures of the {' and the '.join(self.stacks)}" if self.stacks else "models with one stack"
            raise ValueError(
                f"{self.name} is defined for {accepted}, but got the capture of the {subject.stack} of an "
                "encoder-decoder; omit it"
            )

    def summarise(self) -> Summary:
        """Return what the analysis is called with and computed from."""
        rows = [
            ("computes", render_plain(self.description)),
            ("called with", self.input),
            ("sites", ", ".join(sorted(self.required_sites)) or "none"),
            ("checkpoints", self.steps),
            *((f"option {name}", str(value)) for name, value in self.options.items()),
        ]
        return Summary(title=f"Analysis {self.name}: {render_plain(self.title)}", header=("", ""), rows=rows)

    @property
    def required_sites(self) -> frozenset[str]:
        """Every site that the analysis is computed from."""
        layer_reductions = [how for how in self.reductions.values() if isinstance(how, LayerReduction)]
        single = [how.site for how in self.reductions.values() if isinstance(how, Reduction)]
        return frozenset((*self.sites, *single, *(site for how in layer_reductions for site in how.sites)))

    @property
    def _reads_outputs_only(self) -> bool:
        """``True`` if no site is within a layer; an analysis without sites reads the weights of layers."""
        return self.required_sites != set() and not any("layer" in get_site(one).axes for one in self.required_sites)

    def select_steps(self, steps: Sequence[int]) -> list[int]:
        """Return those of the checkpoints that the analysis is applied to.

        Args:
            steps: training steps of all checkpoints, in order.

        Returns:
            the selected training steps, in order and without duplicates.
        """
        chosen = {"all": steps, "ends": (steps[0], steps[-1]), "last": steps[-1:]}[self.steps]
        return sorted(set(chosen))

    def using(self, **options: Any) -> "Analysis":
        """Return the same analysis with other options.

        Args:
            options: arguments of the function, added to the present ones.

        Returns:
            a copy with these options.
        """
        return replace(self, options={**self.options, **options})


def analysis(
    *,
    title: str,
    description: str,
    input: AnalysisInput = "capture",
    sites: Sequence[str] = (),
    reductions: Mapping[str, Reduction | LayerReduction] | None = None,
    steps: AnalysisSteps = "all",
    supports_padding: bool = False,
    untrained_draws: int = 0,
    evaluation: bool = False,
    stacks: Sequence[str] = (),
) -> Callable[[Callable[..., xr.Dataset]], Analysis]:
    """Turn a function into an :class:`Analysis` of the same name.

    Args:
        title: heading of its section on a page.
        description: what it computes, with its source; printed above its figures.
        input: what the function is called with: ``capture``, ``model``, ``history`` or ``checkpoints``.
        sites: sites that must be recorded.
        reductions: tensors computed from large sites during the forward pass, by name.
        steps: whether it is applied to all checkpoints, to the first and the last, or to the last one.
        supports_padding: whether it leaves out the padding of sequences of different lengths.
        untrained_draws: number of further untrained models that a run applies it to, as a null of head roles.
        evaluation: whether a run applies it to the losses on all evaluation sequences.
        stacks: the stacks of an encoder-decoder whose captures it accepts.

    Returns:
        a decorator.

    Raises:
        ValueError: sites or evaluation sequences are requested for an analysis that is not called with a capture, or
            untrained models for one that is called with neither a capture nor a model.
    """
    if input != "capture" and (sites or reductions):
        raise ValueError(f"sites need input='capture', but got input={input!r}; record the sites inside the analysis")
    if input not in ("capture", "model") and untrained_draws:
        raise ValueError(f"untrained_draws needs input='capture' or 'model', but got input={input!r}; leave it out")
    if input != "capture" and evaluation:
        raise ValueError(f"evaluation needs input='capture', but got input={input!r}; leave it out")

    def decorate(function: Callable[..., xr.Dataset]) -> Analysis:
        return Analysis(
            name=function.__name__,
            title=title,
            description=" ".join(description.split()),
            compute=function,
            input=input,
            sites=tuple(sites),
            reductions=dict(reductions or {}),
            steps=steps,
            supports_padding=supports_padding,
            untrained_draws=untrained_draws,
            evaluation=evaluation,
            stacks=tuple(stacks),
        )

    return decorate


@validate_arguments
def run_analyses(
    model: PreTrainedModel,
    inputs: InputsLike,
    analyses: Sequence[Analysis],
    *,
    stack: Literal["encoder", "decoder"] | None = None,
    baselines: Mapping[str, Tensor] | None = None,
    batch_size: int | None = None,
    queries: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
) -> dict[str, xr.Dataset]:
    """Run several analyses on one capture, which records every site and reduction that they need.

    Args:
        model: any model that capture supports.
        inputs: tokens or vectors, a batch with targets, or other inputs that capture takes.
        analyses: analyses of captures.
        stack: the stack of an encoder-decoder that is analysed.
        baselines: predictions of known algorithms, for analyses that compare the model with them.
        batch_size: sequences per forward pass; all at once by default.
        queries: positions whose attention is recorded; all by default.
        layers: layers to record; all by default.

    Returns:
        results by the name of the analysis.

    Raises:
        ValueError: the model is an encoder-decoder and no stack is given, or the reverse.
    """
    for one in analyses:
        validate_type("an element of analyses", one, Analysis)
    acts = capture_for_analyses(
        model,
        inputs,
        analyses,
        stack=stack,
        baselines=baselines,
        batch_size=batch_size,
        queries=queries,
        layers=layers,
    )
    return {one.name: one(acts) for one in analyses}


def capture_for_analyses(
    model: PreTrainedModel,
    inputs: InputsLike,
    analyses: Sequence[Analysis],
    *,
    stack: Literal["encoder", "decoder"] | None = None,
    baselines: Mapping[str, Tensor] | None = None,
    batch_size: int | None = None,
    queries: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
) -> Capture:
    """Record every site and reduction that analyses of captures need.

    Args:
        model: any model that capture supports.
        inputs: tokens or vectors, a batch with targets, or other inputs that capture takes.
        analyses: analyses of captures.
        stack: the stack of an encoder-decoder that is analysed.
        baselines: predictions of known algorithms, stored in the capture.
        batch_size: sequences per forward pass; all at once by default.
        queries: positions whose attention is recorded; all by default.
        layers: layers to record; all by default.

    Returns:
        the capture, of one stack if the model has two.

    Raises:
        ValueError: the model is an encoder-decoder and no stack is given, or the reverse.
    """
    acts = capture(
        model,
        inputs,
        sorted({site for one in analyses for site in one.sites}),
        baselines=baselines,
        reduce={name: how for one in analyses for name, how in one.reductions.items()},
        batch_size=batch_size,
        queries=queries,
        layers=layers if stack is None else {stack: layers},
    )
    if isinstance(acts, EncoderDecoderCapture):
        if stack is None:
            raise ValueError(
                f"{type(model).__name__} has two stacks, but got none to analyse; pass stack='encoder' or 'decoder'"
            )
        return acts.encoder if stack == "encoder" else acts.decoder
    return acts


def validate_all_layers_captured(acts: Capture) -> None:
    """Raise an error if layers were left out of a capture: its last ``resid_post`` must be that of the model.

    Args:
        acts: a capture.

    Raises:
        ValueError: some layers were not recorded, or the model halts.
    """
    if acts.halts:
        raise ValueError(
            "the output must be read from the residual stream after the last layer, but a model that halts reads a "
            "weighted average of states; use capture.readout.compute_output with the states"
        )
    acts, depth = acts.unrolled(), acts.readout.num_layers
    if acts.layers != tuple(range(depth)):
        raise ValueError(f"all {depth} layers must be recorded, but only {list(acts.layers)} were; leave out layers=")
