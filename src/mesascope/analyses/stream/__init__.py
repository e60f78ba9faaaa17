"""What the residual stream holds: lenses, probes, norms, clusters, attribution."""
