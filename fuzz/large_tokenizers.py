#!/usr/bin/env python3
"""Writes seeds for the target `tokenizer` that are too large to keep: large_tokenizers.py FOLDER."""
import base64
import json
import pathlib
import struct
import sys


def charsmap(letter, text):
    """A character map that replaces one letter."""
    units = [0] * 1024

    def unit(label, leaf, offset):
        return (offset << 10) | (256 if leaf else 0) | label

    units[0] = unit(0, False, 256)
    units[256 ^ letter] = unit(letter, True, 512)
    units[256 ^ letter ^ 512] = 1 << 31
    trie = struct.pack(f"<{len(units)}I", *units)
    return base64.b64encode(struct.pack("<I", len(trie)) + trie + text).decode()


def added(first, contents):
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return [{"id": first + at, "content": content, **flags} for at, content in enumerate(contents)]


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    seeds = pathlib.Path(__file__).parent / "seeds" / "tokenizer"
    base = json.loads((seeds / "byte_level").read_text())
    unigram = json.loads((seeds / "unigram").read_text())
    next_id = 1 + max(token["id"] for token in base["added_tokens"])

    def write(name, **parts):
        (folder / name).write_text(json.dumps({**base, **parts}, ensure_ascii=False))

    write("charsmap", normalizer={"type": "Precompiled", "precompiled_charsmap": charsmap(ord("z"), b"y" * 100_000)})
    write("replace", normalizer={"type": "Replace", "pattern": {"String": "z"}, "content": "y" * 100_000})
    write("added_long", added_tokens=added(next_id, ["zy" * 100_000]))
    write("added_many", added_tokens=added(next_id, [f"<{at:0400}>" for at in range(2_000)]))
    vocab = unigram["model"]["vocab"]
    for name, tokens in {
        "unigram_long": ["b" * 100_000],
        "unigram_prefixes": ["z" * length for length in range(1, 600)],
    }.items():
        model = {**unigram["model"], "vocab": vocab + [[token, -1.0] for token in tokens]}
        (folder / name).write_text(json.dumps({**unigram, "model": model}, ensure_ascii=False))


if __name__ == "__main__":
    main()
