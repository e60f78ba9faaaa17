"""Citation of the paper."""

from mesascope.studies.base import Citation

CITATION = Citation(
    key="brinkmann2024mechanistic",
    authors="Brinkmann, Jannik and Sheshadri, Abhay and Levoso, Victor and Swoboda, Paul and Bartelt, Christian",
    title="A Mechanistic Analysis of a Transformer Trained on a Symbolic Multi-Step Reasoning Task",
    year=2024,
    venue="Findings of ACL 2024; arXiv:2402.11917",
    url="https://arxiv.org/abs/2402.11917",
)
