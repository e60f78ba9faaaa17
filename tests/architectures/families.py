"""Tiny random models of many families, their weights stirred so that no identity holds by accident."""

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

COMMON = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {
    "vocab_size": 40,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

FAMILIES: dict[str, dict] = {
    "llama": {},
    "mistral": {"sliding_window": 4},
    "mixtral": MOE,
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": MOE,
    "gemma": {"num_key_value_heads": 1},
    "gemma2": {"sliding_window": 4, "query_pre_attn_scalar": 8},
    "gemma3_text": {"sliding_window": 4, "query_pre_attn_scalar": 8},
    "olmo": {},
    "olmo2": {},
    "olmo3": {"sliding_window": 4},
    "olmoe": MOE,
    "gpt2": GPT2,
    "gpt_bigcode": GPT2,
    "gpt_neox": {},
    "phi": {"num_key_value_heads": 4},
    "phi3": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "stablelm": {},
    "starcoder2": {},
    "cohere": {"logit_scale": 0.3},
    "cohere2": {"logit_scale": 0.3, "sliding_window": 4},
    "granite": {
        "residual_multiplier": 0.22,
        "embedding_multiplier": 3.0,
        "logits_scaling": 4.0,
        "attention_multiplier": 0.1,
    },
    "glm": {},
    "glm4": {},
    "smollm3": {},
    "gpt_oss": {"num_local_experts": 4, "sliding_window": 4},
    "biogpt": {"num_key_value_heads": 4},
    "helium": {},
    "nemotron": {},
    "exaone4": {"sliding_window": 4},
    "hunyuan_v1_dense": {},
    "ernie4_5": {},
    "seed_oss": {},
    "apertus": {},
    "arcee": {},
    "deepseek_v3": {
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 6,
        "moe_intermediate_size": 16,
        "num_key_value_heads": 4,
        "head_dim": 4,
    },
}

OWN_ATTENTION: dict[str, dict] = {
    "falcon": {"head_dim": None},
    "bloom": {"n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64},
    "gptj": GPT2 | {"rotary_dim": 4},
    "codegen": GPT2 | {"rotary_dim": 4},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    "xglm": {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4},
    "mamba": {"state_size": 4},
    "rwkv": {"attention_hidden_size": 32},
}


def make(family: str, **changes: object) -> PreTrainedModel:
    """A model of a family, the same every time."""
    torch.manual_seed(0)
    own = (FAMILIES | OWN_ATTENTION).get(family, {})
    settings = own if "n_embd" in own else {k: v for k, v in (COMMON | own).items() if v is not None}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **(settings | changes)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return model.eval()


def tokens(rows: int = 3, length: int = 11) -> torch.Tensor:
    """Random tokens; none of them is special."""
    return torch.randint(3, 40, (rows, length), generator=torch.Generator().manual_seed(1))


def in_double(model: PreTrainedModel) -> PreTrainedModel:
    """The same model in float64 throughout: RMSNorms of transformers compute in float32 whatever they are given."""
    for name, module in list(model.double().named_modules()):
        if type(module).__name__.endswith("RMSNorm") and not isinstance(module, nn.RMSNorm):
            precise = nn.RMSNorm(len(module.weight), eps=module.variance_epsilon, dtype=torch.float64)
            precise.weight = module.weight
            model.set_submodule(name, precise)
    return model
