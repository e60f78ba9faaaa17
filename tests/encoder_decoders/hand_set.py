"""An encoder-decoder whose heads were set by hand: look-up and copying heads, and decoys of both."""

import torch
from torch import Tensor, nn

from mesascope.models.encoder_decoder.config import EncoderDecoderConfig
from mesascope.models.encoder_decoder.model import EncoderDecoder

LABELS, WORDS_PER_LABEL, SLOTS, WORDS = 4, 3, 3, 6
BOS, FIRST_SLOT_TOKEN, FIRST_WORD = 0, 1, 1 + LABELS
VOCABULARY = FIRST_WORD + LABELS * WORDS_PER_LABEL
SOURCE = SLOTS + WORDS
HEADS, WIDTH, SHARPNESS = 4, 32, 60.0
LOOKUP, NEXT_LABEL, FIRST_SLOT, UNIFORM = range(HEADS)  # heads of the encoder
COPYING, SILENT, SHIFTED, AVERAGING = range(HEADS)  # heads of cross-attention
POSITION = VOCABULARY  # first coordinate of the one-hot position


def build_hand_set() -> EncoderDecoder:
    """One layer in each stack.

    In the encoder, words look up the slot of their label (`LOOKUP`), of the next label, the first slot, or nothing.
    In cross-attention, three heads attend to the word that comes next: one writes it, one writes nothing and one writes
    another token; the fourth writes all words alike.
    """
    config = EncoderDecoderConfig(
        vocab_size=VOCABULARY,
        source_length=SOURCE,
        num_encoder_layers=1,
        num_hidden_layers=1,
        hidden_size=HEADS * WIDTH,
        num_attention_heads=HEADS,
        intermediate_size=0,
        norm="none",
        max_position_embeddings=SOURCE,
    )
    model = EncoderDecoder(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embed.weight[:, :VOCABULARY] = torch.eye(VOCABULARY)
        positions = torch.eye(SOURCE)
        model.source_position_embed.weight[:, POSITION : POSITION + SOURCE] = positions
        model.position_embed.weight[:WORDS, POSITION + SLOTS : POSITION + SOURCE] = torch.eye(WORDS)
        model.readout.weight[:, :VOCABULARY] = torch.eye(VOCABULARY)
        _set_encoder(model.encoder_layers[0].attention)
        _set_cross_attention(model.layers[0].cross_attention)
    return model


def label_of_token(token: int) -> int:
    """The label of a word or of a slot's token; -1 of the first token of a target."""
    if token >= FIRST_WORD:
        return (token - FIRST_WORD) // WORDS_PER_LABEL
    return token - FIRST_SLOT_TOKEN


def _set_encoder(attention: nn.Module) -> None:
    """Queries are the label of a word (or the next one), keys the label of a slot; values are tokens."""
    for token in range(FIRST_SLOT_TOKEN, VOCABULARY):
        label = label_of_token(token)
        if token < FIRST_WORD:
            for head in (LOOKUP, NEXT_LABEL):
                attention.k_proj.weight[head * WIDTH + label, token] = 1.0
        else:
            attention.q_proj.weight[LOOKUP * WIDTH + label, token] = SHARPNESS
            attention.q_proj.weight[NEXT_LABEL * WIDTH + (label + 1) % LABELS, token] = SHARPNESS
    attention.q_proj.bias[FIRST_SLOT * WIDTH] = SHARPNESS
    attention.k_proj.weight[FIRST_SLOT * WIDTH, POSITION] = 1.0
    for head in range(HEADS):
        attention.v_proj.weight[head * WIDTH : head * WIDTH + VOCABULARY, :VOCABULARY] = torch.eye(VOCABULARY)
        into = slice(POSITION + SOURCE, POSITION + SOURCE + VOCABULARY)  # what was looked up
        attention.o_proj.weight[into, head * WIDTH : head * WIDTH + VOCABULARY] = torch.eye(VOCABULARY) * (
            head == LOOKUP
        )


def _set_cross_attention(attention: nn.Module) -> None:
    """Queries and keys are positions of words; values are tokens."""
    for head in (COPYING, SILENT, SHIFTED):
        rows = slice(head * WIDTH, head * WIDTH + SOURCE)
        attention.q_proj.weight[rows, POSITION : POSITION + SOURCE] = SHARPNESS * torch.eye(SOURCE)
        attention.k_proj.weight[rows, POSITION : POSITION + SOURCE] = torch.eye(SOURCE)
    written = {
        COPYING: torch.eye(VOCABULARY),
        SHIFTED: torch.eye(VOCABULARY).roll(1, 0),
        AVERAGING: torch.eye(VOCABULARY),
    }
    for head in range(HEADS):
        columns = slice(head * WIDTH, head * WIDTH + VOCABULARY)
        attention.v_proj.weight[columns, :VOCABULARY] = torch.eye(VOCABULARY)
        if head in written:
            attention.o_proj.weight[:VOCABULARY, columns] = (5.0 if head == COPYING else 1.0) * written[head]


def sequences(rows: int = 24) -> tuple[Tensor, Tensor, Tensor]:
    """Sources (slots of three labels in random order, then words of these labels), targets (words), and slots."""
    generator = torch.Generator().manual_seed(3)
    sources, slots = [], []
    for _ in range(rows):
        labels = torch.randperm(LABELS, generator=generator)[:SLOTS]
        chosen = torch.randint(SLOTS, (WORDS,), generator=generator)
        which = torch.randint(WORDS_PER_LABEL, (WORDS,), generator=generator)
        words = FIRST_WORD + labels[chosen] * WORDS_PER_LABEL + which
        sources.append(torch.cat([FIRST_SLOT_TOKEN + labels, words]))
        slots.append(torch.cat([torch.full((SLOTS,), -1), chosen]))
    source = torch.stack(sources)
    target = torch.cat([torch.full((rows, 1), BOS), source[:, SLOTS:-1]], dim=1)
    return source, target, torch.stack(slots)
