"""Citation of the paper."""

from mesascope.studies.base import Citation

CITATION = Citation(
    key="raychowdhury2024halt",
    authors="Ray Chowdhury, Jishnu and Caragea, Cornelia",
    title="Investigating Recurrent Transformers with Dynamic Halt",
    year=2024,
    venue="arXiv:2402.00976",
    url="https://arxiv.org/abs/2402.00976",
)
