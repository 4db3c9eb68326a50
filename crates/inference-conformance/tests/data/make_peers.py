"""Writes peers.json: what mlx_lm's samplers and transformers' logits processors leave of some logits, op by op.

Needs mlx-lm, transformers, torch and numpy. Each case: peer, op, param, logits, tokens (for penalties), probabilities.
"""
import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import torch
import transformers.generation as hf
from mlx_lm import sample_utils as lm

random = np.random.Generator(np.random.PCG64(0))
cases = []


def add(peer, op, param, logits, left, tokens=()):
    left = np.asarray(left, np.float64).reshape(-1)
    left = np.exp(left - left.max())
    case = dict(peer=peer, op=op, param=param, logits=[float(x) for x in logits])
    if tokens:
        case["tokens"] = list(tokens)
    case["probabilities"] = [float(f"{p:.9g}") for p in left / left.sum()]
    cases.append(case)


def log_softmax(logits):
    logits = mx.array(logits)[None]
    return logits - mx.logsumexp(logits, keepdims=True)


def transformed(processor, logits, tokens=(0,)):
    return processor(torch.tensor([list(tokens)]), torch.tensor(logits)[None])[0].double().numpy()


for size, repeats in ((8, 10), (50, 2)):
    for repeat in range(repeats):
        x = random.standard_normal(size).astype(np.float32) * (1 + repeat % 6)
        for k in (1, 2, 5, size - 1):
            add("mlx_lm", "top_k", k, x, lm.apply_top_k(log_softmax(x), k))
            add("transformers", "top_k", k, x, transformed(hf.TopKLogitsWarper(k), x))
        for p in (0.05, 0.3, 0.5, 0.9, 0.99):
            add("mlx_lm", "top_p", p, x, lm.apply_top_p(log_softmax(x), p))
            add("transformers", "top_p", p, x, transformed(hf.TopPLogitsWarper(p), x))
        for p in (0.01, 0.05, 0.3, 0.9, 1.0):
            add("mlx_lm", "min_p", p, x, lm.apply_min_p(log_softmax(x), p))
            add("transformers", "min_p", p, x, transformed(hf.MinPLogitsWarper(p), x))
        for penalty in (0.8, 1.1, 1.5, 2.0):
            tokens = [int(i) for i in random.integers(0, size, 12)]
            penalised = lm.make_repetition_penalty(penalty, 100)(mx.array(tokens), mx.array(x)[None])
            add("mlx_lm", "repetition_penalty", penalty, x, penalised, tokens)
            processor = hf.RepetitionPenaltyLogitsProcessor(penalty)
            add("transformers", "repetition_penalty", penalty, x, transformed(processor, x, tokens), tokens)
        # mlx_lm, whose order is the contract's, divides by the temperature last; transformers first.
        for temperature, p in ((0.5, 0.9), (2.0, 0.9), (0.7, 0.5)):
            last = np.array(lm.apply_top_p(log_softmax(x), p)) / temperature
            add("mlx_lm", "top_p, temperature", [p, temperature], x, last)
            first = transformed(hf.TopPLogitsWarper(p), x / np.float32(temperature))
            add("transformers", "temperature, top_p", [temperature, p], x, first)

lines = ",\n".join(json.dumps(case) for case in cases)
Path(__file__).with_name("peers.json").write_text(f"[\n{lines}\n]\n")
print(len(cases))
