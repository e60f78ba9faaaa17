"""Checkpoints of one model over training: revisions on the Hub, or folders."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ModelCheckpoint:
    """One checkpoint of a model.

    Attributes:
        name: The Hub name, folder or file to load.
        revision: The revision of the Hub name.
        step: The number in the checkpoint's name.
        label: The checkpoint's name; empty if there is only one model.
    """

    name: str
    revision: str
    step: int
    label: str


def resolve_checkpoints(name: str, steps: Sequence[str] | None) -> list[ModelCheckpoint]:
    """Resolve checkpoint names, sorted by step.

    Args:
        name: A Hub name, a folder or a file.
        steps: Revisions of a Hub name, or folders (paths, or names of subfolders of ``name``). The last number in each
            name is the step.

    Returns:
        The checkpoints, in ascending order of steps.

    Raises:
        ValueError: If a name has no number, two have the same, or one is neither a folder nor a revision.

    >>> [checkpoint.step for checkpoint in resolve_checkpoints("org/model", ["step64000", "step512"])]
    [512, 64000]
    """
    if not steps:
        return [ModelCheckpoint(name=name, revision="main", step=0, label="")]
    resolved = sorted((_resolve_checkpoint(name, step) for step in steps), key=lambda checkpoint: checkpoint.step)
    _check_distinct([checkpoint.step for checkpoint in resolved])
    return resolved


def _check_distinct(numbers: Sequence[int]) -> None:
    duplicates = [number for number in numbers if numbers.count(number) > 1]
    if duplicates:
        raise ValueError(f"steps must have different numbers, but two have {duplicates[0]}; rename one")


def _resolve_checkpoint(name: str, step: str) -> ModelCheckpoint:
    digits = re.findall(r"\d+", Path(step).name)
    if not digits:
        raise ValueError(f"a step must have a number in its name, such as step1000, but got {step!r}")
    number = int(digits[-1])
    for folder in (Path(name) / step, Path(step)):
        if folder.is_dir():
            return ModelCheckpoint(name=str(folder), revision="main", step=number, label=folder.name)
    if Path(name).exists():
        raise ValueError(
            f"a step must be a folder, in {name} or by its path, but {step} is not; use revisions with Hub names only"
        )
    return ModelCheckpoint(name=name, revision=step, step=number, label=step)
