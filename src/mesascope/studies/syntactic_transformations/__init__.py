"""Lindemann, Koller & Titov 2024: pre-training to perform syntactic transformations."""
