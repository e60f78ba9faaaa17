"""What each layer of a language model already knows of the next token."""

import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from mesascope.activations import Capture, LayerReduction, LayerView
from mesascope.analyses.base import measure, refuse_some_layers
from mesascope.analyses.statistics import halves, ridge_fit
from mesascope.analyses.stream.probes import depth_names
from mesascope.axes import label

CHUNK = 128  # tokens read out at once; more do not fit a cache
Stream = Float[Tensor, "token d_model"]


def _sample(view: LayerView) -> dict[str, Tensor]:
    """The stream before and after a layer, at the tokens looked at."""
    return {"lens_before": view["resid_pre"][:, view.queries], "lens_after": view["resid_post"][:, view.queries]}


SAMPLE = LayerReduction(
    sites=("resid_pre", "resid_post"),
    fn=_sample,
    axes=dict.fromkeys(("lens_before", "lens_after"), ("batch", "query", "d_model")),
)


@measure(title="Logit lens", sites=[], reductions={"lens_sample": SAMPLE}, order=20, padded=True)
def logit_lens(recorded: Capture) -> xr.Dataset:
    """The model's own final norm and output map applied to the residual stream before each layer and after the last
    (nostalgebraist 2020): the loss on the true next token, how often the top token is the true one, and how often it
    is the token the model will finally choose. For a language model; positions without a next token do not count, nor
    those that the task of a batch does not score.
    """
    streams, targets, known = next_tokens(recorded)
    loss, top = zip(*(_read_out(recorded, stream, targets) for stream in streams), strict=True)
    losses, tops = torch.stack(loss), torch.stack(top)
    at_tokens = _spread(recorded, losses.masked_fill(~known, torch.nan))
    depth = {"layer": depth_names(recorded.layers)}
    found = _summary(losses, tops, targets, known, depth)
    found["loss_at"] = label(
        at_tokens, "layer", "batch", "pos", units="nat", about="loss on the true next token", coords=depth
    )
    return xr.Dataset(found)


@measure(title="Affine lens", sites=[], reductions={"lens_sample": SAMPLE}, order=21, padded=True)
def affine_lens(recorded: Capture) -> xr.Dataset:
    """An affine map from the residual stream at each depth to the final one, then the model's own read-out (Belrose et
    al. 2023 train such a map; here it is ridge regression, the penalty chosen by generalised cross-validation). Fitted
    on half of the sequences and scored on the other half (halves of the tokens, where there is one sequence). What it
    reads better than the logit lens is known at that depth, in other coordinates.
    """
    streams, targets, known = next_tokens(recorded)
    if len(targets) == 1:
        half = targets.shape[1] // 2
        streams = [torch.stack([stream[0, :half], stream[0, half : 2 * half]]) for stream in streams]
        targets, known = (torch.stack([x[0, :half], x[0, half : 2 * half]]) for x in (targets, known))
    fitted, scored = halves(len(targets))
    loss, top, penalties = [], [], []
    for stream in streams:
        weight, constant, penalty = ridge_fit(stream[fitted].flatten(0, 1), streams[-1][fitted].flatten(0, 1))
        guess = (stream[scored].double() @ weight + constant).to(stream.dtype)
        read = _read_out(recorded, guess, targets[scored])
        loss.append(read[0])
        top.append(read[1])
        penalties.append(penalty)
    depth = {"layer": depth_names(recorded.layers)}
    final = _read_out(recorded, streams[-1][scored], targets[scored])[1]
    found = _summary(torch.stack(loss), torch.stack(top), targets[scored], known[scored], depth, final)
    about = "penalty chosen, in units of the mean variance of the stream"
    found["penalty"] = label(torch.tensor(penalties), "layer", units="1", about=about, coords=depth)
    return xr.Dataset(found)


def next_tokens(
    recorded: Capture,
) -> tuple[list[Float[Tensor, "batch query d_model"]], Int[Tensor, "batch query"], Bool[Tensor, "batch query"]]:
    """The stream at the embedding and after each layer, the true next tokens, and where there is one that counts.

    They are those of the capture's batch, if it has one, and else the tokens that were read one place on.

    Raises:
        ValueError: vectors were read, or layers were left out.
    """
    tokens = recorded.inputs
    if tokens.is_floating_point():
        raise ValueError("a lens on tokens needs tokens, but the inputs are vectors; use lens")
    refuse_some_layers(recorded)
    at = torch.tensor(recorded.queries, device=tokens.device)
    streams = [recorded["lens_before"][0], *recorded["lens_after"]]
    if recorded.batch is not None and not recorded.batch.targets.is_floating_point():
        batch = recorded.batch.to(tokens.device)
        return streams, batch.targets[:, at], batch.weight[:, at] > 0
    following = (at + 1).clamp(max=tokens.shape[1] - 1)
    known = (at + 1 < tokens.shape[1]).expand(len(tokens), -1)
    if recorded.attention_mask is not None:
        known = known & recorded.attention_mask[:, at].bool() & recorded.attention_mask[:, following].bool()
    return streams, tokens[:, following], known


def _read_out(
    recorded: Capture, stream: Float[Tensor, "batch query d_model"], targets: Int[Tensor, "batch query"]
) -> tuple[Float[Tensor, "batch query"], Int[Tensor, "batch query"]]:
    """The loss on the targets and the top token, a few tokens at a time."""
    loss, top = [], []
    for part, wanted in zip(stream.flatten(0, 1).split(CHUNK), targets.flatten().split(CHUNK), strict=True):
        logits = recorded.frame.readout(part[None])[0].float()
        loss.append(functional.cross_entropy(logits, wanted, reduction="none"))
        top.append(logits.argmax(-1))
    return torch.cat(loss).view(targets.shape), torch.cat(top).view(targets.shape)


def _summary(
    loss: Float[Tensor, "depth batch query"],
    top: Int[Tensor, "depth batch query"],
    targets: Int[Tensor, "batch query"],
    known: Bool[Tensor, "batch query"],
    depth: dict[str, list[str]],
    final: Int[Tensor, "batch query"] | None = None,
) -> dict[str, xr.DataArray]:
    """Means over the tokens that have a next one."""
    settled = top == (top[-1] if final is None else final)
    told = {
        "loss": (loss.double(), "nat", "mean loss on the true next token", {"headline": 1}),
        "accuracy": ((top == targets).double(), "1", "share of positions whose top token is right", {}),
        "settled": (settled.double(), "1", "share of positions whose top token is the one finally chosen", {}),
    }
    return {
        name: label(values[:, known].mean(1), "layer", units=units, about=about, coords=depth).assign_attrs(attrs)
        for name, (values, units, about, attrs) in told.items()
    }


def _spread(recorded: Capture, at_queries: Float[Tensor, "depth batch query"]) -> Float[Tensor, "depth batch pos"]:
    """The same at all positions: not a number where a token was not looked at."""
    everywhere = at_queries.new_full((*at_queries.shape[:2], recorded.inputs.shape[1]), torch.nan)
    everywhere[:, :, list(recorded.queries)] = at_queries
    return everywhere
