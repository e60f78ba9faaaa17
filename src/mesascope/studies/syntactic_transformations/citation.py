"""Citation of the paper."""

from mesascope.studies.base import Citation

CITATION = Citation(
    key="lindemann2024step",
    authors="Lindemann, Matthias and Koller, Alexander and Titov, Ivan",
    title="Strengthening Structural Inductive Biases by Pre-training to Perform Syntactic Transformations",
    year=2024,
    venue="arXiv:2407.04543",
    url="https://arxiv.org/abs/2407.04543",
)
