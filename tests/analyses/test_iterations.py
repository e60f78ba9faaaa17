"""Analyses of a model that repeats its layers are those of its unrolled copy, by call of a layer."""

import numpy as np
import pytest
import torch

from cases import covering
from mesascope import analyses, capture
from mesascope.activations import UnsupportedModel
from mesascope.analyses import run_analyses, split_iterations
from mesascope.analyses.causal.head_ablation import head_ablation
from mesascope.analyses.causal.pruning import pruning
from mesascope.analyses.causal.saturation import saturation
from mesascope.analyses.causal.value_paths import value_paths
from mesascope.analyses.heads.refinement import refinement_heads
from mesascope.analyses.inner_objectives.objectives import OBJECTIVES
from mesascope.analyses.stream.attribution import decompose_output
from mesascope.analyses.stream.token_attribution import decompose_logits
from mesascope.models.recurrent.unroll import unroll_steps
from mesascope.probes import probe_site
from mesascope.tasks.affine import Affine
from mesascope.tasks.base import Batch
from recurrent_models import recurrent, some_tokens

OF_TOKENS = ["affine_lens", "attention_patterns", "direct_attribution", "logit_lens", "natural_induction", "norms"]
OF_TOKENS += ["ov_copying_score", "positional_attention", "projections", "token_attribution", "token_projections"]
OF_TOKENS += ["token_similarity"]
OF_VECTORS = ["attn_out_probe", "probe_and_logit_lens", "similarity", "value_copying"]
LENSES = ["affine_lens", "logit_lens", "token_attribution", "token_projections"]


@pytest.mark.parametrize(("name", "layers"), covering(OF_TOKENS, [1, 2]))
def test_results_of_tokens_are_those_of_the_unrolled_copy(name, layers):
    model, x, analysis = (
        recurrent("UT without halting", num_hidden_layers=layers),
        some_tokens(),
        getattr(analyses, name),
    )
    found, expected = (run_analyses(each, x, [analysis])[name] for each in (model, unroll_steps(model)))
    assert found.attrs.pop("num_blocks") == layers
    assert found.identical(expected)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_inner_objectives_are_those_of_the_unrolled_copy(name):
    model, x, analysis = recurrent("UT without halting", num_hidden_layers=2), some_tokens(), analyses.inner(name)
    found, expected = (run_analyses(each, x, [analysis])[analysis.name] for each in (model, unroll_steps(model)))
    assert found.attrs.pop("num_blocks") == 2
    assert found.identical(expected)


@pytest.mark.parametrize("name", OF_VECTORS)
def test_results_of_vectors_are_those_of_the_unrolled_copy(name):
    model, analysis = recurrent("UT without halting", vocab_size=None, d_in=2, d_out=2), getattr(analyses, name)
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(40, 6, 2, generator=generator) for _ in range(2))
    batch = Batch(inputs=x, targets=y, weight=torch.ones(40, 6))
    found, expected = (run_analyses(each, batch, [analysis])[name] for each in (model, unroll_steps(model)))
    assert found.attrs.pop("num_blocks") == 1
    assert found.identical(expected)


def test_analyses_that_run_the_model_are_those_of_the_unrolled_copy_or_refused():
    task = Affine()
    model = recurrent("UT without halting", vocab_size=None, d_in=1, d_out=1)
    batch = task.sample(40, torch.Generator().manual_seed(0))
    for each in (saturation, refinement_heads.using(total=False)):
        found, expected = (each(one, task, batch) for one in (model, unroll_steps(model)))
        assert found.identical(expected)
        assert found.sizes["layer"] == 5
    for each in (refinement_heads, head_ablation, pruning, value_paths):
        with pytest.raises(UnsupportedModel, match="needs a model that calls each layer once"):
            each(recurrent("UT without halting", vocab_size=None, d_in=1, d_out=1, num_hidden_layers=2), task, batch)


def test_calls_are_split_into_layers_and_iterations():
    model, x = recurrent("UT without halting", num_hidden_layers=2, max_iterations=3), some_tokens()
    found = run_analyses(model, x, [analyses.positional_attention, analyses.norms], layers=[1])
    by_call = found["positional_attention"]
    assert by_call["layer"].values.tolist() == [1, 3, 5]
    split = split_iterations(by_call)
    for name, array in by_call.data_vars.items():
        place = array.dims.index("layer")
        assert split[name].dims == (*array.dims[: place + 1], "iteration", *array.dims[place + 1 :])
        assert split[name].attrs == array.attrs
        for iteration in range(3):
            one = split[name].sel(layer=1, iteration=iteration)
            np.testing.assert_array_equal(one.values, array.sel(layer=2 * iteration + 1).values)
    assert split.sizes["layer"] == 1
    assert split_iterations(found["norms"]).identical(found["norms"])
    with pytest.raises(ValueError, match="results to be split must be of a model that repeats its layers"):
        split_iterations(run_analyses(unroll_steps(model), x, [analyses.norms])["norms"])


@pytest.mark.parametrize("name", OF_TOKENS)
def test_models_that_halt_are_refused_by_name_unless_unrolled(name):
    """What a model computes at positions that have stopped is no part of its output."""
    model, x, analysis = recurrent("UT"), some_tokens(), getattr(analyses, name)
    acts = capture(model, x, sorted(analysis.sites), reduce=analysis.reductions, iterations=[0, 1])
    with pytest.raises(ValueError, match="layers of a model that halts also run at positions that have stopped"):
        analysis(acts)
    unrolled = acts.unrolled(include_stopped=True)
    if name in LENSES:
        with pytest.raises(ValueError, match="but a model that halts reads a weighted average of states"):
            analysis(unrolled)
    elif name == "direct_attribution":
        with pytest.raises(UnsupportedModel, match="the output is read from a weighted average of the states"):
            analysis(unrolled)
    else:
        assert analysis(unrolled).attrs["num_blocks"] == 1


def test_analyses_of_outputs_apply_to_models_that_halt():
    model, x = recurrent("UT"), some_tokens()
    batch = Batch(inputs=x, targets=x.roll(-1, 1), weight=torch.ones(x.shape))
    found = run_analyses(model, batch, [analyses.loss_vs_baselines])["loss_vs_baselines"]
    with torch.no_grad():
        losses = torch.nn.functional.cross_entropy(model(x).logits.mT, batch.targets, reduction="none")
    assert any(np.allclose(array.mean(), losses.mean(), rtol=1e-5) for array in found.data_vars.values())


@pytest.mark.slow
def test_functions_of_captures_unroll_them():
    model, x = recurrent("UT without halting", num_hidden_layers=2, max_iterations=2), some_tokens(30)
    sites = ["resid_pre", "resid_post", "attn_out", "z", "output"]
    found, expected = capture(model, x, sites), capture(unroll_steps(model), x, sites)
    index = torch.arange(30), torch.full((30,), 4), x[:, 5]
    for one, other in zip(*(vars(decompose_logits(acts, *index)).values() for acts in (found, expected)), strict=True):
        assert one is other is None or torch.equal(one, other)
    parts = decompose_output(found), decompose_output(expected)
    assert all(torch.equal(parts[0][name], parts[1][name]) for name in parts[1])
    labels = x[:, 0] > 3
    assert probe_site(found, "z", labels).identical(probe_site(expected, "z", labels))
    halting = capture(recurrent("UT"), x, ["resid_post"], iterations=[0])
    with pytest.raises(ValueError, match="layers of a model that halts also run at positions that have stopped"):
        probe_site(halting, "resid_post", labels)
