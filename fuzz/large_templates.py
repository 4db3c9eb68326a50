#!/usr/bin/env python3
"""Writes templates that mean harm and are large into a folder: python3 large_templates.py FOLDER"""
import pathlib
import sys

NAME = "q" * 200_000
TEMPLATES = {
    "long_name": "{% for i in range(99999) %}{% if " + NAME + " %}{% endif %}{% endfor %}",
    "long_attribute": "{% set d = {} %}{% for i in range(99999) %}{% if d." + NAME + " %}{% endif %}{% endfor %}",
    "long_chain": "{{ " + "1 + " * 60_000 + "1 }}",
    "long_attributes": "{{ a" + ".a" * 120_000 + " }}",
    "long_filters": "{{ 1" + " | int" * 30_000 + " }}",
    "long_elif": "{% if 0 %}" + "{% elif 0 %}" * 20_000 + "{% endif %}",
    "long_if": "{{ 1" + " if 1" * 40_000 + " }}",
    "deep_brackets": "{{ " + "[" * 100_000 + "]" * 100_000 + " }}",
    "deep_blocks": "{% if 1 %}" * 20_000,
    "deep_signs": "{{ " + "-" * 200_000 + "1 }}",
    "many_names": "".join(f"{{% set v{i} = {i} %}}" for i in range(9_000)),
    "many_macros": "{% macro m() %}{% endmacro %}{{ m() }}" * 6_000,
    "doubled_lines": "{% set a = 'ab' %}" + "{% set a = a ~ a %}" * 60,
    "shared_lists": "{% set x = [1] %}" + "{% set x = [x, x] %}" * 90 + "{{ x }}",
    "comments": "{#" + "-" * 200_000 + "#}",
    "raw": "{% raw %}" + "{% " * 60_000 + "{% endraw %}",
}

folder = pathlib.Path(sys.argv[1])
for name, source in TEMPLATES.items():
    (folder / f"large_{name}").write_text(source)
print(len(TEMPLATES), "templates in", folder)
