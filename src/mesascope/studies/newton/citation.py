"""Citation of the paper."""

from mesascope.studies.base import Citation

CITATION = Citation(
    key="fu2024transformers",
    authors="Fu, Deqing and Chen, Tian-Qi and Jia, Robin and Sharan, Vatsal",
    title="Transformers Learn to Achieve Second-Order Convergence Rates for In-Context Linear Regression",
    year=2024,
    venue="NeurIPS 2024; arXiv:2310.17086",
    url="https://arxiv.org/abs/2310.17086",
)
