"""Small random models of many architectures, for the tests that hold each to its own forward pass."""

from pathlib import Path
from typing import Any

_SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "head_dim": 8,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}
_LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
_INDEXED = {
    **_EXPERTS,
    **_LINEAR,
    "shared_expert_intermediate_size": 32,
    "hc_count": 2,
    "hc_lowrank": 8,
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 8,
    "indexer_compress_ratio": 4,
    "ple_layer_ids": [1],
    "ngram_size": 3,
    "heads_per_ngram": 2,
    "ngram_vocab_size_base": 64,
    "split_ngram_parts": 1,
}
# Shorter than the rows.
_WINDOW = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}

SETTINGS: dict[str, dict[str, Any]] = {
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 0.25, **_WINDOW},
    "falcon_h1": {"lm_head_multiplier": 0.5, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
    "gemma2": {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 8, **_WINDOW},
    "gemma3_text": {"query_pre_attn_scalar": 8, **_WINDOW},
    "gemma3_text softcap": {"final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8, **_WINDOW},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "granite": {"logits_scaling": 4.0},
    "llama": {},
    "mistral": {"sliding_window": 16},
    "olmo2": {},
    "phi3": {"pad_token_id": 0},
    "qwen2": {},
    "qwen2_moe": {**_EXPERTS, "shared_expert_intermediate_size": 32},
    "qwen3": {},
    "qwen3_5_moe_text": {**_EXPERTS, **_LINEAR, "shared_expert_intermediate_size": 32},
    "qwen3_5_text": _LINEAR,
    "qwen3_moe": _EXPERTS,
    "qwen3_next": {**_EXPERTS, **_LINEAR, "shared_expert_intermediate_size": 32},
    "qwen4_exp_text": _INDEXED,
}
"""By name, the settings of a model beside those that all share; the name begins with the model type."""


def make_model(folder: Path, name: str) -> str:
    """Writes the model of `SETTINGS` with large random weights and the shipped tokenizer, and returns its directory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from tests.conftest import TINY_MODEL

    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL)
    kind = name.split(maxsplit=1)[0]
    shared = {} if kind == "gpt2" else _SHAPE
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    settings = {"vocab_size": len(tokenizer), **ids, **shared, **SETTINGS[name]}
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings))
    with torch.no_grad():
        # Logits of a random model are so small that neither a cap nor a scale would be seen.
        model.get_output_embeddings().weight.normal_(std=0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
