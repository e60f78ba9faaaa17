"""Citation of the paper."""

from mesascope.studies.base import Citation

CITATION = Citation(
    key="bu2024multiconcept",
    authors="Bu, Dake and Huang, Wei and Han, Andi and Nitanda, Atsushi and Suzuki, Taiji and Zhang, Qingfu and "
    "Wong, Hau-San",
    title="Provably Transformers Harness Multi-Concept Word Semantics for Efficient In-Context Learning",
    year=2024,
    venue="NeurIPS 2024; arXiv:2411.02199",
    url="https://arxiv.org/abs/2411.02199",
)
