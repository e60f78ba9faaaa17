"""Inner objectives: what each update of the residual stream descends."""
