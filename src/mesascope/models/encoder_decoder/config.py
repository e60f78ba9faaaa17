"""The configuration of the encoder-decoder."""

from collections.abc import Sequence
from typing import Any, Literal

from mesascope.argument_types import validate_arguments
from mesascope.models.config import DecoderConfig

_FIXED = {
    "attention": "softmax",
    "mask": "causal",
    "norm_position": "pre",
    "share_layers": False,
    "initializer": "fan_in",
}


class EncoderDecoderConfig(DecoderConfig):
    """The configuration of an :class:`~mesascope.models.encoder_decoder.model.EncoderDecoder`.

    A sequence of inputs is a source of fixed length, which the encoder reads, followed by a target, which the decoder
    reads. Norms are before the sublayers, as in T5.

    Args:
        vocab_size: number of tokens.
        source_length: number of positions of the source.
        num_encoder_layers: number of blocks of the encoder, at least 1.
        num_hidden_layers: number of blocks of the decoder, at least 1.
        hidden_size: width of the residual streams, a multiple of the number of heads.
        num_attention_heads: number of heads of every attention.
        intermediate_size: width of the MLPs; 0 for none.
        norm: ``none``, ``layer`` or ``rms``.
        positions: ``none``, ``learned``, ``sinusoidal`` or ``rotary``, counted in source and target apart; not
            rotary in cross-attention.
        max_position_embeddings: maximum length of source and of target.
        pad_token_id: token that is padding where no attention mask is given; ``None`` if no token is.
        token_parts: for every token the indices of the vectors whose sum is its embedding, for tokens that are made of
            parts, such as a rule of a label and a function; by default every token has a vector of its own.
        **kwargs: further fields of the decoder's configuration.

    Raises:
        ValueError: a value is out of range, or values are inconsistent.

    >>> EncoderDecoderConfig(vocab_size=5, source_length=0)
    Traceback (most recent call last):
    ...
    ValueError: source_length must be from 1 to max_position_embeddings=64, but got 0
    """

    model_type = "mesascope_encoder_decoder"

    @validate_arguments
    def __init__(
        self,
        *,
        vocab_size: int | None = None,
        source_length: int = 32,
        num_encoder_layers: int = 2,
        num_hidden_layers: int = 2,
        hidden_size: int = 64,
        num_attention_heads: int = 4,
        intermediate_size: int = 128,
        norm: Literal["none", "layer", "rms"] = "layer",
        positions: Literal["none", "learned", "sinusoidal", "rotary"] = "learned",
        max_position_embeddings: int = 64,
        pad_token_id: int | None = None,
        token_parts: Sequence[Sequence[int]] | None = None,
        **kwargs: Any,
    ) -> None:
        self.source_length = source_length
        self.num_encoder_layers = num_encoder_layers
        self.token_parts = None if token_parts is None else [list(parts) for parts in token_parts]
        super().__init__(
            vocab_size=vocab_size,
            num_hidden_layers=num_hidden_layers,
            hidden_size=hidden_size,
            num_attention_heads=num_attention_heads,
            intermediate_size=intermediate_size,
            norm=norm,
            positions=positions,
            max_position_embeddings=max_position_embeddings,
            pad_token_id=pad_token_id,
            **kwargs,
        )
        self._validate_encoder()

    def _validate_encoder(self) -> None:
        for name, value in _FIXED.items():
            if getattr(self, name) != value:
                raise ValueError(f"{name} must be {value!r} in an encoder-decoder, but got {getattr(self, name)!r}")
        if self.vocab_size is None:
            raise ValueError("an encoder-decoder needs vocab_size, but it is None: it has tokens only")
        if self.tie_word_embeddings and self.token_parts is not None:
            raise ValueError("token_parts must be None with tie_word_embeddings, which needs a vector per token")
        if self.num_encoder_layers < 1:
            raise ValueError(f"num_encoder_layers must be at least 1, but got {self.num_encoder_layers}")
        if not 1 <= self.source_length <= self.max_position_embeddings:
            raise ValueError(
                f"source_length must be from 1 to max_position_embeddings={self.max_position_embeddings}, but got "
                f"{self.source_length}"
            )
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(f"pad_token_id must be a token below {self.vocab_size}, but got {self.pad_token_id}")
        self._validate_parts()

    def _validate_parts(self) -> None:
        if self.token_parts is None:
            return
        if len(self.token_parts) != self.vocab_size:
            raise ValueError(
                f"token_parts must have one entry per token ({self.vocab_size}), but has {len(self.token_parts)}"
            )
        if not all(parts and min(parts) >= 0 for parts in self.token_parts):
            raise ValueError("every token must have at least one part, and parts are counted from 0")
