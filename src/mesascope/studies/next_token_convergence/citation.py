"""Citation of the paper."""

from mesascope.studies.base import Citation

CITATION = Citation(
    key="huang2024nexttoken",
    authors="Huang, Ruiquan and Liang, Yingbin and Yang, Jing",
    title="Non-asymptotic Convergence of Training Transformers for Next-token Prediction",
    year=2024,
    venue="NeurIPS 2024; arXiv:2409.17335",
    url="https://arxiv.org/abs/2409.17335",
)
