"""Checkpoints of one model over training: revisions on the Hub, or folders."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import expanduser, isdir
from pathlib import Path

STEP_WORDS = ("step", "checkpoint|ckpt", "iteration|iter", "epoch")  # the first that a name has, counts
ALL_CHECKPOINTS, CONFIG_FILE = "all", "config.json"
_CHECKPOINT = re.compile(r"checkpoint-\d+")  # as the Trainer of transformers names them
MULTIPLES = {"": 1, "k": 1000, "m": 1_000_000}
_OTHER_NUMBER = re.compile(
    r"(?<![a-z])(?:fp|bf|int|uint|float|bfloat|v|ver|version|rev|tokens?|seed|stage|phase|part|run|ingredient|rank)"
    r"[-_=]?\d[\d.]*[a-z]*|\d[\d.]*[a-z]+",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class ModelCheckpoint:
    """One checkpoint of a model.

    Attributes:
        name: The Hub name, folder or file to load.
        revision: The revision of the Hub name.
        step: The number of training steps, from the checkpoint's name.
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
        steps: Revisions of a Hub name, or folders (paths, or names of subfolders of ``name``). Each name must have the
            number of its step, as described in :func:`parse_step`. ``all`` stands for all subfolders checkpoint-N of
            ``name``; it is the default in an output folder of a Trainer that is no model itself.

    Returns:
        The checkpoints, in ascending order of steps.

    Raises:
        ValueError: If a name has no step, two have the same, or one is neither a folder nor a revision.

    >>> [checkpoint.step for checkpoint in resolve_checkpoints("org/model", ["step64000", "step512"])]
    [512, 64000]
    """
    if not steps and not _is_training_folder(name):
        return [ModelCheckpoint(name=name, revision="main", step=0, label="")]
    if not steps or list(steps) == [ALL_CHECKPOINTS]:
        steps = _list_checkpoints(name)
    resolved = sorted((_resolve_checkpoint(name, step) for step in steps), key=lambda checkpoint: checkpoint.step)
    _check_distinct([checkpoint.step for checkpoint in resolved])
    return resolved


def parse_step(name: str) -> int:
    """Return the number of training steps in the name of a checkpoint.

    It is the number beside the word step, else beside checkpoint, ckpt, iteration, iter or epoch, else the only number
    in the name. Numbers of tokens (``4B``), of versions (``v2``) and of data types (``fp16``) are none.

    Args:
        name: The name, such as ``step1000-tokens4B``.

    Returns:
        The number of steps.

    Raises:
        ValueError: If the name has no such number, or several.

    >>> [parse_step(name) for name in ("step1000-tokens4B", "checkpoint-500-fp16", "stage1-step-10k", "at_7_v2")]
    [1000, 500, 10000, 7]
    """
    for word in STEP_WORDS:
        after, before = rf"(?:{word})s?[-_=. ]*(\d+)(k|m)?(?![\d]|\.\d)", rf"(?<![\d.])(\d+)(k|m)?[-_ ]?(?:{word})s?"
        matches = re.findall(after, name, re.IGNORECASE) or re.findall(before, name, re.IGNORECASE)
        numbers = {int(digits) * MULTIPLES[unit.lower()] for digits, unit in matches}
        if numbers or re.search(rf"(?:{word})s?[-_=. ]*\d", name, re.IGNORECASE):
            break
    else:
        numbers = {int(digits) for digits in re.findall(r"\d+", _OTHER_NUMBER.sub(" ", name))}
    if len(numbers) != 1:
        found = "has several" if len(numbers) > 1 else "has none"
        raise ValueError(
            f"a step must have a number in its name, beside the word step as in step1000, but {name!r} {found}"
        )
    return numbers.pop()


def _is_training_folder(name: str) -> bool:
    """Return whether a folder has checkpoints as the Trainer of transformers writes them, and no model of its own."""
    return bool(_find_checkpoint_folders(name)) and not (Path(expanduser(name)) / CONFIG_FILE).exists()


def _list_checkpoints(name: str) -> list[str]:
    names = _find_checkpoint_folders(name)
    if not names:
        raise ValueError(
            f"the steps 'all' need a folder with subfolders checkpoint-N that have a {CONFIG_FILE}, but {name} has "
            "none; name the steps"
        )
    return names


def _find_checkpoint_folders(name: str) -> list[str]:
    folder = expanduser(name)
    if not isdir(folder):  # also for names that are too long for a path
        return []
    return [
        str(file.parent)
        for file in Path(folder).glob(f"checkpoint-*/{CONFIG_FILE}")
        if _CHECKPOINT.fullmatch(file.parent.name)
    ]


def _check_distinct(numbers: Sequence[int]) -> None:
    duplicates = [number for number in numbers if numbers.count(number) > 1]
    if duplicates:
        raise ValueError(f"steps must have different numbers, but two have {duplicates[0]}; give only one of them")


def _resolve_checkpoint(name: str, step: str) -> ModelCheckpoint:
    number = parse_step(Path(step).name)
    for folder in (Path(name) / step, Path(step)):
        if folder.is_dir():
            return ModelCheckpoint(name=str(folder), revision="main", step=number, label=folder.name)
    if Path(name).exists():
        raise ValueError(
            f"a step must be a folder, in {name} or by its path, but {step} is not; use revisions with Hub names only"
        )
    return ModelCheckpoint(name=name, revision=step, step=number, label=step)
