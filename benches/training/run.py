#!/usr/bin/env python3
"""How fast training is beside mlx_lm's, on the same machine in one run: tokens learnt a second, the median of a run's later steps.

    python3 benches/training/run.py --program target/release/inference --model models/Qwen3-0.6B [--backend cuda] [--json FILE]

Makes random rows under --work, and a random checkpoint of a published shape where --shape names one in place of --model. The two
programs take turns, --rounds times, with the same rows, batches, method and optimiser. The Python that runs this is the peer's, unless
--python names another.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

PEERS = Path(__file__).resolve().parent.parent / "peers"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=Path, required=True, help="the program `inference`, built for release")
    parser.add_argument("--work", type=Path, default=Path("target/training-bench"))
    parser.add_argument("--python", default=sys.executable, help="a Python with mlx_lm")
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--shape", help="a shape of benches/peers/shapes.py, and bits: qwen3-0.6b-16")
    parser.add_argument("--layers", type=int, help="of that shape, so many blocks")
    parser.add_argument("--method", choices=["lora", "full"], default="lora")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=512, help="tokens that are learnt of a row")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=4, help="steps that are not counted")
    parser.add_argument("--checkpoint", action="store_true", help="recompute activations")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write all figures there")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    model = options.model or make_model(options)
    rows = make_rows(options, json.loads((model / "config.json").read_text())["vocab_size"])
    figures = {"inference": [], "mlx_lm": []}
    for _ in range(options.rounds):
        figures["inference"].append(ours(options, model, rows))
        figures["mlx_lm"].append(theirs(options, model, rows))
        print({program: found[-1] for program, found in figures.items()}, file=sys.stderr)
    rates = {program: statistics.median(f["tokens_per_second"] for f in found) for program, found in figures.items()}
    if options.json:
        options.json.write_text(json.dumps({"job": {k: str(v) for k, v in vars(options).items()}, "rounds": figures}, indent=1))
    peaks = {program: max(f["peak_memory"] for f in found) / 1e9 for program, found in figures.items()}
    print("| program | tokens/s | ours ÷ it | peak GB |\n|---|--:|--:|--:|")
    for program, rate in rates.items():
        print(f"| {program} | {rate:.0f} | {rates['inference'] / rate:.2f} | {peaks[program]:.2f} |")


def make_model(options):
    """A random checkpoint of the shape."""
    name, bits = options.shape.rsplit("-", 1)
    folder = options.work / (options.shape + (f"-{options.layers}" if options.layers else ""))
    if not folder.exists():
        sys.path.insert(0, str(PEERS))
        import shapes

        shape = shapes.SHAPES[name]
        if options.layers:
            shape.config.update(num_hidden_layers=options.layers, max_window_layers=options.layers)
        shapes.write_checkpoint(shape, int(bits), folder)
    return folder


def make_rows(options, vocabulary):
    """Rows of random tokens, all of one length: every batch has the same shape."""
    source = random.Random(0)
    count = options.batch * options.steps
    rows = [[source.randrange(300, vocabulary) for _ in range(options.length + 1)] for _ in range(count)]
    path = options.work / "rows.jsonl"
    path.write_text("".join(json.dumps({"tokens": row}) + "\n" for row in rows))
    return path


def ours(options, model, rows):
    output = options.work / "output"
    shutil.rmtree(output, ignore_errors=True)
    command = [options.program, "train", "--backend", options.backend, "--json", "--split", "0", "--model", model, "--data", rows]
    command += ["--output", output, "--method", options.method, "--steps", options.steps, "--batch-size", options.batch]
    command += ["--rank", options.rank] if options.method == "lora" else []
    command += ["--learning-rate", "1e-5", "--no-bias-correction", "--max-length", options.length + 1, "--save-every", 10**6]
    command += ["--gradient-checkpointing"] if options.checkpoint else []
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"inference ended with {done.returncode}: {done.stderr[-2000:]}")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    return summary(options, [event for event in events if event["event"] == "step"])


def theirs(options, model, rows):
    arguments = [model, rows, options.method, options.rank, options.batch, options.steps, options.length + 1, int(options.checkpoint)]
    command = [options.python, "-c", MLX_LM, *arguments, options.backend]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    if done.returncode:
        sys.exit(f"mlx_lm ended with {done.returncode}: {done.stderr[-2000:]}")
    return summary(options, json.loads(done.stdout.splitlines()[-1]))


def summary(options, steps):
    rates = [step["tokens_per_second"] for step in steps[options.warm_up :]]
    return {
        "tokens_per_second": statistics.median(rates),
        "losses": [steps[0]["loss"], steps[-1]["loss"]],
        "peak_memory": max(step["peak_memory"] for step in steps),
    }


MLX_LM = """
import json, sys, tempfile
import mlx.core as mx
import mlx.optimizers
from pathlib import Path
from mlx_lm.utils import load_model
from mlx_lm.tuner.trainer import TrainingArgs, TrainingCallback, train
from mlx_lm.tuner.utils import linear_to_lora_layers
model, rows, method, rank, batch, steps, length, checkpoint, backend = sys.argv[1:]
if backend == "cpu":
    mx.set_default_device(mx.cpu)
net, _ = load_model(Path(model))
if method == "lora":
    net.freeze()
    linear_to_lora_layers(net, len(net.layers), {"rank": int(rank), "scale": 20.0, "dropout": 0.0, "keys": [
        *(f"self_attn.{name}_proj" for name in "qkvo"), *(f"mlp.{name}_proj" for name in ("gate", "up", "down"))]})
examples = [(json.loads(line)["tokens"], 0) for line in open(rows)]
told = []
class Callback(TrainingCallback):
    def on_train_loss_report(self, info):
        told.append({"tokens_per_second": info["tokens_per_second"], "loss": info["train_loss"],
                     "peak_memory": info["peak_memory"] * 1e9})
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArgs(batch_size=int(batch), iters=int(steps), steps_per_report=1, steps_per_save=10**6,
        max_seq_length=int(length), adapter_file=f"{folder}/adapters.safetensors", grad_checkpoint=checkpoint == "1")
    train(net, mlx.optimizers.AdamW(learning_rate=1e-5), examples, None, arguments, training_callback=Callback())
print(json.dumps(told))
"""

if __name__ == "__main__":
    main()
