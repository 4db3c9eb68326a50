#!/usr/bin/env python3
"""How many operations mlx_lm gives MLX for one decode step of small models.

    python3 benches/peers/nodes.py > crates/backend-metal/tests/fixtures/mlx_lm_operations.json

Runs with a Python that has mlx_lm, on the CPU. MLX's fused operations, which are several there, count as one each, as on a GPU. The
step ends with the likeliest token and the log-probabilities, as in mlx_lm's own loop. A test of backend-metal compares ours.
"""

import json
import re
import sys
import tempfile
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten

FIXTURES = Path(__file__).parents[2] / "crates/backend-metal/tests/fixtures"


def stand_in(x, *others, **named):
    """One operation with the shape of `x`."""
    return mx.depends(x, [other for other in [*others, *named.values()] if isinstance(other, mx.array)])


def attention(queries, keys, values, **named):
    if values.shape[-1] != queries.shape[-1]:
        raise ValueError("a stand-in for attention to narrower values is missing")
    return stand_in(queries, keys, values, **named)


def operations(folder):
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import _get_classes

    config = json.loads((folder / "config.json").read_text())
    model_class, args = _get_classes(config)
    model = model_class(args.from_dict(config))
    mx.eval(model.parameters())
    cache = make_prompt_cache(model)

    def states():
        return [array for _, array in tree_flatten([part.state for part in cache]) if isinstance(array, mx.array)]

    for ids in ([1, 2, 3, 4, 5], [3]):
        mx.eval(model(mx.array([ids]), cache=cache), states())
    logits = model(mx.array([[3]]), cache=cache)[:, -1, :]
    logprobs = logits - mx.logsumexp(logits, keepdims=True)
    token = mx.argmax(logprobs, axis=-1)
    with tempfile.NamedTemporaryFile("r", suffix=".dot") as file:
        mx.export_to_dot(file.name, token, logprobs, *states())
        return len(re.findall("shape=rectangle", file.read()))


def main():
    mx.set_default_device(mx.cpu)
    mx.fast.rms_norm = mx.fast.layer_norm = mx.fast.rope = stand_in
    mx.fast.scaled_dot_product_attention = attention
    found = {}
    for folder in sorted(FIXTURES.iterdir()):
        if "+" in folder.name or not (folder / "golden.json").exists():
            continue
        try:
            found[folder.name] = operations(folder)
        except (TypeError, ValueError) as error:
            # What mlx_lm cannot load, or only with keys that other programs do without.
            print(f"{folder.name}: {error}", file=sys.stderr)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
