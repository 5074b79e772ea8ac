"""Chat templates: what real ones print, and that nothing plain is lost on the way."""

from __future__ import annotations

import enum
import json
import threading
from typing import Any

import pytest

from kamado.errors import TemplateError
from kamado.text.template import ChatTemplate
from kamado.text.template_bounds import TemplateLimits

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "You may call these functions:\\n\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.role == 'ipython' or 'tool_calls' in message %}
        {%- set call = message.tool_calls[0].function %}
        {{- '{"name": "' + call.name + '", "parameters": ' }}{{- call.arguments | tojson }}{{- "}" }}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
GEMMA = """{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}
    {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {{ item['text'] | trim if item['type'] == 'text' else '<image>' }}
        {%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}
"""
MISTRAL = """{%- set user_messages = messages | selectattr("role", "equalto", "user") | list -%}
{%- set ns = namespace(index=0) -%}
{{- bos_token }}
{%- for message in messages -%}
    {%- if message["role"] == "user" -%}
        {%- if tools is not none and message == user_messages[-1] -%}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools -%}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.function.items() if key != "return" -%}
                    {%- if val is string -%}{{- '"' + key + '": "' + val + '"' }}
                    {%- else -%}{{- '"' + key + '": ' + val | tojson }}{%- endif -%}
                    {%- if not loop.last -%}{{- ", " }}{%- endif -%}
                {%- endfor -%}{{- "}}" }}{{- "]" if loop.last else ", " }}
            {%- endfor -%}{{- "[/AVAILABLE_TOOLS]" }}
        {%- endif -%}
        {{- "[INST] " + message["content"] + "[/INST]" }}{%- set ns.index = ns.index + 1 -%}
    {%- elif message["role"] == "assistant" -%}{{- " " + message["content"] | trim + eos_token }}
    {%- endif -%}
{%- endfor -%}
"""
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "gemma": GEMMA, "mistral": MISTRAL}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather <now> & später, 東京",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
CHATS: dict[str, list[dict[str, Any]]] = {
    "one": [{"role": "user", "content": "Hi & <b>bye</b>"}],
    "system": [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "日本?"}],
    "turns": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": " b "},
        {"role": "user", "content": "{{ 7 * 7 }} {% raw %}"},
    ],
}


def _render(source: str, messages: Any = (), **extra: Any) -> str:
    return ChatTemplate(source, bos_token="<s>", eos_token="</s>").render(messages, **extra)


@pytest.mark.parity
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_like_transformers(name: str, chat: str) -> None:
    reference = pytest.importorskip("transformers.utils.chat_template_utils").render_jinja_template
    _compare(reference, TEMPLATES[name], CHATS[chat])


@pytest.mark.real
@pytest.mark.parametrize("model", ["smollm2:135m", "qwen2.5-coder:1.5b"])
def test_real_templates_like_transformers(model: str, real_model: Any) -> None:
    from kamado.files import open_checkpoint

    reference = pytest.importorskip("transformers.utils.chat_template_utils").render_jinja_template
    source = open_checkpoint(real_model(model)).chat_template
    assert source is not None
    calls = [
        *CHATS["system"],
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "f", "arguments": {"ü": [1, None]}}}],
        },
        {"role": "tool", "content": '{"t": 3}'},
        {"role": "tool", "content": "again"},
        {"role": "user", "content": "thanks"},
    ]
    for messages in [*CHATS.values(), *([calls] if "qwen" in model else [])]:
        _compare(reference, source, messages)


def _compare(reference: Any, source: str, messages: list[dict[str, Any]]) -> None:
    for tools in (None, TOOLS):
        for prompt in (False, True):
            options = {"tools": tools, "add_generation_prompt": prompt}
            theirs, _ = reference([messages], chat_template=source, bos_token="<s>", eos_token="</s>", **options)
            assert _render(source, messages, **options) == theirs[0]


def test_by_hand() -> None:
    assert _render(CHATML, CHATS["one"]) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nHi & <b>bye</b><|im_end|>\n<|im_start|>assistant\n"
    )
    assert _render(GEMMA, CHATS["turns"], add_generation_prompt=False) == (
        "<s><start_of_turn>user\na<end_of_turn>\n<start_of_turn>model\nb<end_of_turn>\n"
        "<start_of_turn>user\n{{ 7 * 7 }} {% raw %}<end_of_turn>\n"
    )


def test_what_the_template_refuses_is_said() -> None:
    with pytest.raises(TemplateError, match="roles must alternate"):
        _render(GEMMA, [{"role": "assistant", "content": "x"}])


@pytest.mark.parametrize(
    ("source", "output"),
    [
        ("{{ {'a': '<é>', 'b': [1, none, true]} | tojson }}", '{"a": "<é>", "b": [1, null, true]}'),
        ("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':')) }}", '{"a":2,"b":1}'),
        ("{{ {'a': [1]} | tojson(indent=2) }}", json.dumps({"a": [1]}, indent=2)),
        ("{{ 'é' | tojson(ensure_ascii=true) }}", '"\\u00e9"'),
        ("{% for x in [1,2,3] %}{% if x == 2 %}{% continue %}{% endif %}{{ x }}{% endfor %}", "13"),
        ("{% for x in [1,2,3] %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}", "1"),
        ("{% for x in [1,2,3] if x > 1 %}{{ loop.index }}{{ x }}{{ loop.last }} {% endfor %}", "12False 23True "),
        ("{% for x in [] %}x{% else %}none{% endfor %}", "none"),
        ("a{% generation %}b{% set x = 1 %}{% endgeneration %}{{ x is defined }}", "abFalse"),
        ("{% macro f(x) %}<{{ x }}{{ caller() if caller }}>{% endmacro %}{{ f(1) }}", "<1>"),
        ("{% macro f(x) %}<{{ x }}{{ caller() if caller }}>{% endmacro %}{% call f(2) %}c{% endcall %}", "<2c>"),
        ("{% for n in tree recursive %}{{ n.v }}{{ loop(n.c) if n.c }}{% endfor %}", "123"),
        ("{% set n = namespace(a=1) %}{% for i in range(3) %}{% set n.a = n.a * 2 %}{% endfor %}{{ n.a }}", "8"),
        ("{{ 'a,b'.split(',') | join('-') }} {{ 'abc'[1:] }} {{ [1,2][:1] }} {{ 'x' * 3 ~ 1 }} {{ '%s=%d' % ('a', 2)}}",
         "a-b bc [1] xxx1 a=2"),
        ("{{ '{}-{x}'.format(1, x=2) }} {{ 'a'.replace('a', 'b') }}", "1-2 b"),
        ("{{ 'a' | indent(2, true) }} {{ ' x '.strip() }}", "  a x"),
        ("{{ {'a': 1}.items() | list }} {{ {'a': 1}.get('b', 'd') }} {{ dict(a=1) }}", "[('a', 1)] d {'a': 1}"),
        ("{{ [3,1,2] | sort | map('string') | join }} {{ [1,2,3] | sum }} {{ [1,2] | first }}", "123 6 1"),
        ("{{ 'ab' | list | last }} {{ 1.256 | round(2) }} {{ none }}", "b 1.26 None"),
        ("{{ ['a', 'b'] | map('upper') | select('equalto', 'B') | list }}", "['B']"),
        ("{{ undefined_thing }}|{{ undefined_thing is defined }}|{{ undefined_thing | default('d') }}", "|False|d"),
        ("{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}", "ab"),
        ("{% set j = joiner(',') %}{{ j() }}x{{ j() }}y", "x,y"),
        ("  {% if true %}\nline\n  {% endif %}\n", "line\n"),
        ("{{ bos_token }}{{ eos_token }}{{ messages | length }}{{ tools is none }}{{ documents is none }}",
         "<s></s>0TrueTrue"),
        ("{{ enable_thinking }}", "False"),
    ],
)  # fmt: skip
def test_language(source: str, output: str) -> None:
    tree = [{"v": 1, "c": [{"v": 2, "c": []}]}, {"v": 3, "c": []}]
    assert _render(source, enable_thinking=False, tree=tree) == output


def test_the_time_of_day() -> None:
    assert len(_render("{{ strftime_now('%Y-%m-%d') }}")) == 10


def test_templates_get_copies_of_plain_types() -> None:
    class Role(enum.StrEnum):
        USER = "user"

    class Text(str):
        def leak(self) -> str:
            return "leak"

    assert _render("{{ messages[0].role }}{{ messages[0].x.leak }}", [{"role": Role.USER, "x": Text("t")}]) == "user"
    for value in (object(), b"bytes", {1, 2}, lambda: 1, {"a": {(1, 2): 3}}):
        with pytest.raises(TemplateError, match="plain data|not a string"):
            _render("", [{"role": "user", "content": value}])


def test_the_input_is_bounded() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(TemplateError, match="nested deeper"):
        _render("", loop)
    with pytest.raises(TemplateError, match="larger than"):
        _render("", [{"role": "user", "content": "x" * 5_000_000}])
    wide: Any = "x" * 100
    for _ in range(40):
        wide = [wide, wide]
    with pytest.raises(TemplateError, match="larger than"):
        _render("", wide)
    with pytest.raises(TemplateError, match="600000 characters"):
        ChatTemplate(" " * 600_000, bos_token="", eos_token="")


def test_a_large_conversation_passes() -> None:
    messages = [{"role": "user" if i % 2 == 0 else "assistant", "content": "word " * 200} for i in range(1000)]
    for source in TEMPLATES.values():
        assert len(_render(source, messages)) > 900_000


def test_check_finds_syntax_errors_early() -> None:
    ChatTemplate("{{ 1 }}", bos_token="", eos_token="").check()
    with pytest.raises(TemplateError, match="line 2"):
        ChatTemplate("a\n{% if %}", bos_token="", eos_token="").check()


def test_threads_do_not_share_budgets() -> None:
    template = ChatTemplate(CHATML, bos_token="", eos_token="", limits=TemplateLimits(steps=60))
    results: list[str] = []
    threads = [threading.Thread(target=lambda: results.append(template.render(CHATS["one"]))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert len(set(results)) == 1
