"""Panels of a report that are not plots of a single variable, and the choice of a view for a variable."""
