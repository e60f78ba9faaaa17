"""Inner objectives: does what a layer adds to a token's representation descend a function of it?

With attention weights and values frozen at the forward pass, an objective is a scalar function of one token's
representation. For every layer and sublayer it is read before and after the real update, and the update is held
against the negative gradient, which comes from autograd.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor

from mesascope.activations import SUBLAYERS, WRITES, Capture, LayerReduction, LayerView
from mesascope.analyses.base import Measure
from mesascope.analyses.inner_objectives.sublayer import Sublayer
from mesascope.analyses.instrument import described
from mesascope.analyses.stream.norms import at_depths, norms, sinks
from mesascope.axes import label

DRAWS = 2  # orders of the keys in the control
SHUFFLED = {"pattern", "value"}  # what the control of the keys needs
PerToken = Float[Tensor, "batch query"]

QUANTITIES: Mapping[str, tuple[str, str]] = {
    "before": ("objective's own", "the objective at the representation that the sublayer reads"),
    "after": ("objective's own", "the objective after the update"),
    "descends": ("1", "share of tokens at which the update lowers the objective"),
    "cosine": ("1", "cosine between the update and minus the gradient of the objective"),
    "step_size": ("1", "step size at which minus the gradient is nearest to the update, median over tokens"),
    "unexplained": ("1", "share of the squared update that the best step leaves"),
    "cosine_elsewhere": ("1", "cosine between the update half the sequence away and minus the gradient"),
    "opposition": ("1", "minus the cosine between the representation and the update"),
}
CONTROLS = {"cosine_elsewhere": {"control_of": "cosine", "control": "updates of other positions"}}


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A function that updates may descend.

    Attributes:
        name, title, about: how it is called, a heading, and its formula with its source.
        read: gets a sublayer; gives one number per token (batch, query) for each of its quantities but ``descends``,
            which follows from before and after.
        value: the function itself, where it is one of the representation.
        quantities: from :data:`QUANTITIES`.
        sites: what of the layer it needs beside the stream and the writes.
        sublayers: whose updates it is about.
        tautology: why it cannot fail, where it cannot; its results are marked so and carry no claim.
        most: tokens of a sequence at most, spread evenly over those looked at.
    """

    name: str
    title: str
    about: str
    read: Callable[[Sublayer], Mapping[str, Tensor]]
    value: Callable[[Tensor, Sublayer], Tensor] | None = None
    quantities: tuple[str, ...] = ("before", "after", "descends", "cosine", "step_size", "unexplained")
    sites: tuple[str, ...] = ()
    sublayers: tuple[str, ...] = SUBLAYERS
    tautology: str = ""
    most: int | None = None


def objective(
    *,
    title: str,
    sites: tuple[str, ...] = (),
    sublayers: tuple[str, ...] = SUBLAYERS,
    tautology: str = "",
    ordered: bool = True,
    most: int | None = None,
) -> Callable[[Callable[[Tensor, Sublayer], Tensor]], Objective]:
    """Make an objective of a function of representations (batch, query, d_model) and the sublayer, frozen.

    Its name and docstring become the objective's; it gives one number per token, and autograd its gradient.

    Args:
        title: a heading.
        sites: what of the layer it needs beside the stream and the writes.
        sublayers: whose updates it is about.
        tautology: why it cannot fail, where it cannot.
        ordered: it depends on which key has which weight, and is computed anew where the control shuffles them.
        most: tokens of a sequence at most, spread evenly, where it costs much.

    >>> @objective(title="Length")
    ... def length(z, at):
    ...     '''Half of the squared length of the representation.'''
    ...     return z.square().sum(-1) / 2
    >>> inner(length).name
    'inner_length'
    """

    def decorate(function: Callable[[Tensor, Sublayer], Tensor]) -> Objective:
        told = described(function)
        return Objective(
            name=told["name"],
            about=told["about"],
            title=title,
            read=partial(descent, function, ordered),
            value=function,
            sites=sites,
            sublayers=sublayers,
            tautology=tautology,
            most=most,
        )

    return decorate


def descent(value: Callable[[Tensor, Sublayer], Tensor], ordered: bool, at: Sublayer) -> dict[str, Tensor]:
    """An objective before and after an update, and the update against its gradient."""

    def start() -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z = at.x.detach().clone().requires_grad_()
            before = value(z, at)
            return before.detach(), torch.autograd.grad(before.sum(), z)[0]

    before, gradient = start() if ordered else at.once(f"start of {value!r}", start)
    with torch.no_grad():
        after = value(at.x + at.u, at)
    return {"before": before, "after": after, **against(-gradient, at.u)}


def against(direction: Float[Tensor, "*rest d"], update: Float[Tensor, "*rest d"]) -> dict[str, Float[Tensor, "*rest"]]:
    """An update held against a direction: their cosine, the best step along it, and what that leaves unexplained."""
    direction, update = direction.double(), update.double()
    product, size = (direction * update).sum(-1), direction.square().sum(-1)
    cosine = product / (size.sqrt() * update.norm(dim=-1))
    return {"cosine": cosine, "step_size": product / size, "unexplained": 1 - cosine.square()}


def inner(one: Objective, seed: int = 0) -> Measure:
    """The measure of an objective: its value before and after every update, and the update against its descent.

    Means are over the tokens of the capture's ``queries``; sinks (the first token of a sequence, and any over ten
    medians long) are reported apart. Control: the same with attention's weights on its keys in a random order.

    Args:
        one: an objective of :mod:`mesascope.analyses.inner_objectives.objectives`, or your own.
        seed: of the order of the keys in the control.
    """
    needed = {"resid_pre", "attn_write", *one.sites}
    optional = ("mlp_write",) if "mlp" in one.sublayers else ()
    shuffles = "attention" in one.sublayers and needed >= SHUFFLED
    numbers = ("batch", "query", "sublayer", "stat")
    axes = {_name(one, "real"): numbers} | ({_name(one, "shuffled"): (*numbers, "draw")} if shuffles else {})
    see = LayerReduction(
        sites=tuple(sorted(needed)), optional=optional, fn=partial(_see, one, shuffles, seed), axes=axes
    )
    return Measure(
        name=f"inner_{one.name}",
        title=f"Inner objective: {one.title}",
        about=one.about,
        compute=partial(_summary, one=one),
        sites=(),
        reductions={f"inner_{one.name}": see, **norms.reductions},
        order=10,
    )


def _name(one: Objective, kind: str) -> str:
    """What the numbers of an objective are called in a capture."""
    return f"inner_{one.name}_{kind}"


def _told(one: Objective) -> list[str]:
    """The quantities that an objective gives for every token."""
    return [name for name in one.quantities if name != "descends"]


def _see(one: Objective, shuffles: bool, seed: int, view: LayerView) -> dict[str, Tensor]:
    """All quantities of one layer, for every token looked at; not a number where an objective looks at fewer."""
    count = len(view.queries)
    some = torch.linspace(0, count - 1, min(one.most or count, count)).round().long()
    view = view.at(some)
    absent = torch.full((len(view.inputs), count, len(_told(one))), torch.nan, dtype=torch.float64)
    at = {name: Sublayer(view=view, name=name) for name in one.sublayers if WRITES[name] in view}
    real = [absent.index_copy(1, some, _numbers(one, at[name])) if name in at else absent for name in SUBLAYERS]
    found = {_name(one, "real"): torch.stack(real, dim=2)}
    if shuffles:
        numbers = [_numbers(one, other) for other in at["attention"].shuffled(DRAWS, seed)]
        draws = torch.stack([absent.index_copy(1, some, each) for each in numbers], -1)
        found[_name(one, "shuffled")] = torch.stack([draws, absent[..., None].expand_as(draws)], dim=2)
    return found


def _numbers(one: Objective, at: Sublayer) -> Float[Tensor, "batch query stat"]:
    """The quantities of one sublayer."""
    read = one.read(at)
    return torch.stack([read[name].detach().double().cpu() for name in _told(one)], dim=-1)


def _summary(recorded: Capture, one: Objective) -> xr.Dataset:
    """Means over tokens, sinks apart, of every quantity; the control beside."""
    real = recorded[_name(one, "real")]
    apart = sinks(at_depths(recorded))[:, list(recorded.queries)].cpu()
    layers = {"layer": list(recorded.layers), "sublayer": list(SUBLAYERS)}
    found = {}
    for name in one.quantities:
        units, about = QUANTITIES[name]
        looks = {"headline": 1, "over_training": 1} if name in ("before", "cosine", "descends") else {}
        looks |= CONTROLS.get(name, {})
        looks |= {"tautology": one.tautology} if one.tautology and name != "opposition" else {}
        found[name] = label(
            _mean(one, name, real, ~apart), "layer", "sublayer", units=units, about=about, coords=layers
        ).assign_attrs(looks)
        found[f"{name}_at_sinks"] = label(
            _mean(one, name, real, apart), "layer", "sublayer", units=units, about=f"at sinks: {about}", coords=layers
        )
        if _name(one, "shuffled") in recorded:
            draws = [_mean(one, name, each, ~apart) for each in recorded[_name(one, "shuffled")].unbind(-1)]
            found[f"{name}_keys_shuffled"] = label(
                torch.stack(draws), "draw", "layer", "sublayer", units=units, about=about, coords=layers
            ).assign_attrs(control_of=name, control="keys shuffled")
    tokens = {"tokens": int((~apart).sum()), "sinks": int(apart.sum())}
    return xr.Dataset(found, attrs=tokens | ({"tautology": one.tautology} if one.tautology else {}))


def _mean(
    one: Objective, name: str, numbers: Float[Tensor, "layer batch query sublayer stat"], kept: Bool[Tensor, "..."]
) -> Float[Tensor, "layer sublayer"]:
    """A quantity averaged over the tokens that are kept and have it."""
    at = _told(one).index
    if name == "descends":
        before, after = numbers[..., at("before")], numbers[..., at("after")]
        values = torch.where((before + after).isnan(), torch.nan, (after < before).double())
    else:
        values = numbers[..., at(name)]
    if not kept.any():
        return values.new_full((len(values), len(SUBLAYERS)), torch.nan)
    chosen = values[:, kept]
    return chosen.nanmedian(1).values if name == "step_size" else chosen.nanmean(1)
