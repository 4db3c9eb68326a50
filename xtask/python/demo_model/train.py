"""Train the demo model from random weights: `python3 train.py --work DIR [--steps N] [--device auto]`.

Writes weights.safetensors (f32), tokenizer.json, architecture.json and training.json to DIR, for `export.py`.
"""

import argparse
import json
import pathlib
import random
import time

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import data
from model import Config, Qwen3

# (tokens a row, share of the steps). Rows start with a new conversation: short rows teach the first answer,
# long ones that an answer does not depend on what came before, over the whole context.
ROWS = ((64, 0.4), (256, 0.35), (1024, 0.25))


def batches(stream, tokens_per_step, rng, device):
    """Endless (ids [B, L], is-answer [B, L]) of tokens_per_step tokens, each row starting at a turn."""
    flat, predicted, starts = (torch.from_numpy(x).to(device) for x in stream)
    usable = int((starts <= len(flat) - ROWS[-1][0]).sum())
    while True:
        length = rng.choices([row for row, _ in ROWS], [share for _, share in ROWS])[0]
        rows = max(1, tokens_per_step // length)
        first = starts[torch.randint(usable, (rows,), generator=batches.generator).to(device)]
        at = first[:, None] + torch.arange(length, device=device)
        yield flat[at].long(), predicted[at]


def exact(model, tokenizer, items, device, autocast):
    """Share of items whose whole answer is what greedy decoding writes (one pass, given the right prefix)."""
    right = 0
    model.eval()
    for at in range(0, len(items), 64):
        rows = []
        for messages, answer in items[at : at + 64]:
            text = "".join(f"{data.START}{m['role']}\n{m['content']}{data.END}\n" for m in messages)
            prompt = tokenizer.encode(f"{text}{data.START}assistant\n").ids
            rows.append((prompt, tokenizer.encode(answer + data.END).ids))
        width = max(len(p) + len(a) for p, a in rows)
        ids = torch.tensor([p + a + [0] * (width - len(p) - len(a)) for p, a in rows], device=device)
        with torch.no_grad(), autocast():
            best = model.logits(model(ids)).argmax(-1).cpu()
        for (prompt, answer), row in zip(rows, best):
            right += row[len(prompt) - 1 : len(prompt) + len(answer) - 1].tolist() == answer
    model.train()
    return right / len(items)


def train(
    work,
    steps=12000,
    seed=0,
    device="auto",
    turns=1_500_000,
    tokens_per_step=65536,
    learning_rate=2e-3,
    config=Config(),
):
    """Generate, train, save to `work`. Time grows with steps × tokens_per_step: lower both on a CPU."""
    work = pathlib.Path(work)
    work.mkdir(parents=True, exist_ok=True)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    began = time.monotonic()
    torch.manual_seed(seed)
    batches.generator = torch.Generator().manual_seed(seed)
    torch.set_float32_matmul_precision("high")

    generator = data.Generator(seed)
    conversation = [generator.turn() for _ in range(turns)]
    tokenizer = data.train_tokenizer(f"{user}\n{answer}" for _, user, answer in conversation[:100_000])
    tokenizer.save(str(work / "tokenizer.json"))
    stream = data.training_stream(tokenizer, conversation)
    print(f"data: {turns} turns, {len(stream[0])} tokens, {time.monotonic() - began:.0f} s", flush=True)

    model = Qwen3(config).to(device)
    parameters = sum(p.numel() for p in model.parameters())
    run = torch.compile(model, dynamic=False) if device == "cuda" else model
    autocast = lambda: torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda")
    matrices = [p for p in model.parameters() if p.dim() == 2]
    gains = [p for p in model.parameters() if p.dim() == 1]
    optimiser = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}],
        lr=learning_rate,
        betas=(0.9, 0.98),
        fused=device == "cuda",
    )
    warm_up = max(1, min(500, steps // 10))
    # Linear decay to nothing: the last steps average over many batches, which stands in for weight averaging.
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda s: min((s + 1) / warm_up, (steps - s) / (steps - warm_up))
    )
    monitor = data.test_groups(size=192)
    source = batches(stream, tokens_per_step, random.Random(seed), device)
    for step in range(1, steps + 1):
        ids, predicted = next(source)
        with autocast():
            hidden = run(ids)
            wanted = predicted[:, 1:]
            loss = F.cross_entropy(model.logits(hidden[:, :-1][wanted]).float(), ids[:, 1:][wanted])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % max(1, steps // 100) == 0:
            print(f"step {step}: loss {loss.item():.4f}, {time.monotonic() - began:.0f} s", flush=True)
        if step % max(1, steps // 8) == 0:
            for name, items in monitor.items():
                print(f"    {name}: {exact(model, tokenizer, items, device, autocast):.3f}", flush=True)

    save_file(
        {name: p.detach().float().cpu().contiguous() for name, p in model.state_dict().items()},
        work / "weights.safetensors",
    )
    (work / "architecture.json").write_text(json.dumps(config.to_json(), indent=2) + "\n")
    facts = {
        "steps": steps,
        "seed": seed,
        "turns": turns,
        "tokens_per_step": tokens_per_step,
        "parameters": parameters,
        "stream_tokens": len(stream[0]),
        "seconds": round(time.monotonic() - began),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
    }
    (work / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts), flush=True)


def arguments(parser):
    """The options that `make.py` shares."""
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--turns", type=int, default=1_500_000, help="turns to generate")
    parser.add_argument("--tokens-per-step", type=int, default=65536)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", required=True)
    arguments(parser)
    train(**vars(parser.parse_args()))
