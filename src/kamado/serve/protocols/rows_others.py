"""What becomes of the parameters of Anthropic's and Ollama's endpoints."""

from __future__ import annotations

from typing import Any

from ..http.parameters import Row, one_of
from .row_words import happens, honoured, idle, left_out, part, refused, typed

# --- Anthropic --------------------------------------------------------------------------------------------------------

MESSAGES, COUNT = ("POST /v1/messages",), ("POST /v1/messages/count_tokens",)
_BOTH = (*MESSAGES, *COUNT)
_NOT_HERE = "it is run by Anthropic's servers or made for its own models; give a tool with name and input_schema"
_TOOL: dict[str, Any] = {"name": "look", "input_schema": {"type": "object"}}
_SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}


def _keeps_all(value: Any) -> bool:
    """Whether a context_management changes no prompt: no edits, or thinking that is all kept."""
    edits = value.get("edits") if isinstance(value, dict) else None
    return (
        isinstance(value, dict)
        and not set(value) - {"edits"}
        and (not edits or isinstance(edits, list))
        and all(
            isinstance(edit, dict)
            and edit.get("type") == "clear_thinking_20251015"
            and edit.get("keep") in ("all", {"type": "all"})
            for edit in edits or ()
        )
    )


def _clears_thinking(value: Any) -> bool:
    """Whether a context_management takes out earlier thinking and nothing else."""
    edits = value.get("edits") if isinstance(value, dict) and set(value) == {"edits"} else None
    if not isinstance(edits, list) or len(edits) != 1 or not isinstance(edits[0], dict):
        return False
    keep = edits[0].get("keep")
    number = keep.get("value") if isinstance(keep, dict) and keep.get("type") == "thinking_turns" else None
    is_number = isinstance(number, int) and not isinstance(number, bool) and number >= 0
    return edits[0].get("type") == "clear_thinking_20251015" and (keep is None or is_number)


def _marked(where: str) -> Any:
    """A body with a `scope` in a cache_control at `where`."""

    def within(value: Any) -> dict[str, Any]:
        mark = {"type": "ephemeral"} | ({} if value is None else {"scope": value})
        text = {"type": "text", "text": "a", "cache_control": mark}
        if where == "system":
            return {"system": [text]}
        if where == "tools":
            return {"tools": [{**_TOOL, "cache_control": mark}]}
        if where == "messages":
            return {"messages": [{"role": "user", "content": [text]}]}
        if where == "results":
            use = {"type": "tool_use", "id": "t1", "name": "look", "input": {}}
            result = {"type": "tool_result", "tool_use_id": "t1", "content": [text]}
            said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": [use]}]
            return {"tools": [_TOOL], "messages": [*said, {"role": "user", "content": [result]}]}
        return {"cache_control": mark}

    return within


def _with_tools(value: Any) -> dict[str, Any]:
    return {"tools": [_TOOL, *([] if value is None else [value])]}


def _a_tool_with(name: str) -> Any:
    return lambda value: {"tools": [_TOOL if value is None else {**_TOOL, name: value}]}


_SCOPE = "prefixes are shared within one API key, always"
_ANTHROPIC = [
    *honoured(_BOTH, "model messages system tools tool_choice thinking output_config cache_control"),
    *honoured(_BOTH, "output_format", "the older name of output_config.format"),
    *honoured(MESSAGES, "max_tokens stream stop_sequences temperature top_k top_p metadata service_tier"),
    *part(MESSAGES, "max_tokens", "0", "the prompt is computed and cached, nothing is answered"),
    *part(_BOTH, "output_config", "effort", "xhigh and max as high"),
    *honoured(_BOTH, "speed", "standard"),
    *left_out(
        _BOTH, "speed", "there is one speed here, the standard one", "fast", part="fast", takes=one_of("fast")
    ),
    *left_out(
        _BOTH, "context_management", "all thinking is kept: nothing changes",
        {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}, {"edits": []},
        part="edits that change nothing", takes=_keeps_all,
    ),
    *[
        Row(
            endpoint, "context_management", "honoured", "thinking of earlier turns is taken out of the prompt",
            part="clear_thinking", takes=_clears_thinking,
        )
        for endpoint in _BOTH
    ],
    *refused(
        _BOTH, "context_management", "contexts are not edited here: send the messages that the model is to see",
        {"edits": [{"type": "clear_tool_uses_20250919"}]},
        {"edits": [{"type": "clear_thinking_20251015", "keep": "most"}]},
        {"edits": [{"type": "compact_20260112"}]},
    ),
    *left_out(
        _BOTH, "output_config.task_budget",
        "an answer ends at max_tokens; budgets of several requests are the client's",
        {"type": "tokens", "total": 1000},
    ),
    *left_out(_BOTH, "mcp_servers", "this server calls no other: connect to MCP servers in the client", [{"url": "x"}]),
    *left_out(
        _BOTH, "tools", _NOT_HERE, _SEARCH, {"type": "bash_20250124", "name": "bash"},
        {"type": "text_editor_20250728", "name": "str_replace_based_edit_tool"}, {"type": "mcp_toolset", "name": "m"},
        {"type": "code_execution_20250825", "name": "code_execution"}, {"type": "tool_search_tool_regex_20251119",
        "name": "s"},
        path="tools[]", part="hosted", takes=typed(but=("custom",)), within=_with_tools,
    ),
    *refused(
        _BOTH, "tool_choice", "there is no such tool", {"type": "tool", "name": "web_search"}, part="hosted",
        by_code=True,
        within=lambda v: {"tools": [_TOOL, _SEARCH], "tool_choice": v},
    ),
    *left_out(
        _BOTH, "tools.defer_loading", "there is no tool search here: the model sees all tools from the beginning", True,
        path="tools[].defer_loading", within=_a_tool_with("defer_loading"), takes=one_of(True, False),
    ),
    *left_out(
        _BOTH, "tools.allowed_callers", "only the model itself calls tools here", ["direct", "code_execution_20250825"],
        path="tools[].allowed_callers", within=_a_tool_with("allowed_callers"),
        takes=lambda v: isinstance(v, list) and "direct" in v and v != ["direct"], part="the model and others",
    ),
    *refused(
        _BOTH, "tools.allowed_callers", "only the model itself calls tools here (direct)", ["code_execution_20250825"],
        path="tools[].allowed_callers", within=_a_tool_with("allowed_callers"),
        takes=lambda v: isinstance(v, list) and bool(v) and "direct" not in v,
    ),
    *left_out(_BOTH, "cache_control.scope", _SCOPE, "global", within=_marked("")),
    *left_out(
        _BOTH, "system.cache_control.scope", _SCOPE, "global", path="system[].cache_control.scope",
        within=_marked("system"),
    ),
    *left_out(
        _BOTH, "tools.cache_control.scope", _SCOPE, "global", path="tools[].cache_control.scope",
        within=_marked("tools"),
    ),
    *left_out(
        _BOTH, "messages.cache_control.scope", _SCOPE, "global", path="messages[].content[].cache_control.scope",
        within=_marked("messages"),
    ),
    *left_out(
        _BOTH, "messages.content.cache_control.scope", _SCOPE, "global",
        path="messages[].content[].content[].cache_control.scope", within=_marked("results"),
    ),
    *left_out(_BOTH, "betas", "what is here needs no beta", ["context-management-2025-06-27"]),
    *left_out(_BOTH, "anthropic_beta", "what is here needs no beta", ["context-management-2025-06-27"]),
    *left_out(_BOTH, "anthropic_version", "there is one version of the API here", "vertex-2023-10-16"),
    *refused(MESSAGES, "container", "there are no containers here: this server runs no code", "c_1", {"id": "c_1"}),
    *refused(
        MESSAGES, "diagnostics", "there are none here: usage.cache_read_input_tokens says what was found in the cache",
        {"a": 1},
    ),
    *refused(MESSAGES, "inference_geo", "the answer is computed on this machine, in no other region", "us"),
]  # fmt: skip

# --- Ollama -----------------------------------------------------------------------------------------------------------

OLLAMA_CHAT, GENERATE = ("POST /api/chat",), ("POST /api/generate",)
EMBED, OLD_EMBED = ("POST /api/embed",), ("POST /api/embeddings",)
SHOW, PULL, COPY = ("POST /api/show",), ("POST /api/pull",), ("POST /api/copy",)
CREATE, DELETE = ("POST /api/create",), ("DELETE /api/delete",)
_ASKED = (*OLLAMA_CHAT, *GENERATE)
_NO_GPU = "there is no GPU back-end"
_NO_PICTURES = "this server makes no images"
_NO_FILES = "files are not taken over HTTP: put them where the server can read them, or pull the model"
_NO_QUANTISING = "models are served as they are; nothing is quantised here"

SAMPLING_OPTIONS = (
    "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "repeat_last_n", "presence_penalty",
    "frequency_penalty", "seed", "stop", "num_predict", "num_keep",
)  # fmt: skip


def option_rows(endpoints: tuple[str, ...], prefix: str) -> list[Row]:
    """Of Ollama's options and PARAMETERs, those that the machine or the model decides."""

    def name(option: str) -> str:
        return f"{prefix}.{option}"

    return [
        *happens(endpoints, name("numa"), (False,), "memory is placed by the system", "left out", True),
        *left_out(
            endpoints, name("num_batch"), "the plan chose it when the model was loaded; answers do not depend on it",
            512,
        ),
        *happens(endpoints, name("num_gpu"), (0, -1), _NO_GPU, "left out", 99, 1),
        *happens(endpoints, name("main_gpu"), (0,), _NO_GPU, "left out", 1),
        *happens(endpoints, name("low_vram"), (False,), _NO_GPU, "left out", True),
        *happens(
            endpoints, name("f16_kv"), (True,), "the KV cache is chosen when the server starts (--kv)", "refused",
            False,
        ),
        *happens(endpoints, name("logits_all"), (False,), "ask for logprobs instead", "left out", True),
        *happens(endpoints, name("vocab_only"), (False,), "models are loaded whole", "refused", True),
        *happens(
            endpoints, name("use_mmap"), (True,), "weights are mapped and packed as the plan says", "left out", False,
        ),
        *happens(
            endpoints, name("use_mlock"), (False,), "memory is not locked: the budget is kept instead", "left out",
            True,
        ),
        *happens(endpoints, name("embedding_only"), (False,), "what a model can do is in its file", "refused", True),
        *happens(
            endpoints, name("num_thread"), (0,),
            "threads belong to the server, for all requests together (kamado serve --threads)", "left out", 8,
        ),
        *happens(
            endpoints, name("draft_num_predict"), (0,), "nothing is drafted; answers would be the same", "left out", 4,
        ),
        *happens(endpoints, name("tfs_z"), (1,), "tail-free sampling is not offered; 1 means off", "refused", 0.5),
        *happens(endpoints, name("typical_p"), (1,), "typical sampling is not offered; 1 means off", "refused", 0.5),
        *happens(endpoints, name("mirostat"), (0,), "mirostat is not offered; 0 means off", "refused", 1),
        *idle(endpoints, name("mirostat_tau"), "tunes mirostat, which is off", 5.0),
        *idle(endpoints, name("mirostat_eta"), "tunes mirostat, which is off", 0.1),
        *happens(endpoints, name("penalize_newline"), (True,), "a line break is a token like others", "refused", False),
    ]  # fmt: skip


def _honoured_options(endpoints: tuple[str, ...], prefix: str) -> list[Row]:
    notes = {
        "num_predict": "-1, -2 and 0: no limit",
        "num_ctx": "up to the context that the model was given; more is refused with both numbers",
        "num_keep": "nothing is dropped unless truncate asks for it, and then it is refused",
        "top_k": "0 and -1: off",
        "repeat_last_n": "tokens that penalties look at; -1: all; 0: no penalties",
    }
    names = [*SAMPLING_OPTIONS, "num_ctx"]
    return [row for name in names for row in honoured(endpoints, f"{prefix}.{name}", notes.get(name, ""))]


_OLLAMA = [
    *honoured(_ASKED, "model stream options format keep_alive think logprobs top_logprobs truncate shift"),
    *honoured(OLLAMA_CHAT, "messages tools"),
    *honoured(GENERATE, "prompt suffix system raw images"),
    *honoured(GENERATE, "parse_special", "false: special tokens written in a raw prompt are plain text"),
    *refused(
        _ASKED, "shift", "an answer ends where the context ends; nothing of it is dropped to go on", True, part="true",
        takes=one_of(True),
    ),
    *refused(
        GENERATE, "template", "a template belongs to a model: make one with /api/create, or send raw: true",
        "{{ .Prompt }}",
    ),
    *refused(
        GENERATE, "context",
        "token histories are not taken back: send the conversation to /api/chat, which reuses what ",
        "was computed", [1, 2],
    ),
    *refused(GENERATE, "width", _NO_PICTURES, 64),
    *refused(GENERATE, "height", _NO_PICTURES, 64),
    *refused(GENERATE, "steps", _NO_PICTURES, 4),
    *_honoured_options(_ASKED, "options"),
    *option_rows((*_ASKED, *EMBED, *OLD_EMBED), "options"),
    *honoured(EMBED, "model input options keep_alive dimensions"),
    *honoured(EMBED, "truncate", "true by default"),
    *honoured(OLD_EMBED, "model prompt options keep_alive"),
    *honoured((*EMBED, *OLD_EMBED), "options.num_ctx"),
    *[
        row
        for name, value in (
            ("temperature", 0.5), ("top_k", 5), ("top_p", 0.5), ("min_p", 0.1), ("repeat_penalty", 1.1),
            ("repeat_last_n", 64), ("presence_penalty", 0.5), ("frequency_penalty", 0.5), ("seed", 1), ("stop", ["x"]),
            ("num_predict", 5), ("num_keep", 4),
        )
        for row in left_out((*EMBED, *OLD_EMBED), f"options.{name}", "an embedding is not sampled", value)
    ],
    *honoured((*SHOW, *PULL, *CREATE, *DELETE), "model"),
    *honoured((*SHOW, *PULL, *CREATE, *DELETE), "name", "older clients"),
    *honoured(SHOW, "verbose"),
    *[
        row
        for name, value in (("system", "x"), ("template", "x"), ("options", {"num_ctx": 1}))
        for row in refused(SHOW, name, "nothing is rendered here: show says what the model has", value)
    ],
    *honoured((*PULL, *CREATE), "stream"),
    *refused(PULL, "insecure", "what comes from elsewhere is always checked", True),
    *refused(PULL, "username", "there is no registry with users here", "u"),
    *refused(PULL, "password", "there is no registry with users here", "p"),
    *honoured(COPY, "source destination"),
    *honoured(CREATE, "from modelfile system template license parameters messages"),
    *option_rows(CREATE, "parameters"),
    *refused(CREATE, "files", _NO_FILES, {"a.gguf": "sha256:x"}),
    *refused(CREATE, "path", _NO_FILES, "/x"),
    *refused(CREATE, "adapters", "adapters are not supported", {"a": "b"}),
    *refused(CREATE, "quantize", _NO_QUANTISING, "q4_K_M"),
    *refused(CREATE, "quantization", _NO_QUANTISING, "q4_K_M"),
    *refused(CREATE, "renderer", "Ollama's built-in renderers are not here: give a template", "x"),
    *refused(
        CREATE, "parser",
        "Ollama's built-in parsers are not here: the model's own format is recognised from its template",
        "x",
    ),
    *refused(CREATE, "requires", "this is not Ollama: its version says nothing here", "0.1.0"),
    *refused(CREATE, "info", "a model's metadata is what its file says", {"a": 1}),
]  # fmt: skip

ROWS: tuple[Row, ...] = (*_ANTHROPIC, *_OLLAMA)
