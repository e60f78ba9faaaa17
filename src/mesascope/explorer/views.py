"""The views of the explorer: functions from a prompt and options to values that can be written as JSON.

Every number comes from `capture`, its readout, `decompose_logits` or the edits of `mesascope.interventions`, and every
view has ``code``, Python code that computes the same numbers.
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.activations import EditHadNoEffect, capture
from mesascope.analyses.stream.token_attribution import ATTRIBUTION_SITES, decompose_logits
from mesascope.argument_types import validate_arguments
from mesascope.explorer import code
from mesascope.explorer.subject import ExploredInput, ExploredModel
from mesascope.interventions import mean, replace, zero

DEFAULT_K = 5  # tokens of a prediction that are listed
MAX_K = 50
ABLATION_METHODS = ("zero", "mean")
PATCHED_SITES = ("resid_pre", "z")

View = dict[str, Any]


@validate_arguments
def view_tokens(subject: ExploredModel, prompt: str | int) -> View:
    """Return the tokens of a prompt, with loss, probability and norms.

    Args:
        subject: the explored model.
        prompt: a text; of a run, the number of a sequence.

    Returns:
        ``tokens`` (id and text); ``loss`` of each token (None at position 0, which nothing predicts); ``probability``
        of the token after each position (None at the last); ``norm`` (depth, pos) of the residual stream before each
        layer and after the last, at ``depths``.

    Raises:
        ValueError: there is no such prompt.
    """
    inputs = subject.source.read_input(prompt)
    acts = subject.capture_input(inputs)
    log_probs = acts["output"][0].log_softmax(-1)
    next_log_prob = log_probs[:-1].gather(1, acts.inputs[0, 1:, None])[:, 0]
    stream = torch.cat([acts["resid_pre"], acts["resid_post"][-1:]])[:, 0]
    return {
        "tokens": _describe_tokens(subject, inputs),
        "loss": [None, *_to_json(-next_log_prob)],
        "probability": [*_to_json(next_log_prob.exp()), None],
        "norm": _to_json(stream.norm(dim=-1)),
        "depths": _name_depths(subject),
        "code": code.write_tokens_code(subject, inputs),
    }


@validate_arguments
def view_pattern(subject: ExploredModel, prompt: str | int, layer: int, head: int) -> View:
    """Return the attention pattern of a head.

    Args:
        subject: the explored model.
        prompt: as in `view_tokens`.
        layer: the layer, counted from 0.
        head: the head, counted from 0.

    Returns:
        ``pattern`` (query, key), attention weights.

    Raises:
        ValueError: there is no such prompt, or no such head.
    """
    _check_head(subject, layer, head)
    inputs = subject.source.read_input(prompt)
    acts = capture(subject.model, inputs.tokens, ["pattern"], layers=[layer])
    return {
        "pattern": _to_json(acts["pattern"][0, 0, head]),
        "code": code.write_pattern_code(subject, inputs, layer, head),
    }


@validate_arguments
def view_lens(subject: ExploredModel, prompt: str | int, position: int, k: int = DEFAULT_K) -> View:
    """Return the logit lens at a position: the final norm and the unembedding, applied at every depth.

    Args:
        subject: the explored model.
        prompt: as in `view_tokens`.
        position: the position, counted from 0.
        k: tokens per depth.

    Returns:
        ``rows``: for every depth its name and its ``top`` tokens with probabilities.

    Raises:
        ValueError: there is no such prompt or position.
        UnsupportedModel: the output is not computed from the last layer by a chain of modules.
    """
    inputs = _read_position(subject, prompt, position)
    _check_range("k", k, MAX_K + 1, first=1)
    acts = subject.capture_input(inputs)
    stream = torch.cat([acts["resid_pre"], acts["resid_post"][-1:]])[:, 0, position]
    logits = acts.readout.compute_output(stream)
    k = min(k, logits.shape[-1])
    probability, token = logits.softmax(-1).topk(k)
    rows = [
        {"depth": name, "top": [_describe_token(subject, *pair) for pair in zip(tokens, probabilities, strict=True)]}
        for name, tokens, probabilities in zip(
            _name_depths(subject), token.tolist(), _to_json(probability), strict=True
        )
    ]
    return {"rows": rows, "code": code.write_lens_code(subject, inputs, position, k)}


@validate_arguments
def view_attribution(subject: ExploredModel, prompt: str | int, position: int, token: int | None = None) -> View:
    """Return direct logit attribution: the contributions of all components to the logit of a token.

    The final norm is frozen. The mean logit over the vocabulary is subtracted, which changes no probability.

    Args:
        subject: the explored model.
        prompt: as in `view_tokens`.
        position: the position after which the token is predicted.
        token: the token; by default the one with the largest logit.

    Returns:
        ``token``; ``head`` (layer, head), ``mlp`` and ``attention_bias`` (layer), ``embedding`` and ``readout_bias``;
        ``total``, their sum; ``logit``, that of the model minus its mean; ``top``, the tokens to choose from.

    Raises:
        ValueError: there is no such prompt, position or token.
        UnsupportedModel: the output is not a sum of contributions.
    """
    inputs = _read_position(subject, prompt, position)
    acts = subject.capture_input(inputs)
    if "z" not in acts:
        acts = capture(subject.model, inputs.tokens, [*ATTRIBUTION_SITES, "output"])  # says which layers lack it
    logits = acts["output"][0, position]
    token = int(logits.argmax()) if token is None else token
    _check_range("token", token, len(logits))
    contributions = decompose_logits(
        acts, torch.tensor([0]), torch.tensor([position]), torch.tensor([token]), centred=True
    )
    return {
        "token": {"id": token, "text": subject.source.decode_token(token)},
        "head": _to_json(contributions.head[..., 0]),
        "mlp": _to_json(contributions.mlp[:, 0]),
        "attention_bias": _to_json(contributions.attention_bias[:, 0]),
        "embedding": _to_json(contributions.embedding[0]),
        "readout_bias": _to_json(contributions.readout_bias[0]),
        "total": _to_json(contributions.total_logit[0]),
        "logit": _to_json(logits[token].double() - logits.double().mean()),
        "top": _list_top(subject, logits.softmax(-1)),
        "code": code.write_attribution_code(subject, inputs, position, token),
    }


@validate_arguments
def view_ablation(
    subject: ExploredModel,
    prompt: str | int,
    heads: Sequence[Sequence[int]],
    method: str = "zero",
    position: int | None = None,
    k: int = DEFAULT_K,
) -> View:
    """Return the prediction before and after heads are switched off.

    Args:
        subject: the explored model.
        prompt: as in `view_tokens`.
        heads: pairs of a layer and a head, one or more.
        method: ``zero``; or ``mean``, the mean of ``z`` at the same position over reference sequences of equal length:
            passages of the sample text, or other sequences of the task of a run.
        position: the position after which the next token is predicted; by default the last one.
        k: tokens of each prediction.

    Returns:
        ``rows``: tokens that are among the top before or after, with both probabilities; ``kl``, the KL divergence of
        the prediction after from the one before, in nats; ``notes``.

    Raises:
        ValueError: there is no such prompt, head, method or position.
    """
    if not heads:
        raise ValueError("heads must have one head or more, as pairs of layer and head, but is empty")
    for layer, head in heads:
        _check_head(subject, layer, head)
    if method not in ABLATION_METHODS:
        raise ValueError(f"a method must be one of {', '.join(ABLATION_METHODS)}, but got {method!r}")
    _check_range("k", k, MAX_K + 1, first=1)
    inputs = _read_position(subject, prompt, position)
    at = len(inputs) - 1 if position is None else position
    heads_by_layer: dict[int, list[int]] = {}
    for layer, head in sorted({(layer, head) for layer, head in heads}):
        heads_by_layer.setdefault(layer, []).append(head)
    reference_code = ""
    if method == "mean":
        references, reference_code = subject.capture_references(len(inputs))
        edits = [mean("z", references, {"layer": layer, "head": each}) for layer, each in heads_by_layer.items()]
    else:
        edits = [zero("z", {"layer": layer, "head": each}) for layer, each in heads_by_layer.items()]
    before = subject.capture_input(inputs)["output"][0, at].softmax(-1)
    with _collect_notes() as notes:
        after = capture(subject.model, inputs.tokens, ["output"], edits=edits)["output"][0, at].softmax(-1)
    return {
        "position": at,
        "rows": _compare_predictions(subject, {"before": before, "after": after}, k),
        "kl": _kl_divergence(before, after),
        "notes": notes,
        "code": code.write_ablation_code(subject, inputs, heads_by_layer, at, reference_code),
    }


@validate_arguments
def view_patching(
    subject: ExploredModel,
    prompt: str | int,
    source_prompt: str | int,
    site: str,
    layer: int,
    position: int,
    head: int | None = None,
    read_position: int | None = None,
    k: int = DEFAULT_K,
) -> View:
    """Return the prediction before and after an activation is replaced by that of a second prompt.

    Args:
        subject: the explored model.
        prompt: as in `view_tokens`.
        source_prompt: the second prompt, of as many tokens.
        site: ``resid_pre`` or ``z``.
        layer: the layer.
        position: the position that is patched.
        head: the head, at ``z``; all heads by default.
        read_position: the position after which the next token is predicted; by default the last one.
        k: tokens of each prediction.

    Returns:
        ``rows``: tokens that are among the top before, after or in the second prompt, with the three probabilities;
        ``kl`` as in `view_ablation`; ``source``, the tokens of the second prompt; ``notes``.

    Raises:
        ValueError: there is no such prompt, site, layer, head or position, or the prompts differ in length.
    """
    if site not in PATCHED_SITES:
        raise ValueError(f"a site must be one of {', '.join(PATCHED_SITES)}, but got {site!r}")
    if head is not None and site != "z":
        raise ValueError(f"head must be given at z only, but the site is {site}; omit it")
    if site == "z":
        _check_head(subject, layer, head or 0)
    _check_range("layer", layer, subject.layers)
    _check_range("k", k, MAX_K + 1, first=1)
    inputs, source = _read_position(subject, prompt, position), subject.source.read_input(source_prompt)
    if len(source) != len(inputs):
        raise ValueError(
            f"both prompts must have as many tokens, but they have {len(inputs)} and {len(source)}; use words of as "
            "many tokens"
        )
    if read_position is not None:
        _check_range("read_position", read_position, len(inputs))
    at = len(inputs) - 1 if read_position is None else read_position
    where = {"layer": layer, "pos": position} | ({} if head is None else {"head": head})
    source_acts = subject.capture_input(source)
    if site not in source_acts:
        source_acts = capture(subject.model, source.tokens, [site, "output"], layers=[layer])
    edit = replace(site, source_acts, where)
    before = subject.capture_input(inputs)["output"][0, at].softmax(-1)
    with _collect_notes() as notes:
        after = capture(subject.model, inputs.tokens, ["output"], edits=edit)["output"][0, at].softmax(-1)
    second = source_acts["output"][0, at].softmax(-1)
    return {
        "read_position": at,
        "rows": _compare_predictions(subject, {"before": before, "after": after, "source": second}, k),
        "kl": _kl_divergence(before, after),
        "source": _describe_tokens(subject, source),
        "notes": notes,
        "code": code.write_patching_code(subject, inputs, source, site, where, at),
    }


@contextmanager
def _collect_notes() -> Iterator[list[str]]:
    """Collect the warnings that an edit had no effect, as lines; the caller has the model in exclusive use."""
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", EditHadNoEffect)
        yield notes
    for one in caught:
        if issubclass(one.category, EditHadNoEffect):
            notes.append(str(one.message))
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


def _read_position(subject: ExploredModel, prompt: str | int, position: int | None) -> ExploredInput:
    inputs = subject.source.read_input(prompt)
    if position is not None:
        _check_range("position", position, len(inputs))
    return inputs


def _check_head(subject: ExploredModel, layer: int, head: int) -> None:
    _check_range("layer", layer, subject.layers)
    if layer not in subject.attention_layers:
        layers = ", ".join(map(str, subject.attention_layers))
        raise ValueError(f"layer must have attention, as the layers {layers} do, but got {layer}")
    _check_range("head", head, subject.heads)


def _check_range(name: str, value: int, size: int, first: int = 0) -> None:
    if not first <= value < size:
        raise ValueError(f"{name} must be from {first} to {size - 1}, but got {value}")


def _compare_predictions(
    subject: ExploredModel, predictions: Mapping[str, Float[Tensor, " token"]], k: int
) -> list[View]:
    """Return the top tokens of all predictions, with their probability in each, in the order of the first."""
    first = next(iter(predictions.values()))
    chosen = torch.cat([each.topk(min(k, len(each))).indices for each in predictions.values()]).unique()
    chosen = chosen[first[chosen].argsort(descending=True, stable=True)]
    return [
        {"id": token, "text": subject.source.decode_token(token)}
        | {name: _to_json(each[token]) for name, each in predictions.items()}
        for token in chosen.tolist()
    ]


def _kl_divergence(before: Float[Tensor, " token"], after: Float[Tensor, " token"]) -> float | None:
    before, after = before.double(), after.double()
    return _to_json(torch.special.xlogy(before, before).sum() - torch.special.xlogy(before, after).sum())


def _list_top(subject: ExploredModel, prediction: Float[Tensor, " token"]) -> list[View]:
    top = prediction.topk(min(2 * DEFAULT_K, len(prediction)))
    return [_describe_token(subject, *pair) for pair in zip(top.indices.tolist(), _to_json(top.values), strict=True)]


def _describe_token(subject: ExploredModel, token: int, probability: float | None) -> View:
    return {"id": token, "text": subject.source.decode_token(token), "probability": probability}


def _describe_tokens(subject: ExploredModel, inputs: ExploredInput) -> list[View]:
    return [{"id": token, "text": piece} for token, piece in zip(inputs.tokens[0].tolist(), inputs.pieces, strict=True)]


def _name_depths(subject: ExploredModel) -> list[str]:
    return [*(f"before layer {layer}" for layer in range(subject.layers)), "after the last layer"]


def _to_json(values: Tensor) -> Any:
    """Return numbers as nested lists; those that are not finite, which JSON lacks, are None."""
    if values.ndim == 0:
        value = float(values)
        return value if math.isfinite(value) else None
    if bool(values.isfinite().all()):
        return values.tolist()
    return [_to_json(each) for each in values]
