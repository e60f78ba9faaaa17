"""Citation of the paper."""

from mesascope.studies.base import Citation

CITATION = Citation(
    key="vonoswald2023transformers",
    authors="von Oswald, Johannes and Niklasson, Eyvind and Randazzo, Ettore and Sacramento, João and Mordvintsev, "
    "Alexander and Zhmoginov, Andrey and Vladymyrov, Max",
    title="Transformers Learn In-Context by Gradient Descent",
    year=2023,
    venue="ICML 2023; arXiv:2212.07677",
    url="https://arxiv.org/abs/2212.07677",
)
