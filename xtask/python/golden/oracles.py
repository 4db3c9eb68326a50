"""What the reference implementations make of a checkpoint: transformers in float32, and mlx_lm."""

import json
import tempfile
import warnings
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx
import numpy as np
import torch
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model
from safetensors.numpy import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.utils import logging

warnings.filterwarnings("ignore")
logging.set_verbosity_error()
logging.disable_progress_bar()


def known(config):
    """The config as transformers has a class for it. It has none for MiniCPM, which is a Granite of these factors."""
    if config["model_type"] != "minicpm":
        return config
    width, base = config["hidden_size"], config["dim_model_base"]
    return dict(
        config, model_type="granite", embedding_multiplier=config["scale_emb"], logits_scaling=width / base,
        residual_multiplier=config["scale_depth"] / config["num_hidden_layers"] ** 0.5,
        attention_multiplier=(width // config["num_attention_heads"]) ** -0.5,
    )


def model_class(config):
    """What generates text with this config: some multimodal models have no class of their own for that."""
    known = type(config) in AutoModelForCausalLM._model_mapping.keys()
    return AutoModelForCausalLM if known else AutoModelForImageTextToText


def transformers_logits(folder, tokens, steps, cached):
    """Logits [T, V] of the tokens, the greedy continuation, and at each of its steps the lead of the first choice.

    Every step is computed from scratch, so that no cache can be wrong, or with a cache, where that makes a difference.
    """
    with tempfile.TemporaryDirectory() as scratch:
        config = json.loads((Path(folder) / "config.json").read_text())
        stored = (config.get(key) for key in ("quantization", "quantization_config"))
        if any(stored) or config.get("torch_dtype") != "float32":
            folder = widen(folder, config, scratch)
        elif known(config) is not config:
            (Path(scratch) / "config.json").write_text(json.dumps(known(config)))
            (Path(scratch) / "model.safetensors").symlink_to((Path(folder) / "model.safetensors").resolve())
            folder = scratch
        model, report = model_class(AutoConfig.from_pretrained(folder)).from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
        skipped = ("vision", "multi_modal", "visual", "mtp.")
        missing = [k for k in report["missing_keys"] if not any(part in k for part in skipped)]
        assert not missing, missing
        unexpected = [k for k in report["unexpected_keys"] if not any(part in k for part in skipped)]
        assert not unexpected, unexpected
        model.eval()
        use_long_factors(model)
        with torch.no_grad():
            result = model(torch.tensor([tokens]), use_cache=cached)
            logits = result.logits[0].numpy()
            text, last, margins = list(tokens), logits[-1], []
            for _ in range(steps):
                first, second = np.argsort(-last)[:2]
                text.append(int(first))
                margins.append(float(last[first] - last[second]))
                past = dict(past_key_values=result.past_key_values) if cached else {}
                new = text[-1:] if cached else text
                result = model(torch.tensor([new]), use_cache=cached, **past)
                last = result.logits[0, -1].numpy()
    return logits, text[len(tokens):], margins


def use_long_factors(model):
    """Has Phi 3.5 MoE rotate texts beyond its original context by `long_factor`, as its publisher's own code does.

    transformers scales such texts by `long_mscale`, but asks for the frequencies without their length, and gets those of short ones.
    """
    for module in model.modules():
        if type(module).__name__ == "PhimoeRotaryEmbedding" and module.rope_type == "longrope":

            def note_length(module, inputs, keywords):
                positions = keywords.get("position_ids", inputs[-1])
                module.rope_init_fn = lambda config: ROPE_INIT_FUNCTIONS["longrope"](config, seq_len=int(positions.max()) + 1)

            module.register_forward_pre_hook(note_length, with_kwargs=True)


def half_logits(folder, tokens):
    """Logits [T, V] in the checkpoint's own type: how far half precision is from float32."""
    with opened(folder) as model, torch.no_grad():
        return model(torch.tensor([tokens]), use_cache=False).logits[0].float().numpy()


@contextmanager
def opened(folder):
    """The model in the checkpoint's own type."""
    config = json.loads((Path(folder) / "config.json").read_text())
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "config.json").write_text(json.dumps(known(config)))
        (Path(scratch) / "model.safetensors").symlink_to((Path(folder) / "model.safetensors").resolve())
        dtype = getattr(torch, config["torch_dtype"])
        kind = model_class(AutoConfig.from_pretrained(scratch))
        yield kind.from_pretrained(scratch, dtype=dtype, attn_implementation="eager").eval()


def clear_prompt(folder, length, vocabulary):
    """A prompt of which routers pick their experts by as clear a lead as can be found: rounding picks the same ones.

    Each token is the one of all that makes the smallest lead at its place the largest, in parts of the scores' spread.
    """
    tokens, tried = [], torch.arange(3, vocabulary)
    with opened(folder) as model, torch.no_grad(), leads() as found:
        for place in range(length):
            found.clear()
            rows = torch.cat([torch.tensor([tokens]).expand(len(tried), -1).long(), tried[:, None]], 1)
            model(rows, use_cache=False)
            at_place = [lead.reshape(len(tried), place + 1)[:, -1] for lead in found if lead.numel() == rows.numel()]
            tokens.append(int(tried[torch.stack(at_place).amin(0).argmax()]))
    return tokens


@contextmanager
def leads():
    """The lead of what is picked over what is not, of every choice that transformers makes meanwhile."""
    found, topk, largest = [], torch.topk, torch.Tensor.max

    def record(scores, count):
        scores = scores.float()
        if scores.shape[-1] > count:
            # Of probabilities and of their sums, rounding changes a part.
            scores = scores.log() if (scores > 0).all() else scores
            order = topk(scores, count + 1).values
            spread = scores.masked_fill(scores.isinf(), 0).std(-1)
            found.append((order[..., -2] - order[..., -1]) / spread)

    def patched_topk(scores, k, *args, **kwargs):
        record(scores, k)
        return topk(scores, k, *args, **kwargs)

    def patched_max(scores, *args, **kwargs):
        if args or kwargs:
            record(scores, 1)
        return largest(scores, *args, **kwargs)

    method, torch.topk, torch.Tensor.max = torch.Tensor.topk, patched_topk, patched_max
    torch.Tensor.topk = patched_topk
    try:
        yield found
    finally:
        torch.topk, torch.Tensor.topk, torch.Tensor.max = topk, method, largest


# This mlx_lm passes an argument that this MLX lacks.
gather_qmm = mx.gather_qmm
mx.gather_qmm = lambda *args, global_scale=None, **kwargs: gather_qmm(*args, **kwargs)


# MLX's CPU multiplies stacks of matrices in float32 only, and aborts the process for others.
gather_mm = mx.gather_mm
mx.gather_mm = lambda a, b, *args, **kwargs: gather_mm(
    a.astype(mx.float32), b.astype(mx.float32), *args, **kwargs
).astype(a.dtype)


def mlx_logits(folder, tokens):
    """Logits [T, V] in the checkpoint's own type."""
    model, _ = load_model(Path(folder))
    return np.array(model(mx.array([tokens]), cache=make_prompt_cache(model))[0].astype(mx.float32))


def widen(folder, config, scratch):
    """The same checkpoint with all weights in float32."""
    settings = config.pop("quantization", {})
    config.pop("quantization_config", None)
    tensors = {}
    stored = mx.load(str(Path(folder) / "model.safetensors"))
    for name, tensor in stored.items():
        stem, _, last = name.rpartition(".")
        if name.endswith("_scales") or last in ("scales", "biases") and f"{stem}.scales" in stored:
            continue
        if name.endswith("_blocks"):  # packed experts, whose full form is transposed
            name = name.removesuffix("_blocks")
            words = tensor.view(mx.uint32).flatten(-2)
            tensor = mx.dequantize(words, stored[name + "_scales"], None, 32, 4, "mxfp4", dtype=mx.float32)
            tensor = tensor.swapaxes(-1, -2)
        if last == "weight" and f"{stem}.scales" in stored:
            own = settings.get(stem, settings)
            tensor = mx.dequantize(
                tensor, stored[f"{stem}.scales"], stored.get(f"{stem}.biases"), own["group_size"], own["bits"],
                own.get("mode", "affine"), dtype=mx.float32,
            )
        tensor = np.array(tensor.astype(mx.float32))
        if ".switch_mlp." in name:
            prefix, rest = name.split(".switch_mlp.")
            mixtral = {"gate_proj.weight": "w1.weight", "up_proj.weight": "w3.weight", "down_proj.weight": "w2.weight"}
            rest = mixtral[rest] if "block_sparse_moe" in prefix or "feed_forward" in prefix else rest
            rest = {"fc1.weight": "up_proj.weight", "fc2.weight": "down_proj.weight"}.get(rest, rest)
            tensors |= {f"{prefix}.experts.{e}.{rest}": np.ascontiguousarray(w) for e, w in enumerate(tensor)}
        else:
            tensors[name] = np.array(tensor, order="C")
    for name in [name for name in tensors if ".feed_forward.experts.gate_proj." in name]:  # Llama 4
        prefix = name.split("gate_proj.")[0]
        gate, up, down = (tensors.pop(f"{prefix}{part}_proj.weight").swapaxes(1, 2) for part in ("gate", "up", "down"))
        joined = np.ascontiguousarray(np.concatenate([gate, up], 2))
        tensors |= {prefix + "gate_up_proj": joined, prefix + "down_proj": np.ascontiguousarray(down)}
    for name in [name for name in tensors if ".experts.gate_proj." in name]:
        join_experts(tensors, name)
    if config["model_type"] == "mistral4":
        merge_experts(tensors, config["n_routed_experts"])
    config["torch_dtype"] = "float32"
    (Path(scratch) / "config.json").write_text(json.dumps(known(config)))
    save_file(tensors, Path(scratch) / "model.safetensors", metadata={"format": "pt"})
    return scratch


def join_experts(tensors, name):
    """mlx_lm's gate, up and down of gpt-oss into its publisher's two, in which gate and up take turns."""
    prefix, last = name.split("gate_proj.")
    gate, up, down = (tensors.pop(f"{prefix}{part}.{last}") for part in ("gate_proj", "up_proj", "down_proj"))
    joined = np.stack([gate, up], 2).reshape(gate.shape[0], -1, *gate.shape[2:])
    if last == "bias":
        tensors |= {prefix + "gate_up_proj_bias": joined, prefix + "down_proj_bias": down}
    else:
        transposed = [np.ascontiguousarray(matrix.swapaxes(1, 2)) for matrix in (joined, down)]
        tensors |= dict(zip((prefix + "gate_up_proj", prefix + "down_proj"), transposed))


def merge_experts(tensors, count):
    """Single experts into two stacks, gate and up in one."""
    for first in [name for name in tensors if ".experts.0.gate_proj." in name]:
        prefix = first.split("0.gate_proj.")[0]
        gates, ups, downs = (
            np.stack([tensors.pop(f"{prefix}{e}.{part}_proj.weight") for e in range(count)])
            for part in ("gate", "up", "down")
        )
        tensors |= {prefix + "gate_up_proj": np.concatenate([gates, ups], 1), prefix + "down_proj": downs}
