"""Hostile chat templates fail with a TemplateError: nothing outside is reached, and time and memory stay bounded."""

from __future__ import annotations

import resource

import pytest

from kamado.errors import TemplateError
from kamado.text.template import ChatTemplate
from kamado.text.template_bounds import TemplateLimits

# Small, so that what is bounded is seen to be bounded fast; sizes in the attacks go far beyond the real limits.
_LIMITS = TemplateLimits(steps=20_000, seconds=20.0)
_GROW = "{% set ns = namespace(s=START) %}{% for i in range(80) %}{% set ns.s = STEP %}{% endfor %}{{ ns.s }}"


def _grow(start: str, step: str) -> str:
    return _GROW.replace("START", start).replace("STEP", step)


BOMBS = {
    "repeat": "{{ 'a' * 10**9 }}",
    "repeat_list": "{{ [1] * 10**9 }}",
    "repeat_reversed": "{{ 10**9 * 'a' }}",
    "percent_width": "{{ '%1000000000d' % 1 }}",
    "percent_star": "{{ '%*d' % (1000000000, 1) }}",
    "percent_precision": "{{ '%.1000000000f' % 1 }}",
    "percent_many": "{{ ('%s' * 100000) % ('a' * 100000,) }}",
    "format_filter": "{{ ('%s' * 100000) | format('a' * 100000) }}",
    "format_width": "{{ '{:1000000000}'.format(1) }}",
    "format_nested": "{{ '{0:{1}}'.format('x', 10**9) }}",
    "format_many": "{{ ('{0}' * 100000).format('a' * 100000) }}",
    "format_map": "{{ ('{a}' * 100000).format_map({'a': 'a' * 100000}) }}",
    "center": "{{ 'a' | center(10**9) }}",
    "center_method": "{{ 'a'.center(10**9) }}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "zfill": "{{ 'a'.zfill(10**9) }}",
    "indent": "{{ 'a' | indent(10**9, true) }}",
    "indent_lines": "{{ ('a\n' * 100000) | indent(9999) }}",
    "replace": "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "replace_empty": "{{ ('a' * 100000).replace('', 'b' * 100000) }}",
    "replace_filter": "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "join": "{{ ('b' * 100000).join('a' * 100000) }}",
    "join_filter": "{{ ('a' * 100000) | join('b' * 100000) }}",
    "join_keyword": "{{ ('a' * 100000) | join(d='b' * 100000) }}",
    "power": "{{ 2 ** (10 ** 10) }}",
    "power_again": _grow("9", "ns.s * ns.s"),
    "range": "{{ range(10**9) | list | length }}",
    "range_loop": "{% for i in range(10**18) %}{% endfor %}",
    "batch": "{{ 'a' | batch(10**9, 'x') | list }}",
    "batch_keyword": "{{ 'a' | batch(linecount=10**9, fill_with='x') | list }}",
    "slice": "{{ [1] | slice(10**9) | list }}",
    "round": "{{ 1.5 | round(10**9, 'ceil') }}",
    "json_indent": "{{ messages | tojson(indent=10**9) }}",
    "json_indent_text": "{{ messages | tojson(indent=' ' * 100000) }}",
    "strftime": "{{ strftime_now('%1000000000d') }}",
    "sum_lists": "{{ [[1]] | sum(start=[]) }}",
    "nested_loops": "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
    "loops_filtered": "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "loop_of_sums": "{% for i in range(99999) %}{{ range(99999) | list | sum }}{% endfor %}",
    "concat": _grow("'aaaa'", "ns.s ~ ns.s"),
    "add": _grow("'aaaa'", "ns.s + ns.s"),
    "add_lists": _grow("[1]", "ns.s + ns.s"),
    "nest_lists": _grow("[1]", "[ns.s, ns.s]"),
    "nest_tuples": _grow("[1]", "(ns.s, ns.s)"),
    "nest_dicts": _grow("[1]", "{'a': ns.s, 'b': ns.s}"),
    "nest_dict_calls": _grow("[1]", "dict(a=ns.s, b=ns.s)"),
    "nest_json": _grow("[1]", "[ns.s, ns.s]").replace("{{ ns.s }}", "{{ ns.s | tojson }}"),
    "nest_compare": _grow("[1]", "[ns.s, ns.s]").replace("{{ ns.s }}", "{{ ns.s == [ns.s] }}"),
    "nest_varargs": "{% set ns = namespace(s='a') %}{% macro f() %}{% set ns.s = varargs %}{% endmacro %}"
    "{% for i in range(80) %}{{ f(ns.s, ns.s) }}{% endfor %}{{ ns.s }}",
    "nest_groups": _grow("[1]", "[ns.s, ns.s] | groupby(0) | list"),
    "macro_output": "{% macro m() %}{% for i in range(9999) %}{{ 'aaaaaaaaaa' * 1000 }}{% endfor %}{% endmacro %}"
    "{% set x = m() %}",
    "block_output": "{% set x %}{% for i in range(9999) %}{{ 'aaaaaaaaaa' * 1000 }}{% endfor %}{% endset %}",
    "output": "{% for i in range(9999) %}{{ 'aaaaaaaaaa' * 1000 }}{% endfor %}",
    "chain": "{% set ns = namespace(p=none) %}{% set big = 'a' * 4000000 %}{% for i in range(9999) %}"
    "{% set ns.p = namespace(p=ns.p, s=big[1:]) %}{% endfor %}",
    "deep_list": _grow("[]", "[ns.s]").replace("80", "99999"),
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "recursion_wide": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "recursive_loop": "{% for x in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "unary": "{{ " + "not " * 20_000 + "1 }}",
    "nested_statements": "{% if 1 %}" * 500 + "{% endif %}" * 500,
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_defused(name: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    template = ChatTemplate(BOMBS[name], bos_token="", eos_token="", limits=_LIMITS)
    with pytest.raises(TemplateError):
        template.render([{"role": "user", "content": "x"}])
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown_mb < 300


# Each prints nothing, "False" or raises; none may print anything of Python's.
REACHES = [
    "{{ ''.__class__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] }}",
    "{{ '' | attr('__class__') }}",
    "{{ messages | map(attribute='__class__') | first }}",
    "{{ (messages | groupby('__class__') | first)[0] }}",
    "{{ raise_exception.__globals__ }}",
    "{{ raise_exception.__code__ }}",
    "{{ strftime_now.__module__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ joiner.__class__ }}",
    "{{ dict.fromkeys }}",
    "{{ range.__class__ }}",
    "{{ self.__init__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ loop }}",
    "{% for x in [1] %}{{ loop.__init__.__globals__ }}{{ loop._iterable }}{% endfor %}",
    "{% macro f() %}{{ caller.__class__ }}{% endmacro %}{{ f.__call__ }}{{ f._func }}{{ f._environment }}",
    "{{ '{0.__class__}'.format('x') }}",
    "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "{{ ('{0.__class__}' | safe).format('x') }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'a': 1}) }}",
    "{{ messages[0].pop('role') }}",
    "{{ messages.sort() }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{{ namespace(__class__=1) }}",
    "{{ namespace(a=1) }}",
    "{{ (messages | map('upper')).gi_frame.f_globals }}",
    "{{ messages | map('upper') }}",
    "{{ raise_exception }}",
    "{{ lipsum() }}",
    "{{ environment }}{{ context }}{{ config }}{{ request }}",
    "{% include 'x' %}",
    "{% import 'x' as y %}",
    "{% extends 'x' %}",
    "{{ 'x' | pprint }}",
    "{{ [1, 2] | random }}",
    "{{ ''.encode() }}",
    "{{ ''.maketrans }}",
    "{{ (1).to_bytes(1, 'big') }}",
    "{{ (1).real.__class__ }}",
]


@pytest.mark.parametrize("source", REACHES)
def test_nothing_outside_is_reached(source: str) -> None:
    messages = [{"role": "user", "content": "x"}]
    text = ""
    try:
        text = ChatTemplate(source, bos_token="", eos_token="", limits=_LIMITS).render(messages)
    except TemplateError as error:
        text = "0x" if "0x" in str(error) else ""  # no addresses in messages either
    assert text in ("", "None", "False")
    assert messages == [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    "source", ["{{ 1 / 0 }}", "{{ 'a' + 1 }}", "{{ none.x.y }}", "{{ 5 | tojson(indent=[]) }}", "{{ x() }}"]
)
def test_python_errors_are_template_errors(source: str) -> None:
    with pytest.raises(TemplateError, match=r"^chat template"):
        ChatTemplate(source, bos_token="", eos_token="").render([])


def test_time_is_bounded() -> None:
    source = "{% for i in range(99999) %}{% for j in range(99999) %}{{ j }}{% endfor %}{% endfor %}"
    limits = TemplateLimits(seconds=0.2, steps=1 << 60)
    with pytest.raises(TemplateError, match=r"longer than 0\.2 s"):
        ChatTemplate(source, bos_token="", eos_token="", limits=limits).render([])
