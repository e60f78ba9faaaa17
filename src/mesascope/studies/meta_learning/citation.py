"""Citations of the paper, and of a companion paper on clusters of hidden states."""

from mesascope.studies.base import Citation

CITATION = Citation(
    key="wu2024metalearning",
    authors="Wu, Xinbo and Varshney, Lav R.",
    title="A Meta-Learning Perspective on Transformers for Causal Language Modeling",
    year=2024,
    venue="Findings of ACL 2024, arXiv:2310.05884",
    url="https://arxiv.org/abs/2310.05884",
)

COMPANION = Citation(
    key="wu2025clustering",
    authors="Wu, Xinbo and Varshney, Lav R.",
    title="Transformer-based Causal Language Models Perform Clustering",
    year=2025,
    venue="Findings of NAACL 2025, arXiv:2402.12151",
    url="https://arxiv.org/abs/2402.12151",
)
