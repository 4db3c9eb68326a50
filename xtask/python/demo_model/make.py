"""Make the demo model, from nothing to a folder that ships: `python3 make.py --out DIR [--device auto]`.

Data and training (torch), export (MLX), scores (mlx_lm), card. With `--work DIR` the trained weights are kept
there, and taken from there if they exist, so that training can run on another machine than the rest.
"""

import argparse
import importlib.metadata
import json
import pathlib
import tempfile

import data
from evaluate import evaluate, table
from export import export
from train import arguments, train


def write_card(out, work, scores):
    """Fill card.md with what was trained and measured, as `out`/README.md."""
    facts = json.loads((work / "training.json").read_text())
    shape = json.loads((out / "config.json").read_text())
    filled = {name: f"{value:,}" if isinstance(value, int) else value for name, value in facts.items()} | {
        "layers": shape["num_hidden_layers"],
        "hidden": shape["hidden_size"],
        "heads": shape["num_attention_heads"],
        "kv_heads": shape["num_key_value_heads"],
        "head_dim": shape["head_dim"],
        "vocabulary": shape["vocab_size"],
        "megabytes": f"{(out / 'model.safetensors').stat().st_size / 1e6:.1f}",
        "labels": ", ".join(data.LABELS),
        "mlx_lm": importlib.metadata.version("mlx-lm"),
        "scores": table(scores),
    }
    card = pathlib.Path(__file__).with_name("card.md").read_text()
    (out / "README.md").write_text(card.format(**filled))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument(
        "--work", type=pathlib.Path, help="where trained weights are kept (default: a temporary folder)"
    )
    arguments(parser)
    options = vars(parser.parse_args())
    out, work = options.pop("out"), options.pop("work")
    with tempfile.TemporaryDirectory() as scratch:
        work = work or pathlib.Path(scratch)
        if not (work / "weights.safetensors").exists():
            train(work, **options)
        export(work, out)
        write_card(out, work, evaluate(out))


if __name__ == "__main__":
    main()
