"""Write docs/planted.md: ``python -m tests.ground_truth.table`` (``make planted``)."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import torch

from mesascope.analyses import similarity, which_algorithm
from mesascope.analyses.algorithms.identify import NONE
from mesascope.ground_truth.adapters import attributed
from mesascope.ground_truth.findings import share
from mesascope.testing import BENCH, READINGS, Case, Findings, Reading, check_instrument, heads_where

PAGE = Path(__file__).parents[2] / "docs" / "planted.md"
DRAWS, FEW = 20, 4  # few of the worse criteria
MODERATE = 0.3  # a correlation that many would call one
START, END = "<!-- results -->", "<!-- end of results -->"
WORSE: Mapping[str, Reading] = {
    "similarity, over keys": Reading(
        instrument=similarity,
        found=lambda found: {
            "prefers the like": heads_where(found["over_keys"] > MODERATE),
            "prefers the unlike": heads_where(found["over_keys"] < -MODERATE),
        },
        about=f"correlation of score and similarity over the keys of a query beyond {MODERATE}",
    ),
    "similarity, position fixed": Reading(
        instrument=similarity,
        found=lambda found: {
            "prefers the like": heads_where(found["fixed_position"] > found["fixed_high"]),
            "prefers the unlike": heads_where(found["fixed_position"] < found["fixed_low"]),
        },
        about="correlation at fixed positions beyond its band, whatever query and key do alone",
    ),
    "attribution_patch, first order": Reading(
        instrument=partial(attributed, steps=0),
        found=READINGS["attribution_patch"].found,
        about="the same from the gradient of the untouched model alone",
    ),
    "which_algorithm, any name": Reading(
        instrument=which_algorithm.using(layers=False, elsewhere=False),
        found=lambda found: {"algorithm": {found["named"].item()} - {NONE}},
        about="its name, however little that explains",
    ),
}


def results(readings: Mapping[str, Reading], draws: int, cases: tuple[Case, ...] = BENCH) -> dict[str, Findings]:
    """What every instrument found."""
    return {name: check_instrument(one.instrument, one.found, draws, cases) for name, one in readings.items()}


def kept(case: Case) -> Case:
    """The same case; its models and sequences are made once."""
    return replace(case, build=cache(case.build), sequences=cache(case.sequences))


def cases_table() -> str:
    """Every case, and what is true of it in the first draw."""
    rows = [f"| {case.name} | {case.about} | {_truth(case)} |" for case in BENCH]
    return "\n".join(["| case | what it is | mechanisms |", "|---|---|---|", *rows])


def findings_table(found: Mapping[str, Findings], readings: Mapping[str, Reading]) -> str:
    """A row for each instrument and mechanism, and the criteria."""
    head = (
        "| instrument | mechanism | planted | found | missed | imagined | recall | precision | cases | not applicable |"
    )
    rows = [row(name, one, label) for name, one in found.items() for label in one.labels]
    criteria = [f"- {name}: {readings[name].about}." for name in found]
    return "\n".join([head, "|---" * 10 + "|", *rows, "", "What counts as a claim:", "", *criteria])


def mistakes(found: Mapping[str, Findings]) -> str:
    """What was missed and what was imagined, line by line."""
    lines = [f"- {name}: {line}." for name, one in found.items() for line in one.lines()]
    return "\n".join(lines or ["Nothing was missed or imagined."])


def mistaken(found: Mapping[str, Findings]) -> str:
    """What was imagined, all cases together."""
    lines = []
    for name, one in found.items():
        for label in one.labels:
            heads = sorted(
                {mark.called.removeprefix("the head ") or mark.case for mark in one.of(label=label).imagined}
            )
            lines.append(f"- {name} imagined {label!r} of: {', '.join(heads) or 'nothing'}.")
    return "\n".join(lines)


def row(name: str, one: Findings, label: str) -> str:
    """One mechanism as a line."""
    here = one.of(label=label)
    planted = len(here.found) + len(here.missed)
    numbers = [
        planted,
        len(here.found),
        len(here.missed),
        len(here.imagined),
        share(here.recall),
        share(here.precision),
    ]
    cells = [name, label, *numbers, len(one.cases), len(one.refused)]
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def refusals(found: Mapping[str, Findings]) -> str:
    """Which cases each instrument refuses, and why."""
    lines = []
    for name, one in found.items():
        reasons: dict[str, list[str]] = {}
        for case, reason in one.refused.items():
            reasons.setdefault(_short(reason), []).append(case)
        lines += [f"- {name}, {len(cases)} cases: {reason}: *{'; '.join(cases)}*." for reason, cases in reasons.items()]
    return "\n".join(lines)


def _short(reason: str) -> str:
    """The first clause of a reason, without what differs from model to model."""
    return reason.split(", but ")[0].split(";")[0].split(": ")[0]


def _truth(case: Case) -> str:
    """What is planted in it, noise left out."""
    truth, called = case.truth(0), case.called(0)
    algorithm = sorted(str(name) for name in truth.get("algorithm", ()))
    labels = [label for label, at in truth.items() if any(called.get(place) != "noise" for place in at)]
    return "; ".join([*algorithm, *(label for label in labels if label != "algorithm")])


def page(text: str, found: Mapping[str, Findings], worse: Mapping[str, Findings]) -> str:
    """The page with its results written anew."""
    before, rest = text.split(START)
    after = rest.split(END)[1]
    draws = next(iter(found.values())).draws
    parts = [
        f"## The bench\n\n{cases_table()}",
        f"## What our instruments find\n\n{draws} draws of every case.\n\n{findings_table(found, READINGS)}",
        f"## What they miss and imagine\n\n{mistakes(found)}",
        f"## What worse criteria find\n\nThe bench can fail. {FEW} draws.\n\n{findings_table(worse, WORSE)}",
        mistaken(worse),
        f"## What does not apply\n\n{refusals(found)}",
    ]
    return before + START + "\n\n" + "\n\n".join(parts) + "\n\n" + END + after


def main(draws: int = DRAWS) -> str:
    """The page as it would be written."""
    cases = tuple(kept(case) for case in BENCH)
    return page(PAGE.read_text(encoding="utf-8"), results(READINGS, draws, cases), results(WORSE, FEW, cases))


if __name__ == "__main__":
    torch.set_num_threads(1)
    PAGE.write_text(main(), encoding="utf-8")
