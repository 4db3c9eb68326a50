"""Says what an interpreter has, without importing it. Run with `-c`; prints one line of JSON."""

import sys

sys.path[:] = [entry for entry in sys.path if entry]

import ast
import json
import os
from importlib import metadata, util


def version(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def remapping(folder):
    """Other names of architectures: a literal in mlx_lm's utils.py."""
    try:
        with open(os.path.join(folder, "utils.py"), encoding="utf-8") as file:
            for node in ast.parse(file.read()).body:
                if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "MODEL_REMAPPING":
                    return ast.literal_eval(node.value)
    except (OSError, SyntaxError, ValueError):
        pass
    return {}


found = {"python": ".".join(map(str, sys.version_info[:3])), "mlx_lm": None, "mlx": version("mlx")}
spec = util.find_spec("mlx_lm")
if spec is not None and spec.submodule_search_locations:
    folder = spec.submodule_search_locations[0]
    found["mlx_lm"] = version("mlx-lm") or "of unknown version"
    models = os.path.join(folder, "models")
    found["models"] = [name[:-3] for name in os.listdir(models) if name.endswith(".py")]
    found["remapping"] = remapping(folder)
print(json.dumps(found))
