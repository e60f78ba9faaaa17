"""Citation of the paper."""

from mesascope.studies.base import Citation

CITATION = Citation(
    key="bhargav2024interpreting",
    authors="Bhargav, Samarth and Gu, Alexander",
    title="Interpreting Affine Recurrence Learning in GPT-style Transformers",
    year=2024,
    venue="arXiv:2410.17438",
    url="https://arxiv.org/abs/2410.17438",
)
