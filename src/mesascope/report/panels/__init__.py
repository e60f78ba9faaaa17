"""Panels of a report that are not plots of one variable."""
