"""Factors of a study: the choices that its paper leaves open, and the cells in which its claims are judged."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING, Any

from mesascope.models.config import DecoderConfig
from mesascope.studies.cell_names import Cell

if TYPE_CHECKING:
    from mesascope.studies.base import Condition, ScaleConfig

NAME = r"[A-Za-z0-9_.-]+"  # of a factor or level; it is part of the name of a folder


@dataclass(frozen=True, kw_only=True)
class Level:
    """One value of a factor: what it replaces in a condition.

    Attributes:
        name: as on the command line, such as ``prenorm``.
        description: what it is, in words.
        model: fields of the decoder's config, by name.
        task: fields of the task, by name.
        training: fields of the training config, by name, at every scale.
    """

    name: str
    description: str
    model: Mapping[str, Any] = field(default_factory=dict)
    task: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)

    def apply(self, condition: "Condition") -> "Condition":
        """Return a condition at this level.

        Args:
            condition: a condition of the study.

        Returns:
            the condition with the fields replaced, at all scales.

        Raises:
            ValueError: the decoder's config is invalid.
        """
        return replace(
            condition,
            model=replace_model(condition.model, self.model),
            task=_replace_task(condition.task, self.task),
            scales={name: self._apply_to_scale(config) for name, config in condition.scales.items()},
        )

    def _apply_to_scale(self, config: "ScaleConfig") -> "ScaleConfig":
        return replace(
            config,
            training=replace(config.training, **self.training),
            task=config.task and _replace_task(config.task, self.task),
            model=config.model and replace_model(config.model, self.model),
        )


@dataclass(frozen=True, kw_only=True)
class Factor:
    """A choice that the paper of a study leaves open.

    Attributes:
        name: as on the command line, such as ``block``.
        description: the choice, in words.
        levels: its values. The first is the setting of the study itself and replaces nothing.
        conditions: names of the conditions that it applies to; by default the main condition only.
    """

    name: str
    description: str
    levels: tuple[Level, ...]
    conditions: tuple[str, ...] = ("",)

    def __post_init__(self) -> None:
        """Refuse a factor without a choice, or whose first level is not the setting of the study."""
        names = [level.name for level in self.levels]
        for name in (self.name, *names):
            if not re.fullmatch(NAME, name):
                raise ValueError(
                    f"the name of a factor or level must consist of letters, digits, '_', '.' and '-', but got {name!r}"
                )
        if len(names) < 2 or len(set(names)) < len(names):
            raise ValueError(f"a factor needs two or more levels of different names, but {self.name!r} has {names}")
        first = self.levels[0]
        if first.model or first.task or first.training:
            raise ValueError(
                f"the first level of a factor is the setting of the study and must replace nothing, but {first.name!r} "
                f"of {self.name!r} does; change the study's condition instead"
            )

    def get_level(self, name: str) -> Level:
        """Return the level of a name.

        Args:
            name: of the level.

        Raises:
            ValueError: there is no such level; the message lists those there are.
        """
        for level in self.levels:
            if level.name == name:
                return level
        names = ", ".join(level.name for level in self.levels)
        raise ValueError(f"a level of {self.name} must be one of {names}, but got {name!r}")


def list_cells(factors: Sequence[Factor], varied: Mapping[str, Sequence[str]]) -> list[Cell]:
    """Return the cells of a grid; the study's own setting is always the first.

    Args:
        factors: the factors of a study.
        varied: names of levels, by the name of a factor; other factors keep the setting of the study.

    Returns:
        the level of every factor, by its name; one mapping per cell.

    Raises:
        ValueError: there is no such factor or level.
    """
    by_name = {factor.name: factor for factor in factors}
    unknown = [name for name in varied if name not in by_name]
    if unknown:
        options = f"one of {', '.join(by_name)}" if by_name else "a setting, since the study declares none"
        raise ValueError(
            f"a factor must be {options}, or the path of a setting such as training.steps, but got {unknown[0]!r}"
        )
    own = {name: factor.levels[0].name for name, factor in by_name.items()}
    levels = [
        [factor.get_level(level).name for level in varied.get(name, (own[name],))] for name, factor in by_name.items()
    ]
    cells = [dict(zip(by_name, combination, strict=True)) for combination in product(*levels)]
    return [own, *(cell for cell in cells if cell != own)]


def select_levels(factors: Sequence[Factor], cell: Cell) -> list[tuple[Factor, Level]]:
    """Return the level of every factor in a cell.

    Args:
        factors: the factors of a study.
        cell: the level of some factors; others keep the setting of the study.

    Raises:
        ValueError: there is no such factor or level.
    """
    complete = list_cells(factors, {name: [level] for name, level in cell.items()})[-1]
    return [(factor, factor.get_level(complete[factor.name])) for factor in factors]


def _replace_task(task: Any, fields: Mapping[str, Any]) -> Any:
    return replace(task, **fields)  # every task is a dataclass


def replace_model(model: DecoderConfig, fields: Mapping[str, Any]) -> DecoderConfig:
    """Return the configuration of a decoder with other values.

    Args:
        model: the configuration.
        fields: values by the name of a field.

    Raises:
        ValueError: a value is invalid.
    """
    values = model.to_dict()
    if "num_attention_heads" in fields and model.num_key_value_heads == model.num_attention_heads:
        values["num_key_value_heads"] = None  # as many as there are query heads
    return type(model).from_dict({**values, **fields}) if fields else model
