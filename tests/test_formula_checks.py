"""The public conformance checks refuse formulas that cannot be typeset."""

from dataclasses import dataclass, replace
from typing import final

import pytest
import torch

from mesascope.analyses import norms
from mesascope.models.transformer import Decoder, DecoderConfig
from mesascope.studies.affine.study import STUDY
from mesascope.tasks.base import Batch, Task
from mesascope.testing import check_analysis, check_study, check_task

BROKEN = r"so $\frac{a}$"
PROBLEM = r": a formula must be LaTeX that can be typeset, but \$\\frac\{a\}\$ has a command with 1 of its 2 arguments"


@final
@dataclass(frozen=True, kw_only=True)
class Doubling(Task):
    r"""Predict $\frac{x}$.

    The next lines are not shown in a list: $\frac{a}$.
    """

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        x = torch.randn(n, 5, 1, generator=generator)
        return Batch(inputs=x, targets=2 * x, weight=torch.ones(n, 5))

    def loss(self, prediction, batch):
        return (prediction - batch.targets).square().sum(-1)

    def baselines(self, batch):
        return {"exact": 2 * batch.inputs}


def test_a_study_is_refused_by_the_name_of_its_field():
    with pytest.raises(AssertionError, match=rf"affine, the description{PROBLEM}"):
        check_study(replace(STUDY, description=BROKEN))


def test_a_task_is_refused_by_its_docstring():
    with pytest.raises(AssertionError, match="Doubling, the first line of the docstring: a formula must"):
        check_task(Doubling())


@pytest.mark.parametrize("field", ["title", "description"])
def test_an_analysis_is_refused_by_the_name_of_its_field(field):
    model = Decoder(DecoderConfig(vocab_size=20, hidden_size=8, num_attention_heads=2)).eval()
    tokens = torch.ones(2, 5, dtype=torch.long)
    batch = Batch(inputs=tokens, targets=tokens, weight=torch.ones(2, 5))
    with pytest.raises(AssertionError, match=rf"norms, the {field}{PROBLEM}"):
        check_analysis(replace(norms, **{field: BROKEN}), model, batch)


def test_a_variable_is_refused_by_its_name():
    def compute(acts):
        results = norms.compute(acts)
        return results.assign(mean=results["mean"].assign_attrs(tautology=BROKEN))

    model = Decoder(DecoderConfig(vocab_size=20, hidden_size=8, num_attention_heads=2)).eval()
    tokens = torch.ones(2, 5, dtype=torch.long)
    batch = Batch(inputs=tokens, targets=tokens, weight=torch.ones(2, 5))
    with pytest.raises(AssertionError, match=rf"norms, the attribute tautology of mean{PROBLEM}"):
        check_analysis(replace(norms, compute=compute), model, batch)
