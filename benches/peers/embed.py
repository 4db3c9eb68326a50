"""Embeddings: `inference bench --embed` beside sentence-transformers and onnxruntime, one after the other in one run.

    python benches/peers/embed.py FOLDER --inference target/release/inference [--tokens 32 256] [--texts 256]

Needs torch, sentence-transformers, onnx, onnxscript and onnxruntime. All three compute the same weights in float32 from token ids
(nothing is tokenized), each peer with the batch size of 16, 32, 64 or 128 that suits it best. Prints texts/s, the best of the rounds.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time

import numpy as np
import onnxruntime
import torch
from sentence_transformers import SentenceTransformer

BATCHES = (16, 32, 64, 128)


class Mean(torch.nn.Module):
    """The model with mean pooling and vectors of length 1, as ONNX has it."""

    def __init__(self, transformer):
        super().__init__()
        self.transformer = transformer

    def forward(self, input_ids, attention_mask):
        hidden = self.transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def best(compute, ids, rounds):
    """The most texts/s of some rounds, over all batch sizes."""
    fastest = 0.0
    for batch in BATCHES:
        parts = [ids[at : at + batch] for at in range(0, len(ids), batch)]
        compute(parts[0])
        for _ in range(rounds):
            began = time.perf_counter()
            for part in parts:
                compute(part)
            fastest = max(fastest, len(ids) / (time.perf_counter() - began))
    return fastest


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--inference", default="target/release/inference")
    parser.add_argument("--ours", action="append", default=[], help="further folders for `inference` alone: the weights in bf16, say")
    parser.add_argument("--extra", default="", help="further arguments of `inference bench`")
    parser.add_argument("--tokens", type=int, nargs="+", default=[32, 256])
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    model = SentenceTransformer(args.folder, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.onnx")
        sample = torch.ones((2, 8), dtype=torch.long)
        axes = {0: "batch", 1: "tokens"}
        torch.onnx.export(Mean(model[0].auto_model).eval(), (sample, sample), path, input_names=["input_ids", "attention_mask"],
                          output_names=["vectors"], dynamic_axes={"input_ids": axes, "attention_mask": axes}, dynamo=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    for tokens in args.tokens:
        ids = random.integers(1000, 30000, (args.texts, tokens))

        def with_torch(part):
            with torch.inference_mode():
                part = torch.from_numpy(part)
                return model({"input_ids": part, "attention_mask": torch.ones_like(part)})["sentence_embedding"].numpy()

        def with_onnx(part):
            return session.run(None, {"input_ids": part, "attention_mask": np.ones_like(part)})[0]

        assert np.abs(with_torch(ids[:4]) - with_onnx(ids[:4])).max() < 1e-4, "the peers agree"
        torch_speed, onnx_speed = best(with_torch, ids, args.rounds), best(with_onnx, ids, args.rounds)
        print(f"{tokens} tokens: sentence-transformers {torch_speed:.1f} texts/s, onnxruntime {onnx_speed:.1f}", flush=True)
        for folder in [args.folder, *args.ours]:
            command = [args.inference, "bench", "--model", folder, "--embed", str(args.texts), "--prompt-tokens", str(tokens),
                       "--trials", str(args.rounds), "--json", "--quiet", *args.extra.split()]
            report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            ours = report["texts_per_second"]["max"]
            mixed = report["tokens_per_second"]["max"] / report["mixed_tokens_per_second"]["max"]
            print(f"    {folder}: {ours:.1f} texts/s, {ours / torch_speed:.2f} and {ours / onnx_speed:.2f} x; "
                  f"a token of mixed lengths costs {mixed:.2f} x", flush=True)


if __name__ == "__main__":
    main()
