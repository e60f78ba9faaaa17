"""Which directions of a linear map its inputs lie along."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import xarray as xr
from jaxtyping import Float, Shaped
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations import UnsupportedModel, capture
from mesascope.activations.linear_inputs import MapSample, MapSamples, sample_maps
from mesascope.activations.tolerances import tolerance
from mesascope.analyses.instrument import instrument
from mesascope.analyses.stream.norms import at_depths, norms, sinks
from mesascope.axes import label
from mesascope.tasks.base import Batch, Task

BINS = 32  # of a spectrum, so that files stay small
BAND = 4.0  # the null's band is 1 plus and minus so many standard deviations
FLOOR = (
    1e-12  # eigenvalues below this share of the largest are zero: float64 cannot tell their directions from rounding
)


@instrument(title="Gram spectra of the linear maps", order=18)
def spectra(sampled: MapSamples, bins: int = BINS) -> xr.Dataset:
    """Where the inputs x of each linear map W lie along the eigenvectors of WᵀW = U diag(λ) Uᵀ, and how much longer
    that makes W x. Energy: the share of the squared length of the inputs along the u_k, sums over tokens, largest
    eigenvalue first, in at most 32 bins of equally many directions; isotropic inputs have the share of the directions.
    The null space of W stands last, its energy spread evenly. Gain: the observed |W x|² over what inputs of the same
    length have when they are turned at random, all by one rotation, which is |W|² |x|² / d_in; that ratio is then 1 on
    average, with a known standard deviation (Schur's lemma: the variance of tr(A Q S Qᵀ) over rotations Q is
    2 |A|² |S|² / ((d-1)(d+2)) for symmetric A and S without trace), and the band is 4 of them to each side. The
    identity |W x|² = Σ λ_k <u_k, x>² is checked on every sampled token, and a map that breaks it is refused.
    Effective rank: exp of the entropy of λ_k / Σ λ, after Roy & Vetterli (2007), who take singular values where these
    are their squares. Rank of the inputs: the participation ratio (tr S)² / tr S² of their second moment S, not
    centred, both parts from pairs of different tokens: Σ |x|² |y|² / Σ <x, y>². Layers that lack a map have no number.

    Args:
        sampled: what the maps read, from `sample_maps`.
        bins: at most so many bins.
    """
    names = list(dict.fromkeys(each.map.name for each in sampled.samples))
    bins = min(bins, *(each.inputs.shape[1] for each in sampled.samples))
    shape = (len(sampled.layers), len(names))
    found: dict[str, Tensor] = {}
    for each in sampled.samples:
        at = sampled.layers.index(each.map.layer), names.index(each.map.name)
        for key, value in _numbers(each, bins).items():
            found.setdefault(key, torch.full((*shape, *value.shape), torch.nan, dtype=torch.float64))[at] = value.cpu()
    coords = {"layer": list(sampled.layers), "map": names}
    variables = {key: _labelled(key, found[key], coords) for key in ABOUT}
    missing = "; ".join(f"layer {layer}, {name}: {why}" for (layer, name), why in sampled.left_out.items())
    return xr.Dataset(variables, attrs={"tokens": sampled.tokens, "left_out": missing})


ABOUT: Mapping[str, tuple[str, dict]] = {
    "gain": (
        "observed |W x|² over that of the same inputs turned at random",
        {"headline": 1, "center": 1, "scale": "log"},
    ),
    "gain_low": ("lower edge of the band with inputs rotated at random", {"control_of": "gain"}),
    "gain_high": ("upper edge of the band with inputs rotated at random", {"control_of": "gain"}),
    "energy": ("share of the inputs' squared length in each bin of directions", {"headline": 1}),
    "energy_isotropic": ("the same of isotropic inputs: the share of directions", {"control_of": "energy"}),
    "eigenvalue": ("mean eigenvalue of WᵀW in each bin of directions, over the mean of all", {}),
    "effective_rank": ("exp of the entropy of the eigenvalues of WᵀW", {}),
    "input_rank": ("participation ratio of the inputs", {}),
    "observed_norm": ("root mean square |W x| as the model computed it", {"scale": "log"}),
    "predicted_norm": ("root mean square |W x| from eigenvalues and energies", {"scale": "log"}),
    "identity_error": (
        "root mean square difference of predicted and observed |W x|² over tokens, relative to that of the larger of "
        "observed and isotropic",
        {},
    ),
}
UNITS = {"effective_rank": "directions", "input_rank": "directions"}


def _labelled(key: str, values: Float[Tensor, "layer map *eigen"], coords: dict) -> xr.DataArray:
    """A variable of the result."""
    about, attrs = ABOUT[key]
    dims = ("layer", "map", "eigen")[: values.ndim]
    return label(values, *dims, units=UNITS.get(key, "1"), about=about, coords=coords).assign_attrs(attrs)


@dataclass(frozen=True, kw_only=True, eq=False)
class Spectrum:
    """The eigendecomposition of WᵀW, in float64.

    Attributes:
        values: all eigenvalues, largest first; those of the null space are 0.
        directions: the eigenvectors of the first of them, orthonormal; what they do not span is the null space.
    """

    values: Float[Tensor, " d_in"]
    directions: Float[Tensor, "d_in rank"]

    def energies(self, x: Float[Tensor, "token d_in"]) -> Float[Tensor, "token d_in"]:
        """<u_k, x>² of each vector; inside the null space no direction is singled out, and all have the same."""
        x = x.double()
        along = (x @ self.directions).square()
        left = x.shape[1] - along.shape[1]
        rest = (x.square().sum(-1, keepdim=True) - along.sum(-1, keepdim=True)).clamp_min(0)
        return torch.cat([along, rest.expand(-1, left) / max(left, 1)], dim=1)


def decompose(weight: Float[Tensor, "d_out d_in"]) -> Spectrum:
    """The eigendecomposition of WᵀW, by way of W Wᵀ where that is smaller: u_k = Wᵀ v_k / sqrt(λ_k).

    >>> decompose(torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 2.0]])).values.tolist()
    [9.0, 4.0, 0.0]
    """
    W = weight.double()
    wide = W.shape[0] < W.shape[1]
    values, vectors = torch.linalg.eigh(W @ W.T if wide else W.T @ W)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    if wide:
        kept = int((values > FLOOR * values[0]).sum())
        vectors = W.T @ vectors[:, :kept] / values[:kept].sqrt()
        values = torch.cat([values[:kept], values.new_zeros(W.shape[1] - kept)])
    return Spectrum(values=values, directions=vectors)


def effective_rank(values: Float[Tensor, " d_in"]) -> Float[Tensor, ""]:
    """The exponential of the entropy of the eigenvalues' shares; not a number where all are 0.

    >>> round(float(effective_rank(torch.tensor([2.0, 2.0, 0.0]))), 6)
    2.0
    """
    share = values / values.sum()
    return torch.xlogy(share, share).sum().neg().exp()


def _numbers(sample: MapSample, bins: int) -> dict[str, Tensor]:
    """Everything about one map, by variable."""
    spectrum = decompose(sample.map.weight)
    values, x = spectrum.values, sample.inputs.double()
    energies = spectrum.energies(x)
    predicted, observed = energies @ values, sample.observed
    isotropic = values.mean() * x.square().sum(-1)
    error = _identity_error(sample, predicted, isotropic)
    spread = _rotation_spread(values, x)
    edges = torch.linspace(0, len(values), bins + 1).round().long().tolist()
    count = torch.tensor(edges, dtype=torch.float64, device=x.device).diff()
    total = torch.stack([part.sum() for part in energies.sum(0).tensor_split(edges[1:-1])])
    height = torch.stack([part.mean() for part in values.tensor_split(edges[1:-1])])
    return {
        "gain": observed.sum() / isotropic.sum(),
        "gain_low": (1 - BAND * spread).clamp_min(0),
        "gain_high": 1 + BAND * spread,
        "energy": total / total.sum(),
        "energy_isotropic": count / len(values),
        "eigenvalue": height / values.mean(),
        "effective_rank": effective_rank(values),
        "input_rank": _participation(x),
        "observed_norm": observed.mean().sqrt(),
        "predicted_norm": predicted.mean().sqrt(),
        "identity_error": error,
    }


def _identity_error(
    sample: MapSample, predicted: Float[Tensor, " token"], isotropic: Float[Tensor, " token"]
) -> Float[Tensor, ""]:
    """How far the predicted |W x|² are from the observed ones, relative to those or to what isotropic inputs have.

    Raises:
        UnsupportedModel: farther than rounding.
    """
    gap, size = (predicted - sample.observed).norm(), torch.maximum(sample.observed.norm(), isotropic.norm())
    error = gap / size if size > 0 else gap
    if not error <= tolerance(sample.inputs):
        raise UnsupportedModel(
            f"a linear map must lengthen what it reads as its spectrum says, but {sample.map.name} of layer "
            f"{sample.map.layer} misses that by {float(error):.1e}; its weights may have changed since it ran"
        )
    return error


def _rotation_spread(values: Float[Tensor, " d_in"], x: Float[Tensor, "token d_in"]) -> Float[Tensor, ""]:
    """The standard deviation of the gain over random rotations of these inputs, exactly."""
    width = len(values)
    if width == 1:
        return values.new_zeros(())
    size = x.square().sum()
    shape = values.square().sum() - values.sum().square() / width
    moment = _gram(x).square().sum() - size.square() / width
    variance = 2 * shape.clamp_min(0) * moment.clamp_min(0) / ((width - 1) * (width + 2))
    return variance.sqrt() / (values.mean() * size)


def _participation(x: Float[Tensor, "token d_in"]) -> Float[Tensor, ""]:
    """The participation ratio of the inputs, from pairs of different tokens: few tokens do not make it smaller."""
    length = x.square().sum(-1)
    pairs = length.sum().square() - length.square().sum()
    return pairs / (_gram(x).square().sum() - length.square().sum()) if len(x) > 1 else x.new_full((), torch.nan)


def _gram(x: Float[Tensor, "token d_in"]) -> Float[Tensor, "small small"]:
    """x xᵀ or xᵀ x, whichever is smaller: both have the same sum of squares."""
    return x @ x.T if x.shape[0] < x.shape[1] else x.T @ x


def sample_without_sinks(
    model: PreTrainedModel,
    inputs: Shaped[Tensor, "batch pos *d_in"],
    *,
    layers: Sequence[int] | None = None,
    seed: int = 0,
) -> MapSamples:
    """What every linear map reads, at a random sample of the tokens that are no sinks.

    Args:
        model: any model that capture supports.
        inputs: tokens or vectors.
        layers: which layers; all by default.
        seed: of the choice of tokens.
    """
    apart = sinks(at_depths(capture(model, inputs, [], reduce=norms.reductions, layers=layers)))
    return sample_maps(model, inputs, counted=~apart, layers=layers, seed=seed)


@instrument(title=spectra.title, order=spectra.order)
def _input_spectra(model: PreTrainedModel, task: Task, batch: Batch, seed: int = 0) -> xr.Dataset:
    """The spectra of all maps on these sequences."""
    return spectra(sample_without_sinks(model, batch.inputs, seed=seed))


gram = replace(_input_spectra, name="gram", about=spectra.about)
