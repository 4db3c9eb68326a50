"""What llama.cpp's converter makes of the tensors and of the config of families whose layers are of several kinds.

`tensors` gives names that the package gguf knows, or llama.cpp's own; `metadata` writes what these families have beyond the sizes that all
have.
"""

import math
from statistics import NormalDist

import numpy as np
from gguf import ExpertGatingFuncType

STATE_SPACE = ("falcon_h1", "granitemoehybrid", "mamba2", "nemotron_h")
KINDS = {*STATE_SPACE, "apertus", "deepseek_v3", "gemma3n_text", "gemma4_text"}


def tensors(config, given):
    """The tensors as the converter changes them."""
    kind = config["model_type"]
    if kind in STATE_SPACE:
        return state_space(config, given)
    return {"apertus": apertus, "deepseek_v3": latent, "gemma3n_text": gemma3n, "gemma4_text": gemma4}[kind](config, given)


def apertus(config, given):
    # The activation's parameters go into the metadata.
    config["xielu"] = {}
    for name, value in sorted(given.items(), key=lambda item: item[0]):
        if ".act_fn." in name:
            config["xielu"].setdefault(name.rpartition(".")[2], []).append(float(value.item()))
    return {name: value for name, value in given.items() if ".act_fn." not in name}


def latent(config, given):
    out = {}
    keys, values = config["qk_nope_head_dim"], config["v_head_dim"]
    for name, value in given.items():
        if f".layers.{config['num_hidden_layers']}." in name:
            continue
        if name.endswith("kv_b_proj.weight") and not config.get("joined"):
            heads = value.reshape(config["num_attention_heads"], keys + values, -1)
            out[name.replace("kv_b_proj", "k_b_proj")] = heads[:, :keys].swapaxes(1, 2)
            out[name.replace("kv_b_proj", "v_b_proj")] = heads[:, keys:]
        else:
            out[name] = value
    return out


def gemma3n(config, given):
    out = {}
    for name in ("altup_projections", "altup_unembed_projections"):
        stack = [value for key, value in given.items() if key.startswith(f"model.{name}.")]
        out[f"model.{name}.weight"] = np.stack(stack)
    for name, value in given.items():
        if "model.altup_" not in name:
            out[name + ".weight" * name.endswith("_scale")] = value
    return out


def gemma4(config, given):
    types, sizes = config["layer_types"], config["rope_parameters"]["full_attention"]
    half = config["global_head_dim"] // 2
    turned = int(half * sizes["partial_rotary_factor"])
    out = {"rope_freqs.weight": np.array([1.0] * turned + [1e30] * (half - turned), dtype=np.float32)}
    for name, value in given.items():
        layer = name.split(".layers.")[-1].split(".")[0]
        if name.endswith(".router.scale"):
            name = f"blk.{layer}.ffn_gate_inp.scale"
        elif name.endswith(".per_expert_scale"):
            name = f"blk.{layer}.ffn_down_exps.scale"
        elif name.endswith(("layer_scalar", "experts.gate_up_proj", "experts.down_proj")):
            name += ".weight"
        out[name] = value
    return out


def state_space(config, given):
    out, kind = {}, config["model_type"]
    groups = config.get("n_groups") or config["mamba_n_groups"]
    for name, value in given.items():
        stem, _, part = name.rpartition(".")
        layer = name.split(".layers.")[-1].split(".")[0]
        if kind == "falcon_h1":
            value = value * falcon_factor(config, name)
        if part == "A_log":
            value = -np.exp(value)
        if part in ("A_log", "D"):
            value = value[:, None]
        if part == "dt_bias":
            name = f"blk.{layer}.ssm_dt.bias"
        if stem.endswith((".mixer.norm", ".mamba.norm")):
            value = value.reshape(groups, -1)
        if kind == "nemotron_h" and ".experts." in name:
            name = name.replace("backbone", "model").replace(".mixer.experts.", ".mlp.experts.")
        if "_linear." in name and kind == "granitemoehybrid":
            out |= granite_parts(config, name, value, layer)
            continue
        out[name] = value
    return out


def granite_parts(config, name, value, layer):
    shared = "shared_mlp" in name
    end = "" if shared and not config["num_local_experts"] else "_shexp" if shared else "_exps"
    if "output_linear" in name:
        return {f"blk.{layer}.ffn_down{end}.weight": value}
    parts = np.split(value, 2, axis=-2)
    return {f"blk.{layer}.ffn_{part}{end}.weight": half for part, half in zip(("gate", "up"), parts)}


def falcon_factor(config, name):
    """What the converter multiplies into a weight."""
    inputs = config["attention_in_multiplier"]
    factors = {
        "down_proj": config["mlp_multipliers"][1], "gate_proj": config["mlp_multipliers"][0], "k_proj": config["key_multiplier"] * inputs,
        "q_proj": inputs, "v_proj": inputs, "o_proj": config["attention_out_multiplier"], "out_proj": config["ssm_out_multiplier"],
        "lm_head": config["lm_head_multiplier"], "embed_tokens": config["embedding_multiplier"],
    }
    part = name.split(".")[-2]
    if part != "in_proj":
        return np.float32(factors.get(part, 1))
    inner, shared = config["mamba_d_ssm"], config["mamba_n_groups"] * config["mamba_d_state"]
    widths = (inner, inner, shared, shared, config["mamba_n_heads"])
    rows = np.repeat(config["ssm_multipliers"], widths) * config["ssm_in_multiplier"]
    return rows.astype(np.float32)[:, None]


def metadata(writer, config):
    """The keys of these families."""
    kind = config["model_type"]
    if kind == "apertus":
        for part, values in config["xielu"].items():
            getattr(writer, f"add_xielu_{part}")(values)
    elif kind == "deepseek_v3":
        latent_keys(writer, config)
    elif kind.startswith("gemma"):
        gemma_keys(writer, config)
    else:
        state_space_keys(writer, config)


def latent_keys(writer, config):
    keys, rotated = config["kv_lora_rank"], config["qk_rope_head_dim"]
    whole = config["qk_nope_head_dim"] + rotated
    if config.get("joined"):  # as before the two halves
        writer.add_head_count_kv(config["num_attention_heads"])
        writer.add_key_length(whole)
        writer.add_value_length(config["v_head_dim"])
    else:
        writer.add_head_count_kv(1)
        writer.add_key_length(keys + rotated)
        writer.add_value_length(keys)
        writer.add_key_length_mla(whole)
        writer.add_value_length_mla(config["v_head_dim"])
    writer.add_kv_lora_rank(keys)
    if config["q_lora_rank"]:
        writer.add_q_lora_rank(config["q_lora_rank"])
    writer.add_rope_dimension_count(rotated)
    writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    scaling = config.get("rope_scaling") or {}
    if scaling.get("mscale_all_dim"):
        writer.add_rope_scaling_yarn_log_mul(0.1 * scaling["mscale_all_dim"])
    if config["first_k_dense_replace"] == config["num_hidden_layers"]:
        writer.add_expert_shared_count(0)
        return
    writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)
    grouped_experts(writer, config)


def grouped_experts(writer, config):
    writer.add_expert_count(config["n_routed_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_shared_count(config.get("n_shared_experts", 1))
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    writer.add_expert_weights_norm(config["norm_topk_prob"])
    writer.add_expert_group_count(config.get("n_group", 1))
    writer.add_expert_group_used_count(config.get("topk_group", 1))


def gemma_keys(writer, config):
    arch = {"gemma3n_text": "gemma3n", "gemma4_text": "gemma4"}[config["model_type"]]
    writer.add_sliding_window(config["sliding_window"])
    writer.add_sliding_window_pattern([layer == "sliding_attention" for layer in config["layer_types"]])
    writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    writer.add_shared_kv_layers(config["num_kv_shared_layers"])
    writer.add_embedding_length_per_layer_input(config["hidden_size_per_layer_input"])
    if arch == "gemma3n":
        writer.add_float32("gemma3n.rope.freq_base_swa", config["rope_local_base_freq"])
        writer.add_altup_active_idx(config["altup_active_idx"])
        writer.add_altup_num_inputs(config["altup_num_inputs"])
        pattern = config["activation_sparsity_pattern"]
        writer.add_activation_sparsity_scale([NormalDist().inv_cdf(part) if part else -math.inf for part in pattern])
        return
    full, sliding = (config["rope_parameters"][f"{kind}_attention"] for kind in ("full", "sliding"))
    writer.add_rope_freq_base(full["rope_theta"])
    writer.add_float32("gemma4.rope.freq_base_swa", sliding["rope_theta"])
    wide, narrow = config["global_head_dim"], config["head_dim"]
    writer.add_key_length(wide)
    writer.add_value_length(wide)
    writer.add_key_length_swa(narrow)
    writer.add_value_length_swa(narrow)
    writer.add_rope_dimension_count(wide)
    writer.add_rope_dimension_count_swa(narrow)
    layers, reused = config["num_hidden_layers"], config["num_kv_shared_layers"]
    if config.get("use_double_wide_mlp"):
        width = config["intermediate_size"]
        writer.add_feed_forward_length([width * (1 + (i >= layers - reused)) for i in range(layers)])
    if heads := config.get("num_global_key_value_heads"):
        slides = [layer == "sliding_attention" for layer in config["layer_types"]]
        writer.add_head_count_kv([config["num_key_value_heads"] if sliding else heads for sliding in slides])
    if config.get("enable_moe_block"):
        writer.add_expert_count(config["num_experts"])
        writer.add_expert_used_count(config["top_k_experts"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])


def state_space_keys(writer, config):
    kind = config["model_type"]
    heads = config.get("mamba_n_heads") or config.get("mamba_num_heads") or config["num_heads"]
    expand = config.get("mamba_expand") or config.get("expand", 0)
    inner = config.get("mamba_d_ssm") or expand * config["hidden_size"] or heads * config["mamba_head_dim"]
    writer.add_ssm_conv_kernel(config.get("mamba_d_conv") or config["conv_kernel"])
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(config.get("mamba_d_state") or config.get("ssm_state_size") or config["state_size"])
    writer.add_ssm_time_step_rank(heads)
    writer.add_ssm_group_count(config.get("mamba_n_groups") or config["n_groups"])
    if kind == "mamba2":
        writer.add_embedding_length(config["hidden_size"])
        writer.add_block_count(config["num_hidden_layers"])
        writer.add_context_length(2**20)
        writer.add_feed_forward_length(0)
        writer.add_head_count(0)
        writer.add_layer_norm_rms_eps(config["layer_norm_epsilon"])
    if kind == "granitemoehybrid":
        attends = [layer == "attention" for layer in config["layer_types"]]
        writer.add_head_count_kv([config["num_key_value_heads"] * attend for attend in attends])
        writer.add_rope_scaling_finetuned(config["position_embedding_type"] == "rope")
        writer.add_feed_forward_length(config["intermediate_size"])
        if config["num_local_experts"]:
            writer.add_expert_shared_feed_forward_length(config["shared_intermediate_size"])
        else:
            writer.add_feed_forward_length(config["shared_intermediate_size"])
    if kind == "nemotron_h":
        writer.add_layer_norm_eps(config["layer_norm_epsilon"])
        pattern = config["hybrid_override_pattern"]
        writer.add_head_count_kv([config["num_key_value_heads"] * (kind == "*") for kind in pattern])
        if "E" in pattern:
            grouped_experts(writer, config)
            writer.add_expert_shared_feed_forward_length(config["moe_shared_expert_intermediate_size"])
            writer.add_moe_latent_size(config["moe_latent_size"])
        width = config["moe_intermediate_size" if "E" in pattern else "intermediate_size"]
        writer.add_feed_forward_length([width * (kind in "-E") for kind in pattern])
