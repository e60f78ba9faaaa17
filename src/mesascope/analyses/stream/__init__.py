"""Analyses of the residual stream: lenses, probes, norms, clusters, projections, attribution."""
