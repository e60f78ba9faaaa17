"""What capture does on every causal language model type of transformers, held against the untouched models."""

import gc
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel

from mesascope.activations import FORWARD_SITES, Capture, UnsupportedModel, capture
from mesascope.activations._layer_spec import LayerSpec
from mesascope.activations._model_structure import ModelStructure
from mesascope.activations.capture import read_structure
from mesascope.activations.forward import eval_no_grad
from mesascope.activations.hooks import _attention_math as attention_math
from mesascope.activations.readout._output_readout import explain_missing_final_norm
from mesascope.activations.tolerances import allclose

from .tiny import VOCABULARY, build, every_type, silenced

LENGTHS = (11, 7, 9)
RAGGED = (1, 11, 7)  # the first sequence of a padded batch has a single token
LONG = 600  # tokens; some models choose among keys, or change their positions, beyond a few hundred
STREAM = ("resid_pre", "resid_post")
WRITES = ("attn_out", "mlp_out")
HEADS = ("query", "key", "value", "pattern", "z")  # without these a model is not captured


@dataclass(kw_only=True)
class Outcome:
    """What became of one type.

    Attributes:
        kind: the model type, and ``model`` its class.
        word: ``captured``, ``refused`` or ``not built``.
        why: the message, where it was not captured.
        layers: the layers whose attention was captured, and ``count`` of how many.
        missing: by site, the reason why it is not offered in those layers.
        padding: by side, why it was refused.
        long: why sequences of 600 tokens were refused.
        alike: the layers whose attention was captured, in groups whose heads have the same shapes.
        wrong: what contradicts the untouched model; must be empty.
    """

    kind: str
    model: str
    word: str = "captured"
    why: str = ""
    layers: tuple[int, ...] = ()
    count: int = 0
    missing: dict[str, str] = field(default_factory=dict)
    padding: dict[str, str] = field(default_factory=dict)
    long: str = ""
    alike: list[list[int]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def sweep(kinds: tuple[str, ...] | None = None) -> list[Outcome]:
    """The outcome of every type, in the order of their names."""
    with silenced():
        return [outcome_of(kind) for kind in sorted(kinds or every_type())]


def outcome_of(kind: str) -> Outcome:
    """What capture does on one type, with the kernel that transformers chooses and with the eager one."""
    outcome = Outcome(kind=kind, model=MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[kind]].__name__)
    try:
        model = build(kind)
        plain = _untouched(model, tokens())
        if not plain.isfinite().all():
            raise ValueError("a random model gives NaN")
    except Exception as error:
        outcome.word, outcome.why = "not built", f"{type(error).__name__}: {error}"
        return outcome
    try:
        _hold(model, outcome)
        _hold(build(kind, "eager"), outcome)
        for side in ("left", "right"):
            _pad(model, side, outcome)
        _lengthen(model, outcome)
        _change(model, outcome)
    except UnsupportedModel as refusal:
        outcome.word, outcome.why = "refused", str(refusal)
    except Exception as error:
        outcome.wrong.append(f"fails with {type(error).__name__}: {error}")
    gc.collect()
    return outcome


def tokens(batch: int = len(LENGTHS), length: int = max(LENGTHS)) -> Tensor:
    """Random tokens; none of them is special."""
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(1))


def _hold(model: PreTrainedModel, outcome: Outcome) -> None:
    """Capture all that is offered, and hold it against the untouched model."""
    with eval_no_grad(model):
        structure = read_structure(model, tokens())
    layers = structure.layers
    attending = [number for number, layer in enumerate(layers) if layer.attention is not None]
    outcome.layers, outcome.count = tuple(attending), len(layers)
    outcome.missing |= _missing(layers, attending)
    no_norm = explain_missing_final_norm(structure.readout(model, attending))
    outcome.missing |= {"final_norm": no_norm} if no_norm else {}
    outcome.alike = _group_by_shape(structure, attending)
    for alike in outcome.alike:
        recorded = _largest(model, alike, outcome)
        _closed(recorded, layers, outcome)
        _unembedded(recorded, outcome)
        _compared(model, recorded, attending, len(layers), outcome)
    lacking = [site for site in HEADS if site in outcome.missing]
    if lacking:
        raise UnsupportedModel(f"{lacking[0]}: {outcome.missing[lacking[0]]}")


def _group_by_shape(structure: ModelStructure, attending: list[int]) -> list[list[int]]:
    """The layers that attend, in groups whose heads have the same shapes."""
    shapes = {
        each.name: (each.call.query.shape, each.call.key.shape, each.output.shape)
        for each in structure.trace.attentions
    }
    names = {number: structure.layers[number].attention or "" for number in attending}
    return [
        [number for number in attending if shapes[names[number]] == shape] for shape in dict.fromkeys(shapes.values())
    ]


def _compared(model: PreTrainedModel, recorded: Capture, attending: list[int], count: int, outcome: Outcome) -> None:
    """The prediction must be the untouched model's bit for bit, and so must what else it tells of itself."""
    kernel = recorded.attn_implementation
    eager = {"output_attentions": True, "output_hidden_states": True} if kernel == "eager" else {}
    with torch.no_grad():
        untouched = model(tokens(), use_cache=False)
        told = model(tokens(), use_cache=False, **eager)
    if not torch.equal(recorded["output"], untouched.logits):
        outcome.wrong.append(f"captured and untouched predictions differ with {kernel}")
    unpredicted = capture(model, tokens(), ["resid_post"], layers=recorded.layers, check=False)
    if not torch.equal(unpredicted["resid_post"], recorded["resid_post"]):
        outcome.wrong.append("the stream differs where predictions are not asked for")
    patterns, streams = told.get("attentions") or (), told.get("hidden_states") or ()
    for row, number in enumerate(recorded.layers):
        if "pattern" in recorded and len(patterns) == len(attending):
            _told(recorded, row, patterns[attending.index(number)], outcome)
        for site, depth in (("resid_pre", number), ("resid_post", number + 1)):
            final = depth == count  # of which models tell after the final norm
            if len(streams) == count + 1 and not final and not torch.equal(recorded[site][row], streams[depth]):
                outcome.wrong.append(f"the model tells of another {site} in layer {number}")


def _told(recorded: Capture, row: int, told: Tensor, outcome: Outcome) -> None:
    """Attention weights of which the model tells must be those recorded, if it is by them that it mixes its values."""
    pattern, value, out = (recorded[site][row] for site in ("pattern", "value", "z"))
    if (
        told.shape == pattern.shape
        and allclose(attention_math.mix_values(told, value), out)
        and not allclose(pattern, told)
    ):
        outcome.wrong.append(f"the model tells of another pattern in layer {recorded.layers[row]}")


def _missing(layers: tuple[LayerSpec, ...], attending: list[int]) -> dict[str, str]:
    """By site, why a layer that attends does not offer it."""
    return {
        site: layers[number].missing[site]
        for number in reversed(attending)
        for site in layers[number].missing
        if site in FORWARD_SITES
    }


def _largest(model: PreTrainedModel, attending: list[int], outcome: Outcome) -> Capture:
    """Everything that is not refused, in the layers that attend; what a check refuses is noted as missing."""
    offered = [site for site in FORWARD_SITES if site not in outcome.missing]
    try:
        return capture(model, tokens(), offered, layers=attending)
    except UnsupportedModel:
        for site in offered:
            try:
                capture(model, tokens(), [site], layers=attending)
            except UnsupportedModel as refusal:
                outcome.missing[site] = str(refusal)
    return capture(model, tokens(), [site for site in offered if site not in outcome.missing], layers=attending)


def _closed(recorded: Capture, layers: tuple[LayerSpec, ...], outcome: Outcome) -> None:
    """Writes must sum to the difference that each layer makes."""
    if "attn_out" not in recorded:
        return
    total = recorded["resid_pre"] + recorded["attn_out"]
    if "mlp_out" in recorded:
        total = total + recorded["mlp_out"]
    elif any("mlp_out" not in layers[number].missing for number in outcome.layers):
        return
    if not allclose(total, recorded["resid_post"]):
        outcome.wrong.append("writes do not sum to the residual difference")


def _unembedded(recorded: Capture, outcome: Outcome) -> None:
    """The unembedding of the final norm must be the prediction."""
    if "final_norm" not in recorded:
        return
    head = recorded.readout.output_head
    if isinstance(head, str) or not allclose(head.apply_softcap(head(recorded["final_norm"], 1)), recorded["output"]):
        outcome.wrong.append("the unembedding of the final norm is not the prediction")


def _pad(model: PreTrainedModel, side: str, outcome: Outcome) -> None:
    """A padded batch of sequences of different lengths must predict what each predicts alone."""
    mask = torch.stack([torch.arange(max(RAGGED)) < length for length in RAGGED]).long()
    mask = mask.flip(1) if side == "left" else mask
    inputs = torch.where(mask.bool(), tokens(), 0)
    try:
        padded = capture(model, inputs, ["output"], attention_mask=mask, layers=outcome.layers)["output"]
    except UnsupportedModel as refusal:
        outcome.padding[side] = str(refusal)
        return
    for row, real in enumerate(mask.bool()):
        alone = _untouched(model, inputs[row : row + 1, real])[0]
        if not allclose(padded[row, real], alone):
            outcome.wrong.append(f"sequence {row} padded on the {side} predicts otherwise than alone")


def _lengthen(model: PreTrainedModel, outcome: Outcome) -> None:
    """A long sequence must have the prediction of the untouched model at every position, or be refused."""
    inputs = tokens(1, LONG)
    try:
        recorded = capture(model, inputs, ["output", "resid_post"], layers=outcome.layers)
    except UnsupportedModel as refusal:
        outcome.long = str(refusal)
        return
    if not torch.equal(recorded["output"], _untouched(model, inputs)):
        outcome.wrong.append(f"the prediction for {LONG} tokens is not the untouched model's")


def _change(model: PreTrainedModel, outcome: Outcome) -> None:
    """After a write through ``.data``, which no version counter sees, everything must be that of the new weights."""
    for parameter in model.parameters():
        parameter.data.mul_(1.25)
    sites = [site for site in ("attn_out", "z", "output") if site not in outcome.missing]
    for alike in outcome.alike:
        recorded = capture(model, tokens(), sites, layers=alike)
        if not torch.equal(recorded["output"], _untouched(model, tokens())):
            outcome.wrong.append("the prediction after a change of weights is not the untouched model's")
        if {"attn_out", "z"} <= set(sites):
            try:
                total = recorded.head_out().sum(2) + recorded.readout.output_bias[:, None, None]
            except UnsupportedModel:
                continue
            if not allclose(total, recorded["attn_out"]):
                outcome.wrong.append("contributions of heads do not sum to attn_out after a change of weights")


def _untouched(model: PreTrainedModel, inputs: Tensor) -> Tensor:
    """What the model predicts when nothing looks at it."""
    with torch.no_grad():
        return model(inputs, use_cache=False).logits
