"""Citation of the paper."""

from mesascope.studies.base import Citation

CITATION = Citation(
    key="wu2024metalearning",
    authors="Wu, Xinbo and Varshney, Lav R.",
    title="A Meta-Learning Perspective on Transformers for Causal Language Modeling",
    year=2024,
    venue="Findings of ACL 2024, arXiv:2310.05884",
    url="https://arxiv.org/abs/2310.05884",
)
