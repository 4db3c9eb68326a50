"""Weights that a few numbers describe, the same bits here and in the Rust tests.

A tensor is [name, type, shape, mean, spread]. Element i is mean + spread * u(name, i), computed in float32, where u is
uniform in [-1, 1) and comes from a hash of the name and i. Types: F32, BF16, F16 round that value; U32 and U8 are integers:
U32 takes the hash's upper half and the mask that spread is, U8 takes mean + (hash modulo spread).
"""

import json
import struct
from pathlib import Path

import numpy as np

SIZES = {"F32": 4, "F16": 2, "BF16": 2, "U32": 4, "U8": 1}


def fnv1a(name):
    """64-bit FNV-1a of the name's UTF-8 bytes."""
    value = 0xCBF29CE484222325
    for byte in name.encode():
        value = ((value ^ byte) * 0x100000001B3) % 2**64
    return value


def hashes(name, count):
    """SplitMix64 of (hash of the name + i)."""
    with np.errstate(over="ignore"):
        z = np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(fnv1a(name))
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def make(name, kind, shape, mean, spread):
    """The tensor; bfloat16 comes as the uint16 of its bits."""
    bits = hashes(name, int(np.prod(shape)))
    if kind == "U32":
        return ((bits >> np.uint64(32)).astype(np.uint32) & np.uint32(spread)).reshape(shape)
    if kind == "U8":
        return (np.uint64(mean) + bits % np.uint64(spread)).astype(np.uint8).reshape(shape)
    unit = (bits >> np.uint64(40)).astype(np.float32) / np.float32(2**23) - np.float32(1)
    value = (np.float32(mean) + np.float32(spread) * unit).astype(np.float32).reshape(shape)
    if kind == "F16":
        return value.astype(np.float16)
    if kind == "BF16":
        word = value.view(np.uint32)
        return ((word + 0x7FFF + ((word >> 16) & 1)) >> 16).astype(np.uint16)
    return value


def write(folder, config, tensors):
    """A checkpoint in the published layout."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, kind, shape, _, _ in tensors:
        size = SIZES[kind] * int(np.prod(shape))
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    header = json.dumps(header).encode()
    header += b" " * (-len(header) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for tensor in tensors:
            file.write(make(*tensor).tobytes())
