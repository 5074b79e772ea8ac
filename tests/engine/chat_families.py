"""Small templates of the shapes that model families have, written for these tests, and a byte tokenizer with any
special tokens."""

from __future__ import annotations

from dataclasses import dataclass

from .fakes import ByteTokenizer

_LISTED = "{% for t in tools %}{{ t | tojson }}\n{% endfor %}"

QWEN = (
    "{% if tools %}<|im_start|>system\nTools:\n" + _LISTED + "<|im_end|>\n{% endif %}"
    "{% for m in messages %}"
    "{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response><|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{% if not loop.first or m.content %}{{ '\n' }}{% endif %}"
    '<tool_call>\n{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Reasoning that the template leaves out of earlier turns, and can be told to leave out of the next.
QWEN3 = QWEN.replace(
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
)
R1 = QWEN.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}{# </think> #}")
LLAMA3 = (
    "{% if tools %}<|im_start|>system\nTools:\n" + _LISTED + "<|im_end|>{% endif %}"
    "{% for m in messages %}{% if m.tool_calls is defined %}"
    "{% if m.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}"
    '<|im_start|>assistant\n{"name": "{{ m.tool_calls[0].function.name }}", '
    '"parameters": {{ m.tool_calls[0].function.arguments | tojson }}}<|im_end|>'
    "{% elif m.role == 'tool' %}<|im_start|>ipython\n{{ m.content | tojson }}<|im_end|>"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
    "{% if loop.last and tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
    "[INST]{{ m.content }}[/INST]"
    "{% elif m.tool_calls is defined %}{% if not tools %}{{ raise_exception('no tools') }}{% endif %}[TOOL_CALLS]["
    "{% for c in m.tool_calls %}{% if c.id | length != 9 %}{{ raise_exception('ids have 9 characters') }}{% endif %}"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}, "id": "{{ c.id }}"}'
    "{% if not loop.last %}, {% endif %}{% endfor %}]{{ eos_token }}"
    "{% elif m.role == 'tool' %}[TOOL_RESULTS]{{ m.content | tojson }}[/TOOL_RESULTS]"
    "{% elif m.role == 'assistant' %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
).replace("{% if loop.last and tools %}", "{% if loop.first and tools %}")
MISTRAL_NAMED = (
    "{{ bos_token }}{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
    "{% elif m.role == 'tool' %}[TOOL_RESULTS]{{ m.content }}[/TOOL_RESULTS]"
    "{% elif m.role == 'assistant' %}{{ m.content }}{% for c in m.tool_calls or [] %}"
    "[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}{% endfor %}{{ eos_token }}"
    "{% endif %}{% endfor %}"
)
GRANITE = (
    "{% if tools %}<|im_start|>tools\n{{ tools | tojson(indent=4) }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if m.tool_calls %}<|im_start|>assistant\n<|tool_call|>["
    '{% for c in m.tool_calls %}{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
    "{% if not loop.last %}, {% endif %}{% endfor %}]<|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('user and model take turns') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Shows tools, and writes calls in a form that nobody knows.
UNKNOWN = QWEN.replace("<tool_call>\n", "<call>").replace("\n</tool_call>", "</call>")
# Shows tools, and loses their results.
FORGETFUL = QWEN.replace("<tool_response>\n{{ m.content }}\n</tool_response>", "<tool_response></tool_response>")
# Shows tools, and spoils arguments.
SPOILING = QWEN.replace("c.function.arguments | tojson", "c.function.arguments | tojson | lower | replace('1', '2')")


@dataclass(frozen=True)
class Family:
    name: str  # of the format that must be found
    template: str
    specials: tuple[str, ...] = ()
    is_parallel: bool = True
    tags: tuple[str, str] | None = None


FAMILIES = {
    "qwen": Family("hermes", QWEN),
    "qwen_tokens": Family("hermes", QWEN, ("<tool_call>", "</tool_call>")),
    "qwen3": Family("hermes", QWEN3, tags=("<think>", "</think>")),
    "qwen3_tokens": Family("hermes", QWEN3, ("<think>", "</think>"), tags=("<think>", "</think>")),
    "r1": Family("hermes", R1, tags=("<think>", "</think>")),
    "llama3": Family("llama3", LLAMA3, is_parallel=False),
    "mistral": Family("mistral", MISTRAL, ("[TOOL_CALLS]", "[INST]", "[/INST]")),
    "mistral_named": Family("mistral", MISTRAL_NAMED, ("[TOOL_CALLS]", "[ARGS]", "[INST]", "[/INST]")),
    "granite": Family("granite", GRANITE, ("<|tool_call|>",)),
    "granite_text": Family("granite", GRANITE),
    "gemma": Family("gemma", GEMMA, ("<start_of_turn>", "<end_of_turn>"), is_parallel=False),
    "generic": Family("generic", CHATML),
}


class FamilyTokenizer(ByteTokenizer):
    """ByteTokenizer with more special tokens, from id 260 on."""

    def __init__(self, specials: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.more = specials
        self.vocab_size = 260 + len(specials)
        self.special_ids = ByteTokenizer.special_ids | frozenset(range(260, self.vocab_size))
        self.stop_ids = ByteTokenizer.stop_ids | {260 + i for i, text in enumerate(specials) if text == "<end_of_turn>"}

    def encode(self, text, *, special=False, add_bos=None, add_eos=None, after="nothing") -> list[int]:
        if not special:
            return super().encode(text, add_bos=add_bos, add_eos=add_eos)
        ids: list[int] = []
        while text:
            at, more = min(((i, s) for s in self.more if (i := text.find(s)) >= 0), default=(len(text), ""))
            ids += super().encode(text[:at], special=True, add_bos=add_bos, add_eos=add_eos)
            if more:
                ids.append(260 + self.more.index(more))
            text = text[at + len(more) :]
        return ids

    def token_bytes(self, token: int) -> bytes:
        return self.more[token - 260].encode() if token >= 260 else super().token_bytes(token)

    def token_to_id(self, text: str) -> int | None:
        return 260 + self.more.index(text) if text in self.more else super().token_to_id(text)
