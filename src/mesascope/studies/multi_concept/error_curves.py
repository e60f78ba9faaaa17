"""Exponential and power-law fits to a falling error."""

import numpy as np
from jaxtyping import Float

from mesascope.studies.toy_model import fit_line

FIT_WINDOW = (0.25, 0.003)  # errors between which curves are fitted, 1.9 powers of ten; ours
EXPONENTIAL, POWER_LAW = "exponential", "power law"


def fit_decays(steps: Float[np.ndarray, " step"], error: Float[np.ndarray, " step"]) -> tuple[float, float, float]:
    """Fit log error by a line in the step (exponential) and by a line in the log of the step (power law).

    Both have two fitted numbers. The fit begins at the first step with an error below 0.25 and ends before the first
    later one with an error below 0.003. The power law may have its origin at step 0 or one recorded step before the
    first step of the fit, whichever fits better.

    Args:
        steps: recorded steps, in ascending order.
        error: one number for each step.

    Returns:
        R² of both fits, and the powers of ten of the error that they cover; NaN and 0 for less than four steps.

    >>> steps = np.arange(100.0)
    >>> [round(number, 2) for number in fit_decays(steps, 0.5 * np.exp(-steps / 10))]
    [1.0, 0.94, 1.91]
    """
    inside = _select_window(error)
    if len(inside) < 4:
        return float("nan"), float("nan"), 0.0
    x, logs = steps[inside], np.log10(error[inside])
    origins = [0.0, x[0] - (x[1] - x[0])]
    power = max(fit_line(np.log(x - origin), logs)[1] for origin in origins if (x > origin).all())
    return fit_line(x, logs)[1], power, float(np.ptp(logs))


def _select_window(error: Float[np.ndarray, " step"]) -> np.ndarray:
    below = np.flatnonzero(error <= FIT_WINDOW[0])
    if not len(below):
        return below
    first = below[0]
    ended = np.flatnonzero(error[first:] < FIT_WINDOW[1])
    return np.arange(first, first + ended[0] if len(ended) else len(error))
