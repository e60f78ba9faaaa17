"""Linear probes, and tests of what a model uses: concept erasure, interchange interventions, causal scrubbing."""

from mesascope.probes.causal_scrubbing import scrub
from mesascope.probes.control_tasks import draw_control_labels
from mesascope.probes.erasure import Eraser, erase, fit_eraser
from mesascope.probes.hypotheses import ActivationClaim, Hypothesis, whole_input
from mesascope.probes.interchange import measure_interchange
from mesascope.probes.linear_probe import LinearProbe, fit_probe
from mesascope.probes.probing import probe, probe_site
from mesascope.probes.subspaces import draw_random_basis, find_orthonormal_basis, replace_subspace

__all__ = [
    "ActivationClaim",
    "Eraser",
    "Hypothesis",
    "LinearProbe",
    "draw_control_labels",
    "draw_random_basis",
    "erase",
    "find_orthonormal_basis",
    "fit_eraser",
    "fit_probe",
    "measure_interchange",
    "probe",
    "probe_site",
    "replace_subspace",
    "scrub",
    "whole_input",
]
