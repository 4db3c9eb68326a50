"""Writes small Llamas as compressed-tensors has them, by the format's own formulas: python make.py OUT

OUT/<variant> is a checkpoint with `quantization_config`, and OUT/<variant>-dense the same with the values that its matrices stand for, so
that both are to give the same logits.
"""

import json
import struct
import sys
from pathlib import Path

import numpy as np

CONFIG = dict(
    model_type="llama", architectures=["LlamaForCausalLM"], hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, hidden_act="silu", max_position_embeddings=256, rms_norm_eps=1e-5, rope_theta=1e4, vocab_size=128,
    bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
)
SHAPES = {
    "self_attn.q_proj": (64, 64), "self_attn.k_proj": (32, 64), "self_attn.v_proj": (32, 64), "self_attn.o_proj": (64, 64),
    "mlp.gate_proj": (128, 64), "mlp.up_proj": (128, 64), "mlp.down_proj": (64, 128),
}
NAMES = {np.dtype(np.float32): "F32", np.dtype(np.int32): "I32", np.dtype(np.int64): "I64", np.dtype(np.int8): "I8"}


def bf16(values):
    """The nearest numbers of bfloat16, ties to even, as their bits."""
    words = np.asarray(values, dtype=np.float32).view(np.uint32)
    return ((words + 0x7FFF + ((words >> 16) & 1)) >> 16).astype(np.uint16)


def of_bf16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def e4m3(codes):
    """The numbers that bytes of e4m3 are: sign, four bits of exponent with a bias of 7, three of mantissa."""
    exponent, mantissa = (codes >> 3) & 15, (codes & 7).astype(np.float32)
    size = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent.astype(np.float32) - 7))
    return np.where(codes & 0x80, -size, size).astype(np.float32)


def packed(values, bits, axis):
    """Integers from 0, those of the lowest places first, in words of 32 bits along an axis."""
    each = 32 // bits
    values = np.moveaxis(values.astype(np.uint32), axis, -1)
    parts = values.reshape(*values.shape[:-1], -1, each) << (bits * np.arange(each, dtype=np.uint32))
    return np.moveaxis(np.bitwise_or.reduce(parts, -1), -1, axis).astype(np.uint32).view(np.int32)


def integers(weight, random, bits, group, symmetric, layout):
    """value = scale · (q − zero), of groups of inputs."""
    half = 1 << (bits - 1)
    group = group or weight.shape[1]
    split = weight.reshape(weight.shape[0], -1, group)
    scale = (np.abs(split).max(-1) / (half - 0.5)).astype(np.float32)
    zero = np.zeros(scale.shape) if symmetric else random.integers(-3, 4, scale.shape)
    q = np.clip(np.rint(split / scale[..., None]) + zero[..., None], -half, half - 1)
    value = (scale[..., None] * (q - zero[..., None])).reshape(weight.shape).astype(np.float32)
    q = q.reshape(weight.shape).astype(np.int64)
    if layout == "int-quantized":
        return dict(weight=q.astype(np.int8), weight_scale=scale), value
    parts = dict(weight_packed=packed(q + half, bits, 1), weight_shape=np.array(weight.shape), weight_scale=scale)
    if not symmetric:
        parts["weight_zero_point"] = packed(zero + half, bits, 0)
    return parts, value


def floats(weight, random, shape):
    """value = scale · e4m3, in bfloat16."""
    codes = random.integers(0, 0x7F, weight.shape).astype(np.uint8) | (random.integers(0, 2, weight.shape) << 7).astype(np.uint8)
    scale = random.uniform(0.5e-3, 1e-3, shape(weight)).astype(np.float32)
    # A scale may be stored in bfloat16.
    bits = bf16(scale)
    scale = of_bf16(bits)
    blocks = [-(-extent // count) for extent, count in zip(weight.shape, scale.shape)]
    spread = np.kron(scale, np.ones(blocks, dtype=np.float32))[: weight.shape[0], : weight.shape[1]]
    return dict(weight=("F8_E4M3", codes), weight_scale=("BF16", bits)), ("BF16", bf16(e4m3(codes) * spread))


def weights_of(kind, bits, strategy, symmetric=True, **more):
    return dict(num_bits=bits, type=kind, symmetric=symmetric, strategy=strategy, dynamic=False, **more)


VARIANTS = {
    "w4a16": ("pack-quantized", weights_of("int", 4, "group", group_size=32), lambda w, r: integers(w, r, 4, 32, True, "pack-quantized")),
    "w4a16-asym": (
        "pack-quantized", weights_of("int", 4, "group", False, group_size=64), lambda w, r: integers(w, r, 4, 64, False, "pack-quantized"),
    ),
    "w8a16": ("pack-quantized", weights_of("int", 8, "channel"), lambda w, r: integers(w, r, 8, None, True, "pack-quantized")),
    "w8a8": ("int-quantized", weights_of("int", 8, "channel"), lambda w, r: integers(w, r, 8, None, True, "int-quantized")),
    "fp8-tensor": ("float-quantized", weights_of("float", 8, "tensor"), lambda w, r: floats(w, r, lambda w: (1, 1))),
    "fp8-channel": ("float-quantized", weights_of("float", 8, "channel"), lambda w, r: floats(w, r, lambda w: (w.shape[0], 1))),
    "fp8-block": (
        "float-quantized", weights_of("float", 8, "block", block_structure=[32, 32]),
        lambda w, r: floats(w, r, lambda w: (w.shape[0] // 32, w.shape[1] // 32)),
    ),
}


def write(folder, config, tensors):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    vocabulary = {f"[{i}]": i for i in range(config["vocab_size"])}
    (folder / "tokenizer.json").write_text(json.dumps(dict(version="1.0", model=dict(type="BPE", vocab=vocabulary, merges=[]))))
    header, data = {}, b""
    for name, value in tensors.items():
        kind, value = value if isinstance(value, tuple) else (NAMES[value.dtype], value)
        header[name] = dict(dtype=kind, shape=value.shape, data_offsets=[len(data), len(data) + value.nbytes])
        data += np.ascontiguousarray(value).tobytes()
    header = json.dumps(dict(header, __metadata__=dict(format="pt"))).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)


def main(out):
    for name, (layout, settings, quantise) in VARIANTS.items():
        random = np.random.default_rng(7)
        half = layout == "float-quantized"
        plain = lambda value: ("BF16", bf16(value)) if half else value.astype(np.float32)
        tensors = {"model.norm.weight": plain(random.normal(1, 0.1, 64))}
        for key in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[key] = plain(random.normal(0, 0.5 if "embed" in key else 0.3, (128, 64)))
        for layer in range(CONFIG["num_hidden_layers"]):
            for norm in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"model.layers.{layer}.{norm}.weight"] = plain(random.normal(1, 0.1, 64))
        dense = dict(tensors)
        for layer in range(CONFIG["num_hidden_layers"]):
            for part, shape in SHAPES.items():
                weight = random.normal(0, 0.15, shape).astype(np.float32)
                parts, value = quantise(weight, random)
                stem = f"model.layers.{layer}.{part}"
                tensors |= {f"{stem}.{part}": each for part, each in parts.items()}
                dense[f"{stem}.weight"] = value
        config = dict(CONFIG, torch_dtype="bfloat16" if half else "float32")
        group = dict(targets=["Linear"], weights=settings, input_activations=None, output_activations=None)
        quantisation = dict(
            quant_method="compressed-tensors", format=layout, ignore=["lm_head"], config_groups=dict(group_0=group), quantization_status="compressed",
        )
        write(out / name, dict(config, quantization_config=quantisation), tensors)
        write(out / f"{name}-dense", config, dense)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
