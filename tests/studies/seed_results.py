"""Synthetic results of several seeds and two checkpoints."""

import numpy as np
import xarray as xr

SEEDS = 5


def stack_seeds(values, *dims, **coords):
    """Stack seeds that differ slightly."""
    drawn = np.stack([np.asarray(values, float) * (1 + 1e-3 * seed) for seed in range(SEEDS)])
    return xr.DataArray(drawn, dims=("seed", *dims), coords={"seed": range(SEEDS)} | coords)


def stack_steps(untrained, trained, *dims, **coords):
    """Stack an untrained and a trained checkpoint of every seed."""
    steps = np.stack([np.asarray(values, float) for values in (untrained, trained)])
    return stack_seeds(steps, "step", *dims, step=[0, 100], **coords)
