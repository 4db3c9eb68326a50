"""The variants: configs in their publishers' style, small, with every field different from its default, and their tensors."""

import math

VOCAB = 128
TINY = dict(
    hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=512, rms_norm_eps=1e-5, vocab_size=VOCAB, bos_token_id=1, eos_token_id=2,
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


def shapes(config):
    """Published name, shape and kind of every tensor."""
    kind = config["model_type"]
    hidden, inter = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    offset = kind.startswith("gemma")
    norm = "norm0" if offset else "norm1"
    qkv_bias = config.get("attention_bias") or kind in ("qwen2", "gpt_oss")
    out_bias = config.get("attention_bias") or kind == "gpt_oss"
    yield "model.embed_tokens.weight", [config["vocab_size"], hidden], "embed"
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        yield layer + "input_layernorm.weight", [hidden], norm
        yield layer + "post_attention_layernorm.weight", [hidden], norm
        attention = layer + "self_attn."
        for name, count, role in (("q_proj", heads, "qk"), ("k_proj", kv_heads, "qk"), ("v_proj", kv_heads, "linear")):
            yield f"{attention}{name}.weight", [count * head_dim, hidden], role
            if qkv_bias:
                yield f"{attention}{name}.bias", [count * head_dim], "bias"
        yield attention + "o_proj.weight", [hidden, heads * head_dim], "linear"
        if out_bias:
            yield attention + "o_proj.bias", [hidden], "bias"
        if kind in ("qwen3", "qwen3_moe", "gemma3_text"):
            for name in ("q_norm", "k_norm"):
                yield f"{attention}{name}.weight", [head_dim], "headnorm0" if offset else "headnorm1"
        for name, shape in (("gate_proj", [inter, hidden]), ("up_proj", [inter, hidden]), ("down_proj", [hidden, inter])):
            yield f"{layer}mlp.{name}.weight", shape, "linear"
            if config.get("mlp_bias"):
                yield f"{layer}mlp.{name}.bias", shape[:1], "bias"
    yield "model.norm.weight", [hidden], norm
    if not config.get("tie_word_embeddings", offset):
        yield "lm_head.weight", [config["vocab_size"], hidden], "head"


def tensors(config, storage):
    """[name, type, shape, mean, spread] of every tensor, scaled so that every part of the network matters."""
    text = config.get("text_config", config)
    tied = text.get("tie_word_embeddings", text["model_type"].startswith("gemma"))
    kind = {"bf16": "BF16", "f16": "F16"}.get(storage, "F32")
    settings = config.get("quantization")
    out = []
    for name, shape, role in shapes(config):
        fan = math.prod(shape[1:]) if len(shape) > 1 else shape[0]
        mean, std = {
            "linear": (0, 1.2 / fan**0.5),
            "qk": (0, 1.6 / fan**0.5),
            "router": (0, 3 / fan**0.5),
            "head": (0, 3 / fan**0.5),
            "embed": (0, 2.5 / fan**0.5 if tied else 1.0),
            "bias": (0, 0.3),
            "sinks": (0, 1.0),
            "norm1": (1, 0.2),
            "norm0": (0, 0.2),
            "headnorm1": (1.6, 0.2),
            "headnorm0": (0.6, 0.2),
        }[role]
        spread = std * 3**0.5
        stem = name.removesuffix(".weight")
        own = settings and settings.get(stem, settings)
        if own and role in ("linear", "qk", "head", "embed"):
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
