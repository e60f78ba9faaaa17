"""Linear probes: planted models, and heavy-tailed terms against scikit-learn."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

from mesascope import analyses
from mesascope.activations import capture
from mesascope.ground_truth.models.vectors import build_planted_model

from .test_measures import batch, decoder


def test_linear_probes_read_what_is_there_and_not_what_is_not():
    _, sequences = batch(n=256)
    found = analyses.run_analyses(
        build_planted_model("uniform", length=12), sequences, [analyses.probe_and_logit_lens, analyses.attn_out_probe]
    )
    lens, estimate = found["probe_and_logit_lens"], found["attn_out_probe"]
    assert float(lens["explained"].sel(layer="embedding")) < 0.95
    written = estimate["explained"].isel(layer=0)
    assert float(written.sel(stat="last term")) < 0.95
    copied = analyses.run_analyses(build_planted_model("copying", length=12), sequences, [analyses.attn_out_probe])[
        "attn_out_probe"
    ]
    assert float(copied["explained"].isel(layer=0).sel(stat="last term")) > 0.999
    late = analyses.attn_out_probe.using(first=1)
    previous = analyses.run_analyses(build_planted_model("previous", length=12), sequences, [late])["attn_out_probe"]
    shares = previous["explained"].isel(layer=0).sel(stat=["previous term", "last term"])
    assert shares[0] > 0.99 > shares[1]


def measure_log_errors(name, sequences):
    model = build_planted_model(name, length=12)
    found = analyses.run_analyses(model, sequences, [analyses.attn_out_probe.using(first=2)])["attn_out_probe"]
    error = found["log_error"].isel(layer=0)
    return float(error.sel(stat="last term") - error.sel(stat="previous term"))


def test_errors_for_neighbouring_terms_tell_a_copy_from_an_earlier_copy_and_a_mean():
    _, sequences = batch(n=256)
    assert measure_log_errors("copying", sequences) < -2
    assert measure_log_errors("previous", sequences) > 2
    assert abs(measure_log_errors("uniform", sequences)) < 0.1


def test_no_single_sequence_rules_the_log_errors():
    _, sequences = batch(n=256)
    inputs, targets = sequences.inputs.clone(), sequences.targets.clone()
    inputs[200], targets[200] = 1000 * inputs[200], 1000 * targets[200]
    scaled = replace(sequences, inputs=inputs, targets=targets)
    for name in ("copying", "uniform"):
        assert measure_log_errors(name, scaled) == pytest.approx(measure_log_errors(name, sequences), abs=0.05)


def test_linear_probes_are_as_good_as_those_of_scikit_learn_on_heavy_tailed_terms():
    """A few terms are 100 times as large; the penalty is not that of the large terms."""
    _, sequences = batch(n=256)
    inputs = sequences.inputs.clone()
    inputs[::20] *= 100
    terms = replace(sequences, inputs=inputs, targets=inputs.roll(1, 1) + 0.5 * inputs)
    acts = capture(decoder(norm="layer"), terms, ["resid_pre", "resid_post", "attn_out", "output"])
    found, estimate = analyses.probe_and_logit_lens(acts), analyses.attn_out_probe(acts)
    for depth, resid in enumerate([acts["resid_pre"][0], *acts["resid_post"]]):
        x, y = (rows.double().flatten(0, 1).numpy() for rows in (resid, terms.targets))
        fitted, half = slice(0, 128 * 12), slice(128 * 12, None)
        predicted = LinearRegression().fit(x[fitted], y[fitted]).predict(x[half])
        error = float(np.square(predicted - y[half]).mean())
        assert float(found["affine_error"][depth]) < 1.05 * error
    assert found["log10_penalty"].sizes == {"layer": 3}
    assert estimate["log10_penalty"].sizes == {"layer": 2, "stat": 3}
    x = acts["attn_out"][1].double().flatten(0, 1).numpy()
    last = terms.inputs.double().flatten(0, 1).numpy()
    score = LinearRegression().fit(x[fitted], last[fitted]).score(x[half], last[half])
    assert float(estimate["explained"][1].sel(stat="last term")) > score - 0.01
