"""Unrolled copies of recurrent transformers."""

from copy import deepcopy

from torch import nn

from mesascope.models.recurrent.model import RecurrentTransformer


def unroll_steps(model: RecurrentTransformer) -> RecurrentTransformer:
    """Return a copy of a recurrent transformer that takes one step, with as many layers as the model calls in all.

    It computes the same, bit for bit. Layer ``iteration * num_hidden_layers + layer`` is a copy of that layer of the
    model, so that every tool for models that call each layer once applies to it. The copy of a model with chunks has
    the same chunks, and calls each layer once per chunk.

    Args:
        model: a model that always takes ``max_iterations`` steps.

    Returns:
        The copy; its weights are its own.

    Raises:
        ValueError: the number of steps depends on the inputs.

    >>> from mesascope.models.recurrent.config import RecurrentConfig
    >>> config = RecurrentConfig(vocab_size=5, hidden_size=8, num_attention_heads=2, halt="none", max_iterations=3)
    >>> len(unroll_steps(RecurrentTransformer(config)).layers)
    3
    """
    config = deepcopy(model.config)
    if config.halt != "none":
        raise ValueError(f"a model to be unrolled must have halt='none', but has halt={config.halt!r}; use capture")
    num_blocks, config.max_iterations = config.num_hidden_layers, 1
    config.num_hidden_layers = num_blocks * model.config.max_iterations
    unrolled = RecurrentTransformer(config).train(model.training)
    nn.Module.to(unrolled, device=model.device, dtype=model.dtype)  # transformers declares its own method without types
    weights = {name: weight for name, weight in model.state_dict().items() if not name.startswith("layers.")}
    for number in range(config.num_hidden_layers):
        block = model.layers[number % num_blocks].state_dict()
        weights |= {f"layers.{number}.{name}": weight for name, weight in block.items()}
    unrolled.load_state_dict(weights)
    return unrolled
