"""Settings of a study that a user changes: fields of its tasks, models and training configurations.

A setting is a factor whose name is the path of a field, such as ``training.optimizer.lr``, and whose levels are values
as text. A study need not declare it.
"""

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

from mesascope.argument_types import validate_fields
from mesascope.formulas import escape_dollars, render_plain
from mesascope.models.config import DecoderConfig
from mesascope.studies.cell_names import Cell
from mesascope.studies.factors._factor import Factor, Level, replace_model

if TYPE_CHECKING:
    from mesascope.studies.base import Condition, ScaleConfig

SETTING_ROOTS = ("task", "model", "training")
OWN_VALUE = "default"  # the level of a setting at which the study is unchanged
_CONSTANTS = {"true": True, "false": False, "none": None}

Tree = dict[str, Any]  # new values of fields; of a field that is a configuration itself, another tree


@dataclass(frozen=True, kw_only=True)
class SettingLevel(Level):
    """A value of a setting.

    Attributes:
        path: names from ``task``, ``model`` or ``training`` to the field.
        value: the new value of the field.
    """

    path: tuple[str, ...]
    value: Any


def is_setting(name: str) -> bool:
    """Return whether the name of a factor is that of a setting.

    Args:
        name: such as ``block`` or ``training.optimizer.lr``.

    >>> is_setting("block"), is_setting("training.optimizer.lr"), is_setting("my.block")
    (False, True, False)
    """
    root, dot, _ = name.partition(".")
    return bool(dot) and root in SETTING_ROOTS


def make_settings(varied: Mapping[str, Sequence[str]], conditions: "Sequence[Condition]") -> tuple[Factor, ...]:
    """Make the factors of settings. Each applies to every condition that has the field.

    Args:
        varied: values as text (numbers, ``true``, ``false``, ``none`` or words), by the name of a factor; names that
            are no settings are left out.
        conditions: the conditions of a study.

    Returns:
        the factors. The first level of each leaves the study unchanged.

    Raises:
        ValueError: no condition has the field.
    """
    return tuple(_make_setting(name, levels, conditions) for name, levels in varied.items() if is_setting(name))


def apply_levels(
    conditions: "Sequence[Condition]", chosen: Sequence[tuple[Factor, Level]], scale: str | None
) -> "list[Condition]":
    """Apply the levels of all factors to the conditions of a study; settings are applied together, after the others.

    Args:
        conditions: the conditions of a study.
        chosen: the level of every factor.
        scale: the scale at which the settings must be valid. They change the scales at which they are valid; if None,
            there must be one.

    Returns:
        the conditions with their fields replaced.

    Raises:
        ValueError: a value is invalid; the message names the settings.
    """
    changed = []
    for condition in conditions:
        settings = []
        for factor, level in chosen:
            if condition.name in factor.conditions:
                if isinstance(level, SettingLevel):
                    settings.append(level)
                else:
                    condition = _apply_level(condition, factor, level)
        changed.append(_apply_settings(condition, settings, scale) if settings else condition)
    return changed


def _apply_level(condition: "Condition", factor: Factor, level: Level) -> "Condition":
    """Return a condition at the level of a factor; a ValueError names both."""
    try:
        return level.apply(condition)
    except (ValueError, TypeError) as error:
        owner = f"the condition {condition.name!r}" if condition.name else "the main condition"
        raise ValueError(f"{factor.name}={level.name} must be valid for {owner}, but is not: {error}") from error


def drop_own_values(cell: Cell) -> Cell:
    """Return a cell without the settings that leave the study unchanged.

    Args:
        cell: the level of every factor.
    """
    return {name: level for name, level in cell.items() if not (is_setting(name) and level == OWN_VALUE)}


def _make_setting(name: str, levels: Sequence[str], conditions: "Sequence[Condition]") -> Factor:
    path = tuple(name.split("."))
    problems = {one.name: _find_missing_field(one, path) for one in conditions}
    if all(problems.values()):
        raise ValueError(f"a setting must be the path of a field, but {name!r} is none: {problems['']}")
    values = [
        SettingLevel(name=text, description=escape_dollars(f"{name} = {text}"), path=path, value=_parse_value(text))
        for text in dict.fromkeys(levels)
        if text != OWN_VALUE
    ]
    return Factor(
        name=name,
        description=f"{path[-1]} of the {path[0]}",
        levels=(Level(name=OWN_VALUE, description="as in the study"), *values),
        conditions=tuple(name for name, problem in problems.items() if not problem),
    )


def _find_missing_field(condition: "Condition", path: Sequence[str]) -> str:
    """Return what lacks the field at a path; empty if a condition has it, in all tasks and models of its scales."""
    root, names = path[0], path[1:]
    if root == "training":
        owners = [config.training for config in condition.scales.values()]
    else:
        owners = [getattr(config, root) for config in condition.scales.values()]
        owners = [getattr(condition, root), *(owner for owner in owners if owner is not None)]
    return next(filter(None, (_find_missing_name(owner, names) for owner in owners)), "")


def _find_missing_name(owner: Any, names: Sequence[str]) -> str:
    valid = _list_fields(owner)
    if names[0] not in valid:
        return f"{type(owner).__name__} has " + (f"the fields {', '.join(valid)}" if valid else "no fields")
    return _find_missing_name(getattr(owner, names[0]), names[1:]) if names[1:] else ""


def _list_fields(owner: Any) -> list[str]:
    if isinstance(owner, DecoderConfig):
        parameters = inspect.signature(type(owner).__init__).parameters.values()
        return [one.name for one in parameters if one.kind is one.KEYWORD_ONLY]
    return [one.name for one in fields(owner) if one.init] if is_dataclass(owner) else []


def _apply_settings(condition: "Condition", settings: Sequence[SettingLevel], scale: str | None) -> "Condition":
    tree: Tree = {}
    for setting in settings:
        branch = tree
        for name in setting.path[:-1]:
            branch = branch.setdefault(name, {})
        branch[setting.path[-1]] = setting.value
    scales, errors = {}, {}
    for name, config in condition.scales.items():
        try:
            scales[name] = _change_scale(condition, config, tree)
        except (ValueError, TypeError) as error:
            errors[name] = error
    if scale in errors or not scales:
        refused, error = (scale, errors[scale]) if scale in errors else next(iter(errors.items()))
        names = ", ".join(render_plain(setting.description) for setting in settings)
        raise ValueError(f"{names} must be valid at {refused} scale, but is not: {error}") from error
    return replace(condition, scales={**condition.scales, **scales})


def _change_scale(condition: "Condition", config: "ScaleConfig", tree: Tree) -> "ScaleConfig":
    """Return the configuration of a scale with its own task and model, changed by a tree."""
    own = {"task": config.task or condition.task, "model": config.model or condition.model}
    return replace(
        config,
        **{root: _change(own.get(root, config.training), branch) for root, branch in tree.items()},
    )


def _change(owner: Any, tree: Tree) -> Any:
    """Return a copy of a configuration with the values of a tree."""
    values = {name: _change(getattr(owner, name), one) if isinstance(one, dict) else one for name, one in tree.items()}
    if isinstance(owner, DecoderConfig):
        return replace_model(owner, values)
    changed = replace(owner, **values)
    validate_fields(changed)
    return changed


def _parse_value(text: str) -> Any:
    """Return a number, a constant or the text itself.

    >>> _parse_value("1e-3"), _parse_value("4"), _parse_value("true"), _parse_value("softmax")
    (0.001, 4, True, 'softmax')
    """
    if text.lower() in _CONSTANTS:
        return _CONSTANTS[text.lower()]
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text
    return value if isinstance(value, int | float) else text
