"""Outcomes of trials, and the table of them in docs/reliability.md."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, Phase, seed, settings

import mesascope

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
START, END = "<!-- results -->", "<!-- end of results -->"


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """Outcomes of all tries of one trial.

    Attributes:
        name: What is tried.
        seeds: The seeds, as text.
        outcomes: The outcome of every try.
        faults: What must not happen, one text per fault, with the seed.
    """

    name: str
    seeds: str
    outcomes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def add(self, outcome: str, fault: str = "") -> None:
        """Add a try; one with a fault has the outcome ``fault``."""
        self.outcomes.append("fault" if fault else outcome)
        if fault:
            self.faults.append(fault)


def run_seeds(
    name: str, seeds: range, try_once: Callable[[int], tuple[str, str]], log: Callable[[str], None]
) -> TrialResult:
    """Run a trial once per seed; ``try_once`` returns the outcome and the fault."""
    result = TrialResult(name=name, seeds=format_range(seeds))
    for one in seeds:
        result.add(*try_once(one))
        log(f"{name}: {len(result.outcomes)}/{len(seeds)}")
    return result


def format_range(seeds: range) -> str:
    """Return consecutive seeds as a text."""
    return f"{seeds.start}-{seeds.stop - 1}"


def draw_examples(test: Callable[[], None], seeds: range) -> None:
    """Run a property of hypothesis with one example per seed; all examples depend on the first seed."""
    options = settings(
        max_examples=len(seeds),
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    seed(seeds.start)(options(test))()


def format_table(results: Iterable[TrialResult]) -> str:
    """Return the table with a row per trial; it has no date, so that equal outcomes give equal tables."""
    rows = ["| trial | seeds | tries | outcomes | faults |", "|---|---|---|---|---|"]
    for one in results:
        counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(Counter(one.outcomes).items()))
        rows.append(f"| {one.name} | {one.seeds} | {len(one.outcomes)} | {counts} | {len(one.faults)} |")
    return "\n".join([f"mesascope {mesascope.__version__}.", "", *rows])


def write_table(results: Iterable[TrialResult], page: Path = PAGE) -> None:
    """Replace the table between the two marks of a page."""
    before, rest = page.read_text(encoding="utf-8").split(START)
    after = rest.split(END)[1]
    page.write_text(f"{before}{START}\n{format_table(results)}\n{END}{after}", encoding="utf-8")
