"""Writes small GGUF files of the golden fixtures' weights, as llama.cpp's converter would: python make.py FIXTURES OUT

OUT/<variant>.gguf has the weights of a fixture in float32, so that the fixture's logits are to come out. OUT/<type>.gguf has random
weights in that type, and OUT/<type>-full.gguf their elements in float32, so that both are to give the same logits. OUT/<variant>-plain.gguf
is without what llama.cpp's loader does not know in that architecture.
"""

import json
import logging
import math
import sys
from pathlib import Path

import numpy as np
from gguf import MODEL_ARCH, ExpertGatingFuncType, GGMLQuantizationType as Type, GGUFWriter, RopeScalingType, dequantize, get_tensor_name_map, quantize
from gguf.constants import GGML_QUANT_SIZES, MODEL_ARCH_NAMES

import layouts

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "golden"))
from weights import make  # noqa: E402

ARCHITECTURES = dict(
    llama="llama", mixtral="llama", qwen2="qwen2", qwen3="qwen3", qwen3_moe="qwen3moe", gemma="gemma", gemma2="gemma2",
    gemma3_text="gemma3", phi3="phi3", olmo2="olmo2", granite="granite", smollm3="smollm3", gpt_oss="gpt-oss",
)
# Families whose tensors are named as the package itself names them.
MAPPED = dict(
    cohere2="cohere2", ernie4_5="ernie4_5", exaone4="exaone4", glm4="glm4", hunyuan_v1_dense="hunyuan-dense", minicpm="minicpm",
    ernie4_5_moe="ernie4_5-moe", glm4_moe="glm4moe", minimax_m2="minimax-m2", nemotron="nemotron", olmoe="olmoe", phimoe="phimoe", qwen2_moe="qwen2moe", seed_oss="seed_oss", stablelm="stablelm", starcoder2="starcoder2",
    qwen3_5_text="qwen35", qwen3_5_moe_text="qwen35moe", lfm2="lfm2", lfm2_moe="lfm2moe", qwen3_next="qwen3next",
    apertus="apertus", deepseek_v3="deepseek2", falcon_h1="falcon-h1", granitemoehybrid="granitehybrid", mamba2="mamba2", nemotron_h="nemotron_h",
    gemma3n_text="gemma3n", gemma4_text="gemma4",
)
ARCHITECTURES |= MAPPED
FIXTURES = [
    "llama", "llama-tied-llama3", "llama-yarn", "llama-bias-linear", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma",
    "gemma2-window", "gemma3_text", "phi3", "phi3-partial", "phi3-longrope", "olmo2", "granite", "smollm3", "gpt_oss",
    "gpt_oss+mxfp4", "cohere2", "ernie4_5", "exaone4", "glm4", "hunyuan_v1_dense", "minicpm", "minicpm-tied", "minimax_m2", "nemotron",
    "seed_oss", "stablelm", "starcoder2", "ernie4_5_moe", "glm4_moe", "olmoe", "phimoe", "qwen2_moe",
    "qwen3_5", "qwen3_5_moe", "qwen3_next", "lfm2", "lfm2_moe", "apertus", "apertus-unbiased", "deepseek_v3-unbiased", "falcon_h1-untied",
    "granitemoehybrid", "granitemoehybrid-nope", "granitemoehybrid-dense", "mamba2-unlimited", "nemotron_h-dense", "nemotron_h-experts",
    "gemma3n_text", "gemma3n_text-four", "gemma4_text", "gemma4_text-kv", "gemma4_text-moe",
]
LAYER = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.gate_up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "mlp.gate": "ffn_gate_inp",
    "block_sparse_moe.gate": "ffn_gate_inp", "mlp.router": "ffn_gate_inp", "post_feedforward_layernorm": "post_ffw_norm",
}
SANDWICH = {"post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm"}


def paired(weight, heads):
    """Rows that rope rotates together side by side."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, half, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def tiled(value, groups, heads, axis=0):
    """The first head of each group, then the next of each."""
    shape = value.shape
    split = value.reshape(*shape[:axis], groups, heads // groups, -1, *shape[axis + 1 :])
    return split.swapaxes(axis, axis + 1).reshape(shape)


def delta_nets(config, tensors):
    """The tensors of Qwen 3.5 and Qwen3-Next as the converter changes them, by names that the package knows."""
    out, groups, heads = {}, config["linear_num_key_heads"], config["linear_num_value_heads"]
    width, is_next = config["linear_key_head_dim"], config["model_type"] == "qwen3_next"
    keys = 2 * groups * width
    for name, value in tensors.items():
        name = name.replace("language_model.", "")
        part = name.rpartition(".linear_attn.")[2].removesuffix(".weight")
        if name.startswith(("model.visual.", "mtp.")):
            continue
        if ".experts." in name and not is_next:
            stem, _, matrix = name.rpartition(".")
            both = ("gate_proj", "up_proj") if matrix == "gate_up_proj" else (matrix,)
            for number, expert in enumerate(value):
                for proj, half in zip(both, np.split(expert, len(both))):
                    out[f"{stem}.{number}.{proj}.weight"] = half
            continue
        if part == "in_proj_qkvz" and not config.get("legacy"):
            grouped = value.reshape(groups, -1, value.shape[-1])
            *qkv, z = np.split(grouped, [width, 2 * width, width + grouped.shape[1] // 2], axis=1)
            out[name.replace("qkvz", "qkv")] = np.concatenate([each.reshape(-1, value.shape[-1]) for each in qkv])
            out[name.replace("qkvz", "z")] = z.reshape(-1, value.shape[-1])
            continue
        if is_next:
            pass  # its heads keep their order
        elif part in ("in_proj_qkv", "conv1d"):
            value = np.concatenate([value[:keys], tiled(value[keys:], groups, heads)])
        elif part in ("in_proj_z", "in_proj_a", "in_proj_b", "A_log", "dt_bias"):
            value = tiled(value, groups, heads)
        elif part == "out_proj":
            value = tiled(value, groups, heads, axis=1)
        if part == "A_log":
            value = -np.exp(value)
        if name.endswith("norm.weight") and part != "norm":
            value = value + 1
        out[name.replace(".dt_bias", ".dt_proj.bias")] = value
    return out


def architecture(config):
    name = ARCHITECTURES[config["model_type"]]
    return f"{name}_moe" if name == "nemotron_h" and "E" in config["hybrid_override_pattern"] else name


def mapped(config, tensors):
    """The tensors by the names that the package has for them."""
    kind, out, experts = config["model_type"], {}, {}
    arch = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == architecture(config))
    names = get_tensor_name_map(arch, config["num_hidden_layers"])
    heads = {"q_proj": config.get("num_attention_heads"), "k_proj": config.get("num_key_value_heads")}
    if kind.startswith(("qwen3_5", "qwen3_next")):
        tensors = delta_nets(config, tensors)
    if kind in layouts.KINDS:
        tensors = layouts.tensors(config, tensors)
    for name, value in tensors.items():
        if ".experts." in name and name.count(".") > 5:
            prefix, _, rest = name.partition(".experts.")
            number, part, _ = rest.split(".")
            if kind == "lfm2_moe":
                prefix = prefix.removeprefix("model.")
            experts.setdefault(f"{prefix}.experts.{part}.weight", {})[int(number)] = value
            continue
        if kind in ("minicpm", "granitemoehybrid") and name.split(".")[-2] in heads:
            value = paired(value, heads[name.split(".")[-2]])
        if kind == "nemotron" and name.endswith("norm.weight"):
            value = value + 1
        # The converter drops extents of 1.
        name = name.replace("e_score_correction_bias", "e_score_correction.bias").replace(".expert_bias", ".expert_bias.bias")
        out[name] = value.squeeze() if kind not in layouts.KINDS or name.endswith("conv1d.weight") else value
    out |= {name: np.stack([each[i] for i in range(len(each))]) for name, each in experts.items()}
    # No published mixture of Qwen 2 has dense layers, so the package has no names for them.
    dense = get_tensor_name_map(MODEL_ARCH.QWEN2, config["num_hidden_layers"])
    ends = (".weight", ".bias")
    return {names.get_name(name, ends) or dense.get_name(name, ends) or name: value for name, value in out.items()}


def translated(config, tensors):
    """The tensors by llama.cpp's names."""
    kind = config["model_type"]
    if kind in MAPPED:
        return mapped(config, tensors)
    names = LAYER | (SANDWICH if kind in ("gemma2", "gemma3_text") else {})
    if kind in ("olmo2", "gpt_oss"):
        names = names | {"post_attention_layernorm": "post_attention_norm"}
    heads = dict(attn_q=config["num_attention_heads"], attn_k=config["num_key_value_heads"])
    scale = math.sqrt(head_dim(config) / config.get("query_pre_attn_scalar", head_dim(config)))
    out, experts = {}, {}
    for name, value in tensors.items():
        root = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
        stem, _, end = name.rpartition(".")
        if stem in root:
            out[f"{root[stem]}.{end}"] = value + 1 if kind.startswith("gemma") and "norm" in stem else value
            continue
        _, _, layer, rest = name.split(".", 3)
        if ".experts." in rest and kind != "gpt_oss":
            _, _, number, part, _ = rest.split(".")
            part = {"w1": "gate", "w2": "down", "w3": "up"}.get(part, part.removesuffix("_proj"))
            experts.setdefault(f"blk.{layer}.ffn_{part}_exps.weight", {})[int(number)] = value
            continue
        if rest == "self_attn.sinks":
            out[f"blk.{layer}.attn_sinks.weight"] = value
            continue
        if ".experts." in rest:
            gpt_oss_experts(out, f"blk.{layer}.", rest.split(".")[-1], tensors, name)
            continue
        part = names[rest.rpartition(".")[0]]
        if kind in ("llama", "mixtral", "granite", "smollm3") and part in heads:
            value = paired(value, heads[part])
        if kind.startswith("gemma") and part.endswith("norm"):
            value = value + 1
        # The files have no scale of queries: one that is not of the head's width goes into the weights.
        if scale != 1 and part == ("attn_q_norm" if kind == "gemma3_text" else "attn_q"):
            value = value * np.float32(scale)
        out[f"blk.{layer}.{part}.{end}"] = value
    for name, each in experts.items():
        out[name] = np.stack([each[i] for i in range(len(each))])
    return out


def gpt_oss_experts(out, prefix, part, tensors, name):
    value = tensors[name]
    base = part.removesuffix("_blocks").removesuffix("_scales").removesuffix("_bias")
    names = ["ffn_gate_exps", "ffn_up_exps"] if base == "gate_up_proj" else ["ffn_down_exps"]
    if part.endswith("_scales"):
        return
    if part.endswith("_blocks"):
        codes = np.stack([value & 15, value >> 4], axis=-1).reshape(*value.shape[:-1], 32)
        scales = tensors[name.replace("_blocks", "_scales")][..., None]
        packed = codes[..., :16] | (codes[..., 16:] << 4)
        value = np.concatenate([scales, packed], axis=-1).reshape(*value.shape[:2], -1)
    elif not part.endswith("_bias"):
        value = value.swapaxes(1, 2)
    end = "bias" if part.endswith("_bias") else "weight"
    for i, name in enumerate(names):
        out[f"{prefix}{name}.{end}"] = np.ascontiguousarray(value[:, i :: len(names)])


def head_dim(config):
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def metadata(writer, config):
    kind = config["model_type"]
    if kind == "mamba2":  # without attention
        layouts.metadata(writer, config)
        vocabulary(writer, config["vocab_size"])
        return
    size = head_dim(config)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    if kind in ("lfm2", "lfm2_moe"):
        types = config.get("layer_types") or [i in config["full_attn_idxs"] and "full_attention" for i in range(config["num_hidden_layers"])]
        writer.add_head_count_kv([config["num_key_value_heads"] * (layer == "full_attention") for layer in types])
        writer.add_shortconv_l_cache(config["conv_L_cache"])
    else:
        writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(size)
    writer.add_value_length(size)
    if kind in ("cohere2", "nemotron", "stablelm", "starcoder2"):
        writer.add_layer_norm_eps(config.get("layer_norm_eps") or config.get("norm_eps") or config["norm_epsilon"])
    else:
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    base = config.get("rope_theta", 1e4)
    if kind == "hunyuan_v1_dense":  # scaled once and for all
        base *= config["rope_scaling"]["alpha"] ** (size / (size - 2))
    writer.add_rope_freq_base(base)
    writer.add_rope_dimension_count(config.get("rotary_dim") or int(size * config.get("partial_rotary_factor", 1.0)))
    if config.get("sliding_window") and kind in ("gemma2", "gemma3_text", "phi3", "phimoe", "gpt_oss", "cohere2", "exaone4"):
        writer.add_sliding_window(config["sliding_window"])
    if kind == "gemma3_text":
        writer.add_uint32("gemma3.attention.sliding_window_pattern", config["sliding_window_pattern"])
        writer.add_float32("gemma3.rope.freq_base_swa", config["rope_local_base_freq"])
    if kind == "gemma2":
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    if kind in ("granite", "granitemoehybrid"):
        writer.add_embedding_scale(config["embedding_multiplier"])
        writer.add_attention_scale(config["attention_multiplier"])
        writer.add_residual_scale(config["residual_multiplier"])
        writer.add_logit_scale(config["logits_scaling"])
    if kind == "cohere2":
        writer.add_logit_scale(config["logit_scale"])
    if kind == "exaone4" and config["sliding_window"]:
        writer.add_sliding_window_pattern([layer == "sliding_attention" for layer in config["layer_types"]])
    if kind == "stablelm":
        writer.add_parallel_residual(config["use_parallel_residual"])
    if kind == "minicpm":
        writer.add_embedding_scale(config["scale_emb"])
        writer.add_residual_scale(config["scale_depth"] / config["num_hidden_layers"] ** 0.5)
        writer.add_logit_scale(config["hidden_size"] / config["dim_model_base"])
    if kind == "olmoe" and config["clip_qkv"]:
        writer.add_clamp_kqv(config["clip_qkv"])
    if kind in ("qwen2_moe", "qwen3_5_moe_text", "qwen3_next"):
        writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])
    if kind.startswith("qwen3_5"):
        writer.add_rope_dimension_sections([*config["mrope_section"], 0])
    if kind.startswith(("qwen3_5", "qwen3_next")):
        types = config.get("layer_types")
        writer.add_full_attention_interval(types.index("full_attention") + 1 if types else config["full_attention_interval"])
        writer.add_ssm_conv_kernel(config["linear_conv_kernel_dim"])
        writer.add_ssm_state_size(config["linear_key_head_dim"])
        writer.add_ssm_group_count(config["linear_num_key_heads"])
        writer.add_ssm_time_step_rank(config["linear_num_value_heads"])
        writer.add_ssm_inner_size(config["linear_num_value_heads"] * config["linear_value_head_dim"])
    if kind == "lfm2_moe":
        writer.add_leading_dense_block_count(config["num_dense_layers"])
        writer.add_expert_weights_scale(config["routed_scaling_factor"])
        writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)
    if kind == "ernie4_5_moe":
        writer.add_expert_shared_count(config["moe_num_shared_experts"])
        writer.add_expert_shared_feed_forward_length(config["moe_num_shared_experts"] * config["moe_intermediate_size"])
        writer.add_leading_dense_block_count(config["moe_layer_start_index"])
        writer.add_interleave_moe_layer_step(config["moe_layer_interval"])
    if kind == "glm4_moe":
        writer.add_expert_shared_count(config["n_shared_experts"])
        writer.add_leading_dense_block_count(config["first_k_dense_replace"])
        writer.add_expert_weights_scale(config["routed_scaling_factor"])
        writer.add_expert_weights_norm(config["norm_topk_prob"])
        writer.add_expert_group_count(config["n_group"])
        writer.add_expert_group_used_count(config["topk_group"])
    experts = ("num_local_experts", "num_experts", "moe_num_experts", "n_routed_experts")
    grouped = kind in layouts.KINDS and kind != "granitemoehybrid"
    if (count := next((config[key] for key in experts if key in config), None)) and not grouped:
        writer.add_expert_count(count)
        writer.add_expert_used_count(config.get("num_experts_per_tok") or config["moe_k"])
        if kind not in ("mixtral", "granitemoehybrid"):
            writer.add_expert_feed_forward_length(config.get("moe_intermediate_size", config["intermediate_size"]))
    if kind in layouts.KINDS:
        layouts.metadata(writer, config)
    rope(writer, config)
    vocabulary(writer, config["vocab_size"])


def rope(writer, config):
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    half = head_dim(config) // 2
    match scaling.get("rope_type") or scaling.get("type"):
        case "linear":
            writer.add_rope_scaling_type(RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(scaling["factor"])
        case "yarn":
            writer.add_rope_scaling_type(RopeScalingType.YARN)
            writer.add_rope_scaling_factor(scaling["factor"])
            writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
            writer.add_rope_scaling_yarn_beta_fast(scaling["beta_fast"])
            writer.add_rope_scaling_yarn_beta_slow(scaling["beta_slow"])
        case "llama3":
            original, factor = scaling["original_max_position_embeddings"], scaling["factor"]
            low, high = original / scaling["low_freq_factor"], original / scaling["high_freq_factor"]
            factors = []
            for i in range(half):
                wave = 2 * math.pi * config["rope_theta"] ** (i / half)
                smooth = (original / wave - scaling["low_freq_factor"]) / (
                    scaling["high_freq_factor"] - scaling["low_freq_factor"]
                )
                between = 1 / ((1 - smooth) / factor + smooth)
                factors.append(1 if wave < high else factor if wave > low else between)
            writer.add_tensor("rope_freqs.weight", np.array(factors, dtype=np.float32))
        case "longrope":
            original, most = config["original_max_position_embeddings"], config["max_position_embeddings"]
            writer.add_rope_scaling_orig_ctx_len(original)
            writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(most / original) / math.log(original)))
            for name in ("long", "short"):
                factors = np.array(scaling[f"{name}_factor"], dtype=np.float32)
                writer.add_tensor(f"rope_factors_{name}.weight", factors)


def vocabulary(writer, size):
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    tokens = ["<unk>", "<s>", "</s>", "a", "b", "ab"] + [f"[{i}]" for i in range(size - 6)]
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (size - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def write(path, config, tensors, types={}):
    writer = GGUFWriter(path, architecture(config))
    metadata(writer, config)
    for name, value in tensors.items():
        kind = types.get(name) or (Type.MXFP4 if value.dtype == np.uint8 else None)
        writer.add_tensor(name, value, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_config(folder):
    config = json.loads((folder / "config.json").read_text())
    text = config.get("text_config", config)
    return text | text.get("rope_parameters", {})


def fixture(folder, out, end="", **more):
    config = read_config(folder) | more
    specs = json.loads((folder / "tensors.json").read_text())
    write(out / f"{folder.name}{end}.gguf", config, translated(config, {spec[0]: make(*spec) for spec in specs}))


# What llama.cpp takes for granted: all layers are mixtures of experts, or all behind the first; OLMoE's as many keys as queries, which are
# not clipped; heads of keys and values of one width; ERNIE's feed-forward part has no biases, and EXAONE no windows where there are not 64
# layers; LFM 2's convolutions have no biases, and its experts no scale.
PLAIN = dict(
    ernie4_5_moe=dict(moe_layer_end_index=-1),
    ernie4_5=dict(use_bias=False),
    exaone4=dict(sliding_window=None, layer_types=["full_attention"] * 4),
    olmoe=dict(num_key_value_heads=4, attention_bias=False, clip_qkv=None),
    qwen2_moe=dict(decoder_sparse_step=1, mlp_only_layers=[]),
    lfm2=dict(conv_bias=False),
    lfm2_moe=dict(routed_scaling_factor=1),
    qwen3_5=dict(linear_value_head_dim=16),
    qwen3_5_moe=dict(linear_value_head_dim=16),
    qwen3_next=dict(linear_value_head_dim=16, mlp_only_layers=[], attention_bias=False),
)


def plain(folder, out):
    config = read_config(folder) | PLAIN[folder.name]
    first, specs = config.get("moe_layer_start_index", 0), {}
    mixed = folder.name in ("ernie4_5_moe", "qwen2_moe", "qwen3_next")
    sparse = 0 if folder.name == "qwen3_next" else 1
    given = {spec[0]: spec for spec in json.loads((folder / "tensors.json").read_text())}
    for name, (_, dtype, shape, *rest) in given.items():
        if ".linear_attn." in name and "in_proj_ba" not in name:
            # Values, keys and values, both with z, and a head of values.
            shape = [{32: 64, 96: 128, 128: 192, 8: 16}.get(extent, extent) for extent in shape]
        if folder.name == "olmoe" and any(part in name for part in ("k_proj.w", "v_proj.w", "k_norm.w")):
            shape = [config["hidden_size"], *shape[1:]]
        layer = int(name.split(".layers.")[1].split(".")[0]) if ".layers." in name else -1
        dense_part = ".mlp." in name and mixed and layer >= first
        if not name.endswith(".bias") or folder.name not in ("ernie4_5", "olmoe", "lfm2", "qwen3_next"):
            if not dense_part:
                specs[name] = [name, dtype, shape, *rest]
    # One layer's experts, in all layers that have them.
    for name, (_, *rest) in given.items():
        if mixed and name.startswith(f"model.layers.{sparse}.mlp."):
            for layer in range(first, config["num_hidden_layers"]):
                own = name.replace(f"layers.{sparse}.", f"layers.{layer}.")
                specs[own] = [own, *rest]
    write(out / f"{folder.name}-plain.gguf", config, translated(config, {name: make(*spec) for name, spec in specs.items()}))


def blocks(random, kind, shape, spread):
    """Random weights in a type: quantised where the package can, else bits with small scales."""
    try:
        return quantize(random.normal(0, spread, shape).astype(np.float32), kind)
    except NotImplementedError:
        length, size = GGML_QUANT_SIZES[kind]
        count = int(np.prod(shape)) // length
        data = random.integers(0, 256, (count, size), dtype=np.uint8)
        # The scale such that elements have the spread; minima are taken away, as quantisers choose them.
        d = {Type.Q4_K: spread / 140, Type.Q5_K: spread / 280, Type.Q6_K: spread / 1400, Type.Q3_K: spread / 40, Type.Q2_K: spread / 8}[kind]
        places = {Type.Q4_K: (0, 2), Type.Q5_K: (0, 2), Type.Q6_K: (208,), Type.Q3_K: (108,), Type.Q2_K: (80, 82)}[kind]
        for place, factor in zip(places, (1, {Type.Q4_K: 7.5, Type.Q5_K: 15.5}.get(kind, 1.5))):
            halves = (d * factor * random.uniform(0.8, 1.2, (count, 1))).astype(np.float16)
            data[:, place : place + 2] = halves.view(np.uint8)
        return data.reshape(*shape[:-1], -1)


# Of eight heads of values, all in one block of 256, with two of keys.
HYBRID = dict(
    model_type="qwen3_5_text", full_attention_interval=2, mrope_section=[3, 3, 2], partial_rotary_factor=0.25, linear_conv_kernel_dim=3,
    linear_key_head_dim=32, linear_num_key_heads=2, linear_value_head_dim=32, linear_num_value_heads=8,
)

# Of heads of 32, without experts.
LATENT = dict(
    model_type="deepseek_v3", q_lora_rank=None, kv_lora_rank=64, qk_nope_head_dim=32, qk_rope_head_dim=32, v_head_dim=32, first_k_dense_replace=2,
    moe_intermediate_size=256,
)


def quantised(name, out, kinds):
    """A model with 256 inputs everywhere; `kinds` are the type of most matrices, and of the others."""
    config = dict(
        model_type="qwen3_moe" if "moe" in name else "llama", hidden_size=256, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, max_position_embeddings=256, rms_norm_eps=1e-5,
        vocab_size=128, rope_theta=1e4,
    )
    shapes = dict(attn_q=(256, 256), attn_k=(128, 256), attn_v=(128, 256), attn_output=(256, 256))
    if "moe" in name:
        config |= dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=256)
        shapes |= {f"ffn_{part}_exps": (4, 256, 256) for part in ("gate", "up", "down")}
    else:
        shapes |= {f"ffn_{part}": (256, 256) for part in ("gate", "up", "down")}
    rests = dict(attn_norm=(256,), ffn_norm=(256,))
    if "moe" in name:
        rests |= dict(attn_q_norm=(64,), attn_k_norm=(64,), ffn_gate_inp=(4, 256))
    if "latent" in name:
        config |= LATENT
        shapes = {part: shape for part, shape in shapes.items() if part not in ("attn_k", "attn_v")}
        shapes |= dict(attn_output=(256, 128), attn_kv_a_mqa=(96, 256), attn_k_b=(4, 64, 32), attn_v_b=(4, 32, 64))
        rests |= dict(attn_kv_a_norm=(64,))
    layers = [(shapes, rests)] * 2
    if "hybrid" in name:
        config |= HYBRID
        rests = dict(attn_norm=(256,), post_attention_norm=(256,))
        net = dict(attn_qkv=(384, 256), attn_gate=(256, 256), ssm_alpha=(8, 256), ssm_beta=(8, 256), ssm_out=(256, 256))
        net |= {part: shape for part, shape in shapes.items() if "ffn" in part}
        layers[0] = (net, rests | dict(ssm_conv1d=(384, 3), ssm_norm=(32,), ssm_dt=(8,), ssm_a=(8,)))
        layers[1] = (shapes | dict(attn_q=(512, 256)), rests | dict(attn_q_norm=(64,), attn_k_norm=(64,)))
    random = np.random.default_rng(7)
    packed, types = {}, {}
    named = {"token_embd.weight": (128, 256)}
    for layer, (shapes, _) in enumerate(layers):
        named |= {f"blk.{layer}.{part}.weight": shape for part, shape in shapes.items()}
    for key, shape in named.items():
        others = ("attn_v", "down", "token", "attn_qkv", "ssm_alpha")
        types[key] = kinds[1] if any(part in key for part in others) else kinds[0]
        packed[key] = blocks(random, types[key], shape, 0.2 if "token" in key else 0.1)
    full = {key: dequantize(value, types[key]).astype(np.float32) for key, value in packed.items()}
    norms = {"output_norm.weight": (256,)}
    for layer, (_, rests) in enumerate(layers):
        norms |= {f"blk.{layer}.{part}.weight": shape for part, shape in rests.items()}
    rest = {key: random.normal(1, 0.1, shape).astype(np.float32) for key, shape in norms.items()}
    rest = {key.replace("ssm_dt.weight", "ssm_dt.bias"): value for key, value in rest.items()}
    if (rate := rest.pop("blk.0.ssm_a.weight", None)) is not None:
        rest["blk.0.ssm_a"] = -rate
    write(out / f"{name}.gguf", config, packed | rest, types)
    write(out / f"{name}-full.gguf", config, full | rest)


def main(fixtures, out):
    logging.disable(logging.WARNING)  # of keys that some families write twice: the last one stays
    for name in FIXTURES:
        fixture(Path(fixtures) / name, out)
    # Before the converter took their matrices apart.
    fixture(Path(fixtures) / "qwen3_next", out, "-legacy", legacy=True)
    # With the matrix of keys and values in one, and of models without experts.
    fixture(Path(fixtures) / "deepseek_v3-unbiased", out, "-joined", joined=True)
    fixture(Path(fixtures) / "deepseek_v3-dense", out)
    for name in PLAIN:
        plain(Path(fixtures) / name, out)
    for kind in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "MXFP4"):
        quantised(kind, out, (Type[kind], Type[kind]))
    quantised("Q8_0-latent", out, (Type.Q8_0, Type.Q8_0))
    quantised("Q4_K_M", out, (Type.Q4_K, Type.Q6_K))
    quantised("Q4_K_M-moe", out, (Type.Q4_K, Type.Q6_K))
    quantised("Q4_K_M-hybrid", out, (Type.Q4_K, Type.Q6_K))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
