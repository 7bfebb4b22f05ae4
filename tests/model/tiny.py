"""Tiny models of many architectures with random weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 97
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}
EXPERTS = {**GROUPED, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_inner": 48}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
LINEAR = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
# By name: the model type where it differs, and what its config needs.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": GROUPED, "qwen2": GROUPED, "qwen3": GROUPED, "gemma": GROUPED, "olmo2": GROUPED,
    "mistral": {**GROUPED, "sliding_window": 16}, "gemma2": {**GROUPED, "sliding_window": 16},
    "gemma3_text": {**GROUPED, "sliding_window": 16}, "phi3": {**GROUPED, "sliding_window": 16},
    "mixtral": EXPERTS, "qwen3_moe": EXPERTS, "olmoe": EXPERTS, "stablelm": GROUPED, "nemotron": GROUPED,
    "llama4_text": {**EXPERTS, "attention_chunk_size": 64, "intermediate_size_mlp": 48, "no_rope_layers": [1, 1]},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 16, "use_sliding_window": True, "sliding_window": 64,
                  "layer_types": ["sliding_attention", "full_attention"]}, "phimoe": {**EXPERTS, "sliding_window": 64},
    "gpt2": GPT, "gpt_bigcode": GPT, "gpt_neox": SIZES, "gptj": {**GPT, "rotary_dim": 8},
    "codegen": {**GPT, "rotary_dim": 8},
    "gpt_neo": {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]],
                "max_position_embeddings": 128, "window_size": 16, "intermediate_size": 48},
    "opt": {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128},
    "falcon": {**SIZES, "alibi": False}, "falcon alibi": {**SIZES, "model_type": "falcon", "alibi": True},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    "mamba2": {"hidden_size": 32, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 8, "n_groups": 2, "state_size": 8,
               "chunk_size": 8},
    "rwkv": {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32, "context_length": 128},
    "jamba": {**EXPERTS, "mamba_d_state": 8, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
              "expert_layer_offset": 1, "use_mamba_kernels": False},
    "bamba": {**GROUPED, **MAMBA, "attn_layer_indices": [1]}, "falcon_h1": {**GROUPED, **MAMBA, "mamba_d_ssm": 64},
    "granitemoehybrid": {**EXPERTS, **MAMBA, "layer_types": ["mamba", "attention"], "shared_intermediate_size": 16},
    "qwen3_next": {**EXPERTS, **LINEAR, "shared_expert_intermediate_size": 16}, "qwen3_5_text": {**GROUPED, **LINEAR},
    "recurrent_gemma": {**GROUPED, "num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 16,
                        "block_types": ["recurrent", "recurrent", "attention"]},
    "lfm2": {**GROUPED, "layer_types": ["conv", "full_attention"]},
    "bert": SIZES,
}  # fmt: skip


def tiny(name: str, **more: Any) -> PreTrainedModel:
    """A model in training mode, caching off."""
    given = {"model_type": name, "vocab_size": VOCABULARY, **ARCHITECTURES[name], **more}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**given))
    model.config.use_cache = False
    return model.train()
