"""Decoders of ours, small and stirred, for the tests of this folder."""

import torch

from mesascope.models.transformer import Decoder, DecoderConfig

VECTORS, TOKENS = {"d_in": 2, "d_out": 2}, {"vocab_size": 20}


def decoder(**settings) -> Decoder:
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(**{"hidden_size": 16, "max_position_embeddings": 20} | settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return model


def inputs(model: Decoder, rows: int = 4, length: int = 10) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    if model.config.vocab_size:
        return torch.randint(0, 20, (rows, length), generator=generator).to(model.device)
    return torch.randn(rows, length, 2, generator=generator).to(model.device)
