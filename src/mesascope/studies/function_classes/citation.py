"""Citation of the paper."""

from mesascope.studies.base import Citation

CITATION = Citation(
    key="garg2022what",
    authors="Garg, Shivam and Tsipras, Dimitris and Liang, Percy and Valiant, Gregory",
    title="What Can Transformers Learn In-Context? A Case Study of Simple Function Classes",
    year=2022,
    venue="NeurIPS 2022; arXiv:2208.01066",
    url="https://arxiv.org/abs/2208.01066",
)
