"""The views of a model of tokens: functions from a prompt and options to values that can be written as JSON.

Every number comes from `capture`, its readout, `decompose_logits` or the edits of `mesascope.interventions`, and every
view has ``code``, Python code that computes the same numbers.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.activations import capture
from mesascope.analyses.stream.token_attribution import ATTRIBUTION_SITES, decompose_logits
from mesascope.argument_types import validate_arguments
from mesascope.explorer import code
from mesascope.explorer.sources import ExploredInput, Prompts, TaskSequences
from mesascope.explorer.subject import ExploredModel
from mesascope.explorer.view_parts import (
    View,
    ablate_heads,
    check_head,
    check_patch,
    check_range,
    collect_notes,
    encode_numbers,
    name_depths,
    patch_activation,
)

DEFAULT_K = 5  # tokens of a prediction that are listed
MAX_K = 50


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
    inputs = _get_token_source(subject).read_input(prompt)
    acts = subject.capture_input(inputs)
    log_probs = acts["output"][0].log_softmax(-1)
    next_log_prob = log_probs[:-1].gather(1, acts.inputs[0, 1:, None])[:, 0]
    stream = torch.cat([acts["resid_pre"], acts["resid_post"][-1:]])[:, 0]
    return {
        "tokens": _describe_tokens(subject, inputs),
        "loss": [None, *encode_numbers(-next_log_prob)],
        "probability": [*encode_numbers(next_log_prob.exp()), None],
        "norm": encode_numbers(stream.norm(dim=-1)),
        "depths": name_depths(subject),
        "code": code.write_tokens_code(subject, inputs),
    }


@validate_arguments
def view_pattern(subject: ExploredModel, prompt: str | int, layer: int, head: int) -> View:
    """Return the attention pattern of a head.

    Args:
        subject: the explored model.
        prompt: as in `view_tokens`, or in `view_terms`.
        layer: the layer, counted from 0.
        head: the head, counted from 0.

    Returns:
        ``pattern`` (query, key), attention weights.

    Raises:
        ValueError: there is no such prompt, or no such head.
    """
    check_head(subject, layer, head)
    inputs = subject.source.read_input(prompt)
    acts = capture(subject.model, inputs.values, ["pattern"], layers=[layer])
    return {
        "pattern": encode_numbers(acts["pattern"][0, 0, head]),
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
    check_range("k", k, MAX_K + 1, first=1)
    acts = subject.capture_input(inputs)
    stream = torch.cat([acts["resid_pre"], acts["resid_post"][-1:]])[:, 0, position]
    logits = acts.readout.compute_output(stream)
    k = min(k, logits.shape[-1])
    probability, token = logits.softmax(-1).topk(k)
    rows = [
        {"depth": name, "top": [_describe_token(subject, *pair) for pair in zip(tokens, probabilities, strict=True)]}
        for name, tokens, probabilities in zip(
            name_depths(subject), token.tolist(), encode_numbers(probability), strict=True
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
        acts = capture(subject.model, inputs.values, [*ATTRIBUTION_SITES, "output"])  # says which layers lack it
    logits = acts["output"][0, position]
    token = int(logits.argmax()) if token is None else token
    check_range("token", token, len(logits))
    contributions = decompose_logits(
        acts, torch.tensor([0]), torch.tensor([position]), torch.tensor([token]), centred=True
    )
    return {
        "token": {"id": token, "text": _get_token_source(subject).decode_token(token)},
        "head": encode_numbers(contributions.head[..., 0]),
        "mlp": encode_numbers(contributions.mlp[:, 0]),
        "attention_bias": encode_numbers(contributions.attention_bias[:, 0]),
        "embedding": encode_numbers(contributions.embedding[0]),
        "readout_bias": encode_numbers(contributions.readout_bias[0]),
        "total": encode_numbers(contributions.total_logit[0]),
        "logit": encode_numbers(logits[token].double() - logits.double().mean()),
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
    check_range("k", k, MAX_K + 1, first=1)
    inputs = _read_position(subject, prompt, position)
    at = len(inputs) - 1 if position is None else position
    ablation = ablate_heads(subject, heads, method, len(inputs))
    before = subject.capture_input(inputs)["output"][0, at].softmax(-1)
    with collect_notes() as notes:
        after = capture(subject.model, inputs.values, ["output"], edits=ablation.edits)["output"][0, at].softmax(-1)
    return {
        "position": at,
        "rows": _compare_predictions(subject, {"before": before, "after": after}, k),
        "kl": _kl_divergence(before, after),
        "notes": notes,
        "code": code.write_ablation_code(subject, inputs, ablation.heads_by_layer, at, ablation.reference_code),
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
    check_patch(subject, site, layer, head)
    check_range("k", k, MAX_K + 1, first=1)
    inputs, source = _read_position(subject, prompt, position), _get_token_source(subject).read_input(source_prompt)
    if len(source) != len(inputs):
        raise ValueError(
            f"both prompts must have as many tokens, but they have {len(inputs)} and {len(source)}; use words of as "
            "many tokens"
        )
    if read_position is not None:
        check_range("read_position", read_position, len(inputs))
    at = len(inputs) - 1 if read_position is None else read_position
    patch = patch_activation(subject, source, site, layer, position, head)
    before = subject.capture_input(inputs)["output"][0, at].softmax(-1)
    with collect_notes() as notes:
        after = capture(subject.model, inputs.values, ["output"], edits=patch.edit)["output"][0, at].softmax(-1)
    second = patch.source_acts["output"][0, at].softmax(-1)
    return {
        "read_position": at,
        "rows": _compare_predictions(subject, {"before": before, "after": after, "source": second}, k),
        "kl": _kl_divergence(before, after),
        "source": _describe_tokens(subject, source),
        "notes": notes,
        "code": code.write_patching_code(subject, inputs, source, site, patch.where, at),
    }


def _get_token_source(subject: ExploredModel) -> Prompts | TaskSequences:
    """Return the source of inputs; raise a ValueError if it is one of vectors."""
    if not isinstance(subject.source, Prompts | TaskSequences):
        raise ValueError(
            f"this view needs a model of tokens, but the inputs of {subject.name} are vectors; use the views of "
            "vectors, such as view_terms"
        )
    return subject.source


def _read_position(subject: ExploredModel, prompt: str | int, position: int | None) -> ExploredInput:
    inputs = _get_token_source(subject).read_input(prompt)
    if position is not None:
        check_range("position", position, len(inputs))
    return inputs


def _compare_predictions(
    subject: ExploredModel, predictions: Mapping[str, Float[Tensor, " token"]], k: int
) -> list[View]:
    """Return the top tokens of all predictions, with their probability in each, in the order of the first."""
    first = next(iter(predictions.values()))
    chosen = torch.cat([each.topk(min(k, len(each))).indices for each in predictions.values()]).unique()
    chosen = chosen[first[chosen].argsort(descending=True, stable=True)]
    return [
        {"id": token, "text": _get_token_source(subject).decode_token(token)}
        | {name: encode_numbers(each[token]) for name, each in predictions.items()}
        for token in chosen.tolist()
    ]


def _kl_divergence(before: Float[Tensor, " token"], after: Float[Tensor, " token"]) -> float | None:
    before, after = before.double(), after.double()
    return encode_numbers(torch.special.xlogy(before, before).sum() - torch.special.xlogy(before, after).sum())


def _list_top(subject: ExploredModel, prediction: Float[Tensor, " token"]) -> list[View]:
    top = prediction.topk(min(2 * DEFAULT_K, len(prediction)))
    return [
        _describe_token(subject, *pair) for pair in zip(top.indices.tolist(), encode_numbers(top.values), strict=True)
    ]


def _describe_token(subject: ExploredModel, token: int, probability: float | None) -> View:
    return {"id": token, "text": _get_token_source(subject).decode_token(token), "probability": probability}


def _describe_tokens(subject: ExploredModel, inputs: ExploredInput) -> list[View]:
    return [{"id": token, "text": piece} for token, piece in zip(inputs.values[0].tolist(), inputs.pieces, strict=True)]
