"""Citation of the paper."""

from mesascope.studies.base import Citation

CITATION = Citation(
    key="wang2024induction",
    authors="Wang, Mingze and Yu, Ruoxi and E, Weinan and Wu, Lei",
    title="How Transformers Implement Induction Heads: Approximation and Optimization Analysis",
    year=2024,
    venue="arXiv:2410.11474",
    url="https://arxiv.org/abs/2410.11474",
)
