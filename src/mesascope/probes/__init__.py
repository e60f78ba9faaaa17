"""Linear probes, and tests of what a model uses: concept erasure, interchange interventions, causal scrubbing."""

from mesascope.probes.control_tasks import draw_control_labels
from mesascope.probes.linear_probe import LinearProbe, fit_probe
from mesascope.probes.probing import probe, probe_site

__all__ = [
    "LinearProbe",
    "draw_control_labels",
    "fit_probe",
    "probe",
    "probe_site",
]
