"""Citation of the paper."""

from mesascope.studies.base import Citation

CITATION = Citation(
    key="chen2024transformers",
    authors="Chen, Xingwu and Zhao, Lei and Zou, Difan",
    title="How Transformers Utilize Multi-Head Attention in In-Context Learning? A Case Study on Sparse Linear "
    "Regression",
    year=2024,
    venue="NeurIPS 2024; arXiv:2408.04532",
    url="https://arxiv.org/abs/2408.04532",
)
