"""Makes the golden fixture of training: python training.py FIXTURES, the folder that make.py wrote the variants to.

For each case mlx_lm's tuner and torch train the same checkpoint from the same adapters on the same batch, by five steps of AdamW.
They must agree; what torch came to is kept, or mlx_lm's where transformers has no such layers. Of each tensor: its largest
element, its norm, and some of its elements, for the first gradient and for what five steps changed.
"""

import json
import sys
import tempfile
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as mo
import numpy as np
import torch
from mlx.utils import tree_flatten
from mlx_lm.tuner.trainer import default_loss
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load_model
from transformers import AutoModelForCausalLM

from oracles import widen
from weights import make, write

RANK, SCALE, DECAY, STEPS, LAYERS, SAMPLES = 4, 10.0, 0.01, 5, 2, 12
ATTENTION = ["self_attn.q_proj", "self_attn.v_proj"]
KEYS = [*ATTENTION, "mlp.down_proj"]
EXPERTS = [*ATTENTION, "mlp.switch_mlp.gate_proj", "mlp.switch_mlp.down_proj"]
# Adam makes as much of a gradient that is nothing but rounding as of any other, unless its eps is above that.
EPS = 1e-3
# variant, method, keys, rate, whether AdamW corrects its bias
CASES = [
    ("llama", "lora", KEYS, 2e-3, True),
    ("qwen3", "lora", KEYS, 2e-3, True),
    ("qwen3", "lora", KEYS, 2e-3, False),
    ("qwen3", "dora", KEYS, 2e-3, True),
    ("qwen3", "full", [], 1e-3, True),
    ("qwen2", "lora", KEYS, 2e-3, True),
    ("gemma3_text", "lora", KEYS, 2e-3, True),
    ("gemma3_text", "full", [], 1e-3, True),
    ("qwen3+q4", "lora", KEYS, 2e-3, True),
    ("qwen3+q4", "dora", KEYS, 2e-3, True),
    ("qwen3_moe", "lora", EXPERTS, 2e-3, True),
    ("qwen3_moe+q4", "lora", EXPERTS, 2e-3, True),
]
BATCH = np.random.default_rng(5).integers(3, 120, (3, 17))
BATCH[1, 12:] = 0
LENGTHS = np.array([[0, 16], [0, 11], [6, 16]])


def start(name, shape):
    """An adapter's tensor before the first step, by the rule of weights.py."""
    inputs = shape[-1] if len(shape) == 3 else shape[0]
    spread = float(np.float32(inputs**-0.5)) if name.endswith("lora_a") else 0.02
    return make(name, "F32", list(shape), 0.0, spread)


def with_mlx(folder, method, keys, rate, bias_correction):
    model, _ = load_model(Path(folder))
    if method == "full":
        model.train()
    else:
        model.freeze()
        config = dict(rank=RANK, scale=SCALE, dropout=0.0, keys=keys)
        linear_to_lora_layers(model, LAYERS, config, use_dora=method == "dora")
        model.train()
        parameters = tree_flatten(model.trainable_parameters())
        weights = [(k, mx.array(start(k, v.shape))) for k, v in parameters if not k.endswith(".m")]
        model.load_weights(weights, strict=False)
    numbers = lambda tree: {k: np.array(v) for k, v in tree_flatten(tree)}
    init = numbers(model.trainable_parameters())
    optimizer = mo.AdamW(rate, eps=EPS, weight_decay=DECAY, bias_correction=bias_correction)
    f, losses, first = nn.value_and_grad(model, default_loss), [], None
    for _ in range(STEPS):
        (loss, _), gradient = f(model, mx.array(BATCH), mx.array(LENGTHS))
        first = first or numbers(gradient)
        optimizer.update(model, gradient)
        mx.eval(model.parameters(), optimizer.state)
        losses.append(float(loss))
    return init, losses, first, numbers(model.trainable_parameters())


class Adapted(torch.nn.Module):
    """A linear layer with LoRA, or DoRA where there is a magnitude."""

    def __init__(self, linear, a, b, m):
        super().__init__()
        self.linear = linear
        self.lora_a, self.lora_b = torch.nn.Parameter(torch.tensor(a)), torch.nn.Parameter(torch.tensor(b))
        self.m = None if m is None else torch.nn.Parameter(torch.tensor(m))

    def forward(self, x):
        y = torch.nn.functional.linear(x, self.linear.weight) + SCALE * (x @ self.lora_a @ self.lora_b)
        if self.m is not None:
            norms = (self.linear.weight + SCALE * (self.lora_a @ self.lora_b).T).norm(dim=1).detach()
            y = y * (self.m / norms)
        return y if self.linear.bias is None else y + self.linear.bias


def with_torch(folder, method, init, rate):
    config = json.loads((Path(folder) / "config.json").read_text())
    with tempfile.TemporaryDirectory() as scratch:
        if config.get("quantization"):
            folder = widen(folder, config, scratch)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    if method == "full":
        trained = {k: p for k, p in model.named_parameters() if k in init}
    else:
        trained = {}
        for p in model.parameters():
            p.requires_grad_(False)
        for path in [k.removesuffix(".lora_a") for k in init if k.endswith(".lora_a")]:
            parent, _, name = path.rpartition(".")
            parts = {part: init.get(f"{path}.{part}") for part in ("lora_a", "lora_b", "m")}
            layer = Adapted(getattr(model.get_submodule(parent), name), *parts.values())
            setattr(model.get_submodule(parent), name, layer)
            trained |= {f"{path}.{part}": getattr(layer, part) for part in parts if parts[part] is not None}
    assert trained.keys() == init.keys(), trained.keys() ^ init.keys()
    optimizer = torch.optim.AdamW(trained.values(), lr=rate, eps=EPS, weight_decay=DECAY)
    tokens, at = torch.tensor(BATCH), torch.arange(1, BATCH.shape[1])
    mask = (at >= torch.tensor(LENGTHS)[:, :1]) & (at <= torch.tensor(LENGTHS)[:, 1:])
    losses, first = [], None
    for _ in range(STEPS):
        optimizer.zero_grad()
        logits = model(tokens[:, :-1]).logits.transpose(1, 2)
        loss = (torch.nn.functional.cross_entropy(logits, tokens[:, 1:], reduction="none") * mask).sum() / mask.sum()
        loss.backward()
        first = first or {k: p.grad.numpy().copy() for k, p in trained.items()}
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, first, {k: p.detach().numpy().copy() for k, p in trained.items()}


def digest(tensor):
    flat = tensor.flatten()
    places = np.linspace(0, flat.size - 1, min(SAMPLES, flat.size)).astype(int)
    number = lambda x: float(f"{x:.7g}")
    return dict(
        max=number(np.abs(flat).max()),
        norm=number(np.linalg.norm(flat.astype(np.float64))),
        at=[int(p) for p in places],
        values=[number(flat[p]) for p in places],
    )


def main(fixtures):
    cases = []
    for variant, method, keys, rate, bias_correction in CASES:
        config = json.loads((Path(fixtures) / variant / "config.json").read_text())
        specs = json.loads((Path(fixtures) / variant / "tensors.json").read_text())
        with tempfile.TemporaryDirectory() as folder:
            write(folder, config, specs)
            init, losses, first, after = with_mlx(folder, method, keys, rate, bias_correction)
            judge = "mlx_lm"
            if "moe" not in variant and bias_correction:
                judge = "torch"
                mlx = losses, first, after
                losses, first, after = with_torch(folder, method, init, rate)
                loss = max(abs(a - b) / b for a, b in zip(mlx[0], losses))
                far = lambda a, b: max(np.abs(a[k] - b[k]).max() / np.abs(b[k]).max() for k in b)
                gradient, weights = far(mlx[1], first), far(mlx[2], after)
                print(f"{variant} {method}: mlx_lm from torch, relative: loss {loss:.1e}, gradients {gradient:.1e}, weights {weights:.1e}")
                assert max(loss, gradient, weights) < 1e-4
        cases.append(dict(
            variant=variant, method=method, keys=keys, rate=rate, bias_correction=bias_correction, judge=judge,
            losses=losses,
            gradients={k: digest(first[k]) for k in sorted(first)},
            changes={k: digest(after[k] - init[k]) for k in sorted(after)},
        ))
    document = dict(
        rank=RANK, scale=SCALE, eps=EPS, weight_decay=DECAY, layers=LAYERS, batch=BATCH.tolist(), lengths=LENGTHS.tolist(),
        cases=cases,
    )
    (Path(fixtures) / "training.json").write_text(json.dumps(document, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
