"""One small decoder for every task, as a transformers model: what opens it opens any other."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.utils.generic import ModelOutput

from mesascope.models.config import DecoderConfig
from mesascope.models.layers import Block, Stream, make_norm, sinusoids


@dataclass
class DecoderOutput(ModelOutput):
    """What a decoder returns.

    Attributes:
        logits: at every position, the logits of the next token or the predicted vector.
    """

    logits: Float[Tensor, "batch pos d_out"] | None = None


class Decoder(PreTrainedModel):
    """A decoder over tokens or vectors, from one :class:`DecoderConfig`.

    It dispatches its attention as transformers' own models do, so it saves, loads and is opened like them.

    >>> config = DecoderConfig(d_in=1, d_out=1, num_hidden_layers=1, hidden_size=8, num_attention_heads=2)
    >>> Decoder(config)(torch.zeros(2, 5, 1)).logits.shape
    torch.Size([2, 5, 1])
    """

    config_class = DecoderConfig
    config: DecoderConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _supports_sdpa = False  # the eager products are faster at these lengths, and do linear attention too
    _supports_attention_backend = True
    _can_set_attn_implementation_cached_value = True

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.main_input_name = "inputs" if config.vocab_size is None else "input_ids"
        if config.d_in is not None and config.d_out is not None:
            self.embed = nn.Linear(config.d_in, config.hidden_size)
            self.readout = nn.Linear(config.hidden_size, config.d_out)
        elif config.vocab_size is not None:
            self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
            self.readout = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        learned = config.positions == "learned"
        self.position_embed = nn.Embedding(config.max_position_embeddings, config.hidden_size) if learned else None
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.final_norm = make_norm(config) if config.norm_position == "pre" else nn.Identity()
        self._tied_weights_keys = self._other_names()
        self.post_init()

    def forward(
        self,
        inputs: Float[Tensor, "batch pos d_in"] | Int[Tensor, "batch pos"] | None = None,
        input_ids: Int[Tensor, "batch pos"] | None = None,
        attention_mask: Int[Tensor, "batch pos"] | None = None,
        position_ids: Int[Tensor, "#batch pos"] | None = None,
        **_: Any,
    ) -> DecoderOutput:
        """Predict the next token or vector at every position.

        Args:
            inputs: vectors (tokens are taken too).
            input_ids: tokens, under the name that transformers gives them.
            attention_mask: 0 at padding.
            position_ids: the place of each input, 0, 1, 2, ... by default.

        Raises:
            ValueError: no input, or one longer than ``max_position_embeddings``.
        """
        x = inputs if input_ids is None else input_ids
        if x is None:
            raise ValueError("a decoder needs inputs or input_ids, but got neither")
        length = x.shape[1]
        if length > self.config.max_position_embeddings:
            raise ValueError(
                f"a sequence must have at most {self.config.max_position_embeddings} positions, but got {length}"
            )
        x = self.embed(x)
        mask = self._mask(x, attention_mask, position_ids)
        if position_ids is None:
            position_ids = torch.arange(length, device=x.device)[None]
        if self.position_embed is not None:
            x = x + self.position_embed(position_ids)
        elif self.config.positions == "sinusoidal":
            x = x + sinusoids(position_ids, x.shape[-1]).to(x.dtype)
        for layer in self.layers:
            x = layer(x, mask, position_ids)
        return DecoderOutput(logits=self.readout(self.final_norm(x)))

    def _mask(
        self, x: Stream, attention_mask: Int[Tensor, "batch pos"] | None, position_ids: Int[Tensor, "#batch pos"] | None
    ) -> Tensor | None:
        """Where positions may attend to; given places that begin anew begin another sequence."""
        if self.config.visible != "past":
            shown = x.shape[1] - (self.config.visible == "shown")
            return create_bidirectional_mask(
                config=self.config,
                inputs_embeds=x,
                attention_mask=attention_mask,
                and_mask_function=lambda batch, head, query, key: key < shown,
            )
        return create_causal_mask(
            config=self.config,
            inputs_embeds=x,
            attention_mask=attention_mask,
            past_key_values=None,
            position_ids=position_ids,
        )

    def get_input_embeddings(self) -> nn.Module:
        """The map into the residual stream."""
        return self.embed

    def get_output_embeddings(self) -> nn.Module:
        """The map out of the residual stream."""
        return self.readout

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Which parameters are others by another name."""
        return dict(self._tied_weights_keys)

    def _other_names(self) -> dict[str, str]:
        """Where layers are shared, all are the first; where embeddings are tied, the read-out is the embedding."""
        tied = {"readout.weight": "embed.weight"} if self.config.tie_word_embeddings else {}
        if self.config.share_layers:
            for name, _ in self.layers[0].named_parameters():
                tied |= {f"layers.{i}.{name}": f"layers.0.{name}" for i in range(1, len(self.layers))}
        return tied

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Fan-in scaling for linear maps; those that write to the stream as much smaller as the configuration says.

        Asked of modules that have parameters of their own alone: transformers passes over the others.
        """
        if isinstance(module, nn.Linear):
            factor = self.config.initializer_writes if any(module is one for one in self._writing()) else 1.0
            nn.init.normal_(module.weight, std=factor * module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
            module.reset_parameters()

    def _writing(self) -> Iterator[nn.Module]:
        """The maps that write to the residual stream."""
        for block in self.layers:
            if isinstance(block, Block):
                yield block.attention.o_proj
                if block.has_mlp:
                    yield block.mlp.down_proj


AutoConfig.register("mesascope", DecoderConfig, exist_ok=True)
AutoModel.register(DecoderConfig, Decoder, exist_ok=True)
AutoModelForCausalLM.register(DecoderConfig, Decoder, exist_ok=True)
