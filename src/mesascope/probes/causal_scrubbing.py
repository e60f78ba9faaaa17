"""Causal scrubbing (Chan et al. 2022): the loss recovered when activations are resampled as a hypothesis allows."""

from collections.abc import Callable

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor, nn

from mesascope.activations import InputsLike
from mesascope.argument_types import validate_arguments
from mesascope.axes import to_data_array
from mesascope.interventions import Metric
from mesascope.interventions.metric_arguments import resolve_directed_metric
from mesascope.interventions.metrics import loss
from mesascope.interventions.run_inputs import prepare_run
from mesascope.probes._scrubbed_passes import Labels, ScrubbedPasses
from mesascope.probes.hypotheses import Hypothesis
from mesascope.statistics import BOOTSTRAP_RESAMPLES, CONFIDENCE_LEVEL, derangement

MIN_DIFFERENCE = 1e-6  # of the metric between the ends, relative


@validate_arguments
def scrub(
    model: nn.Module,
    inputs: InputsLike,
    hypothesis: Hypothesis,
    metric: Metric | str | Callable[[Tensor], Tensor],
    *,
    draws: int = 5,
    seed: int = 0,
) -> xr.Dataset:
    """Measure the loss that a model recovers if every activation is resampled as far as a hypothesis allows.

    The components of the model are the embedding (``resid_pre`` of layer 0), the values ``z`` of each head, and the
    MLPs. In a scrubbed pass of the whole batch, each component at each position is replaced:

    - *Without a claim*, by its activation in the intact pass of an unrelated sequence. One unrelated sequence serves
      for all components and positions of a sequence in a pass; unrelated sequences form a random cycle of the batch.
    - *With a claim*, by its activation for another sequence with the same value of the variable (itself if no other
      has the value). A variable with a value per position is resampled at each position independently; otherwise, all
      positions of a claim come from one sequence. Claims are resampled independently of each other, anew in every
      pass.

    The activation of a claim for that other sequence is that of the intact pass if no claim is about an earlier layer
    or site. Otherwise it is computed in a scrubbed pass, with everything before it replaced in the same way. Thus a
    head is tested together with the claims about what it reads, and whatever it reads must have a claim, the embedding
    included. The passes form a chain, not a tree as in the paper: an activation is computed once for each sequence, and
    later claims and the output draw from it with resampling of their own. A claim about ``resid_pre`` of a later layer
    or ``resid_post`` replaces the residual stream at its positions.

    Sequences are resampled within the batch. A variable that is different in all sequences is therefore not tested:
    see ``resampled``, and ``recovered_shuffled``, the recovered fraction with the variables of other sequences.

    Args:
        model: any model that `capture` supports, with attention in every layer.
        inputs: the sequences, of one length, without padding.
        hypothesis: the claims.
        metric: one number per sequence, such as ``loss`` (of the next token, or of the targets of a batch) or
            ``log_probability(answers)``; not a distance from the unedited output.
        draws: number of draws of all resampling.
        seed: seed of the draws.

    Returns:
        ``recovered``: (scrubbed - random) / (intact - random), with the metric's means over sequences and draws, and
        its 95 % interval ``recovered_low``, ``recovered_high`` over sequences (bootstrap); ``recovered_by_draw``
        (draw); the ends ``intact`` and ``random`` (draw), where random is the metric of the intact outputs of the
        unrelated sequences; ``scrubbed`` (draw); ``recovered_shuffled`` (draw); ``resampled`` (claim), the fraction of
        a claim's activations that come from another sequence; and ``num_sequences``.

    Raises:
        UnsupportedModel: a layer has no attention, or the components do not determine the output.
        ValueError: there are fewer than two sequences or padding, the ends of the metric are the same, a claim is about
            something that does not exist, claims overlap, or a variable is invalid.

    >>> from mesascope.models.transformer import Decoder, DecoderConfig
    >>> _ = torch.manual_seed(0)
    >>> model = Decoder(DecoderConfig(vocab_size=5, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
    >>> tokens = torch.randint(0, 5, (8, 4), generator=torch.Generator().manual_seed(0))
    >>> nothing = scrub(model, tokens, Hypothesis(claims=()), "loss")  # the random end
    >>> round(abs(float(nothing["recovered"])), 5)
    0.0
    """
    run = prepare_run(model, inputs)
    if run.mask is not None:
        raise ValueError("scrubbing needs sequences of one length, but some inputs are padding; split them by length")
    count = run.shape[0]
    if count < 2 or draws < 1:
        raise ValueError(f"scrubbing needs two sequences and one draw or more, but got {count} and {draws} draws")
    resolved_metric = loss(run.inputs) if metric == "loss" else resolve_directed_metric(metric, run.inputs)
    passes = ScrubbedPasses(model, run, hypothesis)
    labels = {claim: claim.compute_labels(passes.inputs) for claim in hypothesis.claims}
    generator = torch.Generator().manual_seed(seed)
    intact = resolved_metric(passes.intact_output)
    scrubbed, shuffled, random = [], [], []
    orders = [derangement(count, generator).to(passes.inputs.device) for _ in range(draws)]
    passes.validate_components(orders[0])
    for unrelated in orders:
        random.append(resolved_metric(passes.intact_output[unrelated]))
        _require_difference(intact, random[-1], resolved_metric)
        scrubbed.append(resolved_metric(passes.compute_output(labels, unrelated, generator)))
        order = derangement(count, generator)
        others = {claim: values[order] for claim, values in labels.items()}
        shuffled.append(resolved_metric(passes.compute_output(others, unrelated, generator)))
    return _label_recovery(
        intact.cpu(),
        torch.stack(scrubbed).cpu(),
        torch.stack(random).cpu(),
        torch.stack(shuffled).cpu(),
        labels,
        resolved_metric,
    )


def _require_difference(intact: Float[Tensor, " batch"], random: Float[Tensor, " batch"], metric: Metric) -> None:
    first, second = float(intact.mean()), float(random.mean())
    if not abs(first - second) > MIN_DIFFERENCE * max(abs(first), abs(second)):
        raise ValueError(
            f"the metric must differ between the intact outputs and those of other sequences, but {metric.name} is "
            f"{first:.4g} and {second:.4g}; choose another metric or other sequences"
        )


def _label_recovery(
    intact: Float[Tensor, " batch"],
    scrubbed: Float[Tensor, "draw batch"],
    random: Float[Tensor, "draw batch"],
    shuffled: Float[Tensor, "draw batch"],
    labels: Labels,
    metric: Metric,
) -> xr.Dataset:
    by_draw = [_recover(one.mean(1), intact.mean(), random.mean(1)) for one in (scrubbed, shuffled)]
    low, high = _bootstrap_recovery(intact, scrubbed.mean(0), random.mean(0))
    about = (
        f"{metric.name} recovered by the hypothesis, from the outputs of other sequences (0) to the intact model (1)"
    )
    recovered = _recover(scrubbed.mean(), intact.mean(), random.mean())
    return xr.Dataset(
        {
            "recovered": to_data_array(recovered, units="1", description=about).assign_attrs(headline=1),
            "recovered_low": to_data_array(low, units="1", description=f"lower end of the 95 % interval: {about}"),
            "recovered_high": to_data_array(high, units="1", description=f"upper end of the 95 % interval: {about}"),
            "recovered_by_draw": to_data_array(by_draw[0], "draw", units="1", description=f"{about}, by draw"),
            "recovered_shuffled": to_data_array(
                by_draw[1], "draw", units="1", description=f"{about}, with the variables of other sequences"
            ),
            "intact": to_data_array(
                intact.mean(), units=metric.units, description=f"{metric.description}, of the intact model"
            ),
            "random": to_data_array(
                random.mean(1), "draw", units=metric.units, description=f"{metric.description}, of other outputs"
            ),
            "scrubbed": to_data_array(
                scrubbed.mean(1), "draw", units=metric.units, description=f"{metric.description}, scrubbed"
            ),
            "resampled": to_data_array(
                [_fraction_with_partner(one) for one in labels.values()],
                "claim",
                units="1",
                description="fraction of the activations of a claim that come from another sequence",
                coords={"claim": [claim.name for claim in labels]},
            ),
            "num_sequences": to_data_array(len(intact), units="sequences", description="number of sequences"),
        }
    )


def _recover(scrubbed: Tensor, intact: Tensor, random: Tensor) -> Tensor:
    return (scrubbed - random) / (intact - random)


def _bootstrap_recovery(
    intact: Float[Tensor, " batch"], scrubbed: Float[Tensor, " batch"], random: Float[Tensor, " batch"]
) -> tuple[float, float]:
    """Return the percentile interval of the recovered fraction over sequences."""
    count = len(intact)
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=BOOTSTRAP_RESAMPLES)
    weights = torch.from_numpy(drawn).double()
    sums = [weights @ values for values in (scrubbed, intact, random)]
    ratio = _recover(*sums)
    low, high = np.nanquantile(ratio.numpy(), [(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2])
    return float(low), float(high)


def _fraction_with_partner(labels: Tensor) -> float:
    columns = labels.reshape(len(labels), -1)
    counts = (columns[:, None] == columns[None]).sum(1)
    return float((counts > 1).double().mean())
