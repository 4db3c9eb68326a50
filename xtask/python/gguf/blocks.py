"""Makes the vectors of crates/gguf/tests/blocks.json: python blocks.py OUT

Blocks of every type, and their elements by the Python package gguf, as the bits of float32. Scales are drawn so that they are finite;
all other bits are random. Types that the package can quantise have a block that it made of normal numbers, too.
"""

import json
import sys

import numpy as np
from gguf import GGMLQuantizationType as Type, dequantize, quantize
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import QuantError

# Where halves stand in a block.
SCALES = dict(
    Q4_0=[0], Q4_1=[0, 2], Q5_0=[0], Q5_1=[0, 2], Q8_0=[0], Q2_K=[80, 82], Q3_K=[108], Q4_K=[0, 2], Q5_K=[0, 2],
    Q6_K=[208], MXFP4=[], F16=[], BF16=[], F32=[],
)


def main(out):
    random, vectors = np.random.default_rng(1), {}
    for name, places in SCALES.items():
        kind = Type[name]
        length, size = GGML_QUANT_SIZES[kind]
        count = 3 if length > 1 else 16
        blocks = random.integers(0, 256, (count, size), dtype=np.uint8)
        for place in places:
            halves = random.normal(0, 0.02, (count, 1)).astype(np.float16)
            blocks[:, place : place + 2] = halves.view(np.uint8)
        if length == 1:
            blocks = random.normal(0, 1, (count, 1)).astype(np.float32)
            blocks = quantize(blocks, kind).view(np.uint8).reshape(count, size)
        elif name == "MXFP4":
            blocks[:, 0] = [0, 1, 131]
        try:
            made = quantize(random.normal(0, 0.05, (2, length)).astype(np.float32), kind).view(np.uint8)
            blocks = np.concatenate([blocks, made.reshape(2, size)])
        except (NotImplementedError, QuantError):
            pass
        elements = dequantize(blocks.reshape(-1, size), kind).astype(np.float32).reshape(-1)
        bits = elements.view(np.uint32)
        vectors[name] = dict(blocks=blocks.tobytes().hex(), elements="".join(f"{int(b):08x}" for b in bits))
    with open(out, "w") as file:
        json.dump(vectors, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main(sys.argv[1])
