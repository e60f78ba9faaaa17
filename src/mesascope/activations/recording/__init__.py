"""Recording of activations: what is stored, reduced and returned, and the micro-batches that are run."""
