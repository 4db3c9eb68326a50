"""Makes tests/tests/minilm.json and minilm.f16: what sentence-transformers makes of all-MiniLM-L6-v2: python minilm.py MODEL OUT

The vectors of 200 texts, in half precision: text n is made of the sentences by the rule of `text`, which the Rust test follows, too. And the
cosines of pairs of sentences.
"""

import json
import sys
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

SENTENCES = [
    "The cat sleeps on the warm roof of the old bakery.",
    "Interest rates rose again in March, and house prices fell for the first time in six years.",
    "¿Dónde está la biblioteca?",
    "She had never seen the sea before, and now it lay in front of her, grey and endless.",
    "To install the package, run `pip install --upgrade foo==1.2.3` in a new environment.",
    "A photon has no mass, but it carries momentum.",
    "Ja, natürlich: Übung macht den Meister!",
    "The committee will meet on 14 October 2024 at 9:30 a.m. in room 204.",
    "Mitochondria produce most of the chemical energy that a cell needs.",
    "No.",
    "He plays the violin beautifully, although he began only two years ago.",
    "What time does the last train to Edinburgh leave?",
    "The recipe calls for 250 g of flour, two eggs, a pinch of salt and half a litre of milk.",
    "Le soleil se lève à l'est et se couche à l'ouest.",
    "Error 0x80070057: the parameter is incorrect.",
    "Dogs are loyal animals that need long walks every day.",
    "The museum is closed on Mondays; on Thursdays it is open until late in the evening.",
    "In 1969, two astronauts walked on the Moon for the first time.",
    "I'm sorry, but we don't have that shoe in your size.",
    "Penguins can't fly, yet they are excellent swimmers.",
    "A neural network learns by adjusting its weights to reduce the error on examples.",
    "The river burst its banks after three days of heavy rain, and the lower town was flooded.",
    "日本の首都は東京です。",
    "Kitten videos are watched by millions of people.",
    "She signed the contract without reading it, which turned out to be a mistake.",
    "Tin and copper together make bronze.",
    "The striker scored twice in the last ten minutes and won the match for his team.",
    "Please turn off the lights when you leave the room.",
    "Antidisestablishmentarianism is a long word; pneumonoultramicroscopicsilicovolcanoconiosis is longer.",
    "A feline rests on top of a building.",
    "How do I reset my password?",
    "Volcanoes form where magma rises through the crust.",
    "The stock market closed lower on Friday after disappointing earnings from two large banks.",
    "There is nothing new under the sun.",
    "Her grandmother's garden was full of roses, lavender and bees.",
    "The function returns the index of the first element that satisfies the predicate, or -1.",
    "Bread is baked in an oven at a high temperature.",
    "I forgot my login details and cannot sign in to my account.",
    "The football team won because of two late goals.",
    "At what hour is the final train to Glasgow?",
]
PAIRS = [
    (0, 29), (0, 23), (0, 15), (0, 1), (1, 32), (1, 24), (11, 39), (11, 16), (30, 37), (30, 27), (26, 38), (26, 10), (12, 36), (12, 5),
    (17, 5), (19, 15), (21, 31), (20, 35), (14, 4), (33, 9), (3, 34), (8, 20), (25, 5), (6, 13),
]


def text(number):
    """One to twenty sentences, from another one on each time; every fifth text is cut after some characters."""
    count, start = number % 20 + 1, number * 7 % len(SENTENCES)
    joined = " ".join(SENTENCES[(start + at) % len(SENTENCES)] for at in range(count))
    return joined[: number + 1] if number % 5 == 0 else joined


def main(model, out):
    model = SentenceTransformer(model, device="cpu")
    texts = [text(number) for number in range(200)]
    vectors = model.encode(texts, batch_size=8)
    tokens = [len(ids) for ids in model.tokenizer(texts)["input_ids"]]
    print("tokens", min(tokens), max(tokens), sum(tokens))
    vectors.astype("<f2").tofile(Path(out) / "minilm.f16")
    sentences = model.encode(SENTENCES)
    cosines = [round(float(np.dot(sentences[a], sentences[b])), 6) for a, b in PAIRS]
    lines = dict(sentences=SENTENCES, pairs=[[a, b, cosine] for (a, b), cosine in zip(PAIRS, cosines)])
    body = ",\n".join(f'"{key}": {json.dumps(value, ensure_ascii=False)}' for key, value in lines.items())
    (Path(out) / "minilm.json").write_text("{\n" + body + "\n}\n")
    print(sorted(cosines))


if __name__ == "__main__":
    main(*sys.argv[1:])
