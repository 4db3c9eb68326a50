"""Score an exported folder with mlx_lm on the held-out questions: `python3 evaluate.py --model DIR`.

An answer counts only if it is the right one, character by character. A *false refusal* is "I don't know" to a
question that the model should answer. `make.py` puts the table of scores into the card.
"""

import argparse

import mlx.core as mx
from mlx_lm import batch_generate, load

import data

LONG = "after a conversation of more than 700 tokens"


def answers(model, tokenizer, items, batch=64):
    """The greedy answer to each item's messages, in order."""
    prompts = [tokenizer.apply_chat_template(messages, add_generation_prompt=True) for messages, _ in items]
    texts = []
    for at in range(0, len(prompts), batch):
        texts += batch_generate(model, tokenizer, prompts[at : at + batch], max_tokens=80).texts
    return texts


def long_conversations(tokenizer, groups, size):
    """Single held-out questions, each after enough answered ones to fill most of the context."""
    every = [item for name, items in groups.items() if "turns" not in name for item in items]
    items = []
    for i in range(size):
        history, at = [], i
        while not history or len(tokenizer.apply_chat_template(history)) < 700:
            at += 7
            messages, answer = every[at % len(every)]
            history += messages + [{"role": "assistant", "content": answer}]
        last, answer = every[(at + 3) % len(every)]
        items.append((history + last, answer))
    return items


def evaluate(folder, size=200, show=0):
    """Scores by group: {group: (right, false refusals or None where refusing is right, asked)}."""
    mx.set_default_device(mx.cpu)
    model, tokenizer = load(str(folder))
    groups = data.test_groups(size=size)
    groups[LONG] = long_conversations(tokenizer, groups, min(size, 20))
    scores = {}
    for name, items in groups.items():
        given = answers(model, tokenizer, items)
        right = sum(text == answer for text, (_, answer) in zip(given, items))
        known = [text for text, (_, answer) in zip(given, items) if answer != data.I_DO_NOT_KNOW]
        refused = sum(text.startswith("I don't know") for text in known) if known else None
        scores[name] = (right, refused, len(items))
        print(f"{name}: {right}/{len(items)}", flush=True)
        wrong = [
            (messages[-1]["content"], text)
            for text, (messages, answer) in zip(given, items)
            if text != answer
        ]
        for question, text in wrong[:show]:
            print(f"    {question!r} -> {text!r}")
    return scores


def table(scores):
    """The scores as a Markdown table."""
    lines = ["| held-out questions | asked | right | false refusals |", "| --- | ---: | ---: | ---: |"]
    for name, (right, refused, asked) in scores.items():
        lines.append(
            f"| {name} | {asked} | {100 * right / asked:.1f} % | {'–' if refused is None else refused} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--size", type=int, default=200, help="questions a group")
    parser.add_argument("--show", type=int, default=0, help="wrong answers to print for each group")
    options = parser.parse_args()
    print(table(evaluate(options.model, options.size, options.show)))
