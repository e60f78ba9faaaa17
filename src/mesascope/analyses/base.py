"""What a measure is: an instrument that reads a capture, and says what it needs recorded."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import xarray as xr
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations import Capture, LayerReduction, Reduction, capture
from mesascope.analyses.instrument import Instrument, Steps, described
from mesascope.tasks.base import Batch


@dataclass(frozen=True, kw_only=True)
class Measure(Instrument):
    """An instrument that is called with a capture.

    Attributes:
        sites: what must be recorded.
        reductions: what is computed from large sites while the forward pass runs, by name.
        padded: whether it leaves out the padding of sequences of different lengths; others refuse it.
    """

    sites: tuple[str, ...]
    reductions: Mapping[str, Reduction | LayerReduction] = field(default_factory=dict)
    padded: bool = False

    @property
    def needs(self) -> frozenset[str]:
        """Every site that it is computed from."""
        several = [how for how in self.reductions.values() if isinstance(how, LayerReduction)]
        single = [how.site for how in self.reductions.values() if isinstance(how, Reduction)]
        return frozenset((*self.sites, *single, *(site for how in several for site in how.sites)))

    def __call__(self, *subject: Any, **options: Any) -> xr.Dataset:
        """Apply the measure to a capture.

        Raises:
            ValueError: there is padding, which it would take for inputs.
        """
        if not self.padded and isinstance(subject[0], Capture) and subject[0].attention_mask is not None:
            raise ValueError(
                f"{self.name} needs sequences of one length, but some of the capture's are padded; capture sequences "
                "of each length apart"
            )
        return super().__call__(*subject, **options)


def measure(
    *,
    title: str,
    sites: Sequence[str],
    reductions: Mapping[str, Reduction | LayerReduction] | None = None,
    steps: Steps = "all",
    order: int = 50,
    padded: bool = False,
) -> Callable[[Callable[..., xr.Dataset]], Measure]:
    """Make a measure of a function of a capture: its name and docstring become the measure's."""

    def decorate(function: Callable[..., xr.Dataset]) -> Measure:
        return Measure(
            **described(function),
            title=title,
            sites=tuple(sites),
            reductions=dict(reductions or {}),
            steps=steps,
            order=order,
            padded=padded,
        )

    return decorate


def measure_all(
    model: PreTrainedModel,
    inputs: Tensor | Batch,
    measures: Sequence[Measure],
    *,
    oracles: Mapping[str, Tensor] | None = None,
    batch_size: int | None = None,
    queries: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
) -> dict[str, xr.Dataset]:
    """Record once what all these measures need, then compute them, by name.

    Args:
        model: any model that capture supports.
        inputs: tokens or vectors, or a batch with targets.
        measures: the instruments.
        oracles: predictions of known algorithms, for measures that compare.
        batch_size: sequences per forward pass; all at once by default.
        queries: positions whose attention is looked at; all by default.
        layers: which layers to look at; all by default.
    """
    sites = sorted({site for one in measures for site in one.sites})
    reductions = {name: how for one in measures for name, how in one.reductions.items()}
    recorded = capture(
        model,
        inputs,
        sites,
        oracles=oracles,
        reduce=reductions,
        batch_size=batch_size,
        queries=queries,
        layers=layers,
    )
    return {one.name: one(recorded) for one in measures}


def refuse_some_layers(recorded: Capture) -> None:
    """Refuse a capture from which layers were left out: the last recorded stream must be the last of the model."""
    depth = recorded.frame.num_layers
    if recorded.layers != tuple(range(depth)):
        raise ValueError(
            f"all {depth} layers must be recorded, but only {list(recorded.layers)} were; leave out layers="
        )
