"""A tiny random model of every causal language model type of transformers, from rules over the names of its settings.

A rule is applied wherever a configuration has a setting of that name; the few settings that no rule can know stand in
a table by type.
"""

import warnings
from typing import Any

import torch
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig, PreTrainedModel

WIDTH, HEADS, LAYERS, VOCABULARY = 32, 4, 4, 40
TYPES = tuple(
    kind for kind, config in CONFIG_MAPPING.items() if config in MODEL_FOR_CAUSAL_LM_MAPPING
)  # every type of which transformers has a causal language model

_SAME: tuple[tuple[int, str], ...] = (
    (
        WIDTH,
        "hidden_size d_model n_embd emb_dim embedding_dim embed_dim embedding_size attention_hidden_size lru_width "
        "input_embedding_size output_embedding_size word_embed_proj_dim backbone_hidden_size hidden_size_global input_size",
    ),
    (
        48,
        "intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim d_ff dff dim_ff feed_forward_size n_inner d_inner "
        "ffn_hidden_size intermediate_size_mlp dense_intermediate_size expert_ffn_hidden_size",
    ),
    (
        HEADS,
        "num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads num_query_groups "
        "encoder_attention_heads num_decoder_attention_heads num_encoder_attention_heads swa_num_attention_heads "
        "index_n_heads linear_num_heads linear_num_value_heads n_routed_experts num_experts num_local_experts "
        "moe_num_experts index_topk ssm_state_size state_size time_step_rank mamba_d_state mamba_dt_rank mamba_chunk_size "
        "chunk_size sliding_window sliding_window_size attention_window_size window_size local_attention keep_window_size "
        "attention_chunk_size laurel_rank rotary_dim qk_rope_head_dim n_mamba_heads block_size rel_extent "
        "gated_norm_rank hc_lowrank d_rel adapter_rank num_blocks local_attention_window_len index_block_size",
    ),
    (
        LAYERS,
        "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_decoder_layers "
        "num_encoder_layers num_layers_per_stack",
    ),
    (
        2,
        "num_key_value_heads num_kv_heads kv_n_heads swa_num_key_value_heads num_experts_per_tok num_experts_per_token "
        "moe_k moe_top_k moe_topk linear_num_key_heads zero_expert_num index_topk_blocks o_groups n_groups mamba_n_groups "
        "mamba_ngroups n_shared_experts moe_num_shared_experts heads_per_ngram depth",
    ),
    (
        1,
        "n_group topk_group num_expert_group first_k_dense_replace num_dense_layers expert_layer_offset "
        "attn_layer_offset moe_layer_start_index",
    ),
    (
        8,
        "head_dim d_head d_kv dim_head attention_head_size attention_head_dim swa_head_dim kv_channels index_head_dim "
        "linear_head_dim linear_key_head_dim linear_value_head_dim qk_nope_head_dim query_pre_attn_scalar mamba_d_head "
        "mamba_n_heads mamba_head_dim mamba_headdim mamba_num_heads hidden_size_per_layer_input ple_embed_dim "
        "router_hidden_size max_window_layers",
    ),
    (
        16,
        "kv_lora_rank q_lora_rank o_lora_rank moe_intermediate_size shared_expert_intermediate_size "
        "shared_experts_intermediate_size shared_intermediate_size moe_shared_expert_intermediate_size dim_model_base",
    ),
    (6, "v_head_dim"),
    (12, "qk_head_dim"),
    (
        64,
        "max_position_embeddings n_positions n_ctx max_seq_len model_max_length max_target_positions mamba_d_ssm "
        "max_source_positions context_length relative_max_distance position_bias_max_distance "
        "original_max_position_embeddings",
    ),
    (
        VOCABULARY,
        "vocab_size vocab_size_per_layer_input decoder_vocab_size unpadded_vocab_size shape_vocab_size "
        "pronunciation_vocab_size audio_vocab_size ngram_vocab_size_base encoder_hash_byte_group_vocab",
    ),
    (0, "pad_token_id hidden_dropout_prob num_kv_shared_layers classifier_dropout"),
)
RULES = {name: value for value, names in _SAME for name in names.split()} | {
    "is_decoder": True,
    "use_mamba_kernels": False,
}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2, "decoder_start_token_id": 1}
LATENT = {"head_dim": 4, "num_key_value_heads": HEADS}  # heads of latent attention share one rotary key

# Settings that no rule can know: they depend on one another, or one name means different things.
OWN: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba", "attention"]},
    "jamba": {"attn_layer_period": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "mamba2": {"head_dim": 16},
    "reformer": {"axial_pos_embds_dim": (16, 16), "axial_pos_shape": (8, 8)},
    "xmod": {"default_language": "en_XX"},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
}


def build(kind: str, kernel: str | None = None) -> PreTrainedModel:
    """A model of a type, the same every time, its weights stirred so that no identity holds by accident.

    Args:
        kind: one of `TYPES`.
        kernel: the attention implementation; the one that transformers chooses by default.
    """
    torch.manual_seed(0)
    whole = configure(CONFIG_MAPPING[kind], kind)
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(whole)]
    parts = [part for part in vars(whole).values() if type(part) is model_class.config_class]
    config = whole if isinstance(whole, model_class.config_class) or not parts else parts[0]
    chosen = {} if kernel is None else {"attn_implementation": kernel}
    model = model_class._from_config(config, dtype=torch.float32, **chosen)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def configure(config_class: type[PretrainedConfig], kind: str) -> PretrainedConfig:
    """A configuration in which every setting that a rule names is small, and so in every configuration within it."""
    own = OWN.get(kind, {})
    settings: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        usual = vars(config_class(**own.get("usual", {})))
    for name, value in usual.items():
        if isinstance(value, PretrainedConfig):
            settings[name] = configure(type(value), value.model_type)
        elif name in TOKENS and value is not None:
            settings[name] = TOKENS[name]
        elif name in RULES and not isinstance(value, list | dict):
            settings[name] = RULES[name]
    if "qk_rope_head_dim" in usual:
        settings |= {name: value for name, value in LATENT.items() if name in usual}
    settings |= {name: value for name, value in own.items() if name != "usual"}
    return config_class(**settings)
