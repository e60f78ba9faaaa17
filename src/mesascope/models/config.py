"""The configuration of the decoder."""

from typing import Any

from transformers import PretrainedConfig

from mesascope.argument_types import validate_arguments

_CHOICES = {
    "attention": ("softmax", "linear"),
    "mask": ("causal", "full", "context_only", "multiplicative"),
    "norm": ("none", "layer", "rms"),
    "norm_position": ("pre", "post", "output"),
    "positions": ("none", "learned", "sinusoidal", "rotary"),
    "activation": ("gelu", "relu", "silu", "tanh"),
    "initializer": ("fan_in", "normal"),
}
_POSITIVE_FIELDS = (
    "num_hidden_layers hidden_size num_attention_heads num_key_value_heads max_position_embeddings".split()
)


class DecoderConfig(PretrainedConfig):
    """The configuration of a :class:`~mesascope.models.transformer.Decoder`.

    A decoder maps tokens to tokens (``vocab_size``), or vectors to vectors (``d_in`` and ``d_out``). Invalid values are
    rejected when the configuration is created.

    Args:
        vocab_size: number of tokens; ``None`` for vectors.
        d_in: dimension of an input vector; ``None`` for tokens.
        d_out: dimension of a predicted vector; ``None`` for tokens.
        num_hidden_layers: number of blocks, at least 1.
        hidden_size: width of the residual stream, a multiple of the number of heads.
        num_attention_heads: number of query heads.
        num_key_value_heads: number of key-value heads, a divisor of the number of query heads; equal to it by default.
        intermediate_size: width of the MLP; 0 for an attention-only model.
        attention: ``softmax``, or ``linear``: scores are used without scaling and normalisation.
        mask: attention mask. ``causal``: a position attends to itself and earlier positions; ``full``: to all
            positions; ``context_only``: to all positions but the last, which is the query; ``multiplicative``: to all
            positions, with the scores of later ones multiplied by 0 before the softmax, so that the model is not
            causal.
        norm: ``none``, ``layer`` or ``rms``.
        norm_position: ``pre`` (before each sublayer, and before the unembedding), ``post`` (on the residual sum) or
            ``output`` (on the output of a sublayer, before it is added).
        positions: ``none``, ``learned``, ``sinusoidal`` (both added to the input) or ``rotary`` (in each head).
        max_position_embeddings: maximum sequence length.
        share_layers: apply the same layer repeatedly.
        activation: activation function of the MLP: ``gelu``, ``relu``, ``silu`` or ``tanh``.
        initializer: standard deviation of the weights of linear layers at initialisation. ``fan_in``: 1 / sqrt(fan-in);
            ``normal``: ``initializer_range``.
        initializer_range: standard deviation of token and position embeddings at initialisation.
        residual_init_scale: factor on the initial weights of layers that write to the residual stream (attention and
            MLP output projections). Deep models with linear attention, whose weights are unbounded, need a small one.
        embed_bias: whether the embedding of vectors has a bias; that of tokens has none.

    Raises:
        ValueError: a value is out of range, or values are inconsistent.

    >>> DecoderConfig(d_in=1, d_out=1, hidden_size=62)
    Traceback (most recent call last):
    ...
    ValueError: hidden_size must be a multiple of num_attention_heads, but got 62 and 4
    """

    model_type = "mesascope"
    has_no_defaults_at_init = True  # tokens or vectors must be chosen

    @validate_arguments
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
        mask: str = "causal",
        norm: str = "none",
        norm_position: str = "pre",
        positions: str = "learned",
        max_position_embeddings: int = 64,
        share_layers: bool = False,
        activation: str = "gelu",
        initializer: str = "fan_in",
        initializer_range: float = 0.02,
        residual_init_scale: float = 1.0,
        embed_bias: bool = True,
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
        self.mask = mask
        self.norm = norm
        self.norm_position = norm_position
        self.positions = positions
        self.max_position_embeddings = max_position_embeddings
        self.share_layers = share_layers
        self.activation = activation
        self.initializer = initializer
        self.initializer_range = initializer_range
        self.residual_init_scale = residual_init_scale
        self.embed_bias = embed_bias
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)
        self._validate_fields()

    def _validate_fields(self) -> None:
        for name in _POSITIVE_FIELDS:
            raise_unless(getattr(self, name) >= 1, f"{name} must be at least 1, but got {getattr(self, name)}")
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            raise_unless(value in allowed, f"{name} must be one of {', '.join(allowed)}, but got {value!r}")
        self._validate_sizes()
        self._validate_combinations()

    def _validate_sizes(self) -> None:
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        raise_unless(
            self.intermediate_size >= 0,
            f"intermediate_size must be at least 0, but got {self.intermediate_size}",
        )
        raise_unless(
            self.residual_init_scale >= 0,
            f"residual_init_scale must be at least 0, but got {self.residual_init_scale}",
        )
        raise_unless(
            self.hidden_size % heads == 0,
            f"hidden_size must be a multiple of num_attention_heads, but got {self.hidden_size} and {heads}",
        )
        raise_unless(
            heads % kv_heads == 0,
            f"num_attention_heads must be a multiple of num_key_value_heads, but got {heads} and {kv_heads}",
        )

    def _validate_combinations(self) -> None:
        vectors = self.d_in is not None and self.d_out is not None
        raise_unless(
            (self.vocab_size is not None) != vectors and (self.d_in is None) == (self.d_out is None),
            "a decoder needs either vocab_size (tokens) or both d_in and d_out (vectors), "
            f"but got vocab_size={self.vocab_size}, d_in={self.d_in}, d_out={self.d_out}",
        )
        raise_unless(
            self.norm != "none" or self.norm_position == "pre",
            f"norm_position={self.norm_position!r} needs a norm, but norm is 'none'",
        )
        raise_unless(
            self.mask != "multiplicative" or self.attention == "softmax",
            f"mask='multiplicative' needs softmax attention, but got {self.attention!r}, in which a score of 0 is no "
            "attention; use mask='causal'",
        )
        self._validate_positions()
        raise_unless(
            not self.tie_word_embeddings or self.vocab_size is not None,
            "tie_word_embeddings needs tokens, but this decoder takes vectors; set vocab_size",
        )

    def _validate_positions(self) -> None:
        head_width = self.hidden_size // self.num_attention_heads
        raise_unless(
            self.positions != "rotary" or head_width % 2 == 0,
            f"rotary positions need an even head width, but hidden_size / num_attention_heads is {head_width}",
        )
        raise_unless(
            self.positions != "sinusoidal" or self.hidden_size % 2 == 0,
            f"sinusoidal positions need an even hidden_size, but got {self.hidden_size}",
        )


def raise_unless(condition: bool, message: str) -> None:
    """Raise a ValueError if a condition does not hold.

    Args:
        condition: the condition.
        message: the message of the error.

    Raises:
        ValueError: the condition does not hold.
    """
    if not condition:
        raise ValueError(message)
