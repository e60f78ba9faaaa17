"""Citation of the paper."""

from mesascope.studies.base import Citation

CITATION = Citation(
    key="huang2023incontext",
    authors="Huang, Yu and Cheng, Yuan and Liang, Yingbin",
    title="In-Context Convergence of Transformers",
    year=2023,
    venue="ICML 2024; arXiv:2310.05249",
    url="https://arxiv.org/abs/2310.05249",
)
