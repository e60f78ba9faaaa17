"""Sequences of vectors, drawn by the task of a run, in which single coordinates can be changed."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mesascope.explorer.sources import REFERENCE_SEED, ExploredInput, count_references
from mesascope.tasks.base import Batch, Task

MAX_VALUE = (
    1_000_000  # of a changed coordinate: far beyond the terms of any task, and finite in every data type but float16
)
MAX_LETTERS = 20_000  # of a prompt
CHANGE = re.compile(r"(\d{1,9})(?:\.(\d{1,9}))?=(.+)", re.ASCII)
GRAMMAR = (
    "a sequence must be given by its number, with changes after a semicolon, such as '3; 5=1.5, 7.0=-2' (position 5, "
    "and coordinate 0 of position 7)"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class VectorInput(ExploredInput):
    """One sequence of vectors.

    Attributes:
        number: the seed with which it is drawn.
        changes: the changed values, by position and coordinate.
        is_scored: whether the task scores a position.
        batch: the sequence with its targets. Those are as drawn; their weight is 0 from the first changed position on,
            because a changed term has no target.
        batch_code: Python code that defines ``batch`` and its ``weight``.
    """

    name: str = "inputs"
    number: int
    changes: Mapping[tuple[int, int], float]
    is_scored: Bool[Tensor, " pos"]
    batch: Batch
    batch_code: str


@dataclass(frozen=True)
class VectorSequences:
    """Sequences of a task of vectors.

    A prompt is the number of a sequence, the seed with which it is drawn. Changed coordinates follow after a semicolon:
    ``3; 5=1.5`` if vectors have one coordinate, ``3; 5.2=1.5`` for coordinate 2.
    """

    task: Task
    load_code: str

    def read_input(self, prompt: str | int) -> VectorInput:
        """Return a sequence of the task, with its changes.

        Args:
            prompt: the number of the sequence, 0 or more; as a text, with changes.

        Raises:
            ValueError: the text cannot be read, or there is no such sequence, position or coordinate.
        """
        number, words = _split_prompt(prompt)
        drawn = self.task.sample(1, torch.Generator().manual_seed(number))
        values = drawn.inputs.clone()  # a task may share memory between inputs and targets
        changes = _parse_changes(words, values.shape[1], values.shape[2])
        weight = drawn.weight.clone()
        for (position, coordinate), value in changes.items():
            values[0, position, coordinate] = value
            weight[0, position:] = 0
        sample = f"task.sample(1, torch.Generator().manual_seed({number}))"
        code = [
            f"inputs = {sample}.inputs.clone()",
            *(f"inputs[0, {position}, {coordinate}] = {value!r}" for (position, coordinate), value in changes.items()),
        ]
        first = f"weight[:, {min(changes)[0]}:] = 0  # a changed term has no target\n" if changes else ""
        return VectorInput(
            values=values,
            code="\n".join(code),
            number=number,
            changes=changes,
            is_scored=drawn.weight[0] > 0,
            batch=replace(drawn, inputs=values, weight=weight),
            batch_code=f"batch = dataclasses.replace({sample}, inputs=inputs)\nweight = batch.weight.clone()\n{first}",
        )

    def make_references(self, length: int) -> tuple[Float[Tensor, "batch pos d_in"], str]:
        """Return other sequences of the task.

        Args:
            length: the number of positions of the sequence, which is that of every sequence of the task.

        Returns:
            The vectors, and code that defines them.
        """
        sample = f"task.sample({count_references(length)}, torch.Generator().manual_seed({REFERENCE_SEED}))"
        sampled = self.task.sample(count_references(length), torch.Generator().manual_seed(REFERENCE_SEED))
        return sampled.inputs, f"reference_inputs = {sample}.inputs"


def _split_prompt(prompt: Any) -> tuple[int, list[str]]:
    """Return the number of a sequence, and its changes as text."""
    if isinstance(prompt, str) and len(prompt) > MAX_LETTERS:
        raise ValueError(
            f"a prompt must have up to {MAX_LETTERS} characters, but has {len(prompt)}; change fewer terms"
        )
    number, separator, changes = str(prompt).partition(";")
    if not re.fullmatch(r"\d{1,10}", number.strip(), re.ASCII) or int(number) >= REFERENCE_SEED:
        raise ValueError(f"{GRAMMAR}, from 0 to {REFERENCE_SEED - 1}, but got {_shorten(prompt)}")
    words = [word.strip() for word in changes.split(",")]
    return int(number), words if separator and any(words) else []


def _parse_changes(words: list[str], length: int, width: int) -> dict[tuple[int, int], float]:
    changes: dict[tuple[int, int], float] = {}
    for word in words:
        match = CHANGE.fullmatch(word.replace(" ", ""))
        if match is None:
            raise ValueError(f"{GRAMMAR}, but a change is {_shorten(word)}")
        position, coordinate = int(match[1]), int(match[2] or 0)
        if match[2] is None and width > 1:
            raise ValueError(
                f"a change must name one of {width} coordinates, such as {position}.0=1, but got {_shorten(word)}"
            )
        for name, index, size in (("position", position, length), ("coordinate", coordinate, width)):
            if index >= size:
                raise ValueError(f"the {name} of a change must be from 0 to {size - 1}, but got {index}")
        if (position, coordinate) in changes:
            raise ValueError(f"a coordinate must be changed once, but {position}.{coordinate} is changed twice")
        changes[position, coordinate] = _parse_value(match[3])
    return changes


def _parse_value(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) <= MAX_VALUE:
        raise ValueError(
            f"a changed value must be a number from -{MAX_VALUE:,} to {MAX_VALUE:,}, but got {_shorten(text)}"
        )
    return value


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:39]}…"
