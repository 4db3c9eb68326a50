"""The variants: configs in their publishers' style, small, with every field different from its default, and their tensors."""

import math

import published

VOCAB = 128
TINY = dict(
    hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=512, rms_norm_eps=1e-5, vocab_size=VOCAB, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)


def config(model_type, **fields):
    return dict(TINY, model_type=model_type) | fields


def llama(**fields):
    return config("llama", **dict(dict(head_dim=16, hidden_act="silu", rope_theta=10000.0, tie_word_embeddings=False), **fields))


def qwen3(**fields):
    base = dict(head_dim=32, hidden_act="silu", attention_bias=False, rope_theta=1000000, tie_word_embeddings=True)
    return config("qwen3", **dict(base, **fields))


def llama3_rope(**fields):
    return dict(rope_type="llama3", factor=8.0, high_freq_factor=4.0, low_freq_factor=1.0,
                original_max_position_embeddings=64, **fields)


YARN = dict(rope_type="yarn", factor=4.0, beta_fast=2.0, beta_slow=0.1, original_max_position_embeddings=16)
AFFINE = dict(group_size=32, bits=4, mode="affine")

# name -> config; the part of the name after "+" says how the weights are stored
VARIANTS = {
    "llama": llama(),
    "llama-tied-llama3": llama(rope_theta=500000.0, rope_scaling=llama3_rope(), tie_word_embeddings=True),
    "llama-v5-llama3": llama(rope_theta=None, rope_parameters=llama3_rope(rope_theta=500000.0), dtype="float32"),
    "llama-bias-linear": llama(attention_bias=True, mlp_bias=True, rope_scaling=dict(type="linear", factor=4.0), head_dim=None),
    "llama-dynamic": llama(rope_scaling=dict(rope_type="dynamic", factor=2.0), max_position_embeddings=24),
    "llama-yarn": llama(rope_scaling=YARN),
    "llama+bf16": llama(torch_dtype="bfloat16"),
    "llama+q4": llama(quantization=AFFINE),
    "qwen3": qwen3(),
    "qwen3-window": qwen3(use_sliding_window=True, sliding_window=8, max_window_layers=2, tie_word_embeddings=False),
    "qwen3+q8": qwen3(quantization=dict(AFFINE, bits=8, group_size=64)),
    "qwen3+q3": qwen3(quantization=dict(AFFINE, bits=3)),
    "qwen3+mixed": qwen3(
        quantization=dict(AFFINE, **{
            "model.embed_tokens": dict(bits=6, group_size=64),
            "model.layers.0.self_attn.v_proj": dict(bits=8, group_size=64),
            "model.layers.1.mlp.down_proj": False,
            "model.layers.2.mlp.up_proj": dict(bits=2, group_size=32),
            "model.layers.3.mlp.gate_proj": dict(bits=5, group_size=32),
        }),
    ),
    "qwen3+mxfp4": qwen3(quantization=dict(group_size=32, bits=4, mode="mxfp4")),
    "qwen3+nvfp4": qwen3(quantization=dict(group_size=16, bits=4, mode="nvfp4")),
    "qwen3+mxfp8": qwen3(quantization=dict(group_size=32, bits=8, mode="mxfp8")),
}

GEMMA3 = dict(
    num_hidden_layers=7, head_dim=32, num_key_value_heads=1, hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=24,
    rope_local_base_freq=100.0, rope_theta=10000.0, sliding_window=8, sliding_window_pattern=3,
)
V5_GEMMA3 = dict(
    {k: v for k, v in GEMMA3.items() if k not in ("rope_local_base_freq", "rope_theta", "sliding_window_pattern")},
    layer_types=["sliding_attention", "full_attention"] * 3 + ["sliding_attention"],
    rope_parameters=dict(
        full_attention=dict(rope_type="linear", factor=8.0, rope_theta=10000.0),
        sliding_attention=dict(rope_type="default", rope_theta=100.0),
    ),
    dtype="float32",
)
GEMMA2 = dict(
    head_dim=32, hidden_act="gelu_pytorch_tanh", hidden_activation="gelu_pytorch_tanh", attn_logit_softcapping=5.0,
    final_logit_softcapping=10.0, query_pre_attn_scalar=24, tie_word_embeddings=True,
)
MOE = dict(
    head_dim=32, hidden_act="silu", rope_theta=1000000.0, tie_word_embeddings=False, num_experts=8, num_experts_per_tok=3,
    moe_intermediate_size=64, norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[1],
)
LONGROPE = dict(
    type="longrope", short_factor=[1.0 + 0.1 * i for i in range(8)], long_factor=[1.0 + 0.9 * i for i in range(8)]
)
GPT_OSS = dict(
    head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=8, rope_theta=10000.0, attention_bias=True,
    rope_scaling=dict(YARN, truncate=False), swiglu_limit=1.5,
)
V5_MOE = dict(
    {k: v for k, v in MOE.items() if k not in ("rope_theta", "num_experts")},
    num_local_experts=8, sliding_window=None, use_sliding_window=False, dtype="float32",
    rope_parameters=dict(rope_type="default", rope_theta=10000.0),
)
V5_GPT_OSS = dict(
    {k: v for k, v in GPT_OSS.items() if k not in ("rope_theta", "rope_scaling")},
    layer_types=["full_attention", "sliding_attention"] * 2, dtype="float32",
    rope_parameters=dict(YARN, truncate=False, rope_theta=10000.0),
)
VARIANTS |= {
    "qwen3+f16": qwen3(torch_dtype="float16"),
    "mistral": config("mistral", tie_word_embeddings=False, head_dim=32, hidden_act="silu", rope_theta=1e6, sliding_window=None),
    "mistral-window": config("mistral", hidden_act="silu", rope_theta=1e4, sliding_window=8),
    "mistral-window+q4": config("mistral", hidden_act="silu", rope_theta=1e4, sliding_window=8, tie_word_embeddings=False, quantization=AFFINE),
    "qwen2": config("qwen2", hidden_act="silu", rope_theta=1e6, sliding_window=32, use_sliding_window=False, tie_word_embeddings=True),
    "qwen2-window": config("qwen2", hidden_act="silu", rope_theta=1e6, sliding_window=8, max_window_layers=2, use_sliding_window=True, tie_word_embeddings=False),
    "qwen2-v5-yarn": config("qwen2", hidden_act="silu", rope_parameters=dict(YARN, rope_theta=1e6), layer_types=["full_attention"] * 4, tie_word_embeddings=False),
    "qwen2+q8": config("qwen2", hidden_act="silu", rope_theta=1e6, quantization=dict(AFFINE, bits=8)),
    "qwen3_moe": config("qwen3_moe", **MOE),
    "qwen3_moe+bf16": config("qwen3_moe", **dict(MOE, norm_topk_prob=False, torch_dtype="bfloat16")),
    "qwen3_moe+q4": config("qwen3_moe", **MOE, quantization=AFFINE),
    "qwen3_moe-window": config("qwen3_moe", **MOE, use_sliding_window=True, sliding_window=8),
    "mixtral": config("mixtral", hidden_act="silu", rope_theta=1e6, num_local_experts=4, num_experts_per_tok=2),
    "mixtral-window": config("mixtral", hidden_act="silu", rope_theta=1e4, num_local_experts=4, num_experts_per_tok=2, sliding_window=8),
    "gemma": config("gemma", head_dim=32, num_key_value_heads=1, hidden_act="gelu", rope_theta=1e4),
    "gemma2": config("gemma2", **GEMMA2, sliding_window=4096),
    "gemma2-window": config("gemma2", **GEMMA2, sliding_window=8),
    "gemma2-window+q4": config("gemma2", **GEMMA2, sliding_window=8, quantization=AFFINE),
    "gemma3_text": config("gemma3_text", **GEMMA3),
    "gemma3_text-v5": config("gemma3_text", **V5_GEMMA3),
    "gemma3_text+bf16": config("gemma3_text", **GEMMA3, torch_dtype="bfloat16"),
    "gemma3_text+q4": config("gemma3_text", **GEMMA3, quantization=AFFINE),
    "gemma3": dict(
        model_type="gemma3", image_token_index=VOCAB - 1, mm_tokens_per_image=4, eos_token_id=[1, 2],
        text_config=dict(config("gemma3_text", **GEMMA3), rope_scaling=dict(rope_type="linear", factor=8.0)),
        vision_config=dict(
            hidden_size=16, image_size=32, intermediate_size=16, model_type="siglip_vision_model",
            num_attention_heads=2, num_hidden_layers=1, patch_size=8, vision_use_head=False,
        ),
    ),
    "phi3": config("phi3", num_key_value_heads=4, hidden_act="silu", rope_theta=1e4, original_max_position_embeddings=512),
    "phi3-partial": config("phi3", hidden_act="silu", rope_theta=1e4, partial_rotary_factor=0.5, original_max_position_embeddings=512, sliding_window=8),
    "phi3-longrope": config("phi3", hidden_act="silu", rope_theta=1e4, original_max_position_embeddings=16, rope_scaling=LONGROPE),
    "phi3-shortrope": config("phi3", hidden_act="silu", rope_theta=1e4, original_max_position_embeddings=64, rope_scaling=LONGROPE),
    # The text passes the original length while it grows.
    "phi3-crossing": config("phi3", hidden_act="silu", rope_theta=1e4, original_max_position_embeddings=40, rope_scaling=LONGROPE),
    "olmo2": config("olmo2", hidden_act="silu", rope_theta=5e5, tie_word_embeddings=False),
    "olmo2+q4": config("olmo2", hidden_act="silu", rope_theta=5e5, tie_word_embeddings=False, quantization=AFFINE),
    "smollm3": config("smollm3", hidden_act="silu", rope_theta=5e6, no_rope_layers=[1, 0, 1, 0], tie_word_embeddings=True),
    "granite": config(
        "granite", hidden_act="silu", rope_theta=1e4, embedding_multiplier=3.0, attention_multiplier=0.2,
        residual_multiplier=0.4, logits_scaling=2.5, tie_word_embeddings=True,
    ),
    "qwen3_moe-v5": config("qwen3_moe", **V5_MOE),
    "mixtral-v5": config("mixtral", hidden_act="silu", num_local_experts=4, num_experts_per_tok=2, sliding_window=None, tie_word_embeddings=False, rope_parameters=dict(rope_type="default", rope_theta=1e4), dtype="float32"),
    "gpt_oss-v5+mxfp4": config("gpt_oss", **V5_GPT_OSS, quantization_config=dict(quant_method="mxfp4", modules_to_not_convert=[])),
    "gpt_oss": config("gpt_oss", **GPT_OSS),
    "gpt_oss+bf16": config("gpt_oss", **GPT_OSS, torch_dtype="bfloat16"),
    "gpt_oss+mxfp4": config("gpt_oss", **GPT_OSS, quantization_config=dict(quant_method="mxfp4", modules_to_not_convert=[])),
}


DELTA = dict(
    head_dim=32, linear_conv_kernel_dim=3, linear_key_head_dim=16, linear_value_head_dim=8, linear_num_key_heads=2,
    linear_num_value_heads=4, full_attention_interval=3, tie_word_embeddings=False, hidden_act="silu",
    rope_parameters=dict(
        rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5, mrope_interleaved=True, mrope_section=[3, 3, 2],
    ),
)
EXPERTS = dict(
    num_experts=8, num_experts_per_tok=3, moe_intermediate_size=64, shared_expert_intermediate_size=32,
)
QWEN_VISION = dict(
    depth=1, hidden_size=16, num_heads=2, intermediate_size=16, out_hidden_size=64, patch_size=4, num_position_embeddings=16,
)


def nested(model_type, **fields):
    """A multimodal model around a language tower."""
    text = config(model_type + "_text", **fields)
    return dict(model_type=model_type, text_config=text, vision_config=QWEN_VISION, tie_word_embeddings=False)


# Families whose tensors are those that transformers saves.
PUBLISHED = {
    "qwen2_moe": config(
        "qwen2_moe", hidden_act="silu", rope_theta=1e5, **EXPERTS, norm_topk_prob=True, decoder_sparse_step=2, mlp_only_layers=[3],
        use_sliding_window=True, sliding_window=8, max_window_layers=2, tie_word_embeddings=False,
    ),
    "qwen3_5": dict(nested("qwen3_5", **DELTA), extra_parts=["vision", "mtp"]),
    "qwen3_5_moe": nested("qwen3_5_moe", **DELTA, **EXPERTS),
    "qwen3_next": config(
        "qwen3_next", **{k: v for k, v in DELTA.items() if k not in ("rope_parameters", "full_attention_interval")},
        rope_theta=10000.0, partial_rotary_factor=0.5, **EXPERTS, decoder_sparse_step=1, norm_topk_prob=True,
        layer_types=["linear_attention", "full_attention"] * 2, mlp_only_layers=[1], attention_bias=True,
    ),
}
GEMMA4 = dict(
    head_dim=16, global_head_dim=32, hidden_activation="gelu_pytorch_tanh", sliding_window=8, final_logit_softcapping=10.0,
    tie_word_embeddings=True, rope_parameters=dict(
        sliding_attention=dict(rope_type="default", rope_theta=1e3),
        full_attention=dict(rope_type="proportional", rope_theta=1e4, partial_rotary_factor=0.25),
    ),
)
FALCON = dict(
    hidden_act="silu", rope_theta=1e4, head_dim=32, mamba_d_ssm=96, mamba_n_heads=6, mamba_d_head=16, mamba_d_state=16, mamba_d_conv=4,
    mamba_conv_bias=True, lm_head_multiplier=0.7, embedding_multiplier=1.5, mlp_multipliers=[0.8, 0.6], key_multiplier=0.7,
    attention_out_multiplier=0.9, attention_in_multiplier=1.2, ssm_multipliers=[0.9, 0.8, 1.1, 1.2, 0.7], ssm_in_multiplier=1.1,
    ssm_out_multiplier=0.8,
)
LATENT = dict(
    q_lora_rank=32, kv_lora_rank=32, qk_nope_head_dim=24, qk_rope_head_dim=16, v_head_dim=20, num_key_value_heads=4,
    hidden_act="silu", n_routed_experts=8, n_shared_experts=2, moe_intermediate_size=64, num_experts_per_tok=3,
    routed_scaling_factor=1.7, n_group=4, topk_group=2, norm_topk_prob=True, tie_word_embeddings=False,
)
PUBLISHED |= {
    "lfm2": config(
        "lfm2", norm_eps=1e-5, conv_bias=True, conv_L_cache=4, block_ff_dim=192, block_multiple_of=32, block_ffn_dim_multiplier=0.9,
        full_attn_idxs=[1, 3], rope_theta=10000.0, tie_embedding=True,
    ),
    "lfm2_moe": config(
        "lfm2_moe", norm_eps=1e-5, conv_L_cache=3, num_experts=8, num_experts_per_tok=3, moe_intermediate_size=64, num_dense_layers=1,
        use_expert_bias=True, routed_scaling_factor=1.5, norm_topk_prob=True, rope_theta=10000.0, tie_embedding=True,
        layer_types=["conv", "full_attention", "conv", "full_attention"],
    ),
    "deepseek_v3": config(
        "deepseek_v3", **LATENT, first_k_dense_replace=1, rope_theta=10000.0, attention_bias=True,
        rope_scaling=dict({k: v for k, v in YARN.items() if k != "rope_type"}, type="yarn", mscale=1.0, mscale_all_dim=0.8), num_nextn_predict_layers=1,
    ),
    "deepseek_v3-dense": config(
        "deepseek_v3", **dict(LATENT, q_lora_rank=None), first_k_dense_replace=4, rope_theta=10000.0, rope_interleave=False,
    ),
    "glm4_moe_lite": config(
        "glm4_moe_lite", **dict(LATENT, n_group=1, topk_group=1), rope_parameters=dict(rope_type="default", rope_theta=10000.0),
        mlp_layer_types=["dense", "sparse", "dense", "sparse"],
    ),
    "glm4_moe": config(
        "glm4_moe", head_dim=32, hidden_act="silu", rope_theta=10000.0, partial_rotary_factor=0.25, attention_bias=True, use_qk_norm=True,
        n_routed_experts=8, n_shared_experts=1, moe_intermediate_size=64, num_experts_per_tok=3, routed_scaling_factor=1.7, n_group=2,
        topk_group=1, first_k_dense_replace=2, norm_topk_prob=True, tie_word_embeddings=False,
    ),
}
CHUNKED = dict(
    head_dim=16, hidden_act="silu", intermediate_size=64, intermediate_size_mlp=96, num_local_experts=8, attention_chunk_size=12,
    attention_bias=True, floor_scale=8, attn_scale=0.5, tie_word_embeddings=False,
    rope_scaling=llama3_rope(), rope_theta=10000.0,
)
PUBLISHED |= {
    "mamba2": dict(
        model_type="mamba2", hidden_size=64, num_hidden_layers=4, vocab_size=VOCAB, num_heads=8, head_dim=16, n_groups=2, state_size=16,
        conv_kernel=3, expand=2, use_bias=True, use_conv_bias=True, layer_norm_epsilon=1e-3, residual_in_fp32=True, time_step_limit=[0.2, 1.1],
        hidden_act="silu", tie_word_embeddings=False, bos_token_id=1, eos_token_id=2, pad_token_id=0, chunk_size=8,
    ),
    "mamba2-gelu": dict(
        model_type="mamba2", hidden_size=64, num_hidden_layers=4, vocab_size=VOCAB, num_heads=4, head_dim=32, n_groups=1, state_size=8,
        conv_kernel=4, expand=2, use_bias=False, use_conv_bias=False, layer_norm_epsilon=1e-5, residual_in_fp32=False,
        time_step_limit=[0.0, math.inf],
        hidden_act="gelu", tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=0, chunk_size=8,
    ),
    "nemotron_h": config(
        "nemotron_h", num_hidden_layers=6, head_dim=32, layers_block_type=["mamba", "moe", "attention", "mlp", "mamba", "moe"],
        layer_norm_epsilon=1e-5, mlp_hidden_act="relu2", mlp_bias=True, mamba_num_heads=6, mamba_head_dim=16, mamba_hidden_act="silu", ssm_state_size=16,
        n_groups=2, conv_kernel=3, use_bias=True, use_conv_bias=True, time_step_min=0.2, n_routed_experts=8, moe_intermediate_size=64,
        moe_shared_expert_intermediate_size=96, moe_latent_size=32, num_experts_per_tok=3, routed_scaling_factor=1.7, n_group=4, topk_group=2,
        norm_topk_prob=True, tie_word_embeddings=False,
    ),
    "nemotron_h-pattern": config(
        "nemotron_h", num_hidden_layers=5, head_dim=16, hybrid_override_pattern="M-*EM", layer_norm_epsilon=1e-5, mlp_hidden_act="silu",
        mamba_num_heads=4, mamba_head_dim=32, ssm_state_size=8, n_groups=1, conv_kernel=4, use_conv_bias=False, n_routed_experts=4,
        moe_intermediate_size=64, moe_shared_expert_intermediate_size=64, num_experts_per_tok=2, norm_topk_prob=False, tie_word_embeddings=False,
    ),
    "gemma3n_text": config(
        "gemma3n_text", num_hidden_layers=6, head_dim=16, hidden_activation="gelu_pytorch_tanh", sliding_window=8, final_logit_softcapping=10.0,
        num_kv_shared_layers=2, layer_types=["sliding_attention", "full_attention"] * 3, intermediate_size=[96, 128, 128, 64, 128, 96],
        hidden_size_per_layer_input=32, vocab_size_per_layer_input=100, altup_num_inputs=3, altup_active_idx=1, altup_correct_scale=True,
        laurel_rank=24, activation_sparsity_pattern=[0.9, 0.5, 0.0, 0.3, 0.0, 0.8], rope_theta=1e4, rope_local_base_freq=1e3,
        attention_bias=True, tie_word_embeddings=True,
    ),
    "llama4_text": config("llama4_text", **CHUNKED, num_experts_per_tok=1, interleave_moe_layer_step=2, no_rope_layers=[1, 0, 1, 1], use_qk_norm=True),
    "llama4_text-dense": config(
        "llama4_text", **dict(CHUNKED, attention_bias=False), num_experts_per_tok=2, moe_layers=[1], no_rope_layer_interval=2, use_qk_norm=False,
        attn_temperature_tuning=False, layer_types=["full_attention", "chunked_attention", "chunked_attention", "full_attention"],
    ),
    "phimoe": config(
        "phimoe", hidden_act="silu", rope_theta=1e4, attention_bias=True, lm_head_bias=True, num_local_experts=8, num_experts_per_tok=2,
        router_jitter_noise=0.2, sliding_window=8, tie_word_embeddings=False,
    ),
    "phimoe-longrope": config(
        "phimoe", hidden_act="silu", rope_theta=1e4, num_local_experts=4, num_experts_per_tok=2, original_max_position_embeddings=64,
        rope_scaling=dict(LONGROPE, short_mscale=1.3, long_mscale=1.6, original_max_position_embeddings=64), tie_word_embeddings=False,
    ),
    "phimoe-beyond": config(
        "phimoe", hidden_act="silu", rope_theta=1e4, num_local_experts=4, num_experts_per_tok=2, original_max_position_embeddings=16,
        rope_scaling=dict(LONGROPE, short_mscale=1.3, long_mscale=1.6, original_max_position_embeddings=16), tie_word_embeddings=False,
    ),
    "minicpm": config(
        "minicpm", hidden_act="silu", rope_theta=1e4, scale_emb=3.0, scale_depth=1.4, dim_model_base=24, tie_word_embeddings=False,
    ),
    "minicpm-tied": config(
        "minicpm", hidden_act="silu", rope_theta=1e5, attention_bias=True, scale_emb=1.5, scale_depth=0.9, dim_model_base=96, tie_word_embeddings=True,
    ),
    "mistral4-dense": config(
        "mistral4", **dict(LATENT, q_lora_rank=None, n_group=1, topk_group=1), first_k_dense_replace=4, rope_interleave=False,
        rope_parameters=dict(YARN, rope_theta=1e4, llama_4_scaling_beta=0.3),
    ),
    "mistral4": config(
        "mistral4", **dict(LATENT, n_shared_experts=2), first_k_dense_replace=1, attention_bias=True,
        rope_parameters=dict(YARN, rope_theta=1e4, mscale=1.0, mscale_all_dim=0.8, llama_4_scaling_beta=0.4),
    ),
}
PUBLISHED |= {
    "granitemoehybrid": config(
        "granitemoehybrid", hidden_act="silu", rope_theta=1e4, embedding_multiplier=3.0, attention_multiplier=0.2, residual_multiplier=0.4,
        logits_scaling=2.5, num_local_experts=8, num_experts_per_tok=3, shared_intermediate_size=96, position_embedding_type="rope",
        mamba_n_heads=8, mamba_n_groups=2, mamba_d_state=16, mamba_d_head=16, mamba_d_conv=4, mamba_expand=2, mamba_conv_bias=True,
        mamba_proj_bias=True, layer_types=["mamba", "attention", "mamba", "mamba"], tie_word_embeddings=True, attention_bias=True,
    ),
    "granitemoehybrid-dense": config(
        "granitemoehybrid", hidden_act="silu", embedding_multiplier=3.0, attention_multiplier=0.2, residual_multiplier=0.4,
        logits_scaling=2.5, num_local_experts=0, num_experts_per_tok=0, shared_intermediate_size=96, position_embedding_type="nope",
        mamba_n_heads=4, mamba_n_groups=1, mamba_d_state=16, mamba_d_conv=3, mamba_expand=2, mamba_conv_bias=False,
        layer_types=["mamba", "attention"] * 2, tie_word_embeddings=False,
    ),
    "gemma4_text": config(
        "gemma4_text", **GEMMA4, num_hidden_layers=6, num_kv_shared_layers=2, use_double_wide_mlp=True, hidden_size_per_layer_input=32,
        vocab_size_per_layer_input=VOCAB, layer_types=["sliding_attention", "full_attention"] * 3,
    ),
    "gemma4_text-kv": config(
        "gemma4_text", **GEMMA4, num_hidden_layers=6, num_kv_shared_layers=3, attention_k_eq_v=True, num_global_key_value_heads=1,
        hidden_size_per_layer_input=16, vocab_size_per_layer_input=VOCAB, use_double_wide_mlp=True,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
    ),
    "gemma4_text-moe": config(
        "gemma4_text", **GEMMA4, num_hidden_layers=4, num_kv_shared_layers=0, attention_k_eq_v=True, num_global_key_value_heads=1,
        hidden_size_per_layer_input=0, enable_moe_block=True, num_experts=8, top_k_experts=3, moe_intermediate_size=64,
        layer_types=["sliding_attention", "full_attention"] * 2,
    ),
    "minimax_m2": config(
        "minimax_m2", head_dim=32, rotary_dim=16, hidden_act="silu", rope_theta=1e4, num_local_experts=8, num_experts_per_tok=3, use_qk_norm=True,
        tie_word_embeddings=False,
    ),
    "ernie4_5_moe": config(
        "ernie4_5_moe", hidden_act="silu", rope_theta=1e4, moe_intermediate_size=64, moe_k=3, moe_num_experts=8, moe_num_shared_experts=2,
        moe_layer_start_index=1, moe_layer_end_index=2, moe_layer_interval=1, use_bias=False, tie_word_embeddings=False,
    ),
    "falcon_h1": config(
        "falcon_h1", **FALCON, mamba_n_groups=2, mamba_rms_norm=True, mamba_norm_before_gate=False, attention_bias=True, projectors_bias=True,
        mamba_proj_bias=True, mlp_bias=True, tie_word_embeddings=False,
    ),
    "falcon_h1-plain": config("falcon_h1", **FALCON, mamba_n_groups=1, mamba_rms_norm=False, tie_word_embeddings=True),
    "seed_oss": config("seed_oss", head_dim=32, hidden_act="silu", rope_theta=1e5, attention_bias=True, attention_out_bias=True, mlp_bias=True, tie_word_embeddings=False),
    "ernie4_5": config("ernie4_5", head_dim=32, hidden_act="silu", rope_theta=1e4, use_bias=True, tie_word_embeddings=False),
    "hunyuan_v1_dense": config(
        "hunyuan_v1_dense", head_dim=32, hidden_act="silu", attention_bias=True, tie_word_embeddings=True,
        rope_theta=1e4, rope_scaling=dict(type="dynamic", alpha=20.0, factor=1.0, beta_fast=32, beta_slow=1, mscale=1.0, mscale_all_dim=0.0),
    ),
    "exaone4": config("exaone4", hidden_act="silu", rope_theta=1e4, sliding_window=8, sliding_window_pattern="LLG", tie_word_embeddings=False, layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]),
    "olmo3": config("olmo3", hidden_act="silu", sliding_window=8, attention_bias=True, tie_word_embeddings=False, rope_parameters=dict(full_attention=dict(YARN, rope_theta=1e4), sliding_attention=dict(rope_type="default", rope_theta=1e3)), layer_types=["sliding_attention", "full_attention"] * 2),
    "ministral3": config(
        "ministral3", head_dim=32, hidden_act="silu", tie_word_embeddings=False,
        rope_parameters=dict(YARN, rope_theta=1e4, mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.4),
    ),
    "mistral3": dict(
        model_type="mistral3", image_token_index=VOCAB - 1, spatial_merge_size=2, vision_feature_layer=-1, tie_word_embeddings=False,
        text_config=config("mistral", head_dim=32, hidden_act="silu", rope_theta=1e4, sliding_window=None, tie_word_embeddings=False),
        vision_config=dict(
            hidden_size=16, image_size=16, intermediate_size=16, model_type="pixtral", num_attention_heads=2, num_hidden_layers=1, patch_size=8, head_dim=8,
        ),
    ),
    "apertus": config(
        "apertus", hidden_act="xielu", tie_word_embeddings=False, attention_bias=True,
        rope_parameters=llama3_rope(rope_theta=1e4),
    ),
    "cohere2": config("cohere2", hidden_act="silu", rope_theta=1e4, layer_norm_eps=1e-5, logit_scale=0.7, sliding_window=8, sliding_window_pattern=3, attention_bias=True, tie_word_embeddings=True),
    "glm4": config("glm4", head_dim=32, hidden_act="silu", rope_theta=1e4, partial_rotary_factor=0.25, attention_bias=True, tie_word_embeddings=False),
    "nemotron": config("nemotron", head_dim=32, hidden_act="relu2", rope_theta=1e4, partial_rotary_factor=0.25, norm_eps=1e-5, attention_bias=True, mlp_bias=True, tie_word_embeddings=False),
    "starcoder2": config("starcoder2", hidden_act="gelu_pytorch_tanh", rope_theta=1e4, norm_epsilon=1e-5, use_bias=True, sliding_window=8, tie_word_embeddings=False),
    "stablelm": config("stablelm", hidden_act="silu", rope_theta=1e4, partial_rotary_factor=0.5, layer_norm_eps=1e-5, use_qkv_bias=True, use_parallel_residual=False, qk_layernorm=False, tie_word_embeddings=False),
    "stablelm-parallel": config("stablelm", hidden_act="silu", rope_theta=1e4, partial_rotary_factor=0.25, layer_norm_eps=1e-5, use_qkv_bias=False, use_parallel_residual=True, qk_layernorm=True, tie_word_embeddings=False),
    "olmoe": config("olmoe", hidden_act="silu", rope_theta=1e4, clip_qkv=1.2, num_experts=8, num_experts_per_tok=3, norm_topk_prob=True, attention_bias=True, tie_word_embeddings=False),
    "qwen2_5_vl": nested("qwen2_5_vl", hidden_act="silu", rope_theta=1e5, rope_scaling=dict(type="mrope", mrope_section=[2, 3, 3]), tie_word_embeddings=False, use_sliding_window=False),
    "qwen3_vl": nested("qwen3_vl", head_dim=32, hidden_act="silu", attention_bias=True, rope_theta=1e5, rope_scaling=dict(rope_type="default", mrope_interleaved=True, mrope_section=[6, 5, 5]), tie_word_embeddings=False),
}
# What GGUF files can say, and llama.cpp computes, but for the deviations of Gemma 3n's activations.
STATE_SPACE = dict(n_groups=2, conv_kernel=4, use_bias=False, use_conv_bias=True)
PUBLISHED |= {
    "apertus-unbiased": config("apertus", hidden_act="xielu", tie_word_embeddings=False, rope_parameters=llama3_rope(rope_theta=1e4)),
    "deepseek_v3-unbiased": config(
        "deepseek_v3", **dict(LATENT, n_group=2, topk_group=1), first_k_dense_replace=1, rope_theta=10000.0, rms_norm_eps=1e-6,
        rope_scaling=dict(YARN, beta_fast=32.0, beta_slow=1.0, original_max_position_embeddings=64, mscale=0.8, mscale_all_dim=0.8),
    ),
    "falcon_h1-untied": config(
        "falcon_h1", **FALCON, mamba_n_groups=2, mamba_rms_norm=True, mamba_norm_before_gate=False, tie_word_embeddings=False,
    ),
    "granitemoehybrid-nope": config(
        "granitemoehybrid", hidden_act="silu", embedding_multiplier=3.0, attention_multiplier=0.2, residual_multiplier=0.4, logits_scaling=2.5,
        num_local_experts=8, num_experts_per_tok=3, shared_intermediate_size=96, position_embedding_type="nope", mamba_n_heads=8, mamba_n_groups=2,
        mamba_d_state=16, mamba_d_head=16, mamba_d_conv=4, mamba_expand=2, mamba_conv_bias=True, layer_types=["mamba", "attention", "mamba", "mamba"],
        tie_word_embeddings=True,
    ),
    "mamba2-unlimited": PUBLISHED["mamba2"] | STATE_SPACE | dict(time_step_limit=[0.0, math.inf], layer_norm_epsilon=1e-5),
    "nemotron_h-dense": config(
        "nemotron_h", num_hidden_layers=5, head_dim=32, hybrid_override_pattern="M-*M-", layer_norm_epsilon=1e-5, mlp_hidden_act="relu2",
        mamba_num_heads=8, mamba_head_dim=16, ssm_state_size=16, **STATE_SPACE, tie_word_embeddings=False,
    ),
    "nemotron_h-experts": config(
        "nemotron_h", num_hidden_layers=5, head_dim=32, hybrid_override_pattern="ME*ME", layer_norm_epsilon=1e-5, mlp_hidden_act="relu2",
        mamba_num_heads=8, mamba_head_dim=16, ssm_state_size=16, **STATE_SPACE, n_routed_experts=8, moe_intermediate_size=64,
        moe_shared_expert_intermediate_size=96, moe_latent_size=32, num_experts_per_tok=3, routed_scaling_factor=1.7, norm_topk_prob=True,
        tie_word_embeddings=False,
    ),
    "gemma3n_text-four": config(
        "gemma3n_text", num_hidden_layers=5, head_dim=16, hidden_activation="gelu_pytorch_tanh", sliding_window=8, final_logit_softcapping=10.0,
        num_kv_shared_layers=0, layer_types=["sliding_attention"] * 4 + ["full_attention"], hidden_size_per_layer_input=256,
        vocab_size_per_layer_input=VOCAB, altup_num_inputs=4, altup_active_idx=0, altup_correct_scale=True, laurel_rank=64,
        activation_sparsity_pattern=[0.95] * 5, rope_theta=1e5, rope_local_base_freq=1e4, tie_word_embeddings=True,
    ),
}
VARIANTS |= PUBLISHED


def stored(base, storage):
    """The variant with its weights stored in another way."""
    config = {k: v for k, v in VARIANTS[base].items() if k != "extra_parts"}
    if storage == "bf16":
        return dict(config, torch_dtype="bfloat16")
    return dict(config, quantization=dict(AFFINE, bits={"q4": 4, "q8": 8}[storage]))


for base in ("deepseek_v3-dense", "gemma4_text-kv", "nemotron_h-pattern"):
    VARIANTS[base + "+bf16"] = stored(base, "bf16")
# Every family in every form, whatever else there is of it.
for base in (
    "gemma", "gemma2-window", "gemma3_text", "gpt_oss", "granite", "llama", "mistral-window", "mixtral", "olmo2", "phi3",
    "qwen2", "qwen3", "qwen3_moe", "smollm3", *(name for name in PUBLISHED if "-" not in name),
):
    for storage in ("bf16", "q4") if base in PUBLISHED else ("bf16", "q4", "q8"):
        VARIANTS.setdefault(f"{base}+{storage}", stored(base, storage))

# Cuts so far out leave a few activations, of which rounding is a large part.
VARIANTS["gemma3n_text+bf16"]["activation_sparsity_pattern"] = [0.6, 0.5, 0.0, 0.3, 0.0, 0.5]

# Of these, rounding would pick other experts, and the logits be others, so that the prompt is chosen.
CLEAR = [
    f"{base}+bf16" for base in ("deepseek_v3", "glm4_moe", "glm4_moe_lite", "minimax_m2", "mistral4", "nemotron_h", "phimoe", "qwen3_5_moe")
]

# Of these, rounding differs so much between positions that all of them are compared.
SENSITIVE = ["gemma3n_text+bf16", "gemma4_text+bf16", "mistral3+bf16", "mistral4+bf16"]


def shapes(config):
    """Published name, shape and kind of every tensor."""
    kind = config["model_type"]
    if kind in {config["model_type"] for config in PUBLISHED.values()}:
        yield from published.shapes(config)
        return
    if kind == "gemma3":
        yield from vision(config["vision_config"], config["text_config"]["hidden_size"])
        for name, shape, role in shapes(config["text_config"]):
            yield f"language_model.{name}", shape, role
        return
    hidden = config["hidden_size"]
    offset = kind.startswith("gemma")
    norm = "norm0" if offset else "norm1"
    norms = ["post_attention_layernorm"]
    if kind != "olmo2":
        norms.append("input_layernorm")
    if kind in ("gemma2", "gemma3_text", "olmo2"):
        norms.append("post_feedforward_layernorm")
    if kind in ("gemma2", "gemma3_text"):
        norms.append("pre_feedforward_layernorm")
    yield "model.embed_tokens.weight", [config["vocab_size"], hidden], "embed"
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        for name in norms:
            yield f"{layer}{name}.weight", [hidden], norm
        yield from attention(config, layer + "self_attn.", "0" if offset else "1")
        yield from feed_forward(config, i, layer)
    yield "model.norm.weight", [hidden], norm
    if not config.get("tie_word_embeddings", offset):
        yield "lm_head.weight", [config["vocab_size"], hidden], "head"


def attention(config, prefix, offset):
    kind, hidden = config["model_type"], config["hidden_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    size = config.get("head_dim") or hidden // heads
    if kind == "phi3":
        yield prefix + "qkv_proj.weight", [(heads + 2 * kv_heads) * size, hidden], "qk"
    else:
        for name, count, role in (("q_proj", heads, "qk"), ("k_proj", kv_heads, "qk"), ("v_proj", kv_heads, "linear")):
            yield f"{prefix}{name}.weight", [count * size, hidden], role
            if config.get("attention_bias") or kind == "qwen2":
                yield f"{prefix}{name}.bias", [count * size], "bias"
    yield prefix + "o_proj.weight", [hidden, heads * size], "linear"
    if config.get("attention_bias"):
        yield prefix + "o_proj.bias", [hidden], "bias"
    if kind in ("qwen3", "qwen3_moe", "gemma3_text"):
        yield prefix + "q_norm.weight", [size], "headnorm" + offset
        yield prefix + "k_norm.weight", [size], "headnorm" + offset
    if kind == "olmo2":
        yield prefix + "q_norm.weight", [heads * size], "headnorm1"
        yield prefix + "k_norm.weight", [kv_heads * size], "headnorm1"
    if kind == "gpt_oss":
        yield prefix + "sinks", [heads], "sinks"


def feed_forward(config, i, layer):
    kind, hidden, inter = config["model_type"], config["hidden_size"], config["intermediate_size"]
    if kind == "qwen3_moe" and i not in config["mlp_only_layers"]:
        count, inter = config.get("num_experts") or config["num_local_experts"], config["moe_intermediate_size"]
        yield layer + "mlp.gate.weight", [count, hidden], "router"
        if "rope_parameters" in config:
            yield from joined(layer + "mlp.experts.", hidden, inter, count)
            return
        for prefix in experts(config, layer + "mlp.", count):
            yield from gated(prefix, ("gate_proj", "up_proj", "down_proj"), hidden, inter, count)
    elif kind == "mixtral":
        count = config["num_local_experts"]
        if "rope_parameters" in config:
            yield layer + "mlp.gate.weight", [count, hidden], "router"
            yield from joined(layer + "mlp.experts.", hidden, inter, count)
            return
        yield layer + "block_sparse_moe.gate.weight", [count, hidden], "router"
        for prefix in experts(config, layer + "block_sparse_moe.", count):
            yield from gated(prefix, ("w1", "w3", "w2"), hidden, inter, count)
    elif kind == "gpt_oss":
        count = config["num_local_experts"]
        yield layer + "mlp.router.weight", [count, hidden], "router"
        yield layer + "mlp.router.bias", [count], "bias"
        if "quantization" in config:  # as mlx_lm stores them
            for name, rows, columns in (("gate_proj", inter, hidden), ("up_proj", inter, hidden), ("down_proj", hidden, inter)):
                yield f"{layer}mlp.experts.{name}.weight", [count, rows, columns], "linear"
                yield f"{layer}mlp.experts.{name}.bias", [count, rows], "bias"
            return
        for name, rows, columns in (("gate_up_proj", 2 * inter, hidden), ("down_proj", hidden, inter)):
            yield f"{layer}mlp.experts.{name}_bias", [count, rows], "bias"
            if "quantization_config" in config:
                yield f"{layer}mlp.experts.{name}_blocks", [count, rows, columns // 32, 16], "codes"
                yield f"{layer}mlp.experts.{name}_scales", [count, rows, columns // 32], "exponents"
            else:
                yield f"{layer}mlp.experts.{name}", [count, columns, rows], "experts"
    elif kind == "phi3":
        yield layer + "mlp.gate_up_proj.weight", [2 * inter, hidden], "linear"
        yield layer + "mlp.down_proj.weight", [hidden, inter], "linear"
    else:
        for name, shape, role in gated(layer + "mlp.", ("gate_proj", "up_proj", "down_proj"), hidden, inter, 0):
            yield name, shape, role
            if config.get("mlp_bias"):
                yield name.replace(".weight", ".bias"), shape[:1], "bias"


def experts(config, prefix, count):
    """One by one, as their publishers store them, or stacked, as mlx_lm does when it quantises."""
    if "quantization" in config:
        return [prefix + "switch_mlp."]
    return [f"{prefix}experts.{e}." for e in range(count)]


def joined(prefix, hidden, inter, count):
    """Stacked, gates and ups in one, as transformers 5 holds them."""
    yield prefix + "gate_up_proj", [count, 2 * inter, hidden], "linear"
    yield prefix + "down_proj", [count, hidden, inter], "linear"


def gated(prefix, names, hidden, inter, count):
    for name, shape in zip(names, ([inter, hidden], [inter, hidden], [hidden, inter])):
        if "switch_mlp" in prefix:
            name = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}.get(name, name)
            shape = [count, *shape]
        yield f"{prefix}{name}.weight", shape, "linear"


def vision(config, hidden):
    size, inter, patch = config["hidden_size"], config["intermediate_size"], config["patch_size"]
    prefix = "vision_tower.vision_model."
    yield prefix + "embeddings.patch_embedding.weight", [size, 3, patch, patch], "linear"
    yield prefix + "embeddings.patch_embedding.bias", [size], "bias"
    yield prefix + "embeddings.position_embedding.weight", [(config["image_size"] // patch) ** 2, size], "linear"
    layer = prefix + "encoder.layers.0."
    for name in ("layer_norm1", "layer_norm2"):
        yield f"{layer}{name}.weight", [size], "norm1"
        yield f"{layer}{name}.bias", [size], "bias"
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        yield f"{layer}self_attn.{name}.weight", [size, size], "linear"
        yield f"{layer}self_attn.{name}.bias", [size], "bias"
    for name, shape in (("fc1", [inter, size]), ("fc2", [size, inter])):
        yield f"{layer}mlp.{name}.weight", shape, "linear"
        yield f"{layer}mlp.{name}.bias", shape[:1], "bias"
    yield prefix + "post_layernorm.weight", [size], "norm1"
    yield prefix + "post_layernorm.bias", [size], "bias"
    yield "multi_modal_projector.mm_input_projection_weight", [size, hidden], "linear"
    yield "multi_modal_projector.mm_soft_emb_norm.weight", [size], "norm0"


def tensors(config, storage):
    """[name, type, shape, mean, spread] of every tensor, scaled so that every part of the network matters."""
    text = config.get("text_config", config)
    tied = text.get("tie_word_embeddings", text.get("tie_embedding", text["model_type"].startswith("gemma")))
    kind = {"bf16": "BF16", "f16": "F16"}.get(storage, "F32")
    settings = config.get("quantization")
    out = []
    for name, shape, role in shapes(config):
        if role in ("codes", "exponents"):  # four-bit floats and their powers of two
            code = round(127 + math.log2(1.2 / 8 / 2.92)) - 1
            out.append([name, "U8", shape, 0, 256] if role == "codes" else [name, "U8", shape, code, 2])
            continue
        fan = shape[1] if role == "experts" else shape[-1] if shape else 1
        mean, std = {
            "linear": (0, 1.2 / fan**0.5),
            "experts": (0, 1.2 / fan**0.5),
            "qk": (0, 1.6 / fan**0.5),
            "router": (0, 3 / fan**0.5),
            "modality": (0, fan**0.5),
            "mixing": (0, 0.4 / fan**0.5),
            "head": (0, 3 / fan**0.5),
            "embed": (0, 2 / fan**0.5 if "gemma" in text["model_type"] else 2.5 / fan**0.5 if tied else 1.0),
            "bias": (0, 0.3),
            "sinks": (0, 1.0),
            "decay": (0, 0.6),
            "half": (0.5, 0.05),
            "tiny": (-1e-6, 0),
            "alpha": (0.3, 0.2),
            "conv": (0, 0.8),
            "norm1": (1, 0.2),
            "norm0": (0, 0.2),
            "headnorm1": (1.6, 0.2),
            "headnorm0": (0.6, 0.2),
        }[role]
        spread = std * 3**0.5
        stem = name.removesuffix(".weight")
        own = settings and settings.get(stem, settings)
        if own and role in ("linear", "qk", "head", "embed") and shape[-1] % own["group_size"] == 0:
            out += packed(stem, shape, std, own, kind)
        else:
            out.append([name, kind, shape, mean, spread])
    return out


def packed(stem, shape, std, settings, kind):
    """A quantised matrix whose elements have about this standard deviation."""
    *rows, columns = shape
    bits, group, mode = settings["bits"], settings["group_size"], settings.get("mode", "affine")
    # Eight-bit floats without the highest bit of their exponent, among which are those that are no numbers.
    mask = 0xBFBFBFBF if mode == "mxfp8" else 0xFFFFFFFF
    weight = [stem + ".weight", "U32", [*rows, columns * bits // 32], 0, mask]
    groups = [*rows, columns // group]
    if mode == "affine":
        steps = 2**bits - 1
        scale = std / (((steps + 1) ** 2 - 1) / 12) ** 0.5
        return [
            weight,
            [stem + ".scales", kind, groups, scale, scale / 4],
            [stem + ".biases", kind, groups, -scale * steps / 2, scale / 4],
        ]
    # The root mean square of all codes, and scales around what brings it to std.
    rms = {"mxfp4": 2.92, "nvfp4": 2.92, "mxfp8": 0.587}[mode]
    if mode == "nvfp4":  # eight-bit floats: 3 bits of mantissa, exponent bias 7
        code = round((math.log2(std / rms) + 7) * 8)
        return [weight, [stem + ".scales", "U8", groups, code - 4, 8]]
    return [weight, [stem + ".scales", "U8", groups, round(127 + math.log2(std / rms)) - 1, 2]]
