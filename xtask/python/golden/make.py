"""Makes the golden fixtures of the MLX engine's tests: python make.py OUT [VARIANT ...]"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from families import CLEAR, SENSITIVE, VARIANTS, VOCAB, tensors
from oracles import clear_prompt, half_logits, mlx_logits, transformers_logits
from weights import write

PROMPT, STEPS = 32, 16
POSITIONS = [0, 9, 20, 31]


def main(out, names):
    for name in names or VARIANTS:
        config, storage = VARIANTS[name], name.partition("+")[2]
        config.setdefault("torch_dtype", "float32")
        specs = tensors(config, storage)
        positions = list(range(PROMPT)) if name in SENSITIVE else POSITIONS
        config.pop("extra_parts", None)
        tokens = [int(t) for t in np.random.default_rng(len(name)).integers(3, VOCAB, PROMPT)]
        with tempfile.TemporaryDirectory() as folder:
            write(folder, config, specs)
            if name in CLEAR:
                tokens = clear_prompt(folder, PROMPT, VOCAB)
            logits, greedy, margins = transformers_logits(folder, tokens, STEPS, cached="dynamic" in name)
            half = half_logits(folder, tokens) - logits if storage in ("bf16", "f16") else None
            try:
                distance = (mlx_logits(folder, tokens) - logits)[positions]
                mlx = dict(max=float(np.abs(distance).max()), rms=float(np.sqrt((distance**2).mean())))
            except Exception as error:  # mlx_lm lacks the variant
                mlx = dict(error=f"{type(error).__name__}: {error}"[:200])
        golden = dict(
            prompt=tokens,
            std=float(logits.std()),
            positions=positions,
            logits=[[round(float(x), 6) for x in logits[p]] for p in positions],
            greedy=greedy,
            margins=[round(m, 6) for m in margins],
            mlx_lm=mlx,
        )
        if half is not None:
            golden["half"] = float(np.sqrt((half[positions] ** 2).mean()))
        folder = Path(out) / name
        folder.mkdir(parents=True, exist_ok=True)
        # JSON has no infinity: transformers 5 writes it so.
        text = json.dumps(config, indent=1, sort_keys=True).replace("Infinity", '{"__float__": "Infinity"}')
        (folder / "config.json").write_text(text + "\n")
        lines = ",\n".join(json.dumps(spec) for spec in specs)
        (folder / "tensors.json").write_text(f"[\n{lines}\n]\n")
        (folder / "golden.json").write_text(
            "{\n" + ",\n".join(f'"{key}": {json.dumps(value)}' for key, value in golden.items()) + "\n}\n"
        )
        print(f"{name}: half {golden.get('half')} std {golden['std']:.2f}, smallest margin {min(margins):.4f}, mlx_lm {mlx}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
