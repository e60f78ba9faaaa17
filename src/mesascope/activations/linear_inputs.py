"""Inputs of linear modules at a sample of tokens, recorded during the forward pass.

Input vectors are stored, rather than their second moments or projections: the second moments of all inputs need at
least a third of the memory of the model, and projections need the eigenvectors before the pass. The memory for vectors
is linear in the width, and every stored vector can be checked against the module's output.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations.capture import read_structure
from mesascope.activations.forward import eval_no_grad, run_model
from mesascope.activations.recording.linear_recorder import LinearModuleSamples, record_linear_inputs
from mesascope.activations.structure._linear_modules import LinearModules, find_linear_modules
from mesascope.activations.validation.arguments import validate_model
from mesascope.activations.validation.inputs import prepare_inputs

MAX_SAMPLED_TOKENS = 2048  # maximum number of sampled tokens
MAX_SAMPLE_BYTES = 128_000_000  # maximum size of the stored vectors


def max_sampled_tokens(linear_modules: LinearModules, dtype: torch.dtype, max_bytes: int = MAX_SAMPLE_BYTES) -> int:
    """Return the number of tokens whose input vectors at all linear modules fit into a given memory.

    Args:
        linear_modules: the linear modules.
        dtype: the dtype of the vectors.
        max_bytes: the memory in bytes.

    Returns:
        The number of tokens, at least 1.
    """
    width = sum(each.weight.shape[1] for each in linear_modules.modules if each.same_input_as == each.name)
    return max(1, max_bytes // max(1, width * dtype.itemsize))


def sample_tokens(
    eligible: Bool[Tensor, "batch pos"], max_tokens: int, generator: torch.Generator
) -> Bool[Tensor, "batch pos"]:
    """Sample tokens uniformly without replacement; the mask is ``True`` at them.

    Args:
        eligible: ``True`` at eligible tokens.
        max_tokens: the maximum number of tokens; all eligible ones if there are no more.
        generator: the random generator.

    Returns:
        The mask (batch, pos) of the sampled tokens.

    Raises:
        ValueError: no token is eligible.
    """
    indices = eligible.cpu().flatten().nonzero()[:, 0]
    if not len(indices):
        raise ValueError("at least one token must be eligible, but all are excluded; exclude fewer tokens")
    sampled = indices[torch.randperm(len(indices), generator=generator)[:max_tokens]]
    token_mask = torch.zeros(eligible.numel(), dtype=torch.bool)
    token_mask[sampled] = True
    return token_mask.view(eligible.shape)


def sample_linear_inputs(
    model: PreTrainedModel,
    inputs: Shaped[Tensor, "batch pos *d_in"],
    *,
    eligible: Bool[Tensor, "batch pos"] | None = None,
    attention_mask: Int[Tensor, "batch pos"] | None = None,
    layers: Sequence[int] | None = None,
    max_tokens: int = MAX_SAMPLED_TOKENS,
    batch_size: int | None = None,
    seed: int = 0,
) -> LinearModuleSamples:
    """Run a model and sample the inputs of every linear module inside its blocks, at random tokens.

    Args:
        model: any model that `capture` supports.
        inputs: tokens (batch, pos) or vectors (batch, pos, d_in).
        eligible: ``True`` at eligible tokens, to exclude attention sinks, for example; by default all but padding.
        attention_mask: 1 where an input is not padding.
        layers: the layers; all by default.
        max_tokens: the maximum number of tokens; fewer if their vectors would need more than 128 MB.
        batch_size: sequences per forward pass; all at once by default.
        seed: the seed of the sample.

    Returns:
        The samples of all linear modules.

    Raises:
        UnsupportedModel: the layers cannot be found, or have no linear modules.
        ValueError: no token is eligible.

    >>> from mesascope.models.transformer import Decoder, DecoderConfig
    >>> model = Decoder(DecoderConfig(d_in=1, d_out=1, hidden_size=8, num_attention_heads=2))
    >>> sample_linear_inputs(model, torch.ones(4, 6, 1), layers=[0]).samples[0].linear.name
    'attention.q_proj'
    """
    inputs, mask = prepare_inputs(validate_model(model), inputs, attention_mask)
    not_padding = torch.ones(inputs.shape[:2], dtype=torch.bool) if mask is None else mask.bool().cpu()
    not_padding = not_padding if eligible is None else not_padding & eligible.cpu()
    with eval_no_grad(model):
        structure = read_structure(model, inputs, mask)
        linear_modules = find_linear_modules(model, structure, layers)
        num_tokens = min(max_tokens, max_sampled_tokens(linear_modules, model.dtype))
        size = batch_size or len(inputs)
        with record_linear_inputs(
            linear_modules, sample_tokens(not_padding, num_tokens, torch.Generator().manual_seed(seed))
        ) as recorder:
            for start in range(0, len(inputs), size):
                rows = slice(start, start + size)
                run_model(model, inputs[rows], None if mask is None else mask[rows], all_positions=False)
        return recorder.collect_samples()
