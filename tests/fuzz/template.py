"""Fuzz chat templates: any source, compiled and rendered, gives a text or raises TemplateError, within its limits.

The worker process may die of it, this one never. Templates that are plain are rendered here too: to the same text.
"""

from __future__ import annotations

import time

from kamado.errors import TemplateError
from kamado.text.template import ChatTemplate
from kamado.text.template_bounds import TemplateLimits

_LIMITS = TemplateLimits(steps=20_000, seconds=0.5, value_size=1 << 18, total_size=1 << 22, output_chars=1 << 18)
_MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi <b>日本</b>", "parts": [{"type": "text", "text": "x"}, None, 1.5, True]},
]
_TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]


def fuzz_one(data: bytes) -> None:
    """One template source, with and without tools. Raises only for a fault of ours."""
    source = data.decode("utf-8", "replace")
    began = time.thread_time()
    try:
        template = ChatTemplate(source, bos_token="<s>", eos_token="</s>", limits=_LIMITS)
        for tools in (None, _TOOLS):
            text = template.render(_MESSAGES, tools=tools)  # the first time in the worker, the second here if it may
            assert len(text) <= _LIMITS.output_chars
            if template._may_run_here and "strftime_now" not in source:
                assert template.render(_MESSAGES, tools=tools) == text
    except TemplateError:
        pass
    seconds = time.thread_time() - began
    assert seconds < 2 * _LIMITS.seconds, f"{seconds:.1f} s of this thread"


if __name__ == "__main__":
    from _loop import run

    words = (
        "{{ }} {% %} {%- -%} {# for in range(10**9) if else endif endfor set = ns. namespace( macro endmacro call loop"
    )
    words += (
        " ~ * ** % + |join( |replace( |tojson |indent( |format( .__class__ __globals__ 1000000000 'a' [ ] ( ) messages"
    )
    words += (
        " recursive loop( caller() varargs kwargs |attr( |map( |list |sum( |batch( |center( .format( .join( generation"
    )
    words += (
        " |unique |groupby( |sort |slice( |int |urlencode .rfind( .rsplit( .strip( (2**61-1) |tojson(indent=32) {%elif"
    )
    run("template", fuzz_one, (*map(str.encode, words.split()), b" ", b"\n"))
