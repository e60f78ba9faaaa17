"""Citation of the paper."""

from mesascope.studies.base import Citation

CITATION = Citation(
    key="merrill2021effects",
    authors="Merrill, William and Ramanujan, Vivek and Goldberg, Yoav and Schwartz, Roy and Smith, Noah A.",
    title="Effects of Parameter Norm Growth During Transformer Training: Inductive Bias from Gradient Descent",
    year=2021,
    venue="EMNLP 2021; arXiv:2010.09697",
    url="https://arxiv.org/abs/2010.09697",
)
