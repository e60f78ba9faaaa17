"""The decoder, a transformers model for all tasks."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.utils.generic import ModelOutput

from mesascope.models.config import DecoderConfig as DecoderConfig  # exported: the docs import it from here
from mesascope.models.layers import DecoderBlock, HiddenStates, make_norm, sinusoidal_positions


@dataclass
class DecoderOutput(ModelOutput):
    """The output of a decoder.

    Attributes:
        logits: at every position, the logits of the next token or the predicted vector.
        auxiliary_loss: a term that training adds to the loss of the task, if the model has one.
    """

    logits: Float[Tensor, "batch pos d_out"] | None = None
    auxiliary_loss: Float[Tensor, ""] | None = None


class Decoder(PreTrainedModel):
    """A decoder over tokens or vectors, defined by a :class:`DecoderConfig`.

    It uses the attention interface of transformers, and is saved, loaded and captured like any other transformers
    model.

    >>> config = DecoderConfig(d_in=1, d_out=1, num_hidden_layers=1, hidden_size=8, num_attention_heads=2)
    >>> Decoder(config)(torch.zeros(2, 5, 1)).logits.shape
    torch.Size([2, 5, 1])
    """

    config_class = DecoderConfig
    config: DecoderConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _supports_sdpa = False  # eager attention is faster for short sequences, and supports linear attention
    _supports_attention_backend = True
    _can_set_attn_implementation_cached_value = True

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.main_input_name = "inputs" if config.vocab_size is None else "input_ids"
        if config.d_in is not None and config.d_out is not None:
            self.embed = nn.Linear(config.d_in, config.hidden_size, bias=config.embed_bias)
            self.readout = nn.Linear(config.hidden_size, config.d_out)
        elif config.vocab_size is not None:
            self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
            self.readout = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        learned = config.positions == "learned"
        self.position_embed = nn.Embedding(config.max_position_embeddings, config.hidden_size) if learned else None
        self._build_layers()
        self.final_norm = make_norm(config) if config.norm_position == "pre" else nn.Identity()
        self._tied_weights_keys = self._tied_parameters()
        self.post_init()

    def _build_layers(self) -> None:
        """Build the blocks, in `layers`."""
        num_layers = self.config.num_hidden_layers
        self.layers = nn.ModuleList(DecoderBlock(self.config, layer) for layer in range(num_layers))

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
            inputs: vectors, or tokens.
            input_ids: tokens, under the argument name of transformers.
            attention_mask: 0 at padding.
            position_ids: position of each input; 0, 1, 2, ... by default.
            **_: ignored arguments of transformers.

        Returns:
            The logits or predicted vectors.

        Raises:
            ValueError: there is no input, or it is longer than ``max_position_embeddings``.
        """
        inputs = self._validate_inputs(inputs, input_ids)
        x, positions = self._embed_inputs(inputs, position_ids)
        mask = self._build_mask(x, attention_mask, position_ids)
        for layer in self.layers:
            x = layer(x, mask, positions)
        return DecoderOutput(logits=self.readout(self.final_norm(x)))

    def _validate_inputs(self, inputs: Tensor | None, input_ids: Tensor | None) -> Tensor:
        """Return the given inputs; raise a ValueError if there are none or they are too long."""
        x = inputs if input_ids is None else input_ids
        if x is None:
            raise ValueError("a decoder needs inputs or input_ids, but got neither")
        if x.shape[1] > self.config.max_position_embeddings:
            raise ValueError(
                f"a sequence must have at most {self.config.max_position_embeddings} positions, but got {x.shape[1]}"
            )
        return x

    def _embed_inputs(
        self, inputs: Tensor, position_ids: Int[Tensor, "#batch pos"] | None
    ) -> tuple[HiddenStates, Int[Tensor, "#batch pos"]]:
        """Return the residual stream before the first layer, and the positions; 0, 1, 2, ... by default."""
        return self._add_positions(self.embed(inputs), position_ids, self.position_embed)

    def _add_positions(
        self, x: HiddenStates, position_ids: Int[Tensor, "#batch pos"] | None, position_embed: nn.Embedding | None
    ) -> tuple[HiddenStates, Int[Tensor, "#batch pos"]]:
        """Return embeddings with learned or sinusoidal positions, and the positions; 0, 1, 2, ... by default."""
        if position_ids is None:
            position_ids = torch.arange(x.shape[1], device=x.device)[None]
        if position_embed is not None:
            x = x + position_embed(position_ids)
        elif self.config.positions == "sinusoidal":
            x = x + sinusoidal_positions(position_ids, x.shape[-1]).to(x.dtype)
        return x, position_ids

    def _find_padding(self, inputs: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        """Return the mask, by default that of the padding token; raise a ValueError if it has another shape."""
        if attention_mask is None:
            return None if self.config.pad_token_id is None else inputs != self.config.pad_token_id
        if attention_mask.shape != inputs.shape[:2]:
            raise ValueError(
                f"attention_mask must have the shape of the inputs, {tuple(inputs.shape[:2])}, but got "
                f"{tuple(attention_mask.shape)}"
            )
        return attention_mask

    def _build_mask(
        self,
        x: HiddenStates,
        attention_mask: Int[Tensor, "batch pos"] | Bool[Tensor, "batch pos"] | None,
        position_ids: Int[Tensor, "#batch pos"] | None,
    ) -> Tensor | None:
        """Build the attention mask; in a causal mask, position ids that restart begin a new sequence."""
        if self.config.mask != "causal":
            num_visible = x.shape[1] - (self.config.mask == "context_only")
            return create_bidirectional_mask(
                config=self.config,
                inputs_embeds=x,
                attention_mask=attention_mask,
                and_mask_function=lambda batch, head, query, key: key < num_visible,
            )
        no_cache = None  # by position: its name differs between versions of transformers
        return create_causal_mask(self.config, x, attention_mask, no_cache, position_ids=position_ids)

    def get_input_embeddings(self) -> nn.Module:
        """Return the module that maps inputs to the residual stream."""
        return self.embed

    def get_output_embeddings(self) -> nn.Module:
        """Return the module that maps the residual stream to outputs."""
        return self.readout

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Return the tied parameters.

        Args:
            all_submodels: ignored; the decoder has no submodels with ties of their own.

        Returns:
            The name of the source parameter by the name of each tied one.
        """
        return dict(self._tied_weights_keys)

    def _tied_parameters(self) -> dict[str, str]:
        """Return the ties: all layers to the first if layers are shared, the unembedding to the embedding if tied."""
        tied = {"readout.weight": "embed.weight"} if self.config.tie_word_embeddings else {}
        if self.config.share_layers:
            for name, _ in self.layers[0].named_parameters():
                tied |= {f"layers.{i}.{name}": f"layers.0.{name}" for i in range(1, len(self.layers))}
        return tied

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise a module; output projections are scaled by `residual_init_scale`."""
        if isinstance(module, nn.Linear):
            # transformers calls this only for modules that own parameters directly, hence the search by identity.
            factor = (
                self.config.residual_init_scale if any(module is one for one in self._output_projections()) else 1.0
            )
            fan_in = self.config.initializer == "fan_in"
            std = module.in_features**-0.5 if fan_in else self.config.initializer_range
            nn.init.normal_(module.weight, std=factor * std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
            module.reset_parameters()

    def _output_projections(self) -> Iterator[nn.Module]:
        """Yield the output projections, which write to the residual stream."""
        for block in self.layers:
            if isinstance(block, DecoderBlock):
                yield block.attention.o_proj
                if block.has_mlp:
                    yield block.mlp.down_proj


AutoConfig.register("mesascope", DecoderConfig, exist_ok=True)
AutoModel.register(DecoderConfig, Decoder, exist_ok=True)
AutoModelForCausalLM.register(DecoderConfig, Decoder, exist_ok=True)
