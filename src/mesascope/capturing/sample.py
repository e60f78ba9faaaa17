"""Running a model to see what its linear maps read."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.capturing.capture import examine
from mesascope.capturing.forward import predict, quiet
from mesascope.capturing.maps import find_maps
from mesascope.capturing.vectors import TOKENS, MapSamples, affordable, pick, watch_maps


def sample_maps(
    model: PreTrainedModel,
    inputs: Shaped[Tensor, "batch pos *d_in"],
    *,
    counted: Bool[Tensor, "batch pos"] | None = None,
    attention_mask: Int[Tensor, "batch pos"] | None = None,
    layers: Sequence[int] | None = None,
    tokens: int = TOKENS,
    batch_size: int | None = None,
    seed: int = 0,
) -> MapSamples:
    """What every linear map inside the blocks reads and gives, at a random sample of tokens.

    Args:
        model: any model that capture supports.
        inputs: tokens or vectors.
        counted: the tokens to choose from, sinks left out, say; all real ones by default.
        attention_mask: 1 where an input is real.
        layers: which layers; all by default.
        tokens: how many tokens at most; fewer where their vectors would take more than 128 MB.
        batch_size: sequences per forward pass; all at once by default.
        seed: of the choice of tokens.

    Raises:
        UnsupportedModel: the layers cannot be read, or have no linear maps.

    >>> from mesascope.models.transformer import Decoder, DecoderConfig
    >>> model = Decoder(DecoderConfig(d_in=1, d_out=1, hidden_size=8, num_attention_heads=2))
    >>> sample_maps(model, torch.ones(4, 6, 1), layers=[0]).samples[0].map.name
    'attention.q_proj'
    """
    inputs = inputs.to(model.device)
    mask = None if attention_mask is None else attention_mask.to(model.device).long()
    real = torch.ones(inputs.shape[:2], dtype=torch.bool) if mask is None else mask.bool().cpu()
    real = real if counted is None else real & counted.cpu()
    with quiet(model):
        probe, known = examine(model, inputs, mask)
        maps = find_maps(model, known, probe, layers)
        most = min(tokens, affordable(maps, model.dtype))
        size = batch_size or len(inputs)
        with watch_maps(maps, pick(real, most, torch.Generator().manual_seed(seed))) as watched:
            for start in range(0, len(inputs), size):
                rows = slice(start, start + size)
                predict(model, inputs[rows], None if mask is None else mask[rows], everywhere=False)
        return watched.result()
