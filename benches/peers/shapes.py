"""Checkpoints of published shapes with random weights: safetensors as mlx_lm and transformers read them, GGUF for llama.cpp.

Speed does not depend on the values of weights, as long as they stay finite: packed ones are drawn as they are stored.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Shape:
    """A model's sizes, by the names of its config.json, and its family's in GGUF."""

    config: dict
    gguf: str

    def __getitem__(self, key):
        return self.config[key]

    @property
    def experts(self):
        return self.config.get("num_experts", 0)

    @property
    def gemma(self):
        return self["model_type"].startswith("gemma")

    @property
    def hybrid(self):
        return self["model_type"] == "qwen3_5"

    def mixer(self, index):
        """The matrices and norms of a layer's attention, or of what it has in its place."""
        hidden, width = self["hidden_size"], self["head_dim"]
        queries, keys = self["num_attention_heads"] * width, self["num_key_value_heads"] * width
        if self.hybrid and (index + 1) % self["full_attention_interval"]:
            heads, value = self["linear_num_value_heads"], self["linear_value_head_dim"]
            inner = 2 * self["linear_num_key_heads"] * self["linear_key_head_dim"] + heads * value
            for name, rows in (("qkv", inner), ("z", heads * value), ("b", heads), ("a", heads)):
                yield f"linear_attn.in_proj_{name}.weight", (rows, hidden)
            yield "linear_attn.conv1d.weight", (inner, self["linear_conv_kernel_dim"], 1)
            yield "linear_attn.A_log", (heads,)
            yield "linear_attn.dt_bias", (heads,)
            yield "linear_attn.norm.weight", (value,)
            yield "linear_attn.out_proj.weight", (hidden, heads * value)
            return
        for name, rows in (("q_proj", queries * (2 if self.hybrid else 1)), ("k_proj", keys), ("v_proj", keys)):
            yield f"self_attn.{name}.weight", (rows, hidden)
        yield "self_attn.o_proj.weight", (hidden, queries)
        if self.gemma or self["model_type"].startswith("qwen3"):
            yield "self_attn.q_norm.weight", (width,)
            yield "self_attn.k_norm.weight", (width,)

    def tensors(self):
        """Names in the published layout, with their shapes. Experts are stacked and convolutions turned, as mlx_lm has them."""
        hidden = self["hidden_size"]
        yield "model.embed_tokens.weight", (self["vocab_size"], hidden)
        for index in range(self["num_hidden_layers"]):
            layer = f"model.layers.{index}"
            norms = ["input_layernorm", "post_attention_layernorm"]
            norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"] if self.gemma else []
            for norm in norms:
                yield f"{layer}.{norm}.weight", (hidden,)
            for name, shape in self.mixer(index):
                yield f"{layer}.{name}", shape
            if self.experts:
                inner = self["moe_intermediate_size"]
                yield f"{layer}.mlp.gate.weight", (self.experts, hidden)
                for name, shape in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):
                    yield f"{layer}.mlp.switch_mlp.{name}_proj.weight", (self.experts, *shape)
            else:
                inner = self["intermediate_size"]
                for name, shape in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):
                    yield f"{layer}.mlp.{name}_proj.weight", shape
        yield "model.norm.weight", (hidden,)

    def weights_per_token(self):
        """Elements of matrices that one token is multiplied with."""
        total = 0
        for name, shape in self.tensors():
            if len(shape) == 2 or "switch_mlp" in name:
                share = self["num_experts_per_tok"] / self.experts if "switch_mlp" in name else 1
                total += int(np.prod(shape) * share)
        return total


def _config(**sizes):
    common = dict(
        hidden_act="silu", attention_bias=False, mlp_bias=False, rope_scaling=None, sliding_window=None,
        tie_word_embeddings=True, torch_dtype="bfloat16", bos_token_id=1, eos_token_id=2, use_sliding_window=False,
        rms_norm_eps=1e-6, max_position_embeddings=4096,
    )
    return common | sizes


_QWEN3 = dict(head_dim=128, rope_theta=1e6, vocab_size=151936)

SHAPES = {
    "qwen3-0.6b": Shape(_config(
        **_QWEN3, architectures=["Qwen3ForCausalLM"], model_type="qwen3", hidden_size=1024, intermediate_size=3072,
        num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8, max_window_layers=28), "qwen3"),
    "qwen3.5-0.8b": Shape(_config(
        architectures=["Qwen3_5ForCausalLM"], model_type="qwen3_5", hidden_size=1024, intermediate_size=3584, num_hidden_layers=24,
        num_attention_heads=8, num_key_value_heads=2, head_dim=256, vocab_size=248320, full_attention_interval=4,
        linear_conv_kernel_dim=4, linear_key_head_dim=128, linear_value_head_dim=128, linear_num_key_heads=16,
        linear_num_value_heads=16,
        rope_parameters=dict(rope_type="default", rope_theta=1e7, partial_rotary_factor=0.25, mrope_section=[11, 11, 10],
                             mrope_interleaved=True)), "qwen35"),
    "llama3.2-1b": Shape(_config(
        architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=2048, intermediate_size=8192,
        num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8, head_dim=64, rope_theta=5e5,
        vocab_size=128256, rms_norm_eps=1e-5), "llama"),
    "gemma3-1b": Shape(_config(
        architectures=["Gemma3ForCausalLM"], model_type="gemma3_text", hidden_size=1152, intermediate_size=6912,
        num_hidden_layers=26, num_attention_heads=4, num_key_value_heads=1, head_dim=256, query_pre_attn_scalar=256,
        rope_theta=1e6, rope_local_base_freq=1e4, sliding_window=512, sliding_window_pattern=6,
        hidden_activation="gelu_pytorch_tanh", vocab_size=262144), "gemma3"),
    "qwen3-moe-small": Shape(_config(
        **_QWEN3, architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe", hidden_size=1024, intermediate_size=3072,
        num_hidden_layers=16, num_attention_heads=16, num_key_value_heads=4, max_window_layers=16, num_experts=32,
        num_experts_per_tok=4, moe_intermediate_size=512, norm_topk_prob=True, decoder_sparse_step=1,
        mlp_only_layers=[]), "qwen3moe"),
}

GROUP = 64


def write_checkpoint(shape, bits, folder):
    """A folder with config.json, a tokenizer of bytes and the weights: of 4 bits in groups of 64 with scales and biases in
    bf16, or (16 bits) in bf16 throughout."""
    folder.mkdir(parents=True)
    config = dict(shape.config)
    if bits == 4:
        config["quantization"] = config["quantization_config"] = {"group_size": GROUP, "bits": 4, "mode": "affine"}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    _write_tokenizer(folder)
    random = np.random.default_rng(0)
    specs = []
    for name, size in shape.tensors():
        if len(size) == 1 or bits == 16 or "conv1d" in name:
            specs.append((name, "BF16", size, lambda size=size: _bf16(_floats(random, size))))
            continue
        base, groups = name.removesuffix(".weight"), (*size[:-1], size[-1] // GROUP)
        spread = size[-1] ** -0.5 / 4.6
        specs.append((name, "U32", (*size[:-1], size[-1] // 8),
                      lambda size=size: random.integers(0, 1 << 32, (*size[:-1], size[-1] // 8), np.uint32)))
        for part, factor in (("scales", 1.0), ("biases", -7.5)):
            specs.append((f"{base}.{part}", "BF16", groups,
                          lambda groups=groups, value=factor * spread: _bf16(np.full(groups, value, np.float32))))
    _write_safetensors(folder / "model.safetensors", specs)


def write_gguf(shape, bits, path):
    """The same for llama.cpp: Q4_0, or (16 bits) bf16; norms in f32."""
    import gguf

    writer = gguf.GGUFWriter(path, shape.gguf)
    layers = shape["num_hidden_layers"]
    writer.add_block_count(layers)
    writer.add_context_length(shape["max_position_embeddings"])
    writer.add_embedding_length(shape["hidden_size"])
    writer.add_feed_forward_length(shape["intermediate_size"])
    writer.add_head_count(shape["num_attention_heads"])
    writer.add_head_count_kv(shape["num_key_value_heads"])
    writer.add_key_length(shape["head_dim"])
    writer.add_value_length(shape["head_dim"])
    writer.add_rope_freq_base(shape.config.get("rope_theta") or shape["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(shape["rms_norm_eps"])
    writer.add_vocab_size(shape["vocab_size"])
    if shape.gemma:
        writer.add_sliding_window(shape["sliding_window"])
    if shape.hybrid:
        rope = shape["rope_parameters"]
        writer.add_rope_dimension_count(int(shape["head_dim"] * rope["partial_rotary_factor"]))
        writer.add_rope_dimension_sections([*rope["mrope_section"], 0])
        writer.add_full_attention_interval(shape["full_attention_interval"])
        writer.add_ssm_conv_kernel(shape["linear_conv_kernel_dim"])
        writer.add_ssm_state_size(shape["linear_key_head_dim"])
        writer.add_ssm_group_count(shape["linear_num_key_heads"])
        writer.add_ssm_time_step_rank(shape["linear_num_value_heads"])
        writer.add_ssm_inner_size(shape["linear_num_value_heads"] * shape["linear_value_head_dim"])
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(shape["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(shape["moe_intermediate_size"])
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    tokens = [f"<0x{n:02X}>" if n < 256 else f"t{n}" for n in range(shape["vocab_size"])]
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([int(gguf.TokenType.BYTE if n < 256 else gguf.TokenType.NORMAL) for n in range(len(tokens))])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)

    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, shape.gguf.upper()), layers)
    random = np.random.default_rng(0)
    for name, size in shape.tensors():
        name = name.replace(".mlp.switch_mlp.", ".mlp.experts.")
        if name.endswith(".dt_bias"):
            name = name.replace(".dt_bias", ".dt_proj.bias")
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise ValueError(f"GGUF has no name for {name} of {shape.gguf}")
        if target.endswith("ssm_a"):
            writer.add_tensor(target, -np.exp(_floats(random, size)))
        elif "conv1d" in target:
            writer.add_tensor(target, _floats(random, size[:2]))
        elif len(size) == 1:
            writer.add_tensor(target, 1 + _floats(random, size))
        elif bits == 16:
            data = _bf16(_floats(random, size)).view(np.uint8).reshape(*size[:-1], size[-1] * 2)
            writer.add_tensor(target, data, raw_dtype=gguf.GGMLQuantizationType.BF16)
        elif target.endswith("ffn_gate_inp.weight"):
            writer.add_tensor(target, _floats(random, size))
        else:
            # Blocks of 32: a scale in f16, then 16 bytes of two elements each, which stand for -8..7.
            blocks = random.integers(0, 256, (int(np.prod(size)) // 32, 18), np.uint8)
            blocks[:, :2] = np.full(1, size[-1] ** -0.5 / 4.6, np.float16).view(np.uint8)
            data = blocks.reshape(*size[:-1], size[-1] // 32 * 18)
            writer.add_tensor(target, data, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _floats(random, size):
    return random.standard_normal(size, np.float32) * np.float32(size[-1] ** -0.5)


def _bf16(array):
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _write_tokenizer(folder):
    """One token for each byte, in the letters that byte-level tokenizers use for them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": level, "post_processor": None, "decoder": level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                  "vocab": {letter: index for index, letter in enumerate(letters)}, "merges": []},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


def _write_safetensors(path, specs):
    """Tensors `(name, dtype, shape, make)`, made and written one at a time."""
    sizes, header, offset = {"BF16": 2, "U32": 4}, {"__metadata__": {"format": "mlx"}}, 0
    for name, dtype, shape, _ in specs:
        end = offset + sizes[dtype] * int(np.prod(shape))
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for *_, make in specs:
            file.write(np.ascontiguousarray(make()).tobytes())
