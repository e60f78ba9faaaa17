"""The encoder-decoder, a transformers model."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask

from mesascope.models.encoder_decoder.config import EncoderDecoderConfig
from mesascope.models.encoder_decoder.layers import CrossBlock, EncoderBlock, SummedEmbedding
from mesascope.models.layers import make_norm
from mesascope.models.transformer import Decoder, DecoderOutput


class EncoderDecoder(Decoder):
    """An encoder-decoder, defined by an :class:`EncoderDecoderConfig`.

    The first ``source_length`` inputs are the source, the others are the target. The model predicts the next token of
    the target; logits at the positions of the source are 0. Padding is given by an attention mask, or by
    ``pad_token_id`` where there is none; padding of the source changes nothing, and the target is causal.

    >>> config = EncoderDecoderConfig(vocab_size=5, source_length=4, hidden_size=8, num_attention_heads=2)
    >>> output = EncoderDecoder(config)(torch.zeros(2, 7, dtype=torch.int64))
    >>> output.logits.shape, int(output.logits[:, :4].count_nonzero())
    (torch.Size([2, 7, 5]), 0)
    """

    config_class = EncoderDecoderConfig
    config: EncoderDecoderConfig  # pyright: ignore[reportIncompatibleVariableOverride]  never replaced by another kind

    def _build_layers(self) -> None:
        config = self.config
        if config.token_parts is not None:
            self.embed = SummedEmbedding(config.token_parts, config.hidden_size)
        learned = config.positions == "learned"
        self.source_position_embed = (
            nn.Embedding(config.max_position_embeddings, config.hidden_size) if learned else None
        )
        self.encoder_layers = nn.ModuleList(EncoderBlock(config, layer) for layer in range(config.num_encoder_layers))
        self.encoder_norm = make_norm(config)
        self.layers = nn.ModuleList(CrossBlock(config, layer) for layer in range(config.num_hidden_layers))

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  positions are counted in each part
        self,
        inputs: Int[Tensor, "batch pos"] | None = None,
        input_ids: Int[Tensor, "batch pos"] | None = None,
        attention_mask: Int[Tensor, "_ _"] | Bool[Tensor, "_ _"] | None = None,
        prefix: Float[Tensor, "slot d_model"] | None = None,
        **_: Any,
    ) -> DecoderOutput:
        """Predict the next token of the target at each of its positions.

        Args:
            inputs: tokens of source and target.
            input_ids: the same, under the argument name of transformers.
            attention_mask: (batch, pos), 0 at padding; by default, padding is where the input is ``pad_token_id``.
            prefix: vectors that take the place of the embeddings of the first inputs of the source, in every sequence;
                they are not padding.
            **_: ignored arguments of transformers.

        Returns:
            The logits.

        Raises:
            ValueError: there is no input, no target, a target that is too long, a mask of another shape, a source that
                is padding throughout, or a prefix that is longer than the source.
        """
        tokens = inputs if input_ids is None else input_ids
        if tokens is None:
            raise ValueError("an encoder-decoder needs inputs or input_ids, but got neither")
        is_real = self._find_real(tokens, attention_mask, prefix)
        length = self.config.source_length
        source, source_mask = self._encode(tokens[:, :length], is_real[:, :length], prefix)
        states = self._decode(tokens[:, length:], is_real[:, length:], source, source_mask)
        logits = self.readout(self.final_norm(states))
        unscored = logits.new_zeros(len(logits), length, logits.shape[2])
        return DecoderOutput(logits=torch.cat([unscored, logits], dim=1))

    def _find_real(self, tokens: Tensor, attention_mask: Tensor | None, prefix: Tensor | None) -> Bool[Tensor, "_ _"]:
        """Return where inputs are not padding, and check the inputs."""
        length, limit = self.config.source_length, self.config.max_position_embeddings
        if not length < tokens.shape[1] <= length + limit:
            raise ValueError(
                f"a sequence must have a source of {length} and a target of 1 to {limit} positions, but got "
                f"{tokens.shape[1]} positions"
            )
        mask = self._find_padding(tokens, attention_mask)
        if prefix is not None and not (prefix.ndim == 2 and len(prefix) <= length):
            raise ValueError(
                f"prefix must be at most {length} vectors, the positions of the source, but its shape is "
                f"{tuple(prefix.shape)}"
            )
        is_real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.bool().clone()
        if prefix is not None:
            is_real[:, : len(prefix)] = True
        if not bool(is_real[:, :length].any(1).all()):
            raise ValueError("every source must have an input that is not padding, but one has none")
        return is_real

    def _encode(
        self, tokens: Int[Tensor, "batch source"], is_real: Bool[Tensor, "batch source"], prefix: Tensor | None
    ) -> tuple[Float[Tensor, "batch source d_model"], Bool[Tensor, "batch source"]]:
        """Return the output of the encoder, and where it is not padding."""
        x = self.embed(tokens)
        if prefix is not None:
            x = torch.cat([prefix.to(x).expand(len(x), -1, -1), x[:, len(prefix) :]], dim=1)
        x, positions = self._add_positions(x, None, self.source_position_embed)
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=x, attention_mask=is_real)
        for layer in self.encoder_layers:
            x = layer(x, mask, positions)
        return self.encoder_norm(x), is_real

    def _decode(
        self,
        tokens: Int[Tensor, "batch target"],
        is_real: Bool[Tensor, "batch target"],
        source: Float[Tensor, "batch source d_model"],
        source_is_real: Bool[Tensor, "batch source"],
    ) -> Float[Tensor, "batch target d_model"]:
        """Return the residual stream after the last layer of the decoder."""
        x, positions = self._embed_inputs(tokens, None)
        source_mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=x, attention_mask=source_is_real, encoder_hidden_states=source
        )
        no_cache = None  # by position: its name differs between versions of transformers
        mask = create_causal_mask(self.config, x, is_real, no_cache, position_ids=None)
        for layer in self.layers:
            x = layer(x, source, mask, source_mask, positions)
        return x

    def _output_projections(self) -> Iterator[nn.Module]:
        for block in (*self.encoder_layers, *self.layers):
            if isinstance(block, EncoderBlock | CrossBlock):
                yield block.attention.o_proj
                if block.has_mlp:
                    yield block.mlp.down_proj
            if isinstance(block, CrossBlock):
                yield block.cross_attention.o_proj


AutoConfig.register("mesascope_encoder_decoder", EncoderDecoderConfig, exist_ok=True)
AutoModel.register(EncoderDecoderConfig, EncoderDecoder, exist_ok=True)
AutoModelForCausalLM.register(EncoderDecoderConfig, EncoderDecoder, exist_ok=True)
