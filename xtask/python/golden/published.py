"""The tensors of a family as transformers saves them, for families whose tensors `families.py` does not list."""

import json
import re
import tempfile
from pathlib import Path

from safetensors import safe_open
from transformers import AutoConfig

from oracles import known, model_class

# Families whose norms are stored minus one, and those of their norms that are not.
OFFSET = ("qwen3_5", "qwen3_next")
PLAIN = re.compile(r"linear_attn\.norm")
# Families whose publishers hold experts as transformers 5 does.
JOINED = ("qwen3_5_moe", "mistral4")
# Families whose experts have columns before rows, and mlx_lm's name for such experts.
TRANSPOSED = ("llama4",)
BARE = (".experts.gate_up_proj", ".experts.down_proj")
# Parts of a checkpoint that nothing needs: a tensor of each.
EXTRA = {
    "vision": ("model.visual.patch_embed.proj.weight", [16, 3, 2, 4, 4]),
    "mtp": ("mtp.fc.weight", [64, 128]),
}


def shapes(config):
    """Published name, shape and role of every tensor."""
    text = config.get("text_config", config)
    clean = {k: v for k, v in config.items() if k not in ("quantization", "torch_dtype", "dtype", "extra")}
    with tempfile.TemporaryDirectory() as folder:
        settings = AutoConfig.for_model(**known(json.loads(json.dumps(clean))))
        model_class(settings).from_config(settings).save_pretrained(folder)
        found = {}
        for file in sorted(Path(folder).glob("*.safetensors")):
            with safe_open(file, "np") as tensors:
                found |= {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}
    if "quantization" in config:
        found = stacked(found, text["model_type"].startswith(TRANSPOSED))
    elif text["model_type"].startswith(JOINED):
        found = joined(found)
    offset = text["model_type"].startswith(OFFSET)
    for name, shape in sorted(found.items()):
        if any(part in name for part in ("visual", "vision", "multi_modal_projector")):
            continue
        if "text_config" in config:
            name = re.sub(r"^model\.(?!language_model)", "model.language_model.", name)
        kind = role(name, shape, offset)
        yield name, shape, "experts" if name.endswith(BARE) and text["model_type"].startswith(TRANSPOSED) else kind
    for part in config.get("extra_parts", []):
        name, shape = EXTRA[part]
        yield name, shape, "bias"


def role(name, shape, offset):
    """What a tensor is for, which says how large its elements are."""
    stem, _, last = name.rpartition(".")
    layer = stem.rpartition(".")[2]
    one = "1" if not offset or PLAIN.search(name) else "0"
    if last == "A_log":
        return "decay"
    if layer == "act_fn":  # of learnt activations
        return {"beta": "half", "eps": "tiny"}.get(last, "alpha")
    if last.endswith("bias"):
        return "bias"
    if last == "correct_output_scale":
        return "norm1"
    if last == "D" or "norm" in layer and len(shape) == 1:
        return ("headnorm" if layer.startswith(("q_norm", "k_norm", "q_layernorm", "k_layernorm")) else "norm") + one
    if "conv" in layer and len(shape) == 3:
        return "conv"
    if last in ("scale", "per_expert_scale", "layer_scalar"):
        return "norm1"
    if layer in ("embed_tokens", "embed_tokens_per_layer", "embeddings"):
        return "embed"
    if layer in ("prediction_coefs", "correction_coefs"):
        return "mixing"
    if layer == "modality_router":  # of inputs that are divided by their number
        return "modality"
    if layer == "lm_head":
        return "head"
    if layer in ("gate", "router") or layer.endswith("_gate"):
        return "router"
    return "qk" if layer in ("q_proj", "k_proj", "q_b_proj", "kv_a_proj_with_mqa") else "linear"


def stacked(found, transposed=False):
    """Experts stacked under `switch_mlp`, as mlx_lm writes them when it quantises. Those without gates have names of their own."""
    ungated = {"up_proj": "fc1", "down_proj": "fc2"}
    out, experts = {}, {}
    for name, shape in found.items():
        single = re.fullmatch(r"(.*)\.experts\.(\d+)\.(\w+)\.weight", name)
        joined = re.fullmatch(r"(.*)\.experts\.(gate_up_proj|down_proj)", name)
        if single:
            prefix, index, part = single.groups()
            part = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}.get(part, part)
            part = ungated.get(part, part) if prefix.endswith(".mixer") else part
            key = f"{prefix}.switch_mlp.{part}.weight"
            experts[key] = [max(experts.get(key, [0])[0], int(index) + 1), *shape]
        elif joined:
            prefix, part = joined.groups()
            if transposed:
                count, columns, rows = shape
                parts = [part] if part == "down_proj" else ["gate_proj", "up_proj"]
                experts |= {f"{prefix}.experts.{part}.weight": [count, rows // len(parts), columns] for part in parts}
                continue
            if part == "down_proj":
                experts[f"{prefix}.switch_mlp.down_proj.weight"] = shape
            else:
                half = [shape[0], shape[1] // 2, shape[2]]
                experts |= {f"{prefix}.switch_mlp.{part}.weight": half for part in ("gate_proj", "up_proj")}
        else:
            out[name] = shape
    return out | experts


def joined(found):
    """Experts in two stacks, gate and up in one."""
    out = {}
    for name, shape in stacked(found).items():
        prefix, _, part = name.partition(".switch_mlp.")
        if not part:
            out[name] = shape
        elif part == "down_proj.weight":
            out[f"{prefix}.experts.down_proj"] = shape
        else:
            out[f"{prefix}.experts.gate_up_proj"] = [shape[0], 2 * shape[1], shape[2]]
    return out
