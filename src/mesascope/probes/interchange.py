"""Interchange interventions: whether an activation of another input makes the model answer as a hypothesis predicts."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor, nn

from mesascope.activations import BatchedEdits, Capture, Edit, InputsLike, capture
from mesascope.argument_types import CODE_ERRORS, summarize_error, validate_arguments
from mesascope.axes import to_data_array
from mesascope.interventions.edits import IndexByAxis
from mesascope.interventions.run_inputs import prepare_pair
from mesascope.probes._intervals import binomial_interval
from mesascope.probes._rows import Labels, read_integers, read_list
from mesascope.probes.subspaces import Basis, draw_random_basis, replace_in_order, replace_subspace
from mesascope.statistics import derangement

PredictFn = Callable[[Tensor], Tensor]


@validate_arguments
def measure_interchange(
    model: nn.Module,
    inputs: InputsLike,
    source: InputsLike,
    expected: Labels,
    site: str = "resid_post",
    *,
    layers: Sequence[int] | None = None,
    where: IndexByAxis | None = None,
    basis: Basis | None = None,
    answers: Labels | None = None,
    predict: PredictFn | None = None,
    draws: int = 5,
    seed: int = 0,
) -> xr.Dataset:
    """Measure how often a source's activation makes the model give the counterfactual label (Geiger et al. 2021).

    Every base input is run with the activation at the site, or its projection on a subspace, taken from its source
    input. If the site carries a variable, the model answers as if the base had the source's value of this variable; the
    label of this answer is ``expected``. Two controls use the same pairs and labels: the activation of the source of
    another pair, and, with a basis, random subspaces of the same dimension.

    Args:
        model: any model that `capture` supports.
        inputs: base inputs, of one length.
        source: source inputs: as many of the same length.
        expected: the counterfactual label of every pair (batch): a token, or what ``predict`` returns. It must differ
            from the output of the unedited base in some pairs.
        site: name of the site.
        layers: layers whose activation is replaced, one at a time; all layers with the site by default.
        where: index by axis, as in `replace`; all positions and heads by default. It must not name layers.
        basis: orthonormal rows along the last axis of the site; the whole activation by default.
        answers: tokens among which the model's output is the one of the highest logit; all by default.
        predict: maps outputs (batch, pos, d_out) to labels (batch), instead of the highest logit at the last position.
        draws: number of draws of each control.
        seed: seed of the controls.

    Returns:
        ``accuracy``, ``accuracy_low`` and ``accuracy_high`` (layer), the fraction of pairs with the counterfactual
        label and its 95 % interval over pairs; ``unedited``, this fraction without the interchange; ``random_source``
        (layer, draw); with a basis ``random_subspace`` (layer, draw); and ``num_pairs``.

    Raises:
        UnsupportedModel: the model cannot be captured, or the sequences of a batch affect each other.
        ValueError: there are fewer than two pairs, inputs are padded or differ in shape, labels do not fit or are all
            those of the unedited base, or the site or the basis is invalid.

    >>> from mesascope.models.transformer import Decoder, DecoderConfig
    >>> _ = torch.manual_seed(0)
    >>> model = Decoder(DecoderConfig(vocab_size=5, hidden_size=8, num_attention_heads=2))
    >>> base, source = torch.randint(0, 5, (2, 6, 4), generator=torch.Generator().manual_seed(0))
    >>> expected = model(source).logits[:, -1].argmax(-1)
    >>> results = measure_interchange(model, base, source, expected)  # the whole residual stream: as the source
    >>> results["accuracy"].values.tolist()
    [1.0, 1.0, 1.0]
    """
    run, other = prepare_pair(model, inputs, source, None, None)
    if run.mask is not None or other.mask is not None:
        raise ValueError(
            "interchange needs pairs of one length without padding, but some inputs are padded; split them"
        )
    count = run.shape[0]
    if count < 2 or draws < 1:
        raise ValueError(f"interchange needs two pairs and one draw or more, but got {count} pairs and {draws} draws")
    where = dict(where or {})
    if "layer" in where or "batch" in where:
        raise ValueError("where must not name layers or sequences; pass layers, and the pairs that count")
    reader = _LabelReader(expected, count, answers, predict, run.inputs)
    runner = BatchedEdits(model, run.inputs, site, all_positions=predict is not None)
    acts = capture(model, other.inputs, [site], layers=runner.layers_with_site(site) if layers is None else layers)
    unedited = reader.compute_fraction(runner.unedited_output)
    if unedited == 1:
        raise ValueError(
            "expected must differ from the output of the unedited base in some pairs, but is the same in all; choose "
            "pairs whose counterfactual label differs"
        )
    generator = torch.Generator().manual_seed(seed)
    orders = [derangement(count, generator).tolist() for _ in range(draws)]
    size = acts[site].shape[-1]
    bases = [] if basis is None else [draw_random_basis(len(basis), size, generator) for _ in range(draws)]
    table = []
    for layer in acts.layers:
        at_layer = where | {"layer": layer}
        edits = [_build_edit(site, acts, basis, at_layer, order) for order in (None, *orders)]
        edits += [_build_edit(site, acts, drawn, at_layer, None) for drawn in bases]
        fractions = []
        for edit in edits:
            runner.validate_edit(edit)
            fractions.append(reader.compute_fraction(runner.run_edits([[edit]])[0]))
        table.append(fractions)
    return _label_fractions(table, list(acts.layers), unedited, count, draws)


def _build_edit(site: str, acts: Capture, basis: Basis | None, where: IndexByAxis, order: Sequence[int] | None) -> Edit:
    if basis is None:
        return replace_in_order(site, acts, where, order)
    return replace_subspace(site, acts, basis, where, order)


class _LabelReader:
    """Compares the labels of outputs with those that are expected."""

    def __init__(
        self, expected: Labels, count: int, answers: Labels | None, predict: PredictFn | None, inputs: Any
    ) -> None:
        self._expected = read_integers("expected", expected, torch.Size([count]))
        self._predict = predict
        self._answers = None
        values = getattr(inputs, "targets", inputs)
        if predict is None and values.is_floating_point():
            raise ValueError("predict must be given for a model of vectors, since it has no logits, but is missing")
        if answers is not None:
            if predict is not None:
                raise ValueError("answers and predict exclude each other; omit either")
            self._answers = read_list("answers", answers).unique()
            if not torch.isin(self._expected, self._answers).all():
                raise ValueError("expected must be among the answers, but some labels are not; add them to answers")

    def compute_fraction(self, output: Float[Tensor, "batch predicted d_out"]) -> float:
        """Return the fraction of outputs with the expected label."""
        return float((self._read_labels(output) == self._expected).double().mean())

    def _read_labels(self, output: Float[Tensor, "batch predicted d_out"]) -> Int[Tensor, " batch"]:
        if self._predict is not None:
            return read_integers("what predict returns", self._call_predict(output), torch.Size([len(output)]))
        logits = output[:, -1].cpu()
        for name, tokens in (("expected", self._expected), ("answers", self._answers)):
            if tokens is not None and not ((tokens >= 0) & (tokens < logits.shape[1])).all():
                raise ValueError(f"{name} must be tokens from 0 to {logits.shape[1] - 1}, but some are not")
        if self._answers is None:
            return logits.argmax(-1)
        return self._answers[logits[:, self._answers].argmax(-1)]

    def _call_predict(self, output: Float[Tensor, "batch predicted d_out"]) -> Labels:
        assert self._predict is not None
        try:
            return self._predict(output)
        except torch.OutOfMemoryError:
            raise
        except CODE_ERRORS as error:
            raise ValueError(
                f"predict must accept outputs of shape {tuple(output.shape)}, but raised {summarize_error(error)}"
            ) from error


def _label_fractions(
    table: Sequence[Sequence[float]], layers: list[int], unedited: float, count: int, draws: int
) -> xr.Dataset:
    coords = {"layer": layers}
    ends = [binomial_interval(row[0], count) for row in table]
    about = "fraction of pairs with the counterfactual label"
    by_layer = {
        "accuracy": ([row[0] for row in table], about),
        "accuracy_low": ([low for low, _ in ends], f"lower end of the 95 % interval over pairs: {about}"),
        "accuracy_high": ([high for _, high in ends], f"upper end of the 95 % interval over pairs: {about}"),
    }
    controls = {
        "random_source": ([row[1 : draws + 1] for row in table], f"{about}, with the source of another pair"),
        "random_subspace": ([row[draws + 1 :] for row in table], f"{about}, in random subspaces of the same dimension"),
    }
    variables = {
        name: to_data_array(values, "layer", units="1", description=text, coords=coords)
        for name, (values, text) in by_layer.items()
    }
    variables |= {
        name: to_data_array(values, "layer", "draw", units="1", description=text, coords=coords)
        for name, (values, text) in controls.items()
        if values[0]
    }
    variables["unedited"] = to_data_array(unedited, units="1", description=f"{about}, without the interchange")
    variables["num_pairs"] = to_data_array(count, units="pairs", description="number of pairs")
    return xr.Dataset(variables)
