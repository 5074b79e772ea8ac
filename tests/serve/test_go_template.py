"""Ollama's Go templates, translated to Jinja: what they say, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kamado.errors import KamadoError, UsageError
from kamado.serve.models.go_template import MAX_CHARACTERS, to_jinja
from kamado.serve.models.modelfile import jinja_template, make_recipe, parse_modelfile
from kamado.text.template import ChatTemplate

SYSTEM = {"role": "system", "content": "be brief"}
ASK = {"role": "user", "content": "hi"}
SAID = {"role": "assistant", "content": "hello"}
MORE = {"role": "user", "content": "and?"}


def render(source: str, messages: list[dict[str, Any]], **more: Any) -> str:
    return ChatTemplate(to_jinja(source), bos_token="", eos_token="").render(messages, **more)


CHATML_TURN = """{{- if .System }}<|im_start|>system
{{ .System }}<|im_end|>
{{ end }}{{ if .Prompt }}<|im_start|>user
{{ .Prompt }}<|im_end|>
{{ end }}<|im_start|>assistant
{{ .Response }}<|im_end|>
"""


def test_a_template_of_one_turn_is_repeated_and_ends_before_the_answer() -> None:
    assert render(CHATML_TURN, [SYSTEM, ASK, SAID, MORE]) == (
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\nhello<|im_end|>\n"
        "<|im_start|>user\nand?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_template_of_one_turn_goes_on_from_a_begun_answer() -> None:
    assert render("[{{ .Prompt }}] {{ .Response }}!", [ASK, SAID]) == "[hi] hello"


def test_a_template_without_an_answer_gets_it_at_its_end() -> None:
    assert render("{{ .System }}:{{ .Prompt }}:", [SYSTEM, ASK, SAID, MORE]) == "be brief:hi:hello:and?:"


MESSAGES = """{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 }}
{{- if eq .Role "user" }}<user>{{ .Content }}</user>
{{- else if eq .Role "assistant" }}<bot>
{{- if .Content }}{{ .Content }}
{{- else if .ToolCalls }}{{ range .ToolCalls }}{"{{ .Function.Name }}": {{ .Function.Arguments | json }}}
{{- end }}
{{- end }}</bot>
{{- else if eq .Role "tool" }}<tool>{{ .Content }}</tool>
{{- end }}
{{- if and $last (ne .Role "assistant") }}<bot>{{ end }}
{{- end }}"""


def test_a_template_over_messages() -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}
    result = {"role": "tool", "content": "2"}
    assert render(MESSAGES, [ASK, call, result]) == ('<user>hi</user><bot>{"f": {"a": 1}}</bot><tool>2</tool><bot>')
    assert render(MESSAGES, [ASK, SAID]) == "<user>hi</user><bot>hello</bot>"


def test_system_and_tools_beside_messages() -> None:
    source = (
        "{{ if or .System .Tools }}S{{ .System }}{{ range $.Tools }}[{{ .Function.Name }}]{{ end }}{{ end }}"
        "{{ range .Messages }}{{ if ne .Role `system` }}{{ .Content }};{{ end }}{{ end }}"
    )
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert render(source, [SYSTEM, ASK], tools=tools) == "Sbe brief[f]hi;"
    assert render(source, [ASK]) == "hi;"


def test_variables_live_beyond_their_block() -> None:
    source = (
        '{{ $n := "none" }}{{ range .Messages }}{{ if eq .Role "user" }}{{ $n = .Content }}{{ end }}{{ end }}{{ $n }}'
    )
    assert render(source, [ASK, SAID, MORE]) == "and?"


def test_trimming_comments_strings_with_literals_break_with_and_not() -> None:
    source = (
        "a  {{- /* a }} comment */ -}}  b {{ `}}` }} "
        "{{ range .Messages }}{{ with .Content }}{{ if not (eq . `hi`) }}{{ break }}{{ end }}x{{ end }}{{ end }}"
    )
    assert render(source, [ASK, MORE, ASK]) == "ab }} x"


def test_texts_of_templates_are_never_read_as_jinja() -> None:
    assert render("{% if x %} {# no #} {{ .Prompt }}", [ASK]) == "{% if x %} {# no #} hi"
    assert render("{{ `{{ messages }}` }}{{ .Prompt }}", [{"role": "user", "content": "{{ 7 * 7 }}"}]) == (
        "{{ messages }}{{ 7 * 7 }}"
    )


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ('{{ define "x" }}{{ end }}', "define"),
        ('{{ template "x" . }}', "template"),
        ('{{ printf "%s" .System }}', "function 'printf'"),
        ("{{ call .System }}", "function 'call'"),
        ("{{ .Suffix }}", ".Suffix"),
        ("{{ range .Messages }}{{ .Images }}{{ end }}", ".Images"),
        ("{{ . }}", "all of its data"),
        ("{{ $x }}", "before it declares"),
        ("{{ if .System }}", "misses an {{ end }}"),
        ("{{ end }}", "too many"),
        ("{{ .System", "without its }}"),
        ("{{ .System.__class__ }}", "__class__"),
        ("{{ 7 * 7 }}", "cannot be read"),
        ("{{ break }}", "outside of a range"),
        ("{{ eq .System }}", "operands"),
        ("{{ if .System }}" * 40, "nested deeper"),
        ("{{ " + "(" * 100 + " }}", "nested deeper"),
        ("x" * (MAX_CHARACTERS + 1), "characters"),
    ],
)
def test_what_cannot_be_translated_is_refused_by_name(source: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        to_jinja(source)
    assert reason in str(caught.value)


PIECES = ["{{", "}}", "{{- ", " -}}", "if ", "range ", ".Messages", "end", "else", ".Role",
          '"', "`", "eq ", "(", ")", "$x",
          ":=", "|", "json", " ", "text", "{%", "%}", "/*", "*/", "\\", "with ", ".", "1"]  # fmt: skip


@settings(deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
def test_any_text_is_translated_to_a_template_that_compiles_or_refused(source: str) -> None:
    try:
        jinja = to_jinja(source)
    except UsageError:
        return
    ChatTemplate(jinja, bos_token="", eos_token="").check()


def test_a_jinja_template_is_taken_as_it_is() -> None:
    source = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert jinja_template(source) == source
    with pytest.raises(UsageError, match="template"):
        jinja_template("{% for %}")


# --- Modelfiles -------------------------------------------------------------------------------------------------------


def test_a_modelfile() -> None:
    found = parse_modelfile(
        "# a comment\r\nFROM smollm2:135m\n\nPARAMETER temperature 0.5\nparameter stop <|a|>\n"
        'PARAMETER stop "b c"\nTEMPLATE """{{ .Prompt }}\nline two"""\nSYSTEM one line\n'
        'MESSAGE user hi there\nMESSAGE assistant """so\nlong"""\nLICENSE MIT\nLICENSE "and more"\n'
    )
    assert (found.base, found.system, found.template) == ("smollm2:135m", "one line", "{{ .Prompt }}\nline two")
    assert found.parameters == [("temperature", "0.5"), ("stop", "<|a|>"), ("stop", "b c")]
    assert found.messages == [("user", "hi there"), ("assistant", "so\nlong")]
    assert found.license == "MIT\n\nand more"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("FROM", "line 1"),
        ("FROM a\nFROM b", "line 2 of the Modelfile is a second FROM"),
        ("\nADAPTER x", "line 2"),
        ("NONSENSE x", "no instruction 'NONSENSE'"),
        ('SYSTEM """never', "nothing closes it"),
        ('SYSTEM """a""" b', "after its closing"),
    ],
)
def test_a_modelfiles_faults_name_the_line(text: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_modelfile(text)
    assert reason in str(caught.value)


@settings(deadline=None)
@given(st.text(alphabet='FROMSYTEPA "\n#x.', max_size=60))
def test_any_modelfile_is_read_or_refused(text: str) -> None:
    try:
        found = parse_modelfile(text)
        make_recipe(
            base=found.base,
            system=found.system,
            template=found.template,
            license_text=None,
            parameters={},
            messages=found.messages,
        )
    except KamadoError:
        pass


def test_nesting_does_not_multiply_the_translation() -> None:
    """`eq` writes its first operand once for each of the others: 30 levels of three would be 10^14 characters."""
    expression = ".System"
    for _ in range(30):
        expression = f'(eq {expression} "a" "b" "c")'
    with pytest.raises(UsageError, match="an expression of more than 16384 characters"):
        to_jinja("{{ if " + expression + " }}x{{ end }}{{ .Prompt }}")


def test_a_template_that_takes_long_to_compile_is_refused() -> None:
    with pytest.raises(UsageError, match=r"template: the chat template (needs more than 64 MiB|took longer)"):
        jinja_template("{% if a %}" + "{% elif a %}" * 40_000 + "{% endif %}")
