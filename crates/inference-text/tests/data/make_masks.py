"""Makes the golden masks of training data: `python make_masks.py ../../../../models/demo masks.json` with mlx-lm 0.32.2

What mlx_lm's own datasets make of lines of training data with the demo model's tokenizer: ids, and where what is learnt
begins.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

from mlx_lm.tokenizer_utils import load
from mlx_lm.tuner.datasets import create_dataset

TOOLS = [{"name": "add", "parameters": {"a": "number", "b": "number"}}]

# A template with what the demo model's lacks: tools, and thoughts that only the last answer keeps.
THINKING = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n{{ m.thinking or '' }}\n</think>\n{% endif %}"
    "{{ m.content }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

say = lambda role, content, **more: {"role": role, "content": content} | more

LINES = [
    {"text": "The capital of France is Paris."},
    {"text": "It ends by itself.<|im_end|>"},
    {"text": " spaces  and\nlines\n"},
    {"prompt": "What is 2+2?", "completion": "2 + 2 = 4"},
    {"prompt": "", "completion": " begins with a space"},
    {"prompt": "ends with one ", "completion": "\nbegins with a line"},
    {"prompt": "Ünïcödé 🦀", "completion": "🦀é"},
    {"prompt": "What is 2+2?", "completion": "4", "tools": TOOLS},
    {"messages": [say("user", "Hello!"), say("assistant", "Hi.")]},
    {"messages": [say("system", "Be brief."), say("user", "Hello!"), say("assistant", "Hi.")]},
    {
        "messages": [
            say("user", "One?"),
            say("assistant", "1", thinking="Easy."),
            say("user", "Two?"),
            say("assistant", "2", thinking="Easy too."),
        ]
    },
    {"messages": [say("user", "2+2?"), say("assistant", "", tool_calls=[{"name": "add"}])], "tools": TOOLS},
    {
        "messages": [
            say("user", "2+2?"),
            say("assistant", "", tool_calls=[{"name": "add"}]),
            say("tool", "4"),
            say("assistant", "It is 4."),
        ],
        "tools": TOOLS,
    },
]


def main(model, out):
    cases = []
    for template in (None, THINKING):
        tokenizer = load(Path(model))
        if template:
            tokenizer.chat_template = template
        for line in LINES:
            for mask in (False, True):
                if mask and "text" in line:
                    continue
                dataset = create_dataset([line], tokenizer, SimpleNamespace(mask_prompt=mask))
                tokens, offset = dataset.process(dataset[0])
                cases.append(dict(line=line, template=template, mask=mask, tokens=tokens, offset=offset))
    with open(out, "w") as file:
        lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
        file.write(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
