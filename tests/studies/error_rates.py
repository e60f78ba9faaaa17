"""Error rates and power of verdicts, by simulation: ``python -m tests.studies.error_rates`` writes docs/verdicts.md."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import xarray as xr

from mesascope.studies.base import Claim, Quantity
from mesascope.studies.verdicts import CONTRADICTED, NO_EFFECT, SUPPORTED, judge

PAGE = Path(__file__).parents[2] / "docs" / "verdicts.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
SEEDS = (5, 8, 12)
MARGIN = 0.5  # in standard deviations of the normal family
Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]

NULLS: dict[str, Draw] = {  # the median of each is 0: a seed lies above or below with equal probability
    "normal": lambda rng, size: rng.standard_normal(size),
    "heavy tails (t, 3 degrees of freedom)": lambda rng, size: rng.standard_t(3, size),
    "outliers (10 % with 5 times the deviation)": lambda rng, size: (
        np.where(rng.random(size) < 0.1, 5.0, 1.0) * rng.standard_normal(size)
    ),
    "skewed (exponential)": lambda rng, size: rng.exponential(size=size) - np.log(2),
    "skewed to the left (exponential)": lambda rng, size: np.log(2) - rng.exponential(size=size),
    "strongly skewed (log-normal)": lambda rng, size: rng.lognormal(0, 1, size) - 1,
}


def judge_numbers(value: np.ndarray, control: np.ndarray, threshold: float | None = None, margin: float = 0.0) -> str:
    """Return the status of a claim with these numbers per seed."""
    claim = Claim(
        name="simulated",
        statement="The value is higher than the control.",
        source="ours",
        value=Quantity(description="value", read=lambda results: xr.DataArray(value, dims="seed")),
        control=Quantity(description="control", read=lambda results: xr.DataArray(control, dims="seed")),
        direction="above",
        threshold=threshold,
        margin=margin,
    )
    return judge(claim, {}, "laptop").status


def count_statuses(
    draws: int, seeds: int, draw: Draw, *, effect: float = 0.0, kind: str = "control"
) -> dict[str, float]:
    """Return how often each status is given, with an effect in units of the family.

    Args:
        draws: number of simulated studies.
        seeds: number of seeds of each.
        draw: the family of the numbers per seed.
        effect: added to the value.
        kind: ``control``: the control is drawn from the same family; ``fixed control``: it is 0; ``both``: control and
            threshold are both at the boundary; ``margin``: the true difference is the margin.
    """
    rng, counts = np.random.default_rng(seeds), dict.fromkeys((SUPPORTED, CONTRADICTED, NO_EFFECT), 0.0)
    for _ in range(draws):
        value, control = effect + draw(rng, (seeds,)), draw(rng, (seeds,))
        options = {
            "control": {},
            "fixed control": {"control": np.zeros(seeds)},
            "both": {"threshold": 0.0},
            "margin": {"value": value + MARGIN, "control": np.zeros(seeds), "margin": MARGIN},
        }[kind]
        status = judge_numbers(**{"value": value, "control": control, **options})
        if status in counts:
            counts[status] += 1 / draws
    return counts


KINDS = ("control", "fixed control", "both", "margin")


def format_table(draws: int) -> Iterator[str]:
    """Yield the lines of the table of error rates and of the table of power."""
    yield "| null family | claim | " + " | ".join(f"{seeds} seeds" for seeds in SEEDS) + " |"
    yield "|---" * (2 + len(SEEDS)) + "|"
    for name, draw in NULLS.items():
        for kind in KINDS:
            rates = [count_statuses(draws, seeds, draw, kind=kind) for seeds in SEEDS]
            cells = [f"{100 * rate[SUPPORTED]:.1f} / {100 * rate[CONTRADICTED]:.1f}" for rate in rates]
            yield f"| {name} | {kind} | " + " | ".join(cells) + " |"
    yield ""
    yield "| effect, in standard deviations | " + " | ".join(f"{seeds} seeds" for seeds in SEEDS) + " |"
    yield "|---" * (1 + len(SEEDS)) + "|"
    for effect in (1.0, 2.0, 3.0):
        powers = [
            count_statuses(draws, seeds, NULLS["normal"], effect=effect, kind="fixed control")[SUPPORTED]
            for seeds in SEEDS
        ]
        yield f"| {effect:g} | " + " | ".join(f"{100 * power:.0f}" for power in powers) + " |"


def main(draws: int = 20_000) -> None:
    """Write the tables into the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    PAGE.write_text("\n".join([before + BEGIN, *format_table(draws), END + after]), encoding="utf-8")


if __name__ == "__main__":
    main()
