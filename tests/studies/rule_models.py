"""An encoder-decoder whose words look up rules by heads that are set by hand, and its task."""

import torch

from mesascope.models.encoder_decoder.config import EncoderDecoderConfig
from mesascope.models.encoder_decoder.model import EncoderDecoder
from mesascope.studies.syntactic_transformations.study import make_encoder_decoder
from mesascope.tasks.base import Batch
from mesascope.tasks.syntax.transformations import SyntacticTransformations

TASK = SyntacticTransformations(
    words_per_label=2,
    min_words=5,
    max_words=7,
    max_output=18,
    held_out_rules=("al:concat-rel", "ar:bracket-2-inv", "bl:rev", "br:bracket-1"),
)
LABELS = TASK.labels.names
HEADS, WIDTH, SHARPNESS = 4, 64, 60.0
LOOKUP, FIRST_LABELS, NEXT_LABEL, FIRST_SLOT = range(HEADS)  # heads of the only layer


def make_lookup_model() -> EncoderDecoder:
    """One layer in each stack.

    In the encoder, words attend to the rule for their label (`LOOKUP`), to that for their label if it is one of the
    first two (`FIRST_LABELS`), to that for the next label (`NEXT_LABEL`), or to the first slot (`FIRST_SLOT`).
    """
    config = EncoderDecoderConfig(
        vocab_size=TASK.vocab_size,
        source_length=TASK.source_length,
        num_encoder_layers=1,
        num_hidden_layers=1,
        hidden_size=HEADS * WIDTH,
        num_attention_heads=HEADS,
        intermediate_size=0,
        norm="none",
        pad_token_id=0,
    )
    model = EncoderDecoder(config).eval()
    position = TASK.vocab_size  # coordinate of the first slot
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embed.weight[:, : TASK.vocab_size] = torch.eye(TASK.vocab_size)
        model.source_position_embed.weight[0, position] = 1.0
        attention = model.encoder_layers[0].attention
        attention.q_proj.bias[FIRST_SLOT * WIDTH] = SHARPNESS
        attention.k_proj.weight[FIRST_SLOT * WIDTH, position] = 1.0
        for token, text in enumerate(TASK.texts):
            name = text.split(":")[0].rstrip("0123456789")
            if name not in LABELS or name == text:
                continue
            label = LABELS.index(name)
            asked = {LOOKUP: label, NEXT_LABEL: (label + 1) % len(LABELS)} | (
                {FIRST_LABELS: label} if label < 2 else {}
            )
            for head in (LOOKUP, FIRST_LABELS, NEXT_LABEL):
                if ":" in text:
                    attention.k_proj.weight[head * WIDTH + label, token] = 1.0
                elif head in asked:
                    attention.q_proj.weight[head * WIDTH + asked[head], token] = SHARPNESS
    return model


def sample_sentences(n: int = 200) -> Batch:
    """Sequences with unseen pairs."""
    return TASK.validation_task().sample(n, torch.Generator().manual_seed(0))


def make_random_model() -> EncoderDecoder:
    """A small model with random weights, in which a rule is the sum of two vectors."""
    torch.manual_seed(0)
    return EncoderDecoder(make_encoder_decoder(TASK, layers=1, width=16, heads=2)).eval()
