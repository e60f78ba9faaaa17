"""Bhargav & Gu 2024: affine recurrences in context."""
