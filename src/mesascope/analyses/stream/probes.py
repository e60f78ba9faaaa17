"""Linear probes and logit lens over depth, for models of vectors."""

from collections.abc import Mapping, Sequence

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mesascope.activations import Capture
from mesascope.analyses.base import analysis
from mesascope.analyses.sequence_losses import loss_per_position
from mesascope.axes import to_data_array
from mesascope.ridge import LOG10_PENALTIES, decompose_features, fit_ridge
from mesascope.statistics import r_squared, split_halves

PENALTY_DESCRIPTION = (
    "log10 of the ridge penalty, in units of the mean variance of the features, chosen by generalised "
    f"cross-validation between {LOG10_PENALTIES[0]:g} and {LOG10_PENALTIES[-1]:g}"
)


@analysis(
    title="Linear probes and logit lens over depth",
    description="""The next term predicted from the residual stream at the embedding and after each layer, in two ways.
    Linear probe (affine lens): an affine map from the stream to the next term, one for all scored positions, fitted by
    ridge regression on half of the sequences, with the penalty chosen by generalised cross-validation, and evaluated on
    the other half. Logit lens: the model's own final norm and output map, applied at this depth.""",
    sites=["resid_pre", "resid_post"],
)
def probe_and_logit_lens(acts: Capture, first: int = 0) -> xr.Dataset:
    """Predict the next term from the residual stream at every depth, by a linear probe and by the logit lens.

    Args:
        acts: a capture of a batch with vector targets.
        first: positions before this one are excluded from the fit and from the means over positions.

    Returns:
        ``affine_error``, ``logit_lens_error``, ``explained`` and ``log10_penalty`` (layer), and
        ``affine_error_by_position`` (layer, pos).

    Raises:
        ValueError: the capture has no batch with vector targets.
    """
    batch = _require_vector_batch(acts, "probe_and_logit_lens")
    fitted, scored = split_halves(len(batch))
    positions = [
        position for position in range(first, batch.weight.shape[1]) if bool((batch.weight[:, position] > 0).any())
    ]
    probe_errors, lens_errors, explained, penalties = [], [], [], []
    for resid in stream_by_depth(acts):
        probe = fit_ridge(resid[fitted][:, positions].flatten(0, 1), batch.targets[fitted][:, positions].flatten(0, 1))
        prediction = probe.predict(resid[scored])
        penalties.append(probe.log10_penalty)
        probe_errors.append(loss_per_position(prediction, batch.targets[scored]).mean(0))
        lens_errors.append(loss_per_position(acts.readout.compute_output(resid[scored]), batch.targets[scored]).mean(0))
        explained.append(
            r_squared(prediction[:, positions].flatten(0, 1), batch.targets[scored][:, positions].flatten(0, 1))
        )
    probe_error, lens_error = torch.stack(probe_errors), torch.stack(lens_errors)
    where = f"positions {first} and later" if first else "all scored positions"
    about = f"error of the linear probe on held-out sequences, {where}"
    affine_error = _label_error(acts, probe_error[:, positions].mean(1), about).assign_attrs(headline=1)
    variance = to_data_array(
        torch.tensor(explained),
        "layer",
        units="1",
        description=f"R² of the linear probe on held-out sequences, {where}",
        coords={"layer": depth_names(acts.layers)},
    )
    return xr.Dataset(
        {
            "affine_error": affine_error,
            "logit_lens_error": _label_error(
                acts, lens_error[:, positions].mean(1), f"error of the logit lens, {where}"
            ),
            "affine_error_by_position": _label_error(acts, probe_error, "error of the linear probe at each position"),
            "explained": variance,
            "log10_penalty": _label_penalties(penalties, "layer", coords={"layer": depth_names(acts.layers)}),
        }
    )


def _label_error(acts: Capture, values: Float[Tensor, "layer *pos"], about: str) -> xr.DataArray:
    dims, units, coords = ("layer", "pos")[: values.ndim], "squared units of the terms", depth_names(acts.layers)
    return to_data_array(values, *dims, units=units, description=about, coords={"layer": coords}).assign_attrs(
        scale="log"
    )


@analysis(
    title="Linear probe on attention outputs",
    description="""The terms of the sequence predicted from the attention output of each layer alone, by affine maps
    fitted by ridge regression on half of the sequences, with the penalty chosen by generalised cross-validation, and
    evaluated on the other half: the last term (a copy), the term before it, and the
    next term (the target). The embedding already contains the last term, so only the attention output can show whether
    attention copies. In a converging sequence all terms are nearly equal and R² is high for each of them: compare the
    errors for neighbouring terms, which a copy of one of them tells apart. They are logarithms per sequence, so that no
    single sequence rules the mean.""",
    sites=["attn_out"],
)
def attn_out_probe(acts: Capture, first: int = 0) -> xr.Dataset:
    """Predict terms of the sequence from the attention output of each layer by linear probes.

    Args:
        acts: a capture of a batch with vector inputs and targets.
        first: positions before this one are left out.

    Returns:
        ``explained``, the R² of each term, ``log_error``, the mean over held-out sequences of the log10 of the mean
        squared error in the sequence, and ``log10_penalty`` (layer, stat).

    Raises:
        ValueError: the capture has no batch with vector targets.
    """
    batch = _require_vector_batch(acts, "attn_out_probe")
    previous = torch.cat([torch.zeros_like(batch.inputs[:, :1]), batch.inputs[:, :-1]], dim=1)
    terms = {"previous term": previous, "last term": batch.inputs, "next term": batch.targets}
    fitted, scored = split_halves(len(batch))
    explained = torch.zeros(acts["attn_out"].shape[0], len(terms))
    log_error, penalties = torch.zeros_like(explained), torch.zeros_like(explained)
    for layer, attn_out in enumerate(acts["attn_out"]):
        design = decompose_features(attn_out[fitted, first:].flatten(0, 1))
        for column, term in enumerate(terms.values()):
            probe = design.fit(term[fitted, first:].flatten(0, 1))
            prediction = probe.predict(attn_out[scored, first:])
            explained[layer, column] = r_squared(prediction.flatten(0, 1), term[scored, first:].flatten(0, 1))
            squared_errors = (prediction - term[scored, first:]).double().square().mean((1, 2))
            log_error[layer, column] = squared_errors.clamp_min(torch.finfo(term.dtype).tiny).log10().mean()
            penalties[layer, column] = probe.log10_penalty
    return xr.Dataset(
        {
            "explained": to_data_array(
                explained,
                "layer",
                "stat",
                units="1",
                description="R² on held-out sequences of an affine map from the attention output to a term",
                coords={"stat": list(terms)},
            ),
            "log_error": to_data_array(
                log_error,
                "layer",
                "stat",
                units="1",
                description="log10 of the mean squared error of the probe in a sequence, mean over sequences",
                coords={"stat": list(terms)},
            ).assign_attrs(headline=1),
            "log10_penalty": _label_penalties(penalties, "layer", "stat", coords={"stat": list(terms)}),
        }
    )


def _label_penalties(values: Sequence[float] | Tensor, *dims: str, coords: Mapping[str, Sequence[str]]) -> xr.DataArray:
    return to_data_array(values, *dims, units="1", description=PENALTY_DESCRIPTION, coords=coords)


def depth_names(layers: Sequence[int]) -> list[str]:
    """Return the names of the points between layers, from before the first layer to after the last.

    Args:
        layers: the layers, in order.

    Returns:
        one name more than there are layers.

    >>> depth_names([0, 1]), depth_names([3])
    (['embedding', 'after 0', 'after 1'], ['before 3', 'after 3'])
    """
    return ["embedding" if layers[0] == 0 else f"before {layers[0]}", *(f"after {layer}" for layer in layers)]


def stream_by_depth(acts: Capture) -> Float[Tensor, "depth batch pos d_model"]:
    """Return the residual stream at the embedding and after each layer.

    Args:
        acts: a capture of ``resid_pre`` and ``resid_post``.

    Returns:
        vectors (depth, batch, pos, d_model).
    """
    return torch.cat([acts["resid_pre"][:1], acts["resid_post"]])


def _require_vector_batch(acts: Capture, name: str):
    if acts.batch is None or not acts.batch.targets.is_floating_point():
        raise ValueError(
            f"{name} needs a capture of a Batch with vector targets, but got others; for tokens use logit_lens"
        )
    return acts.batch
