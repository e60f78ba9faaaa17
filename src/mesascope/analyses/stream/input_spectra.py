"""Input spectra: the energy of the inputs of each linear module W along the eigenvectors of WᵀW."""

from collections.abc import Mapping, Sequence

import torch
import xarray as xr
from jaxtyping import Float, Shaped
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations import UnsupportedModel, capture
from mesascope.activations.linear_inputs import sample_linear_inputs
from mesascope.activations.recording.linear_recorder import LinearModuleSample, LinearModuleSamples
from mesascope.activations.tolerances import rounding_tolerance
from mesascope.analyses.base import analysis
from mesascope.analyses.nulls import NULL_BAND_WIDTH, Null, with_null
from mesascope.analyses.stream.gram_spectrum import (
    decompose_gram_matrix,
    effective_rank,
    participation_ratio,
    small_gram_matrix,
)
from mesascope.analyses.stream.norms import find_sinks, norms, norms_by_depth
from mesascope.axes import to_data_array
from mesascope.tasks.base import Batch, Task

MAX_BINS = 32  # maximum number of bins of a spectrum, so that files stay small


def spectra_of_samples(samples: LinearModuleSamples, bins: int = MAX_BINS) -> xr.Dataset:
    """Compute spectra, energies and gains of all linear modules from a sample of their inputs.

    With WᵀW = U diag(λ) Uᵀ, the gain is Σ |W x|² / (|W|² Σ |x|² / d_in): the observed |W x|² over its expectation for
    randomly rotated inputs. Its variance over rotations Q follows from Schur's lemma: the variance of tr(A Q S Qᵀ) is
    2 |A|² |S|² / ((d-1)(d+2)) for symmetric A and S without trace.

    Args:
        samples: the inputs of the linear modules, from `sample_without_sinks`.
        bins: maximum number of bins of a spectrum.

    Returns:
        ``gain`` with the band of its null, ``energy`` with its null, and the other variables of :data:`VARIABLES`,
        along layer and map, and eigen where they are spectra; NaN in layers without the module.

    Raises:
        UnsupportedModel: |W x|² differs from Σ λ_k <u_k, x>² by more than rounding.
    """
    names = list(dict.fromkeys(sample.linear.name for sample in samples.samples))
    bins = min(bins, *(each.inputs.shape[1] for each in samples.samples))
    shape = (len(samples.layers), len(names))
    values_by_name: dict[str, Tensor] = {}
    for each in samples.samples:
        indices = samples.layers.index(each.linear.layer), names.index(each.linear.name)
        for key, value in _compute_variables(each, bins).items():
            values_by_name.setdefault(key, torch.full((*shape, *value.shape), torch.nan, dtype=torch.float64))[
                indices
            ] = value.cpu()
    coords = {"layer": list(samples.layers), "map": names}
    arrays = {key: _label_variable(key, values_by_name[key], coords) for key in VARIABLES}
    rotated = Null(
        name="inputs rotated", value=arrays["gain_null"], low=arrays["gain_null_low"], high=arrays["gain_null_high"]
    )
    isotropic = Null(name="isotropic inputs", value=arrays["energy_null"])
    variables = with_null("gain", arrays["gain"], rotated) | with_null("energy", arrays["energy"], isotropic)
    variables |= {key: array for key, array in arrays.items() if key not in variables}
    excluded = "; ".join(f"layer {layer}, {name}: {why}" for (layer, name), why in samples.excluded.items())
    return xr.Dataset(variables, attrs={"tokens": samples.num_tokens, "excluded_modules": excluded})


VARIABLES: Mapping[str, tuple[str, dict]] = {
    "gain": (
        r"observed $\lVert W x \rVert^2$ over its mean for randomly rotated inputs",
        {"headline": 1, "center": 1, "scale": "log"},
    ),
    "gain_null": ("mean of the gain for randomly rotated inputs", {}),
    "gain_null_low": ("lower edge of the band for randomly rotated inputs", {}),
    "gain_null_high": ("upper edge of the band for randomly rotated inputs", {}),
    "energy": ("fraction of the inputs' squared norm in each bin of directions", {"headline": 1}),
    "energy_null": ("the same for isotropic inputs: the fraction of directions", {}),
    "eigenvalue": (r"mean eigenvalue of $W^\top W$ in each bin of directions, over the mean of all", {}),
    "effective_rank": (r"exp of the entropy of the normalized eigenvalues of $W^\top W$", {}),
    "input_rank": ("participation ratio of the inputs", {}),
    "observed_norm": (r"root mean square $\lVert W x \rVert$ as computed by the model", {"scale": "log"}),
    "predicted_norm": (r"root mean square $\lVert W x \rVert$ from eigenvalues and energies", {"scale": "log"}),
    "identity_error": (
        "root mean square difference of predicted and observed |W x|² over tokens, relative to that of the larger of "
        "observed and isotropic",
        {},
    ),
}
VARIABLE_UNITS = {"effective_rank": "directions", "input_rank": "directions"}


def _label_variable(key: str, values: Float[Tensor, "layer map *eigen"], coords: dict) -> xr.DataArray:
    about, attrs = VARIABLES[key]
    dims = ("layer", "map", "eigen")[: values.ndim]
    return to_data_array(
        values, *dims, units=VARIABLE_UNITS.get(key, "1"), description=about, coords=coords
    ).assign_attrs(attrs)


def _compute_variables(sample: LinearModuleSample, bins: int) -> dict[str, Tensor]:
    spectrum = decompose_gram_matrix(sample.linear.weight)
    values, x = spectrum.eigenvalues, sample.inputs.double()
    energies = spectrum.compute_energies(x)
    predicted, observed = energies @ values, sample.output_sq_norms
    isotropic = values.mean() * x.square().sum(-1)
    error = _relative_identity_error(sample, predicted, isotropic)
    gain_std = _rotation_std(values, x)
    edges = torch.linspace(0, len(values), bins + 1).round().long().tolist()
    count = torch.tensor(edges, dtype=torch.float64, device=x.device).diff()
    total = torch.stack([part.sum() for part in energies.sum(0).tensor_split(edges[1:-1])])
    height = torch.stack([part.mean() for part in values.tensor_split(edges[1:-1])])
    return {
        "gain": observed.sum() / isotropic.sum(),
        "gain_null": torch.ones_like(gain_std),
        "gain_null_low": (1 - NULL_BAND_WIDTH * gain_std).clamp_min(0),
        "gain_null_high": 1 + NULL_BAND_WIDTH * gain_std,
        "energy": total / total.sum(),
        "energy_null": count / len(values),
        "eigenvalue": height / values.mean(),
        "effective_rank": effective_rank(values),
        "input_rank": participation_ratio(x),
        "observed_norm": observed.mean().sqrt(),
        "predicted_norm": predicted.mean().sqrt(),
        "identity_error": error,
    }


def _relative_identity_error(
    sample: LinearModuleSample, predicted: Float[Tensor, " token"], isotropic: Float[Tensor, " token"]
) -> Float[Tensor, ""]:
    """Return the error of the predicted |W x|², relative to the larger of the observed and the isotropic ones.

    Raises:
        UnsupportedModel: the error exceeds rounding.
    """
    error_norm, reference_norm = (
        (predicted - sample.output_sq_norms).norm(),
        torch.maximum(sample.output_sq_norms.norm(), isotropic.norm()),
    )
    error = error_norm / reference_norm if reference_norm > 0 else error_norm
    if not error <= rounding_tolerance(sample.inputs):
        raise UnsupportedModel(
            f"|W x|² must equal the prediction from the spectrum of W, but for {sample.linear.name} of layer "
            f"{sample.linear.layer} the relative error is {float(error):.1e}; its weights may have changed since it ran"
        )
    return error


def _rotation_std(eigenvalues: Float[Tensor, " d_in"], x: Float[Tensor, "token d_in"]) -> Float[Tensor, ""]:
    """Return the exact standard deviation of the gain over random rotations of the inputs."""
    width = len(eigenvalues)
    if width == 1:
        return eigenvalues.new_zeros(())
    total_energy = x.square().sum()
    shape = eigenvalues.square().sum() - eigenvalues.sum().square() / width
    moment = small_gram_matrix(x).square().sum() - total_energy.square() / width
    variance = 2 * shape.clamp_min(0) * moment.clamp_min(0) / ((width - 1) * (width + 2))
    return variance.sqrt() / (eigenvalues.mean() * total_energy)


def sample_without_sinks(
    model: PreTrainedModel,
    inputs: Shaped[Tensor, "batch pos *d_in"],
    *,
    layers: Sequence[int] | None = None,
    seed: int = 0,
) -> LinearModuleSamples:
    """Sample the inputs of every linear module at random tokens that are not attention sinks.

    Args:
        model: any model that capture supports.
        inputs: tokens or vectors.
        layers: the layers; all by default.
        seed: seed of the choice of tokens.

    Returns:
        the samples.
    """
    is_sink = find_sinks(norms_by_depth(capture(model, inputs, [], reduce=norms.reductions, layers=layers)))
    return sample_linear_inputs(model, inputs, eligible=~is_sink, layers=layers, seed=seed)


@analysis(
    title="Input spectra of the linear modules",
    description=r"""The energy of the inputs $x$ of each linear module $W$ along the eigenvectors of $W^\top W = U
    \operatorname{diag}(\lambda) U^\top$, and the resulting norm of $W x$. Energy: the fraction of the squared norm
    of the inputs along $u_k$, summed over tokens, in descending order of the eigenvalues, in at most 32 bins of
    equally many directions; for isotropic inputs it equals the fraction of directions. The null space of $W$ comes
    last, its energy divided equally. Gain: the observed $\lVert W x \rVert^2$ over its mean when all inputs are
    rotated by one random rotation, $\lVert W \rVert^2 \lVert x \rVert^2 / d_\mathrm{in}$. For rotated inputs the
    gain is 1 on average, with a known standard deviation (Schur's lemma), and the band of the null is 4 of them on
    either side. The identity $\lVert W x \rVert^2 = \sum_k \lambda_k \langle u_k, x \rangle^2$ is checked on every
    sampled token. Effective rank: exp of the entropy of $\lambda_k / \sum_j \lambda_j$ (after Roy & Vetterli 2007,
    who use the singular values instead of their squares). Rank of the inputs: the participation ratio
    $(\operatorname{tr} S)^2 / \operatorname{tr} S^2$ of their uncentred second moment $S$, estimated from pairs of
    different tokens as $\sum \lVert x \rVert^2 \lVert y \rVert^2 / \sum \langle x, y \rangle^2$. Layers without the
    module have no value.""",
    input="model",
)
def input_spectra(model: PreTrainedModel, task: Task, batch: Batch, seed: int = 0) -> xr.Dataset:
    """Compute the input spectra of all linear modules on the sequences of a batch, without attention sinks.

    Args:
        model: any model that capture supports.
        task: unused; analyses of models receive it.
        batch: the sequences.
        seed: seed of the choice of tokens.

    Returns:
        the variables of :func:`spectra_of_samples`.
    """
    return spectra_of_samples(sample_without_sinks(model, batch.inputs, seed=seed))
