"""Factors of a study, settings that a user changes, and the cells of a grid of both."""

from mesascope.studies.factors._factor import Factor, Level, list_cells, select_levels
from mesascope.studies.factors._settings import OWN_VALUE, apply_levels, drop_own_values, is_setting, make_settings

__all__ = [
    "OWN_VALUE",
    "Factor",
    "Level",
    "apply_levels",
    "drop_own_values",
    "is_setting",
    "list_cells",
    "make_settings",
    "select_levels",
]
