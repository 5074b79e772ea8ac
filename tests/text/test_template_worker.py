"""Templates that no counter sees: a single step that takes for ever, or compiling alone. The worker process ends them.
And which templates need it at all."""

from __future__ import annotations

import sys
import time

import pytest
from engine import chat_families

from kamado.errors import TemplateError
from kamado.isolated import WORKER, WorkerNeededError, without_worker
from kamado.text.template import ChatTemplate
from kamado.text.template_bounds import TemplateLimits

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits are Linux's")

USER = [{"role": "user", "content": "x"}]
SHORT = TemplateLimits(seconds=0.3)
_PRIME = 2**61 - 1  # multiples of it have the same hash
_KEYS = ",".join(f"{_PRIME * i}:1" for i in range(12_000))

# Each takes from seconds to days in one step between two counters.
ONE_STEP = {
    "colliding set": "{{ (range(0, 60000*(2**61-1), 2**61-1) | unique | list) | length }}",
    "colliding dict": "{{ {" + _KEYS + "} | length }}",
    "search from the right": "{{ ('a' * 2000000).rfind('ab' ~ 'a' * 1000000) }}",
    "split from the right": "{{ ('a' * 2000000).rsplit('ab' ~ 'a' * 1000000) | length }}",
    "strip": "{{ ('a' * 2000000).strip('b' * 2000000 ~ 'a') | length }}",
    "trim": "{{ ('a' * 2000000) | trim('b' * 2000000 ~ 'a') | length }}",
}
# Each takes seconds or a gigabyte to compile.
COMPILING = {
    "outputs": "{{a}}" * 100_000,
    "conditions": "{% if a %}" + "{% elif a %}" * 30_000 + "{% endif %}",
    "assignments": "".join(f"{{% set a{i}=1 %}}" for i in range(25_000)),
    "arguments": "{{ f(" + "a," * 120_000 + ") }}",
    "comparisons": "{{ a" + "<a" * 120_000 + " }}",
    "attributes": "{{ a" + ".b" * 120_000 + " }}",
    "a number": "{{ " + "9" * 400_000 + " }}",
}


@pytest.mark.parametrize("name", ONE_STEP)
def test_a_step_that_takes_for_ever_is_ended(name: str) -> None:
    template = ChatTemplate(ONE_STEP[name], bos_token="", eos_token="", limits=SHORT)
    with pytest.raises(TemplateError, match="took longer than 0.3 s"):
        template.render(USER)


@pytest.mark.parametrize("name", COMPILING)
def test_compiling_is_bounded_too(name: str) -> None:
    template = ChatTemplate(COMPILING[name], bos_token="", eos_token="", limits=SHORT)
    with pytest.raises(TemplateError, match=r"took longer than 0.3 s|more than 64 MiB|nested too deeply"):
        template.check()


def test_memory_is_bounded() -> None:
    source = (
        "{% set ns = namespace(l=[]) %}{% for i in range(200) %}{% set ns.l = [ns.l, '日本語' * 99999] %}{% endfor %}"
    )
    limits = TemplateLimits(total_size=1 << 40, value_size=1 << 40)
    with pytest.raises(TemplateError, match="more than 64 MiB of memory"):
        ChatTemplate(source, bos_token="", eos_token="", limits=limits).render(USER)


def test_the_next_template_is_rendered() -> None:
    with pytest.raises(TemplateError):
        ChatTemplate(ONE_STEP["trim"], bos_token="", eos_token="", limits=SHORT).render(USER)
    assert ChatTemplate("{{ [3, 1] | sort }}", bos_token="", eos_token="").render(USER) == "[1, 3]"


# --- in this process --------------------------------------------------------------------------------------------------


def _runs_here(source: str) -> bool:
    template = ChatTemplate(source, bos_token="<s>", eos_token="</s>")
    template.check()
    return template._may_run_here


@pytest.mark.parametrize("name", sorted(chat_families.FAMILIES))
def test_templates_of_the_families_in_use_need_no_worker_after_the_first(name: str) -> None:
    template = ChatTemplate(chat_families.FAMILIES[name].template, bos_token="<s>", eos_token="</s>")
    first = template.render(USER)
    with without_worker():
        assert template.render(USER) == first


@pytest.mark.parametrize(
    "source",
    [
        *ONE_STEP.values(),
        "{{ messages | groupby('role') | list }}",
        "{{ messages | map('sort') | list }}",
        "{{ messages | map(f) | list }}",
        "{{ messages | map('dictsort') | list }}",
        "{{ messages[0] | dictsort(by='value') }}",
        "{{ messages[0] | dictsort(true) }}",
        "{{ messages | sum(attribute='x') }}",
        "{{ 2 ** 3 }}",
        "{{ {x: 1} }}",
        "{{ {1: 1} }}",
        "{{ 'a'.center(80) }}",
        "{{ 'a'.format(1) }}",
        "{{ 'a' | format(1) }}",
        "{{ 'a' | attr('upper') }}",
        "{% set f = 'a'.rfind %}{{ f('a') }}",
        "{% set f = 'a'['rfind'] %}",
        "{{ ('a'['upper'])() }}",
        "{{ ('a'[bos_token])() }}",
        "{% set ns = namespace() %}{% set ns.get = 'a'[bos_token] %}{{ ns.get('a') }}",
        "{% set ns = namespace(get='a'[bos_token]) %}{{ ns.get('a') }}",
        "{% macro range() %}{% endmacro %}{{ range() }}",
        "{% macro f() %}{% endmacro %}{% set f = 'a'[bos_token] %}{{ f() }}",
        "{% macro f(f) %}{{ f() }}{% endmacro %}{{ f('a'[bos_token]) }}",
        "{% for f in ['a'[bos_token]] %}{{ f() }}{% endfor %}",
        "{{ f(*messages) }}",
        "{% call f() %}{% endcall %}",
        "{% for x in messages recursive %}{{ loop(messages) }}{% endfor %}",
        "{% filter upper %}x{% endfilter %}",
        "{% set x | sort %}x{% endset %}",
        "{{ 99999999999999 }}",
        "{% if 1 %}" * 61 + "{% endif %}" * 61,
        "{{ a }}" * 20_001,
    ],
)
def test_what_is_not_plain_stays_in_the_worker(source: str) -> None:
    try:
        assert not _runs_here(source)
    except TemplateError:  # ended there, even better
        return
    with without_worker(), pytest.raises(WorkerNeededError):
        ChatTemplate(source, bos_token="", eos_token="").render(USER)


def test_what_is_too_large_here_is_rendered_there() -> None:
    source = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
    template = ChatTemplate(source, bos_token="", eos_token="")
    assert template.render(USER) == "X"
    large = [{"role": "user", "content": "ab" * 300_000}] * 3
    with without_worker():
        assert template.render(USER) == "X"
        with pytest.raises(WorkerNeededError):
            template.render(large)
    assert template.render(large) == "AB" * 900_000


def test_both_places_give_the_same_text() -> None:
    source = chat_families.QWEN
    here = ChatTemplate(source, bos_token="<s>", eos_token="</s>")
    there = ChatTemplate(source + "{% set _ = [1] | sort %}", bos_token="<s>", eos_token="</s>")
    message = {"role": "user", "content": "é 日本 \U0001f600 \ud800 \x00", 1: None, "x": float("inf"), "y": 1 << 70}
    for _ in range(2):
        assert here.render([message], tools=[message]) == there.render([message], tools=[message])


def test_rendering_here_is_quick() -> None:
    template = ChatTemplate(chat_families.QWEN, bos_token="<s>", eos_token="</s>")
    template.render(USER)
    template.render(USER)
    pid = WORKER.pid
    began = time.thread_time()
    for _ in range(20):
        template.render(USER)
    assert (time.thread_time() - began) / 20 < 0.01  # 0.1 ms on an idle machine
    assert WORKER.pid == pid
