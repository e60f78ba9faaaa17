"""What each layer already knows of the answer."""

from collections.abc import Sequence

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mesascope.activations import Capture
from mesascope.analyses.base import measure
from mesascope.analyses.loss import per_position
from mesascope.analyses.statistics import affine_fit, halves, r_squared
from mesascope.axes import label


@measure(title="Read-out, layer by layer", sites=["resid_pre", "resid_post"], order=20)
def lens(recorded: Capture, first: int = 0) -> xr.Dataset:
    """The answer read from the residual stream at every depth, in two ways. Affine lens: an affine map from the
    stream to the next term, one for all positions that count, fitted by ridge regression on half of the sequences and
    scored on the other half. Own read-out: the model's own final norm and output map, applied early. The sites are the
    embedding and the stream after each layer.

    Args:
        recorded: a capture of a batch with vector targets.
        first: positions before this one are left out, of the fit and of the mean over positions.
    """
    batch = _vector_batch(recorded, "lens")
    stream = depths(recorded)
    fitted, scored = halves(len(batch))
    places = [place for place in range(first, batch.weight.shape[1]) if bool((batch.weight[:, place] > 0).any())]
    affine, own, explained = [], [], []
    for resid in stream:
        weight, constant = affine_fit(
            resid[fitted][:, places].flatten(0, 1), batch.targets[fitted][:, places].flatten(0, 1)
        )
        guess = resid[scored].double() @ weight + constant
        affine.append(per_position(guess, batch.targets[scored]).mean(0))
        own.append(per_position(recorded.frame.readout(resid[scored]), batch.targets[scored]).mean(0))
        explained.append(r_squared(guess[:, places].flatten(0, 1), batch.targets[scored][:, places].flatten(0, 1)))
    errors, own_errors = torch.stack(affine), torch.stack(own)
    depth = {"layer": depth_names(recorded.layers)}
    unit = "squared units of the terms"
    where = f"positions {first} and later" if first else "all positions that count"
    log = {"scale": "log"}
    return xr.Dataset(
        {
            "affine_error": label(
                errors[:, places].mean(1),
                "layer",
                units=unit,
                about=f"error of the affine lens on held-out sequences, {where}",
                coords=depth,
            ).assign_attrs(log, headline=1),
            "own_error": label(
                own_errors[:, places].mean(1),
                "layer",
                units=unit,
                about=f"error of the model's own read-out applied at this depth, {where}",
                coords=depth,
            ).assign_attrs(log),
            "affine_error_at": label(
                errors, "layer", "pos", units=unit, about="error of the affine lens at each position", coords=depth
            ).assign_attrs(log),
            "explained": label(
                torch.tensor(explained),
                "layer",
                units="1",
                about=f"R² of the affine lens on held-out sequences, {where}",
                coords=depth,
            ),
        }
    )


@measure(title="What the attention of each layer writes", sites=["attn_write"], order=25)
def estimate(recorded: Capture, first: int = 0) -> xr.Dataset:
    """How well the terms of the sequence can be read, by an affine map fitted on half of the sequences and scored on
    the other half, from what the attention of a layer writes, without the rest of the residual stream: the last
    term (a copy), the one before it, and the next one (the answer). The embedding already holds the last term, so
    only the attention's own output can tell whether attention copies. In a converging sequence all terms are nearly
    the same and R² is high for any of them, so the error is also put in proportion to the step between neighbouring
    terms: 1 is perfect, 0 no better than taking the neighbour.

    Args:
        recorded: a capture of a batch with vector inputs and targets.
        first: positions before this one are left out.
    """
    batch = _vector_batch(recorded, "estimate")
    before = torch.cat([torch.zeros_like(batch.inputs[:, :1]), batch.inputs[:, :-1]], dim=1)
    terms = {"previous term": before, "last term": batch.inputs, "next term": batch.targets}
    step, ahead = batch.inputs - before, batch.targets - batch.inputs
    steps = {"previous term": step, "last term": step, "next term": ahead}
    fitted, scored = halves(len(batch))
    found = torch.zeros(recorded["attn_write"].shape[0], len(terms))
    of_step = torch.zeros_like(found)
    for layer, write in enumerate(recorded["attn_write"]):
        for column, (name, term) in enumerate(terms.items()):
            weight, constant = affine_fit(write[fitted, first:].flatten(0, 1), term[fitted, first:].flatten(0, 1))
            guess = write[scored, first:].double() @ weight + constant
            found[layer, column] = r_squared(guess.flatten(0, 1), term[scored, first:].flatten(0, 1))
            wrong = (guess - term[scored, first:]).square().sum()
            of_step[layer, column] = 1 - wrong / steps[name][scored, first:].double().square().sum()
    return xr.Dataset(
        {
            "explained": label(
                found,
                "layer",
                "stat",
                units="1",
                about="R² on held-out sequences of an affine map from the attention's write to a term",
                coords={"stat": list(terms)},
            ),
            "step_explained": label(
                of_step,
                "layer",
                "stat",
                units="1",
                about="one minus the squared error of that reading over the squared step between neighbouring terms",
                coords={"stat": list(terms)},
            ).assign_attrs(headline=1),
        }
    )


def depth_names(layers: Sequence[int]) -> list[str]:
    """The places between layers, from before the first of them to after the last.

    >>> depth_names([0, 1]), depth_names([3])
    (['embedding', 'after 0', 'after 1'], ['before 3', 'after 3'])
    """
    return ["embedding" if layers[0] == 0 else f"before {layers[0]}", *(f"after {layer}" for layer in layers)]


def depths(recorded: Capture) -> Float[Tensor, "depth batch pos d_model"]:
    """The residual stream at the embedding and after each layer."""
    return torch.cat([recorded["resid_pre"][:1], recorded["resid_post"]])


def _vector_batch(recorded: Capture, name: str):
    """The batch, if it has one and its targets are vectors."""
    if recorded.batch is None or not recorded.batch.targets.is_floating_point():
        raise ValueError(f"{name} needs a capture of a Batch with vector targets; for tokens use logit_lens")
    return recorded.batch
