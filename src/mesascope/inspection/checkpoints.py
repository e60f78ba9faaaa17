"""Checkpoints over time: revisions of a Hub model, or folders."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One model on the way.

    Attributes:
        name: what to open. revision: which one of it.
        step: the number in its name. label: how it is called; empty where there is only one model.
    """

    name: str
    revision: str
    step: int
    label: str


def checkpoints(name: str, steps: Sequence[str] | None) -> list[Checkpoint]:
    """The checkpoints that are meant, in the order of their numbers.

    Args:
        name: a Hub name, a folder or a file.
        steps: revisions of a Hub name, or folders (their paths, or their names within the folder ``name``); each has
            a number, the last one in its name.

    Raises:
        ValueError: a step has no number, two have the same, or it is neither a folder nor a revision.

    >>> [one.step for one in checkpoints("org/model", ["step64000", "step512"])]
    [512, 64000]
    """
    if not steps:
        return [Checkpoint(name=name, revision="main", step=0, label="")]
    found = sorted((_checkpoint(name, step) for step in steps), key=lambda one: one.step)
    numbers = [one.step for one in found]
    twice = [number for number in numbers if numbers.count(number) > 1]
    if twice:
        raise ValueError(f"every step must have a number of its own, but two have {twice[0]}; rename one")
    return found


def _checkpoint(name: str, step: str) -> Checkpoint:
    """One checkpoint, from what it is called."""
    digits = re.findall(r"\d+", Path(step).name)
    if not digits:
        raise ValueError(f"a step must have a number in its name, such as step1000, but got {step!r}")
    number = int(digits[-1])
    for folder in (Path(name) / step, Path(step)):
        if folder.is_dir():
            return Checkpoint(name=str(folder), revision="main", step=number, label=folder.name)
    if Path(name).exists():
        raise ValueError(
            f"a step must be a folder, in {name} or by its path, but {step} is none; revisions belong to Hub names"
        )
    return Checkpoint(name=name, revision=step, step=number, label=step)
