"""What one of our decoders is made of."""

from typing import Any

from transformers import PretrainedConfig

_CHOICES = {
    "attention": ("softmax", "linear"),
    "visible": ("past", "all", "shown", "zeroed"),
    "norm": ("none", "layer", "rms"),
    "norm_position": ("pre", "post", "output"),
    "positions": ("none", "learned", "sinusoidal", "rotary"),
    "activation": ("gelu", "relu", "silu", "tanh"),
}
_AT_LEAST_ONE = "num_hidden_layers hidden_size num_attention_heads num_key_value_heads max_position_embeddings".split()


class DecoderConfig(PretrainedConfig):
    """A decoder's shape: what it reads and writes, and what each layer does.

    A decoder reads tokens and predicts tokens (``vocab_size``), or reads vectors and predicts vectors (``d_in``
    and ``d_out``). What it cannot honour is refused when the configuration is made.

    Args:
        vocab_size: number of tokens; ``None`` for vectors.
        d_in: dimension of an input vector; ``None`` for tokens.
        d_out: dimension of a predicted vector; ``None`` for tokens.
        num_hidden_layers: decoder blocks, 1 or more.
        hidden_size: width of the residual stream, a multiple of the number of heads.
        num_attention_heads: query heads.
        num_key_value_heads: key-value heads, a divisor of the query heads; as many by default.
        intermediate_size: width of the MLP; 0 for attention alone.
        attention: ``softmax``, or ``linear``: scores are used as they are, without scale or normalisation.
        visible: what a position may attend to: ``past``, itself and those before it; ``all``; ``shown``, all but the
            last, which asks and shows nothing; or ``zeroed``, all, but with a score of 0 for those after it: what a
            mask of ones and zeros does that is multiplied with the scores. Such a decoder sees the future.
        norm: ``none``, ``layer`` or ``rms``.
        norm_position: ``pre`` (before each sublayer, and once before the read-out), ``post`` (on the sum) or ``output``
            (on what a sublayer writes, before it is added).
        positions: ``none``, ``learned``, ``sinusoidal`` (both added to the input) or ``rotary`` (in each head).
        max_position_embeddings: the longest sequence.
        share_layers: all layers are one layer, applied again and again.
        activation: of the MLP.
        initializer_range: standard deviation of token and position embeddings at the start; linear maps start
            with 1 / sqrt(fan-in).
        initializer_writes: a factor on that for those that write to the residual stream; linear attention, whose
            weights grow with its inputs, needs a small one where there are many layers.

    Raises:
        ValueError: a value out of range, or a combination that has no meaning.

    >>> DecoderConfig(d_in=1, d_out=1, hidden_size=62)
    Traceback (most recent call last):
    ...
    ValueError: hidden_size must be a multiple of num_attention_heads, but got 62 and 4
    """

    model_type = "mesascope"
    has_no_defaults_at_init = True  # tokens or vectors: the user must say

    def __init__(
        self,
        *,
        vocab_size: int | None = None,
        d_in: int | None = None,
        d_out: int | None = None,
        num_hidden_layers: int = 3,
        hidden_size: int = 64,
        num_attention_heads: int = 4,
        num_key_value_heads: int | None = None,
        intermediate_size: int = 0,
        attention: str = "softmax",
        visible: str = "past",
        norm: str = "none",
        norm_position: str = "pre",
        positions: str = "learned",
        max_position_embeddings: int = 64,
        share_layers: bool = False,
        activation: str = "gelu",
        initializer_range: float = 0.02,
        initializer_writes: float = 1.0,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.d_in = d_in
        self.d_out = d_out
        self.num_hidden_layers = num_hidden_layers
        self.hidden_size = hidden_size
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_attention_heads if num_key_value_heads is None else num_key_value_heads
        self.intermediate_size = intermediate_size
        self.attention = attention
        self.visible = visible
        self.norm = norm
        self.norm_position = norm_position
        self.positions = positions
        self.max_position_embeddings = max_position_embeddings
        self.share_layers = share_layers
        self.activation = activation
        self.initializer_range = initializer_range
        self.initializer_writes = initializer_writes
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)
        self._refuse_nonsense()

    def _refuse_nonsense(self) -> None:
        """Raise one clear line for what the model could not honour."""
        for name in _AT_LEAST_ONE:
            _must(getattr(self, name) >= 1, f"{name} must be at least 1, but got {getattr(self, name)}")
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            _must(value in allowed, f"{name} must be one of {', '.join(allowed)}, but got {value!r}")
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        _must(
            self.intermediate_size >= 0,
            f"intermediate_size must be 0 or more, but got {self.intermediate_size}",
        )
        _must(
            self.initializer_writes >= 0,
            f"initializer_writes must be 0 or more, but got {self.initializer_writes}",
        )
        _must(
            self.hidden_size % heads == 0,
            f"hidden_size must be a multiple of num_attention_heads, but got {self.hidden_size} and {heads}",
        )
        _must(
            heads % kv_heads == 0,
            f"num_attention_heads must be a multiple of num_key_value_heads, but got {heads} and {kv_heads}",
        )
        vectors = self.d_in is not None and self.d_out is not None
        _must(
            (self.vocab_size is not None) != vectors and (self.d_in is None) == (self.d_out is None),
            "a decoder reads tokens (vocab_size) or vectors (d_in and d_out), "
            f"but got vocab_size={self.vocab_size}, d_in={self.d_in}, d_out={self.d_out}",
        )
        _must(
            self.norm != "none" or self.norm_position == "pre",
            f"norm_position={self.norm_position!r} needs a norm, but norm is 'none'",
        )
        _must(
            self.visible != "zeroed" or self.attention == "softmax",
            f"visible='zeroed' needs softmax attention, but got {self.attention!r}, in which a score of 0 is no "
            "attention; use visible='past'",
        )
        _must(
            self.positions != "rotary" or self.hidden_size // heads % 2 == 0,
            f"rotary positions need an even head width, but hidden_size / num_attention_heads is "
            f"{self.hidden_size // heads}",
        )
        _must(
            self.positions != "sinusoidal" or self.hidden_size % 2 == 0,
            f"sinusoidal positions need an even hidden_size, but got {self.hidden_size}",
        )
        _must(
            not self.tie_word_embeddings or self.vocab_size is not None,
            "tie_word_embeddings needs tokens, but this decoder reads vectors",
        )


def _must(holds: bool, otherwise: str) -> None:
    """Raise ``otherwise`` unless the condition holds."""
    if not holds:
        raise ValueError(otherwise)
