#!/usr/bin/env python3
"""Makes jinja2.json: what Python's Jinja2, set up as transformers does, makes of each template below.

    pip install jinja2==3.1.6 && python make_jinja2.py jinja2.json

One template a line, then some of several lines. A template that fails is recorded with the error; ours must fail too, with
whatever words.
"""
import datetime
import json
import sys

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

NOW = "2025-03-14T15:09:26"
now = datetime.datetime.fromisoformat(NOW)


class Generation(jinja2.ext.Extension):
    """transformers' tag, which leaves its contents as they are."""

    tags = {"generation"}

    def parse(self, parser):
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_g"), [], [], body).set_lineno(lineno)

    def _g(self, caller):
        return caller()


def environment():
    extensions = [Generation, jinja2.ext.loopcontrols]
    e = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)
    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    e.filters["tojson"] = tojson
    e.globals["raise_exception"] = raise_exception
    e.globals["strftime_now"] = lambda f: now.strftime(f)
    return e


V = {"s": "Hello, World", "e": "", "n": 7, "f": 2.5, "t": True, "z": None, "l": [3, 1, 2], "w": ["b", "A", "c", "a"], "d": {"b": 1, "a": {"x": [1, "two", None, True, 2.0]}, "items": 5},
     "u": "naïve 日本 🙂 \"q\" 'a'\n\t\\", "ws": "  x y  ", "big": 1e16, "small": 1e-5, "neg": -3, "lines": "one\ntwo\n\nthree\n", "nested": [[1, [2]], []],
     "m": [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi", "n": 2}, {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": {"a": 1}}]}, {"role": "user", "content": [{"type": "text", "text": "p"}]}]}
T = r'''
{{ s }}|{{ n }}|{{ f }}|{{ t }}|{{ z }}|{{ l }}|{{ d }}|{{ nope }}
{{ u }} {{ [u] }}
{{ big }} {{ small }} {{ 1e15 }} {{ 123456789.125 }} {{ 0.0001 }} {{ 1.0 }} {{ 1e300 }} {{ -0.0 }} {{ 100000000000000000000 }}
{{ (1,) }} {{ (1, 'a') }} {{ () }} {{ {} }} {{ [] }} {{ {'a': 1, 2: 'b'} }}
{{ l[::-1] }}{{ [][::-1] }}{{ s[::-1] }}{{ ''[::-1] }}{{ l[1:] }}{{ l[:-1] }}{{ l[-2:] }}{{ s[1:4] }}{{ l[::2] }}{{ l[5:] }}{{ l[2:0:-1] }}{{ l[-1] }}{{ u[2:4] }}{{ l[:] }}{{ l[-10:2] }}{{ s[-3:] }}{{ s[10:2:-3] }}
{{ l[9] }}|{{ d.zz }}|{{ d['zz'] }}|{{ s[0] }}|{{ s[-1] }}
{{ nope.x }}
{{ z.x }}|
{{ d.zz.y }}
{{ 'a' + 1 }}
{{ 'a' ~ 1 ~ none ~ true ~ 2.0 ~ [1] }}
{{ [1] + [2] }} {{ (1,) + (2,) }} {{ 'ab' * 3 }} {{ [0] * 2 }} {{ 3 * 'x' }} {{ 'x' * -1 }}
{{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 8 / 2 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ 7.5 // 2 }} {{ -7.5 % 2 }} {{ n - 10 }} {{ -n }} {{ 1 + 2.5 }} {{ true + 1 }}
{{ 1 / 0 }}
{{ none + 1 }}
{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 'a' < 'b' }} {{ 1 == 1.0 }} {{ true == 1 }} {{ '1' == 1 }} {{ none == none }} {{ nope == nope2 }} {{ [1,2] == [1,2] }} {{ {'a':1} == {'a':1.0} }} {{ 'a' in 'abc' }} {{ 'x' not in l }} {{ 'b' in d }} {{ 3 in l }} {{ 'x' in nope }}
{{ 1 < 'a' }}
{{ 1 in 'abc' }}
{{ 'a' in none }}
{{ not x }} {{ x or 'd' }} {{ s and n }} {{ e or 0 or none }} {{ 'y' if t else 'n' }} {{ 'y' if e }}| {{ x if x is defined else 'no' }}
{% for i in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.previtem }}{{ loop.nextitem }};{% endfor %}
{% for i in l if i > 1 %}{{ i }}{{ loop.index }}{{ loop.length }}{% else %}none{% endfor %}{% for i in [] %}x{% else %}empty{% endfor %}
{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{% for k in d %}{{ k }}{% endfor %}{% for c in 'abc' %}{{ c }}-{% endfor %}{% for (a, b) in [(1,2),[3,4]] %}{{ a }}{{ b }}{% endfor %}
{% for a, b in [1] %}{{ a }}{% endfor %}
{% for x in none %}{% endfor %}
{% for x in 5 %}{% endfor %}
{% for x in nope %}x{% else %}none{% endfor %}
{% for i in range(10) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 5 %}{% break %}{% endif %}{{ i }}{% endfor %}
{% for i in range(3) %}{{ loop.cycle('a','b') }}{{ loop.changed(i // 2) }}{% endfor %}
{% for x in nested recursive %}[{% if x is iterable %}{{ loop(x) }}{% else %}{{ x }}@{{ loop.depth }}{% endif %}]{% endfor %}
{% set x = 1 %}{% for i in l %}{% set x = x + i %}{{ x }},{% endfor %}{{ x }}
{% set ns = namespace(x=1, y='a') %}{% for i in l %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}{{ ns.y }}{{ ns.z }}{{ ns['x'] }}
{% set d.a = 1 %}
{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set a, b = [3, 4] %}{{ a }}{{ b }}{% set c = 1, 2 %}{{ c }}
{% set x %}cap {{ s }}{% endset %}[{{ x }}]{% set y | upper | replace('A', 'b') %}abc{% endset %}{{ y }}
{% macro m(a, b='B', c=none) %}{{ a }}{{ b }}{{ c }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1) }}|{{ m(1, c=3) }}|{{ m(1,2,3,4,5) }}|{{ m(b=1, q=2) }}|{{ m() }}
{% macro m(a) %}{{ a }}{{ g }}{% endmacro %}{% set g = 'G' %}{{ m(1) }}{% set g = 'H' %}{{ m(2) }}
{% macro m(x) %}{% if x > 0 %}{{ x }}{{ m(x - 1) }}{% endif %}{% endmacro %}{{ m(3) }}
{% macro m() %}<{{ caller() }}>{% endmacro %}{% call m() %}in {{ s }}{% endcall %}
{% macro m() %}<{{ caller(1, 'z') }}>{% endmacro %}{% call(a, b) m() %}in {{ a }}{{ b }}{% endcall %}
{% macro m(a) %}{{ caller is defined }}{{ a is defined }}{% endmacro %}{{ m() }}{{ m(a=1) }}
{{ m.name }}{% macro m(a, b) %}{% endmacro %}
{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a }}
{% filter upper %}abc {{ s }}{% endfilter %}
{% if e %}1{% elif n == 7 %}2{% else %}3{% endif %}{% if l and d and not e %}y{% endif %}{% if 0.0 %}x{% endif %}{% if '0' %}z{% endif %}
{% raw %}{{ raw }} {% if %}{% endraw %}{# comment {{ x }} #}end
  {% if true %}  
  indented
    {% endif %}  
tail
  {%- if true -%}   
  x  
  {%- endif -%}  
  y
a {{- ' b ' -}} c
{% generation %}gen {% set q = 1 %}{{ q }}{% endgeneration %}{{ q }}
{%- generation -%} g {%- endgeneration -%} t
{{ d.items() | list }} {{ d.keys() | list }} {{ d.values() | list | length }} {{ d.get('b') }} {{ d.get('q') }} {{ d.get('q', 'def') }} {{ d['items'] }} {{ d.items is defined }}
{{ d.pop('b') }}
{{ l.append(1) }}
{{ d.update({'x': 1}) }}
{{ l.index(1) }}{{ l.count(3) }}{{ l.copy() }}{{ (1,2,1).count(1) }}
{{ l.index(99) }}
{{ s.upper() }}{{ s.lower() }}{{ s.title() }}{{ 'they\'re bill\'s'.title() }}{{ 'abc def'.capitalize() }}{{ 'aBc'.swapcase() }}{{ s.casefold() }}
[{{ ws.strip() }}][{{ ws.lstrip() }}][{{ ws.rstrip() }}][{{ 'xxaxx'.strip('x') }}][{{ 'abcba'.lstrip('ab') }}][{{ 'abcba'.rstrip('ab') }}][{{ '\n\n a\n'.strip('\n') }}]
{{ 'a,b,,c'.split(',') }}{{ ' a  b c '.split() }}{{ 'a b c'.split(' ', 1) }}{{ 'a,b,c'.rsplit(',', 1) }}{{ ''.split() }}{{ ''.split(',') }}{{ 'a  b c'.split(none, 1) }}{{ ' a b  c '.rsplit(none, 1) }}{{ 'x</think>y</think>z'.split('</think>')[-1] }}{{ 'a b'.split(sep=' ', maxsplit=1) }}
{{ 'a'.split('') }}
{{ lines.splitlines() }}{{ lines.splitlines(true) }}{{ 'a\r\nb\rc'.splitlines() }}
{{ s.startswith('He') }}{{ s.endswith('ld') }}{{ s.startswith(('x','H')) }}{{ s.endswith(('q',)) }}{{ s.startswith('l', 2) }}{{ s.startswith('ell', 1, 4) }}
{{ s.startswith(1) }}
{{ s.replace('l', 'L') }}{{ s.replace('l', 'L', 1) }}{{ 'aaa'.replace('a', '') }}{{ 'ab'.replace('', '-') }}
{{ s.find('o') }}{{ s.find('zz') }}{{ s.rfind('o') }}{{ s.index('W') }}{{ s.count('l') }}{{ u.find('日') }}{{ s.find('o', 5) }}{{ s.count('l', 4) }}
{{ s.index('zz') }}
{{ ', '.join(w) }}{{ '-'.join('abc') }}
{{ ', '.join(l) }}
{{ 'a'.isalpha() }}{{ '1'.isdigit() }}{{ 'a1'.isalnum() }}{{ ' '.isspace() }}{{ 'A'.isupper() }}{{ 'a'.islower() }}{{ ''.isdigit() }}{{ 'Ab Cd'.istitle() }}{{ '12'.isnumeric() }}{{ 'a'.isascii() }}{{ 'é'.isascii() }}{{ 'A1'.isupper() }}
{{ '5'.zfill(3) }}{{ '-5'.zfill(4) }}{{ 'a'.ljust(3) }}|{{ 'a'.rjust(3, '*') }}|{{ 'ab'.center(5) }}|{{ 'ab'.center(6, '-') }}|{{ 'a'.center(4) }}|{{ 'abc'.center(6) }}|
{{ 'a=b=c'.partition('=') }}{{ 'a=b=c'.rpartition('=') }}{{ 'abc'.partition('=') }}{{ 'abc'.removeprefix('a') }}{{ 'abc'.removesuffix('c') }}
{{ '{} {}'.format(1, 'a') }}{{ '{1}{0}'.format(1, 2) }}{{ '{x}'.format(x=3) }}{{ '{:.2f}|{:>5}|{:<5}|{:^5}|{:05d}|{:,}|{:+d}|{:*^7}|{:x}'.format(3.14159, 'a', 'b', 'c', 42, 1234567, 5, 'm', 255) }}{{ '{{}}'.format() }}{{ '{0[a]}'.format({'a': 1}) }}{{ '{!r}'.format('x') }}
{{ '%s is %d, %.2f, %5s|%-5s|%05d|%x|%r|%%' % ('a', 3, 2.5, 'r', 'l', 42, 255, 'q') }}{{ '%s' % 'one' }}{{ '%(a)s' % {'a': 1} }}
{{ '%d' % 'x' }}
{{ '%s %s' % 'x' }}
{{ s | upper }}{{ s | lower }}{{ "it's o'clock foo-bar (baz) x" | title }}{{ 'hELLO wORLD' | capitalize }}{{ ws | trim }}|{{ 'xxaxx' | trim('x') }}{{ s | replace('l', '1') }}{{ s | replace('l', '1', 1) }}{{ 5 | replace(5, 6) }}{{ s | reverse }}
{{ l | length }}{{ s | length }}{{ d | count }}{{ nope | length }}
{{ none | length }}
{{ 5 | length }}
{{ l | first }}{{ l | last }}{{ s | first }}{{ [] | first }}|{{ [] | last }}|{{ d | first }}
{{ ([] | first).x }}
{{ nope | default('d') }}{{ e | default('d') }}{{ e | default('d', true) }}{{ z | default('d') }}{{ z | d('d', true) }}{{ nope | default }}|
{{ nope.a | default('q') }}
{{ l | join }}{{ l | join(', ') }}{{ m | map(attribute='role') | join('/') }}{{ m | join(',', attribute='role') }}{{ [1, none, 'a', true] | join('-') }}
{{ l | sort }}{{ w | sort }}{{ w | sort(case_sensitive=true) }}{{ l | sort(reverse=true) }}{{ m | sort(attribute='role') | map(attribute='role') | list }}{{ [(2,'a'),(1,'b')] | sort }}
{{ [1, 'a'] | sort }}
{{ w | unique | list }}{{ [1, 2, 1] | unique | list }}{{ l | min }}{{ l | max }}{{ w | max }}{{ l | sum }}{{ [1.5, 2] | sum }}{{ [{'a': 1}, {'a': 2}] | sum(attribute='a') }}{{ [] | sum }}{{ [] | max }}
{{ d | dictsort }}{{ {'b': 1, 'A': 2, 'c': 0} | dictsort }}{{ {'b': 1, 'A': 2, 'c': 0} | dictsort(by='value') }}{{ {'b': 1, 'A': 2} | dictsort(true) }}{{ {'b': 1, 'A': 2} | dictsort(reverse=true) }}
{{ d | items | list }}{{ nope | items | list }}
{{ l | items | list }}
{{ l | map('string') | list }}{{ w | map('upper') | list }}{{ m | map(attribute='n', default=0) | list }}{{ m | map(attribute='content.0.type', default='x') | list }}{{ l | map('float') | list }}{{ ws.split() | map('replace', 'x', 'z') | list }}
{{ m | selectattr('role', 'equalto', 'user') | list | length }}{{ m | rejectattr('role', '==', 'user') | map(attribute='role') | list }}{{ m | selectattr('tool_calls') | list | length }}{{ m | selectattr('tool_calls', 'defined') | list | length }}{{ l | select('odd') | list }}{{ l | reject('odd') | list }}{{ [0, 1, ''] | select | list }}{{ l | select('>', 1) | list }}{{ l | select('in', [1, 2]) | list }}
{% if l | select('>', 100) %}truthy{% endif %}{{ none | selectattr('x') | list }}{{ none | map('upper') | list }}
{{ (l | select('odd')) | length }}
{{ (l | map('string'))[0] }}
{{ l | reverse | list }}{{ l | list }}{{ s | list | length }}{{ d | list }}{{ l | reverse | first }}
{{ l | batch(2) | list }}{{ l | batch(2, 'x') | list }}{{ l | slice(2) | list }}{{ [1,2,3,4,5] | slice(3, 0) | list }}
{% for k, g in m | groupby('role') %}{{ k }}:{{ g | length }};{% endfor %}{% for g in m | groupby('role') %}{{ g.grouper }}{{ g.list | length }}{% endfor %}
{{ 'a\nb\n\nc' | indent }}|{{ 'a\nb\n\nc' | indent(2, true) }}|{{ 'a\nb\n\nc' | indent(2, blank=true) }}|{{ 'a\nb' | indent('> ', true) }}|{{ 'a\n' | indent(2) }}|{{ '' | indent(2, true) }}|
{{ '12' | int }}{{ '12.7' | int }}{{ 'x' | int }}{{ 'x' | int(5) }}{{ 3.9 | int }}{{ none | int }}{{ '0x1f' | int(0, 16) }}{{ '1.5' | float }}{{ 'x' | float }}{{ 3 | float }}{{ true | int }}
{{ 2.5 | round }}{{ 3.5 | round }}{{ 2.345 | round(2) }}{{ 2.1 | round(0, 'ceil') }}{{ 2.9 | round(method='floor') }}{{ 42 | round }}{{ 1234 | round(-2) }}{{ -3 | abs }}{{ -2.5 | abs }}
{{ n | string + 'x' }}{{ [1] | string }}{{ none | string }}{{ 'x' | string }}{{ 1.0 | string }}
{{ '<a href="x">\'&' | escape }}{{ '<b>' | e }}{{ '<b>' | safe }}{{ '<b>' | safe + '<i>' }}{{ '<i>' + '<b>' | safe }}{{ '<b>' | safe ~ '<i>' }}{{ ('<b>' | safe) is escaped }}{{ '<b>' | forceescape }}{{ '<' | e | e }}
{{ 'hello big world' | truncate(9) }}{{ 'hello big world' | truncate(9, true) }}{{ 'hello big world' | truncate(9, false, '!', 0) }}{{ 'a b  c' | wordcount }}{{ 'ab' | center(6) }}|
{{ 'a b/ü?' | urlencode }}{{ '%s-%s' | format(1, 'x') }}{{ '%(a)s' | format(a=2) }}{{ d | attr('b') }}|{{ s | attr('nope') }}|
{{ s | nofilter }}
{{ s is notest }}
{{ nofunc() }}
{{ s() }}
{{ d | tojson }}{{ u | tojson }}{{ [] | tojson }}{{ {} | tojson }}{{ 1.0 | tojson }}{{ none | tojson }}{{ true | tojson }}{{ (1, 2) | tojson }}{{ {1: 2, true: 3, none: 4} | tojson }}{{ '</script>&\u2028' | tojson }}{{ '\x00\x1f\x7f' | tojson }}
{{ d | tojson(indent=2) }}{{ d | tojson(indent=4, sort_keys=true) }}{{ [1, [2, {}]] | tojson(indent=1) }}{{ [] | tojson(indent=2) }}{{ u | tojson(ensure_ascii=true) }}{{ d | tojson(separators=(',', ':')) }}{{ d | tojson(sort_keys=true) }}
{{ nope | tojson }}
{{ (l | select) | tojson }}
{{ s is string }}{{ n is string }}{{ n is number }}{{ n is integer }}{{ f is float }}{{ f is number }}{{ t is boolean }}{{ t is integer }}{{ t is number }}{{ z is none }}{{ nope is none }}{{ nope is undefined }}{{ d is mapping }}{{ l is mapping }}{{ l is sequence }}{{ s is sequence }}{{ d is sequence }}{{ z is sequence }}{{ l is iterable }}{{ n is iterable }}{{ s is iterable }}{{ 3 is odd }}{{ 4 is even }}{{ 9 is divisibleby 3 }}{{ t is true }}{{ 1 is true }}{{ t is not false }}{{ 'a' is lower }}{{ 'A' is upper }}{{ 1 is sameas 1 }}{{ 5 is eq 5 }}{{ 5 is ne 5 }}{{ 5 is lt 6 }}{{ 5 is ge 5 }}{{ 1 is in [1] }}{{ 'upper' is filter }}{{ 'odd' is test }}{{ range is callable }}
{{ 'x' is odd }}
{{ range(3) | list }}{{ range(1, 4) | list }}{{ range(5, 0, -2) | list }}{{ range(0) | list }}{{ dict(a=1, b=2) }}{{ dict([('x', 1)]) }}{{ dict({'q': 1}, r=2) }}
{{ raise_exception('boom ' ~ n) }}
{{ strftime_now('%Y-%m-%d') }}|{{ strftime_now('%d %B %Y') }}|{{ strftime_now('%H:%M:%S %p %I %j %A %a %b %y %-d %e') }}
{{ "esc \" \\ \n \t \u00e9 \x41" }}{{ 'single \' q' }}{{ "a" "b" }}
{{ 1_000 }}{{ 0x1f }}{{ 0b11 }}{{ 0o17 }}{{ 1.5e3 }}
{{ {'a': {'b': [1, {'c': 2}]}}.a.b[1].c }}{{ m[-1].content[0].text }}{{ m[2]['tool_calls'][0].arguments.a }}
{{ [1, 2, 3][1] }}{{ 'abc'[1] }}{{ (1, 2)[0] }}{{ ('a' ~ 'b').upper() }}{{ 'a'.upper().lower() }}{{ s.split(', ')[0].upper() }}{{ -n ** 2 }}{{ 2 * 3 + 4 }}{{ 2 + 3 * 4 }}{{ (2 + 3) * 4 }}{{ not true or true }}{{ 1 + 1 == 2 and 'x' }}
{{ 'a' ~ 1 + 2 }}
{% set msgs = m[1:] if m[0].role == 'system' else m %}{% for x in msgs %}{{ x.role }}{{ loop.index0 % 2 == 0 }}{% endfor %}
{% for message in m %}{%- if message.content is string %}{{ message['role'] + ':' + message['content'] }}{%- elif message.content is none %}NONE{%- else %}{% for c in message.content %}{{ c['text'] }}{% endfor %}{%- endif %}{% endfor %}
{% block b %}in block {{ s }}{% endblock %}
{% include 'x' %}
{% if true %}unclosed
{{ unclosed
{% nosuchtag %}
{% endif %}
{{ 1 + }}
{{ a.b.c.d }}
{% set x = [] %}{% set x = x + [{'role': 'user'}] %}{{ x }}{% set _ = 1 %}{{ _ }}
{% set found = namespace(v=false) %}{% for x in l %}{% if x == 1 and not found.v %}{% set found.v = true %}first{% endif %}{% endfor %}{{ found.v }}
{%- for tool in [{'type': 'function', 'function': {'name': 'g', 'parameters': {'properties': {'items': {'type': 'array', 'items': {'type': 'string'}}}}}}] %}{% for k, v in tool.function.parameters.properties.items() %}{{ k }}{{ v['items'] }}{{ v.type }}{% endfor %}{% endfor %}
{{ 'x' if none is none else 'y' }}{{ none is defined }}{{ (none or 'a') }}{{ '' | default('x', boolean=True) }}{{ True }}{{ False }}{{ None }}
{{ "%.3f" | format(2.0) }}{{ 7 | string | length }}{{ l | map('int') | sum }}{{ "a" < "B" }}
{{ m | map(attribute='role') | unique | join(',') }}{{ m | selectattr('role', 'in', ['user', 'system']) | map(attribute='role') | list }}
{{ l is not mapping and l is iterable }}{{ s is string and s | length > 3 }}{{ n is divisibleby(7) }}{{ not n is odd }}{{ n is not odd }}
{{ '\n'.join(['a', 'b']) }}{{ "a\\nb" }}{{ 'tab\there' }}{{ "\u4f60" }}
{{ loop }}
{{ caller() }}
{{ [1,2,] }}{{ {'a': 1,} }}{{ (1,2,) }}{{ dict(a=1,) }}
{{ l | tojson | length }}{{ {'a': l} | string }}{{ [none, true, 1.5, 'x', {'k': ()}] }}
{% for i in [1,2] %}{% for j in [3,4] %}{{ loop.index }}{{ loop.depth }}{{ i }}{{ j }} {% endfor %}{% endfor %}
{% for i in l %}{% set outer = loop %}{% for j in [1] %}{{ outer.index }}{% endfor %}{% endfor %}
{% macro a() %}A{{ b() }}{% endmacro %}{% macro b() %}B{% endmacro %}{{ a() }}
{% macro a(x) %}{% set y = x * 2 %}{{ y }}{% endmacro %}{% set y = 5 %}{{ a(3) }}{{ y }}
{% if x is defined %}d{% endif %}{% set x = 1 %}{% if x is defined %}D{% endif %}
{% if true %}{% set inner = 5 %}{% endif %}{{ inner }}
{% for i in l %}{% if loop.first %}{% set seen = 1 %}{% endif %}{{ seen is defined }}{% endfor %}
{{ 5 is number and 5 is not string }}{{ [] is sequence }}{{ {} is iterable }}{{ '' is defined }}
{{ 10 | string ~ 'px' }}{{ 1 ~ 2 }}{{ [1, 2] | string ~ '' }}
{{ -1 | abs }}{{ -1.5 | int }}{{ '-5' | int }}{{ 1 if 0 else 2 if 0 else 3 }}
{{ 'a' 'b' ~ 'c' }}{{ 'abc' | list | join('.') }}{{ 'abc' | reverse | upper }}
{{ u | upper }}{{ 'straße' | upper }}{{ 'ÀÉ' | lower }}{{ 'éa' | capitalize }}{{ u | length }}
{{ [3,1,2] | sort | first }}{{ ([3,1,2] | sort)[0] }}{{ [[1,2],[3]] | map('length') | list }}{{ [[1,2],[3]] | map('first') | list }}{{ [[1,2],[3]] | map('join', '-') | list }}
{{ {'a': 1}.a }}{{ {'a': 1}['a'] }}{{ {1: 'x'}[1] }}{{ {'a': none}.a is none }}{{ {'a': none}.get('a', 5) }}{{ {(1,2): 3}[(1,2)] }}
{{ {[1]: 2} }}
{% set j = joiner(', ') %}{% for x in [3,1,2] %}{{ j() }}{{ x }}{% endfor %}{% set k = joiner() %}{{ k() }}{{ k() }}{{ k() }}
{% set c = cycler('a','b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}{{ c.reset() }}{{ c.current }}{{ c.pos }}
{{ cycler() }}
{{ '\u00e9\x41\U0001F642' }}{{ '\101\q\\' }}
{{ 123456789012345678901 + 0 }}|{{ 2 ** 100 }}|{{ 2 ** 100 // 3 }}|{{ -(2 ** 100) // 7 }}|{{ -(2 ** 100) % 7 }}|{{ 2 ** 100 % -7 }}|{{ 9223372036854775807 + 1 }}|{{ -9223372036854775808 - 1 }}|{{ 2 ** 64 * 2 ** 64 - 1 }}
{{ 10 ** 30 / 10 ** 10 }}|{{ 10 ** 20 / 3 }}|{{ 1 / 10 ** 25 }}|{{ 7 / 2 ** 70 }}|{{ -(10 ** 25) / 3 }}|{{ 9007199254740993 / 1 }}|{{ (10 ** 400) / (10 ** 399) }}
{{ 10 ** 400 / 3 }}
{{ 10 ** 400 * 1.0 }}
{{ 10 ** 25 == 1e25 }}|{{ 10 ** 25 > 1e24 }}|{{ 2 ** 64 < 2 ** 65 }}|{{ 2 ** 63 == 9223372036854775808.0 }}|{{ 9007199254740993 == 9007199254740992.0 }}|{{ 2 ** 64 in [1, 18446744073709551616] }}|{{ {2 ** 64: 'x'}[18446744073709551616] }}
{{ '%d' % 2 ** 70 }}|{{ '%x' % (2 ** 70) }}|{{ '{:,}'.format(2 ** 70) }}|{{ '{:b}'.format(2 ** 65) }}|{{ '{:x}'.format(-255) }}|{{ (2 ** 70) | tojson }}|{{ [2 ** 70] }}|{{ '99999999999999999999' | int + 1 }}|{{ '0x1f' | int(0, 16) }}|{{ 1e20 | int }}|{{ (2 ** 70) | float }}|{{ (2 ** 70) | abs }}|{{ (-(2 ** 70)) | abs }}
{{ (2 ** 70) is odd }}|{{ (2 ** 70 + 1) is odd }}|{{ (2 ** 70) is divisibleby 1024 }}|{{ (2 ** 70) is integer }}|{{ (2 ** 70) is number }}|{{ 12345 | round(-2) }}|{{ 12350 | round(-2) }}|{{ 250 | round(-2) }}|{{ (10 ** 25 + 5) | round(-1) }}|{{ -15 | round(-1) }}
{{ 2 ** 3 ** 2 }}|{{ 0 ** 0 }}|{{ (-1) ** (10 ** 30) }}|{{ 1 ** (10 ** 30) }}|{{ 2 ** -2 }}|{{ 2.0 ** 0.5 }}|{{ (-8) ** 3 }}|{{ 7.5 // -2 }}|{{ -7.5 % -2 }}|{{ 5 % -3 }}
{{ 0 ** -1 }}
{{ 10 ** 4299 | string | length }}
{{ (10 ** 4300) | string | length }}
{{ 1 | filesizeformat }}|{{ 0 | filesizeformat }}|{{ 999 | filesizeformat }}|{{ 1000 | filesizeformat }}|{{ 13000 | filesizeformat }}|{{ 1500000 | filesizeformat }}|{{ 1024 | filesizeformat(true) }}|{{ 1536 | filesizeformat(binary=true) }}|{{ (10 ** 12) | filesizeformat }}|{{ (10 ** 30) | filesizeformat }}|{{ '123.9' | filesizeformat }}
{{ 'x' | filesizeformat }}
{{ [] | random }}|{{ ['a'] | random }}|{{ 'z' | random }}
{{ 'hello big wide world' | wordwrap(9) }}|{{ 'abcdefghij kl' | wordwrap(4) }}|{{ 'abcdefghij kl' | wordwrap(4, false) }}|{{ 'a well-known word-list' | wordwrap(8) }}|{{ 'a well-known' | wordwrap(8, break_on_hyphens=false) }}|{{ lines | wordwrap(2) }}|{{ 'a   b' | wordwrap(2) }}|{{ 'aa bb' | wordwrap(2, wrapstring='<>') }}
{{ '<b>a</b>  <!-- c --> d\n e' | striptags }}
{{ '{:>+8.2f}|{:e}|{:g}|{:b}|{:o}|{:#x}|{:c}|{:_}|{:08.3f}|{:=+6d}|{:.3}|{:%}'.format(3.14159, 1234.5, 0.00001, 5, 8, 255, 65, 1234567, 3.14159, 5, 'abcdef', 0.5) }}
{{ '{:g}|{:g}|{:g}|{:G}|{:.3g}|{:.3}|{:.3}|{:g}'.format(1e10, 123456.0, 0.0001, 1e-10, 1234567.0, 3.0, 1234567.0, 100000.0) }}
{{ '{:{}}|{:>{w}}|{!s:>4}|{!r}'.format('a', 4, 'b', 1, 'q', w=3) }}|{{ '{a.b}{a[c]}'.format(a={'b': 1, 'c': 2}) }}|{{ '{x}'.format_map({'x': 1}) }}
{{ '%5.1f|%-6d|%+d|% d|%06.2f|%e|%g|%c|%o|%X|%.3s|%*d|%i' % (2.25, 42, 5, 5, 3.14159, 12345.678, 0.0001, 'x', 8, 255, 'abcdef', 5, 42, 7) }}
{{ '%d' % 3.9 }}|{{ '%s' % none }}|{{ '%s' % [1] }}|{{ '%s' % {'a': 1} }}|{{ '%5s' % 'é' }}|{{ '%r' % 'a' }}|{{ '100%%' % () }}
{{ '%x' % 1.5 }}
{{ 'abc'.index('', 2, 1) }}
{{ 'abc'.find('', 2) }}|{{ 'abc'.find('', 3) }}|{{ 'abc'.find('', 4) }}|{{ 'abc'.find('c', -1) }}|{{ 'abc'.find('', 2, 1) }}|{{ 'aXbX'.rfind('X', 0, 3) }}|{{ 'abc'.count('') }}|{{ 'abc'.count('', 1, 2) }}|{{ 'abc'.startswith('', 4) }}|{{ 'éab'.index('b') }}|{{ 'éab'.find('b', 1, 3) }}
{{ 'a\tb'.expandtabs(4) }}|{{ 'ab'.isidentifier() }}|{{ '1a'.isidentifier() }}|{{ 'a\n'.isprintable() }}|{{ 'Straße'.casefold() }}
{{ range(200000) | length }}
{{ range(0) | list }}{{ range(3, 0) | list }}{{ range(10, 0, -3) | list }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(b=2) }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, a=2) }}
{% macro m(a) %}{{ a }}{% endmacro %}{% call m(1) %}x{% endcall %}
{% macro m(caller) %}{{ caller() }}{% endmacro %}{% call m() %}x{% endcall %}
{{ [{'a': 2, 'b': 1}, {'a': 1, 'b': 2}, {'a': 1, 'b': 1}] | sort(attribute='a,b') | map(attribute='b') | list }}
{{ ['b', 'A', 'a', 'B'] | sort }}{{ ['b', 'A', 'a', 'B'] | sort(reverse=true) }}{{ ['b', 'A', 'a', 'B'] | unique | list }}{{ ['b', 'A'] | min }}{{ [3, 1.5, true] | sort }}{{ [[2], [1, 5]] | sort }}
{{ 1 if true if false else 2 }}|{{ 1 if false if true else 2 }}|{{ 1 if true else 2 if false else 3 }}|{{ (1 if false) is defined }}
{{ -2 ** 2 }}|{{ -1 | abs }}|{{ - 3 + 5 }}|{{ +3 }}|{{ not 1 == 2 }}|{{ 1 in [1] and 2 not in [1] }}|{{ 'a' ~ 1 + 2 ~ 'b' }}|{{ 1 < 2 == true }}
{{ l.0 }}|{{ nested.0.1 }}|{{ d.a.x.0 }}|{{ (1, 2).1 }}|{{ d['a']['x'][-1] }}
{% break %}
{% for x in l %}{% macro q() %}{% break %}{% endmacro %}{% endfor %}
{% set ns = namespace(a=1) %}{% set ns.b = namespace(c=2) %}{{ ns.b.c }}{% set ns.l = [ns] %}{{ ns.l[0].a }}
{% set (a, b), c = (1, 2), 3 %}{{ a }}{{ b }}{{ c }}
{% print 1, 'a' %}
{% if false %}{% include 'x' %}{% endif %}ok
{% autoescape false %}{{ '<' }}{% endautoescape %}
{{ strftime_now('%%|%Q|%c|%x|%X|%U|%j|%F %T|%D|%-m/%-d|%y%C|%n|%t|%h|%u|%w|%G-W%V') }}
{{ '' | truncate(5) }}|{{ 'abcdefghijkl' | truncate(5) }}|{{ 'abc def ghi jkl mno' | truncate(10, leeway=0) }}
{{ 'abc' | truncate(1) }}
{{ {'b': 1, 'a': 2}.items() | sort }}|{{ {'a': 1}.keys() | list }}|{{ d.values() | list | length }}|{{ {'x': 1} | urlencode }}|{{ [('a', 'b c')] | urlencode }}
{{ 1.0 | tojson }}|{{ 1e16 | tojson }}|{{ 1e-7 | tojson }}|{{ 'é' | tojson }}|{{ {'é': 1.5, 'a': none} | tojson(sort_keys=true, ensure_ascii=true) }}|{{ [] | tojson(indent=0) }}|{{ [1] | tojson(indent=0) }}
{% for a in [1, 2] %}{{ loop.cycle('x') }}{{ loop.length }}{{ loop.revindex0 }}{% endfor %}{% for i in [[1, [2]], [3]] recursive %}{% set v = i %}{% if i is iterable %}({{ loop(i) }}){% else %}{{ v }}{{ loop.depth0 }}{% endif %}{% endfor %}
{% set v = 1 %}{% macro show() %}{{ v }}{% endmacro %}{% for i in [1] %}{% set v = 2 %}{{ show() }}{% endfor %}{{ show() }}
{% call(x, y=2) (l | first) %}{% endcall %}
'''
multi = "  {% if true %}\nx\n  {% endif %}\n\n  y {% if true %} z {% endif %}\nw\n{% for i in l %}\n  - {{ i }}\n{% endfor %}\n\n"
srcs = T.strip("\n").split("\n")
srcs += [multi, "a\n", "a\n\n", "{{ 'x' }}\n", "{# c #}\nafter\n", "{% set x = 1 %}\n\nafter", "line {# c #} rest\n", "  {# c #}  \n x", "\n\nlead", "{%+ if true %} a{% endif %}", " {%+ if true +%}\n a{% endif %}", "{{ '\n' }}x", "\r\na\r\nb\r\n", "{% raw -%}  a  {%- endraw %} b", "{% for i in l -%}\n {{ i }}\n{%- endfor %}", "x {{- '' }} y", "x  {%- set a = 1 %}  y", "{%- if true %}\n\n a\n{% endif -%}\n\n b", "{%- macro m(x) %}\n  [{{ x }}]\n{%- endmacro %}\n{{ m(1) }}{{ m(2) }}\n",
 "{% set tools = [{'type': 'function', 'function': {'name': 'f', 'description': 'd', 'parameters': {}}}] %}\n{%- for tool in tools %}\n{{- '\\n' ~ (tool | tojson) }}\n{%- endfor %}\n",
 "{% for m_ in m %}{% if (m_['role'] == 'user') != (loop.index0 % 2 == 1) %}{{ raise_exception('alternate') }}{% endif %}{% endfor %}"]
cases = []
for s in srcs:
    try:
        cases.append({"source": s, "expect": environment().from_string(s).render(**V)})
    except Exception as x:
        cases.append({"source": s, "error": f"{type(x).__name__}: {x}"})
json.dump({"now": NOW, "vars": V, "cases": cases}, open(sys.argv[1], "w"), ensure_ascii=False, indent=1)
print(len(cases), sum("error" in c for c in cases))
