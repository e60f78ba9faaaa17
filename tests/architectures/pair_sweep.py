"""What capture does on sequence-to-sequence model types of transformers, held against the untouched models."""

import gc
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, PreTrainedModel

from mesascope.activations import CROSS_SITES, FORWARD_SITES, Capture, EncoderDecoderCapture, UnsupportedModel, capture
from mesascope.activations.encoder_decoder._prepare import prepare_source_and_target
from mesascope.activations.encoder_decoder._structure import read_stacks
from mesascope.activations.forward import eval_no_grad
from mesascope.activations.hooks import _attention_math as attention_math
from mesascope.activations.readout._output_readout import explain_missing_final_norm
from mesascope.activations.sites import OUTPUT_HEAD_SITES
from mesascope.activations.tolerances import allclose

from .tiny import LAYERS, RULES, VOCABULARY, configure, silenced, stir

ROWS, SOURCE, TARGET, NUM_LAYERS = 3, 11, 7, 2
SOURCE_LENGTHS, TARGET_LENGTHS = (4, 11, 7), (7, 2, 5)
ATTENTION = ("query", "key", "value", "pattern", "z")  # without these a model is not captured
STACKS = ("encoder", "decoder")
ALL_SITES = tuple(
    [f"{stack}.{site}" for stack in STACKS for site in FORWARD_SITES if site not in OUTPUT_HEAD_SITES]
    + [*CROSS_SITES, "final_norm", "logits"]
)
# those whose inputs are text alone; others read audio or images
KINDS = (
    "bart bigbird_pegasus blenderbot blenderbot-small fsmt led longt5 m2m_100 marian mbart mt5 mvp nllb-moe pegasus "
    "pegasus_x plbart prophetnet switch_transformers t5 t5gemma umt5"
).split()
PADDED_SIDES = (("right", "right"), ("left", "right"), ("right", "left"))  # of source and target
PAIR_RULES = {name: NUM_LAYERS if value == LAYERS and "layers" in name else value for name, value in RULES.items()}
PAIR_RULES.pop("is_decoder")
OWN: dict[str, dict[str, Any]] = {
    "bigbird_pegasus": {"attention_type": "original_full"},
    "fsmt": {"src_vocab_size": VOCABULARY, "tgt_vocab_size": VOCABULARY, "langs": ["en", "de"]},
    "led": {"attention_window": 4, "max_encoder_position_embeddings": 640, "max_decoder_position_embeddings": 640},
    "prophetnet": {"num_decoder_layers": 2, "num_encoder_layers": 2},
}


@dataclass(kw_only=True)
class PairOutcome:
    """What became of one type.

    Attributes:
        kind: the model type, and ``model`` its class.
        word: ``captured``, ``refused`` or ``not built``.
        why: the message, where it was not captured.
        missing: by site, the reason why it is not offered.
        padding: by side of source and target, why it was refused.
        wrong: what contradicts the untouched model; must be empty.
    """

    kind: str
    model: str
    word: str = "captured"
    why: str = ""
    missing: dict[str, str] = field(default_factory=dict)
    padding: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def build_pair_model(kind: str, kernel: str | None = None) -> PreTrainedModel:
    """A tiny random model of a type, the same every time, its weights stirred so that no identity holds by accident.

    Args:
        kind: one of `KINDS`.
        kernel: the attention implementation; the one that transformers chooses by default.
    """
    torch.manual_seed(0)
    config = configure(CONFIG_MAPPING[kind], kind, PAIR_RULES, OWN)
    chosen = {} if kernel is None else {"attn_implementation": kernel}
    model_class = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING[type(config)]
    return stir(model_class._from_config(config, dtype=torch.float32, **chosen))


def sweep_pairs(kinds: tuple[str, ...] | None = None) -> list[PairOutcome]:
    """The outcome of every type, in the order of their names."""
    with silenced():
        return [outcome_of_pair(kind) for kind in sorted(kinds or KINDS)]


def outcome_of_pair(kind: str) -> PairOutcome:
    """What capture does on one type, with the kernel that transformers chooses and with the eager one."""
    outcome = PairOutcome(kind=kind, model=MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING[CONFIG_MAPPING[kind]].__name__)
    try:
        model = build_pair_model(kind)
        plain = _untouched(model, some_pair())
        if not plain.isfinite().all():
            raise ValueError("a random model gives NaN")
    except Exception as error:
        outcome.word, outcome.why = "not built", f"{type(error).__name__}: {error}"
        return outcome
    try:
        _hold(model, outcome)
        _hold(build_pair_model(kind, "eager"), outcome)
        for source_side, target_side in PADDED_SIDES:
            _pad(model, source_side, target_side, outcome)
        _change(model, outcome)
    except UnsupportedModel as refusal:
        outcome.word, outcome.why = "refused", str(refusal)
    except Exception as error:
        outcome.wrong.append(f"fails with {type(error).__name__}: {error}")
    gc.collect()
    return outcome


def some_pair() -> dict[str, Tensor]:
    """Random tokens of source and target; none of them is special."""
    generator = torch.Generator().manual_seed(1)
    return {
        "input_ids": torch.randint(3, VOCABULARY, (ROWS, SOURCE), generator=generator),
        "decoder_input_ids": torch.randint(3, VOCABULARY, (ROWS, TARGET), generator=generator),
    }


def _hold(model: PreTrainedModel, outcome: PairOutcome) -> None:
    """Capture all that is offered, and hold it against the untouched model."""
    with eval_no_grad(model):
        structure = read_stacks(model, prepare_source_and_target(model, some_pair()))
    for stack, layers in (("encoder", structure.encoder.layers), ("decoder", structure.decoder.layers)):
        for layer in layers:
            for site, why in layer.missing.items():
                name = site if site in CROSS_SITES else f"{stack}.{site}"
                if name in ALL_SITES and (stack == "decoder" or site not in CROSS_SITES):
                    outcome.missing[name] = why
    no_norm = explain_missing_final_norm(structure.decoder.readout(model, range(len(structure.decoder.layers))))
    outcome.missing |= {"final_norm": no_norm} if no_norm else {}
    acts = _largest(model, outcome)
    _sums(acts, outcome)
    _compared(model, acts, outcome)
    names = [f"{stack}.{site}" for stack in STACKS for site in ATTENTION] + [f"cross_{site}" for site in ATTENTION]
    lacking = [site for site in names if site in outcome.missing]
    if lacking:
        raise UnsupportedModel(f"{lacking[0]}: {outcome.missing[lacking[0]]}")


def _largest(model: PreTrainedModel, outcome: PairOutcome) -> EncoderDecoderCapture:
    """Everything that is not refused; what a check refuses is noted as missing."""
    offered = [site for site in ALL_SITES if site not in outcome.missing]
    try:
        return capture(model, some_pair(), offered)
    except UnsupportedModel:
        for site in offered:
            try:
                capture(model, some_pair(), [site])
            except UnsupportedModel as refusal:
                outcome.missing[site] = str(refusal)
    return capture(model, some_pair(), [site for site in offered if site not in outcome.missing])


def _sums(acts: EncoderDecoderCapture, outcome: PairOutcome) -> None:
    """Updates must sum to the change of each layer, and each layer must begin where the one before ended."""
    for stack, part in (("encoder", acts.encoder), ("decoder", acts.decoder)):
        if not torch.equal(part["resid_pre"][1:], part["resid_post"][:-1]):
            outcome.wrong.append(f"the stream of the {stack} changes between layers")
        if "attn_out" in part:
            updates = [part[site] for site in ("attn_out", "cross_attn_out", "mlp_out") if site in part]
            if not allclose(sum(updates, part["resid_pre"]), part["resid_post"]):
                outcome.wrong.append(f"updates of the {stack} do not sum to the change of the stream")


def _compared(model: PreTrainedModel, acts: EncoderDecoderCapture, outcome: PairOutcome) -> None:
    """The logits must be the untouched model's bit for bit, and so must what else it returns of itself."""
    kernel = acts.decoder.attn_implementation
    if not torch.equal(acts["logits"], _untouched(model, some_pair())):
        outcome.wrong.append(f"captured and untouched logits differ with {kernel}")
    if kernel != "eager":
        return
    with torch.no_grad():
        told = model(**some_pair(), use_cache=False, output_attentions=True, output_hidden_states=True)
    for part, prefix, name in (
        (acts.encoder, "", "encoder_attentions"),
        (acts.decoder, "", "decoder_attentions"),
        (acts.decoder, "cross_", "cross_attentions"),
    ):
        _compare_patterns(part, prefix, told.get(name) or (), f"{name} differ", outcome)
    for part, name in ((acts.encoder, "encoder_hidden_states"), (acts.decoder, "decoder_hidden_states")):
        streams, depth = told.get(name) or (), len(part["resid_pre"])
        if len(streams) == depth + 1 and not torch.equal(torch.stack(streams[:depth]), part["resid_pre"]):
            outcome.wrong.append(f"{name} differ")


def _compare_patterns(part: Capture, prefix: str, told: tuple[Tensor, ...], message: str, outcome: PairOutcome) -> None:
    """Weights that the model returns must be those recorded, if it is by them that it mixes its values."""
    if f"{prefix}pattern" not in part or len(told) != len(part[f"{prefix}pattern"]):
        return
    for layer, weights in enumerate(told):
        pattern, value, out = (part[f"{prefix}{site}"][layer] for site in ("pattern", "value", "z"))
        mixes = weights.shape == pattern.shape and allclose(attention_math.mix_values(weights, value), out)
        if mixes and not allclose(pattern, weights):
            outcome.wrong.append(f"{message} in layer {layer}")


def _pad(model: PreTrainedModel, source_side: str, target_side: str, outcome: PairOutcome) -> None:
    """A padded batch must predict what each pair predicts alone, or be refused."""
    inputs = some_pair()
    for name, mask_name, lengths, side in (
        ("input_ids", "attention_mask", SOURCE_LENGTHS, source_side),
        ("decoder_input_ids", "decoder_attention_mask", TARGET_LENGTHS, target_side),
    ):
        mask = torch.stack([torch.arange(inputs[name].shape[1]) < length for length in lengths]).long()
        mask = mask.flip(1) if side == "left" else mask
        inputs |= {mask_name: mask, name: torch.where(mask.bool(), inputs[name], 0)}
    try:
        padded = capture(model, inputs, ["logits"])["logits"]
    except UnsupportedModel as refusal:
        outcome.padding[f"{source_side}, {target_side}"] = str(refusal)
        return
    if not torch.equal(padded, _untouched(model, inputs)):
        outcome.wrong.append(f"captured and untouched logits differ with padding on the {source_side}, {target_side}")
    for row in range(ROWS):
        source, target = inputs["attention_mask"][row].bool(), inputs["decoder_attention_mask"][row].bool()
        alone = {
            "input_ids": inputs["input_ids"][row : row + 1, source],
            "decoder_input_ids": inputs["decoder_input_ids"][row : row + 1, target],
        }
        if not allclose(padded[row, target], _untouched(model, alone)[0]):
            outcome.wrong.append(f"pair {row} padded on the {source_side}, {target_side} predicts otherwise than alone")


def _change(model: PreTrainedModel, outcome: PairOutcome) -> None:
    """After a write through ``.data``, everything must be that of the new weights."""
    for parameter in model.parameters():
        parameter.data.mul_(1.1)
    acts = capture(model, some_pair(), ["cross_z", "logits"])
    if not torch.equal(acts["logits"], _untouched(model, some_pair())):
        outcome.wrong.append("the logits after a change of weights are not the untouched model's")


def _untouched(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    """What the model predicts when nothing looks at it."""
    with torch.no_grad():
        return model(**inputs, use_cache=False).logits
