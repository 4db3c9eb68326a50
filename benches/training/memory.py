#!/usr/bin/env python3
"""What training was estimated to need, and what it needed: a line for each configuration, on a CPU.

    python3 benches/training/memory.py --program target/release/inference [--work target/training-memory] [--only WORD]

Makes random checkpoints of two small shapes under --work, and rows of random tokens; each run takes two steps.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "peers"))
import shapes  # noqa: E402

# Method, type, tokens of a row, rows, and what else the command takes.
JOBS = [
    ("lora", "f32", 64, 4, []),
    ("lora", "f32", 512, 4, []),
    ("lora", "f32", 512, 4, ["--gradient-checkpointing"]),
    ("lora", "bf16", 512, 4, []),
    ("lora", "bf16", 512, 4, ["--gradient-checkpointing"]),
    ("lora", "bf16", 512, 8, []),
    ("lora", "4-bit", 512, 2, []),
    ("dora", "f32", 256, 4, []),
    ("dora", "bf16", 256, 4, ["--gradient-checkpointing"]),
    ("full", "f32", 256, 4, []),
    ("full", "f32", 256, 4, ["--gradient-checkpointing"]),
    ("full", "f32", 512, 2, ["--mixed-precision"]),
    ("full", "bf16", 512, 4, []),
    ("full", "bf16", 512, 4, ["--gradient-checkpointing"]),
    ("full", "bf16", 256, 4, ["--gradient-accumulation-steps", "2"]),
    ("full", "f32", 256, 2, ["--optimizer", "adafactor"]),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=Path, required=True, help="the program `inference`, built for release")
    parser.add_argument("--work", type=Path, default=Path("target/training-memory"))
    parser.add_argument("--only", default="", help="only lines that have this in them")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    print("| model | method | type | batch | | estimate MB | peak MB | estimate ÷ peak |\n|---|---|---|--:|---|--:|--:|--:|")
    for shape in SHAPES:
        for job in JOBS:
            method, kind, length, rows, more = job
            line = f"| {shape} | {method} | {kind} | {rows} × {length} | {' '.join(more)} |"
            if options.only in line:
                estimate, peak = measure(options, shape, *job)
                print(f"{line} {estimate / 1e6:.0f} | {peak / 1e6:.0f} | {estimate / peak:.2f} |", flush=True)


def _shape(**sizes):
    return shapes.Shape(shapes._config(
        architectures=["Qwen3ForCausalLM"], model_type="qwen3", head_dim=64, rope_theta=1e6, **sizes), "qwen3")


SHAPES = {
    # Wide, with few words; and narrow, with many.
    "wide": _shape(hidden_size=512, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=8,
                   num_key_value_heads=4, max_window_layers=6, vocab_size=2048),
    "many words": _shape(hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4,
                         num_key_value_heads=2, max_window_layers=4, vocab_size=32768),
}


def checkpoint(options, shape, kind):
    folder = options.work / f"{shape.replace(' ', '-')}-{kind}"
    if not folder.exists():
        if kind == "f32":
            convert = [options.program, "convert", "--dtype", "f32", checkpoint(options, shape, "bf16"), folder]
            subprocess.run([str(part) for part in convert], check=True, capture_output=True)
        else:
            shapes.write_checkpoint(SHAPES[shape], 4 if kind == "4-bit" else 16, folder)
    return folder


def measure(options, shape, method, kind, length, rows, more):
    source, data, output = random.Random(0), options.work / "rows.jsonl", options.work / "output"
    vocabulary = SHAPES[shape]["vocab_size"]
    row = lambda: json.dumps({"tokens": [source.randrange(300, vocabulary) for _ in range(length + 1)]})
    data.write_text("".join(row() + "\n" for _ in range(4 * rows)))
    shutil.rmtree(output, ignore_errors=True)
    command = [options.program, "train", "--backend", "cpu", "--json", "--split", "0", "--model", checkpoint(options, shape, kind)]
    command += ["--data", data, "--output", output, "--method", method, "--steps", 2, "--batch-size", rows, *more]
    command += ["--max-length", length + 1]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"inference ended with {done.returncode}: {done.stderr[-2000:]}")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    estimate = sum(events[0]["memory"].values())
    return estimate, max(event["peak_memory"] for event in events if event["event"] == "step")


if __name__ == "__main__":
    main()
