"""A tiny random model of every causal language model type of transformers, from rules over the names of its settings.

A rule is applied wherever a configuration has a setting of that name; the few settings that no rule can know stand in
a table by type.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig, PreTrainedModel
from transformers import logging as transformers_logging

WIDTH, HEADS, LAYERS, VOCABULARY = 32, 4, 4, 40

_SAME: tuple[tuple[int, str], ...] = (
    (
        WIDTH,
        "attention_hidden_size backbone_hidden_size d_model emb_dim embed_dim embedding_dim embedding_size "
        "hidden_size hidden_size_global input_embedding_size input_size lru_width n_embd output_embedding_size "
        "word_embed_proj_dim",
    ),
    (
        48,
        "d_ff d_inner decoder_ffn_dim dense_intermediate_size dff dim_ff encoder_ffn_dim expert_ffn_hidden_size "
        "feed_forward_size ffn_dim ffn_hidden_size intermediate_size intermediate_size_mlp n_inner",
    ),
    (
        HEADS,
        "adapter_rank attention_chunk_size attention_heads attention_window_size block_size chunk_size d_rel "
        "decoder_attention_heads encoder_attention_heads gated_norm_rank hc_lowrank index_block_size index_n_heads "
        "index_topk indexer_n_heads keep_window_size laurel_rank linear_num_heads linear_num_value_heads "
        "local_attention local_attention_window_len mamba_chunk_size mamba_d_state mamba_dt_rank moe_num_experts "
        "n_head n_heads n_mamba_heads n_routed_experts num_attention_heads num_blocks num_decoder_attention_heads "
        "num_encoder_attention_heads num_experts num_heads num_local_experts num_query_groups qk_rope_head_dim "
        "rel_extent rotary_dim sliding_window sliding_window_size ssm_state_size state_size "
        "swa_num_attention_heads time_step_rank window_size",
    ),
    (
        LAYERS,
        "decoder_layers encoder_layers n_layer n_layers num_decoder_layers num_encoder_layers num_hidden_layers "
        "num_layers num_layers_per_stack",
    ),
    (
        2,
        "heads_per_ngram index_topk_blocks indexer_compress_ratio indexer_kv_heads kv_n_heads linear_num_key_heads "
        "mamba_n_groups mamba_ngroups moe_k moe_num_shared_experts moe_top_k moe_topk n_groups n_shared_experts "
        "num_experts_per_tok num_experts_per_token num_key_value_heads num_kv_heads o_groups "
        "swa_num_key_value_heads zero_expert_num",
    ),
    (
        1,
        "attn_layer_offset expert_layer_offset first_k_dense_replace moe_layer_start_index n_group num_codebooks "
        "num_dense_layers num_expert_group topk_group",
    ),
    (
        8,
        "attention_head_dim attention_head_size d_head d_kv dim_head head_dim hidden_size_per_layer_input "
        "index_head_dim indexer_budget indexer_head_dim kv_channels linear_head_dim linear_key_head_dim "
        "linear_value_head_dim mamba_d_head mamba_head_dim mamba_headdim mamba_n_heads mamba_num_heads "
        "max_window_layers ple_embed_dim qk_nope_head_dim query_pre_attn_scalar router_hidden_size swa_head_dim",
    ),
    (
        16,
        "dim_model_base kv_lora_rank moe_intermediate_size moe_shared_expert_intermediate_size o_lora_rank "
        "q_lora_rank shared_expert_intermediate_size shared_experts_intermediate_size shared_intermediate_size",
    ),
    (6, "v_head_dim"),
    (12, "qk_head_dim"),
    (64, "mamba_d_ssm"),
    (
        640,
        "context_length max_position_embeddings max_seq_len max_source_positions max_target_positions "
        "model_max_length n_ctx n_positions original_max_position_embeddings position_bias_max_distance "
        "relative_max_distance",
    ),
    (
        VOCABULARY,
        "audio_vocab_size decoder_vocab_size encoder_hash_byte_group_vocab ngram_vocab_size_base "
        "pronunciation_vocab_size shape_vocab_size unpadded_vocab_size vocab_size vocab_size_per_layer_input",
    ),
    (0, "classifier_dropout hidden_dropout_prob num_kv_shared_layers pad_token_id"),
)
RULES = {name: value for value, names in _SAME for name in names.split()} | {
    "is_decoder": True,
    "use_mamba_kernels": False,
}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2, "decoder_start_token_id": 1}
LATENT = {"head_dim": 4, "num_key_value_heads": HEADS}  # heads of latent attention share one rotary key

TWICE = {  # attention reads the stream beside the embedding, both in one
    "layers_block_type": ["linear_attention", "hybrid"] * 2,
    "attention_head_dim": 16,
    "attention_hidden_size": 64,
}

# Settings that no rule can know: they depend on one another, or one name means different things.
OWN: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "bailing_hybrid": {"layer_group_size": 2},
    "bamba": {"attn_layer_indices": [1, 3]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "dbrx": {"attn_config": {"clip_qkv": 8.0, "kv_n_heads": 2, "rope_theta": 10000.0}},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "jamba": {"attn_layer_period": 2},
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"head_dim": 16},
    "qwen4_exp_text": {"indexer_kv_heads": 1},
    "reformer": {"axial_pos_embds_dim": (16, 16), "axial_pos_shape": (20, 32)},
    "xmod": {"default_language": "en_XX"},
    "zamba": TWICE,
    "zamba2": TWICE | {"mamba_headdim": 16},
    "zaya": {"num_experts_per_tok": 1},
}


@cache
def every_type() -> tuple[str, ...]:
    """Every type of which transformers has a causal language model; to import them all takes seconds."""
    known = ((kind, config) for kind, config in CONFIG_MAPPING.items() if config in MODEL_FOR_CAUSAL_LM_MAPPING)
    return tuple(kind for kind, config in known if config.__module__.startswith("transformers."))


def build(kind: str, kernel: str | None = None) -> PreTrainedModel:
    """A model of a type, the same every time, its weights stirred so that no identity holds by accident.

    Args:
        kind: one of `every_type`.
        kernel: the attention implementation; the one that transformers chooses by default.
    """
    torch.manual_seed(0)
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[kind]]
    config_class = model_class.config_class if model_class.config_class in _parts(kind) else CONFIG_MAPPING[kind]
    config = configure(config_class, config_class.model_type)
    chosen = {} if kernel is None else {"attn_implementation": kernel}
    return stir(model_class._from_config(config, dtype=torch.float32, **chosen))


def stir(model: PreTrainedModel) -> PreTrainedModel:
    """The model in evaluation mode, with the same noise on all weights every time.

    Args:
        model: the model, whose weights change.
    """
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@contextmanager
def silenced() -> Iterator[None]:
    """Context manager: neither warnings nor the notes of transformers are printed."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(before)


def _parts(kind: str) -> list[type]:
    """The classes of the configurations within a configuration."""
    return list(CONFIG_MAPPING[kind].sub_configs.values())


def configure(
    config_class: type[PretrainedConfig],
    kind: str,
    rules: dict[str, Any] = RULES,
    own_settings: dict[str, dict[str, Any]] = OWN,
) -> PretrainedConfig:
    """A configuration in which every setting that a rule names is small, and so in every configuration within it."""
    own = own_settings.get(kind, {})
    settings: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        usual = vars(config_class(**own.get("usual", {})))
    for name, value in usual.items():
        if isinstance(value, PretrainedConfig):
            settings[name] = configure(type(value), value.model_type, rules, own_settings)
        elif name in TOKENS and value is not None:
            settings[name] = TOKENS[name]
        elif name in rules and not isinstance(value, list | dict):
            settings[name] = rules[name]
    if "qk_rope_head_dim" in usual:
        settings |= {name: value for name, value in LATENT.items() if name in usual}
    settings |= {name: value for name, value in own.items() if name != "usual"}
    return config_class(**settings)
