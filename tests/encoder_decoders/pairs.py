"""Tiny random encoder-decoders with stirred weights, and padded sources and targets for them."""

from typing import Any

import torch
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    PegasusConfig,
    PegasusForConditionalGeneration,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from mesascope.models.encoder_decoder.config import EncoderDecoderConfig
from mesascope.models.encoder_decoder.model import EncoderDecoder

VOCABULARY, SOURCE, TARGET = 40, 9, 6
SMALL_BART = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "decoder_start_token_id": 1,
}
UPDATES = ("attn_out", "resid_mid", "mlp_hidden", "mlp_out", "cross_attn_out", "cross_resid_mid")
STREAM = ("resid_pre", "resid_post")
HEADS = ("query", "key", "value", "attn_scores", "pattern", "z")
CROSS_HEADS = tuple(f"cross_{site}" for site in HEADS)
PRE_NORM = ("own", "t5", "pegasus")


def build(name: str, kernel: str = "sdpa", **options: Any) -> PreTrainedModel:
    """A model by its short name, the same every time, its weights stirred so that no identity holds by accident."""
    torch.manual_seed(0)
    if name == "own":
        settings = {"vocab_size": VOCABULARY, "source_length": SOURCE, "hidden_size": 32, "num_encoder_layers": 3}
        model: PreTrainedModel = EncoderDecoder(EncoderDecoderConfig(**settings | {"pad_token_id": 0} | options))
        model.config._attn_implementation = kernel
    else:
        kind, config = {
            "t5": (T5ForConditionalGeneration, T5Config),
            "bart": (BartForConditionalGeneration, BartConfig),
            "marian": (MarianMTModel, MarianConfig),
            "pegasus": (PegasusForConditionalGeneration, PegasusConfig),
        }[name]
        small = {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_heads": 4}
        small |= {"num_decoder_layers": 2, "pad_token_id": 0, "decoder_start_token_id": 0}
        settings = small if name == "t5" else SMALL_BART
        model = kind._from_config(config(**settings | options), attn_implementation=kernel)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def pair(source_side: str = "", target_side: str = "", rows: int = 3) -> dict[str, Tensor]:
    """Tokens of source and target; with a side, all rows but the first are padded there, by 3 and by 2 positions."""
    generator = torch.Generator().manual_seed(2)
    inputs = {
        "input_ids": torch.randint(3, VOCABULARY, (rows, SOURCE), generator=generator),
        "decoder_input_ids": torch.randint(3, VOCABULARY, (rows, TARGET), generator=generator),
    }
    for name, mask_name, side, pads in (
        ("input_ids", "attention_mask", source_side, 3),
        ("decoder_input_ids", "decoder_attention_mask", target_side, 2),
    ):
        if side:
            mask = torch.ones_like(inputs[name])
            mask[1:, slice(None, pads) if side == "left" else slice(-pads, None)] = 0
            inputs |= {name: inputs[name] * mask, mask_name: mask}
    return inputs


def run(model: PreTrainedModel, inputs: dict[str, Tensor], **options: Any) -> Any:
    """What the model computes when nothing looks at it."""
    with torch.no_grad():
        if isinstance(model, EncoderDecoder):
            tokens = torch.cat([inputs["input_ids"], inputs["decoder_input_ids"]], 1)
            masks = [
                inputs.get(name, torch.ones_like(inputs[tokens_name]))
                for name, tokens_name in (
                    ("attention_mask", "input_ids"),
                    ("decoder_attention_mask", "decoder_input_ids"),
                )
            ]
            output = model(tokens, attention_mask=torch.cat(masks, 1))
            output["logits"] = output.logits[:, SOURCE:]
            return output
        return model(**inputs, use_cache=False, **options)


def offered(name: str) -> list[str]:
    """The sites that a model has in both stacks and in cross-attention."""
    return [*STREAM, *HEADS, *CROSS_HEADS, "logits", *((*UPDATES, "final_norm") if name in PRE_NORM else ())]
