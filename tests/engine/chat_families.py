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
# Reasoning and results of the families whose arguments stand between tags; results go into a turn of their own.
_REASONED = "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}"
_TOLD = (
    "{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response><|im_end|>\n"
    "{% elif m.role == 'assistant' %}<|im_start|>assistant\n" + _REASONED + "CALLS<|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}"
)
_SHOWN = "{% if tools %}<|im_start|>system\nTools:\n" + _LISTED + "<|im_end|>\n{% endif %}{% for m in messages %}"
_ASKED = "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
# Words as Python writes them, lists and objects as JSON.
QWEN_XML = (
    _SHOWN
    + _TOLD.replace(
        "CALLS",
        "{% for c in m.tool_calls or [] %}{% if not loop.first or m.content %}{{ '\n' }}{% endif %}"
        "<tool_call>\n<function={{ c.function.name }}>\n{% for k, v in c.function.arguments.items() %}"
        "<parameter={{ k }}>\n{{ v | tojson if v is mapping or (v is sequence and v is not string) else v | string }}"
        "{{ '\n' }}</parameter>\n{% endfor %}</function>\n</tool_call>{% endfor %}",
    )
    + _ASKED
)
SEED = (
    "{% if tools %}<seed:bos>system\n" + _LISTED + "<seed:eos>{% endif %}"
    "{% if thinking_budget is defined %}<seed:bos>system\nBudget {{ thinking_budget }}<seed:eos>{% endif %}"
    "{% for m in messages %}<seed:bos>{{ m.role }}\n"
    "{% if m.reasoning_content %}<seed:think>{{ m.reasoning_content }}</seed:think>\n{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ '\n' }}<seed:tool_call>\n<function={{ c.function.name }}>\n"
    "{% for k, v in c.function.arguments.items() %}<parameter={{ k }}>{{ v | string }}</parameter>\n{% endfor %}"
    "</function>\n</seed:tool_call>{% endfor %}<seed:eos>{% endfor %}"
    "{% if add_generation_prompt %}<seed:bos>assistant\n"
    "{% if thinking_budget == 0 %}<seed:think>\n</seed:think>{% endif %}{% endif %}"
)
_GLM_TEXT = "{{ v if v is string else v | tojson }}"
GLM = (
    "[gMASK]<sop>{% if tools %}<|system|>\n" + _LISTED + "{% endif %}{% for m in messages %}"
    "{% if m.role == 'tool' %}<|observation|>\n<tool_response>\n{{ m.content }}\n</tool_response>"
    "{% elif m.role == 'assistant' %}<|assistant|>\n<think>{{ m.reasoning_content or '' }}</think>"
    "{% if m.content %}{{ '\n' + m.content }}{% endif %}"
    "{% for c in m.tool_calls or [] %}{{ '\n' }}<tool_call>{{ c.function.name }}\n"
    "{% for k, v in c.function.arguments.items() %}<arg_key>{{ k }}</arg_key>\n"
    "<arg_value>" + _GLM_TEXT + "</arg_value>\n{% endfor %}</tool_call>{% endfor %}"
    "{% else %}<|{{ m.role }}|>\n{{ m.content }}{% if enable_thinking is defined and not enable_thinking %}/nothink"
    "{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if enable_thinking is defined and not enable_thinking %}\n"
    "<think></think>{% endif %}{% endif %}"
)
# Thinking that the prompt opens or closes, no line breaks.
GLM_DENSE = (
    "[gMASK]<sop>{% if tools %}<|system|>" + _LISTED + "{% endif %}{% for m in messages %}"
    "{% if m.role == 'tool' %}<|observation|><tool_response>{{ m.content }}</tool_response>"
    "{% elif m.role == 'assistant' %}<|assistant|>"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}{% endif %}</think>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }}"
    "{% for k, v in c.function.arguments.items() %}<arg_key>{{ k }}</arg_key>"
    "<arg_value>" + _GLM_TEXT + "</arg_value>{% endfor %}</tool_call>{% endfor %}"
    "{% else %}<|{{ m.role }}|>{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>"
    "{{ '</think>' if enable_thinking is defined and not enable_thinking else '<think>' }}{% endif %}"
)
MINIMAX = (
    "]~!b[]~b]system\n{% if tools %}" + _LISTED + "{% endif %}[e~[\n"
    "{% for m in messages %}{% if m.role == 'tool' %}]~b]tool\n<response>{{ m.content }}</response>[e~[\n"
    "{% elif m.role == 'assistant' %}]~b]ai\n" + _REASONED + "{% if m.tool_calls %}{{ '\n' }}<minimax:tool_call>\n"
    '{% for c in m.tool_calls %}<invoke name="{{ c.function.name }}">\n'
    '{% for k, v in c.function.arguments.items() %}<parameter name="{{ k }}">'
    + _GLM_TEXT
    + "</parameter>\n{% endfor %}"
    "</invoke>\n{% endfor %}</minimax:tool_call>{% endif %}[e~[\n"
    "{% else %}]~b]{{ m.role }}\n{{ m.content }}[e~[\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}]~b]ai\n<think>\n{% endif %}"
)
MISTRAL_IDS = MISTRAL_NAMED.replace(
    "[ARGS]",
    "{% if c.id | length != 9 %}{{ raise_exception('ids have 9 characters') }}{% endif %}[CALL_ID]{{ c.id }}[ARGS]",
)
# Reasoning is a part of the content.
MINISTRAL = MISTRAL_NAMED.replace(
    "{{ m.content }}{% for c",
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{{ '[THINK]' + part.thinking + '[/THINK]' if part.type == 'thinking' else part.text }}{% endfor %}{% endif %}"
    "{% for c",
)
# Arguments of a Python call: JSON values, one call a line, results in a role of their own; and values as a template has
# them that knows no JSON, in a list.
OLMO = (
    "<|im_start|>system\nYou call functions.{% if tools %}<functions>{{ tools | tojson }}</functions>{% endif %}"
    "<|im_end|>\n{% for m in messages %}<|im_start|>{{ 'environment' if m.role == 'tool' else m.role }}\n"
    "{{ m.content }}{% if m.tool_calls %}<function_calls>{% for c in m.tool_calls %}{{ c.function.name }}("
    "{% for k, v in c.function.arguments.items() %}{{ k }}={{ v | tojson }}{% if not loop.last %}, {% endif %}"
    "{% endfor %}){% if not loop.last %}{{ '\n' }}{% endif %}{% endfor %}</function_calls>{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LFM = (
    _SHOWN.replace("Tools:\n", "List of tools: ") + "<|im_start|>{{ m.role }}\n"
    "{% if m.thinking %}<think>{{ m.thinking }}</think>{% endif %}{{ m.content }}"
    "{% if m.tool_calls %}<|tool_call_start|>[{% for c in m.tool_calls %}{{ c.function.name }}("
    "{% for k, v in c.function.arguments.items() %}{{ k }}="
    '{{ "\'" + v + "\'" if v is string else v | tojson if v is mapping else v | string }}'
    "{% if not loop.last %}, {% endif %}{% endfor %}){% if not loop.last %}, {% endif %}{% endfor %}"
    "]<|tool_call_end|>{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Show tools and write no call: the vocabulary has the token, or the template says what a call looks like. The second
# takes tools under another name.
LFM_UNWRITTEN = _SHOWN + (
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMOL = LFM_UNWRITTEN.replace("tools", "xml_tools").replace(
    "<|im_end|>\n{% endif %}",
    'Call:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
    "<|im_end|>\n{% endif %}",
    1,
)
# An answer is messages with headers: one call a turn, its tool named before the channel; reasoning only where calls
# follow. And several calls in a message, each with an id of ten characters.
HARMONY = (
    "<|start|>system<|message|>Reasoning: {{ reasoning_effort or 'medium' }}<|end|>"
    "{% if tools %}<|start|>developer<|message|>Tools:\n" + _LISTED + "<|end|>{% endif %}"
    "{% set last = namespace(tool='') %}{% for m in messages %}"
    "{% if m.role == 'tool' %}<|start|>functions.{{ last.tool }} to=assistant<|channel|>commentary<|message|>"
    "{{ m.content | tojson }}<|end|>"
    "{% elif m.role != 'assistant' %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>"
    "{% elif m.tool_calls %}"
    "{% if m.thinking and m.content %}{{ raise_exception('thinking or content') }}{% endif %}"
    "{% if m.thinking or m.content %}<|start|>assistant<|channel|>analysis<|message|>"
    "{{ m.thinking or m.content }}<|end|>{% endif %}{% set last.tool = m.tool_calls[0].function.name %}"
    "<|start|>assistant to=functions.{{ last.tool }}<|channel|>commentary json<|message|>"
    "{{ m.tool_calls[0].function.arguments | tojson }}<|call|>"
    "{% else %}{% if m.thinking and loop.last and not add_generation_prompt %}"
    "<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}"
    "<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
    "{{ '<|end|>' if add_generation_prompt or not loop.last else '<|return|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
SOLAR = (
    "<|begin|>system<|content|>{% if tools %}Tools:\n" + _LISTED + "{% endif %}<|end|>{% for m in messages %}"
    "{% if m.role == 'tool' %}<|begin|>tool<|tool_response|><|tool_response:begin|>{{ m.tool_call_id }}"
    "<|tool_response:result|>{{ m.content }}<|tool_response:end|><|end|>"
    "{% elif m.role != 'assistant' %}<|begin|>{{ m.role }}<|content|>{{ m.content }}<|end|>"
    "{% else %}{% if m.reasoning %}<|begin|>assistant<|think|>{{ m.reasoning }}<|end|>{% endif %}"
    "{% if m.tool_calls %}<|begin|>assistant<|tool_calls|>{% for c in m.tool_calls %}<|tool_call:begin|>{{ c.id }}"
    "<|tool_call:name|>{{ c.function.name }}<|tool_call:args|>{{ c.function.arguments | tojson }}<|tool_call:end|>"
    "{% endfor %}<|calls|>{% else %}<|begin|>assistant<|content|>{{ m.content }}<|end|>{% endif %}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{% if reasoning_effort == 'minimal' %}<|begin|>assistant<|think|><|end|>{% endif %}"
    "<|begin|>assistant{% endif %}"
)
# Bare keys in their order, texts between two of one token; results inside of the model's turn.
GEMMA4 = (
    "{% macro value(v) %}{% if v is string %}<|\"|>{{ v }}<|\"|>{% elif v is mapping %}{{ '{' }}"
    "{% for k, x in v | dictsort %}"
    "{{ k }}:{{ value(x) }}{% if not loop.last %},{% endif %}{% endfor %}{{ '}' }}{% elif v is boolean %}"
    "{{ 'true' if v else 'false' }}{% elif v is sequence %}[{% for x in v %}{{ value(x) }}"
    "{% if not loop.last %},{% endif %}{% endfor %}]{% else %}{{ v }}{% endif %}{% endmacro %}"
    "<|turn>system\n{% if enable_thinking %}<|think|>{% endif %}{% if tools %}" + _LISTED + "{% endif %}<turn|>\n"
    "{% set last = namespace(role='') %}{% for m in messages %}"
    "{% if m.role == 'tool' %}<|tool_response>response:{{ m.name }}{{ '{' }}value:{{ value(m.content) }}"
    "{{ '}' }}<tool_response|>"
    "{% else %}{% if last.role != 'tool' %}<|turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{% endif %}"
    "{% if m.tool_calls %}{% if m.reasoning_content %}<|channel>thought\n{{ m.reasoning_content }}\n<channel|>"
    "{% endif %}"
    "{{ m.content }}{% for c in m.tool_calls %}<|tool_call>call:{{ c.function.name }}{{ value(c.function.arguments) }}"
    "<tool_call|>{% endfor %}{% if loop.last %}<|tool_response>{% endif %}{% else %}{{ m.content }}<turn|>\n{% endif %}"
    "{% endif %}{% set last.role = m.role %}{% endfor %}"
    "{% if add_generation_prompt and last.role != 'tool' %}<|turn>model\n"
    "{% if not enable_thinking %}<|channel>thought\n<channel|>{% endif %}{% endif %}"
)
LISTS = GRANITE.replace("<|tool_call|>[", "<tool_calls>[").replace("]<|im_end|>", "]</tool_calls><|im_end|>")
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
    opening: str = ""  # what stands before an answer's text

    @property
    def opens_reasoning(self) -> bool:
        """Whether the prompt has opened reasoning where an answer begins."""
        return self.template.endswith(("<think>\n{% endif %}", "'<think>' }}{% endif %}")) or self.template == R1


GLM_TOKENS = (
    "<|user|>", "<|assistant|>", "<|observation|>", "<think>", "</think>", "<tool_call>", "</tool_call>", "<arg_key>",
    "</arg_key>", "<arg_value>", "</arg_value>",
)  # fmt: skip
_STOPS = frozenset(
    ("<end_of_turn>", "<|user|>", "<|observation|>", "[e~[", "<seed:eos>", "<|call|>", "<|return|>", "<|calls|>",
     "<|flush|>", "<turn|>", "<|tool_response>")
)  # fmt: skip
HARMONY_TOKENS = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|call|>", "<|return|>")
SOLAR_TOKENS = (
    "<|begin|>", "<|end|>", "<|content|>", "<|think|>", "<|tool_calls|>", "<|tool_call:begin|>", "<|tool_call:name|>",
    "<|tool_call:args|>", "<|tool_call:end|>", "<|calls|>", "<|flush|>", "<|tool_response|>",
)  # fmt: skip
GEMMA4_TOKENS = (
    "<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>",
    "<tool_response|>", '<|"|>', "<|think|>",
)  # fmt: skip

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
    "qwen_xml": Family("qwen_xml", QWEN_XML, tags=("<think>", "</think>")),
    "qwen_xml_tokens": Family(
        "qwen_xml", QWEN_XML, ("<tool_call>", "</tool_call>", "<think>", "</think>"), tags=("<think>", "</think>")
    ),
    "step": Family(
        "qwen_xml",
        QWEN_XML.replace("{% if not loop.first or m.content %}{{ '\n' }}{% endif %}", ""),
        tags=("<think>", "</think>"),
    ),
    "seed": Family(
        "seed",
        SEED,
        ("<seed:bos>", "<seed:eos>", "<seed:think>", "</seed:think>", "<seed:tool_call>", "</seed:tool_call>"),
        tags=("<seed:think>", "</seed:think>"),
    ),
    "glm": Family("glm", GLM, ("<|user|>", "<|assistant|>", "<|observation|>"), tags=("<think>", "</think>")),
    "glm_tokens": Family("glm", GLM_DENSE, GLM_TOKENS, tags=("<think>", "</think>")),
    "glm_dense": Family(
        "glm", GLM_DENSE, ("<|user|>", "<|assistant|>", "<|observation|>"), tags=("<think>", "</think>")
    ),
    "minimax": Family("minimax", MINIMAX, ("]~b]", "[e~["), tags=("<think>", "</think>")),
    "minimax_tokens": Family(
        "minimax",
        MINIMAX,
        ("]~b]", "[e~[", "<minimax:tool_call>", "</minimax:tool_call>", "<think>", "</think>"),
        tags=("<think>", "</think>"),
    ),
    "mistral_ids": Family("mistral", MISTRAL_IDS, ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]", "[INST]", "[/INST]")),
    "ministral": Family(
        "mistral",
        MINISTRAL,
        ("[TOOL_CALLS]", "[ARGS]", "[INST]", "[/INST]", "[THINK]", "[/THINK]"),
        tags=("[THINK]", "[/THINK]"),
    ),
    "lists": Family("lists", LISTS),
    "olmo": Family("pythonic", OLMO),
    "lfm": Family("pythonic", LFM, ("<|tool_call_start|>", "<|tool_call_end|>"), tags=("<think>", "</think>")),
    "lfm_tokens": Family(
        "pythonic",
        LFM,
        ("<|tool_call_start|>", "<|tool_call_end|>", "<think>", "</think>"),
        tags=("<think>", "</think>"),
    ),
    "lfm_unwritten": Family("pythonic", LFM_UNWRITTEN, ("<|tool_call_start|>", "<|tool_call_end|>")),
    "smol": Family("hermes", SMOL),
    "smol_tokens": Family("hermes", SMOL, ("<tool_call>", "</tool_call>")),
    "harmony": Family(
        "harmony",
        HARMONY,
        HARMONY_TOKENS,
        is_parallel=False,
        tags=("<|channel|>analysis<|message|>", "<|end|>"),
        opening="<|channel|>final<|message|>",
    ),
    "solar": Family("solar", SOLAR, SOLAR_TOKENS, tags=("<|think|>", "<|end|>"), opening="<|content|>"),
    "gemma4": Family("gemma4", GEMMA4, GEMMA4_TOKENS, tags=("<|channel>thought\n", "<channel|>")),
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
        self.stop_ids = ByteTokenizer.stop_ids | {260 + i for i, text in enumerate(specials) if text in _STOPS}

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
