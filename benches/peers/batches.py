#!/usr/bin/env python3
"""How fast requests at once run beside mlx_lm's BatchGenerator, on the same machine in one run.

    python3 benches/peers/batches.py --program target/release/inference --model DIR [--backend cuda] [--batch 1 8 32] [--json FILE]

Runs with a Python that has mlx_lm, which takes the device that its MLX chooses. Programs take turns, --rounds times after a warm-up
each; figures are medians of tokens of all answers over the time from the first request to the last token, and ours over the time
after every first token as well.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=Path, required=True, help="the program `inference`, built for release")
    parser.add_argument("--model", type=Path, required=True, help="the model's folder")
    parser.add_argument("--backend", default="cuda", help="the engine that is compared")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32], help="requests at once")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--generate", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        return print(json.dumps(peer(options)))
    own, other = [], []
    for _ in range(options.rounds):
        own.append({batch: ours(options, batch) for batch in options.batch})
        again = [sys.executable, __file__, *sys.argv[1:], "--peer"]
        done = subprocess.run(again, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"mlx_lm ended with {done.returncode}: {done.stderr[-2000:]}")
        other.append({int(batch): figure for batch, figure in json.loads(done.stdout.splitlines()[-1]).items()})
        print(own[-1], other[-1], file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps({"inference": own, "mlx_lm": other}, indent=1))
    print("| requests | ours: tok/s | of decode | mlx_lm: tok/s | ours ÷ it |\n|--:|--:|--:|--:|--:|")
    for batch in options.batch:
        whole, decode = (statistics.median(run[batch][key] for run in own) for key in ("whole", "decode"))
        found = statistics.median(run[batch] for run in other)
        print(f"| {batch} | {whole:.0f} | {decode:.0f} | {found:.0f} | {whole / found:.2f} |")


def ours(options, batch):
    """Tokens per second of `inference bench`: of the whole run, and after the first tokens."""
    command = [options.program, "bench", "--backend", options.backend, "--model", options.model, "--json", "--quiet"]
    command += ["--max-batch", batch, "--batch", batch, "--trials", 1]
    command += ["--prompt-tokens", options.prompt, "--generate-tokens", options.generate]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"inference ended with {done.returncode}: {done.stderr[-2000:]}")
    report = json.loads(done.stdout)
    decode = report["decode_tokens_per_second"]["median"]
    first = report["time_to_first_token_ms"]["median"] / 1000
    return {"whole": batch * options.generate / (first + batch * (options.generate - 1) / decode), "decode": decode}


def peer(options):
    """Tokens per second of mlx_lm's BatchGenerator for each number of requests."""
    from mlx_lm.generate import BatchGenerator
    from mlx_lm.utils import load_model

    model, config = load_model(options.model)
    vocabulary = config.get("text_config", config)["vocab_size"]
    figures = {}
    for batch in options.batch:
        for seed in range(2):
            choose = random.Random(seed).randrange
            prompts = [[choose(vocabulary) for _ in range(options.prompt)] for _ in range(batch)]
            generator = BatchGenerator(model, max_tokens=options.generate, completion_batch_size=batch, prefill_batch_size=batch)
            start, left = time.perf_counter(), batch
            generator.insert(prompts)
            while left:
                left -= sum(response.finish_reason is not None for response in generator.next_generated())
            figures[batch] = batch * options.generate / (time.perf_counter() - start)
    return figures


if __name__ == "__main__":
    main()
