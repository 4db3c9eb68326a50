"""What mlx_lm itself makes of a model: reads {"model", "adapter", "prompts", "max_tokens"} as its argument, prints the greedy ids and
the next token's logits of each prompt as JSON."""

import json
import sys
from pathlib import Path

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.utils import load_adapters, load_model

request = json.loads(sys.argv[1])
model, _ = load_model(Path(request["model"]))
if request.get("adapter"):
    model = load_adapters(model, request["adapter"])
answers = []
for prompt in request["prompts"]:
    steps = generate_step(mx.array(prompt), model, max_tokens=request["max_tokens"])
    answers.append({"tokens": [token for token, _ in steps], "logits": model(mx.array(prompt)[None])[0, -1].tolist()})
print(json.dumps(answers))
