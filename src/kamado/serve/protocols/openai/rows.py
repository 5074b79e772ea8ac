"""What becomes of the parameters of OpenAI's endpoints, and of what clients of other servers send to them."""

from __future__ import annotations

from typing import Any

from ...http.parameters import Row, one_of
from ..row_words import happens, honoured, idle, left_out, part, refused, typed

CHAT, COMPLETIONS = ("POST /v1/chat/completions",), ("POST /v1/completions",)
RESPONSES = ("POST /v1/responses", "POST /v1/responses/input_tokens")
EMBEDDINGS = ("POST /v1/embeddings",)
_TEXT = (*CHAT, *COMPLETIONS)
_ALL = (*_TEXT, *RESPONSES)

NO_SEARCH = "it runs on the servers of others; the model answers without it"
GBNF = (
    "GBNF grammars are llama.cpp's own and not read here yet; use response_format with the type json_schema, regex "
    "(pattern) or lark (grammar)"
)
# Tools that OpenAI's servers run, or that its own models were trained to call without a schema.
HOSTED = (
    "web_search", "web_search_2025_08_26", "web_search_preview", "web_search_preview_2025_03_11", "file_search",
    "code_interpreter", "image_generation", "mcp", "computer", "computer_use_preview", "computer-preview",
    "local_shell", "shell", "apply_patch", "tool_search", "custom", "programmatic_tool_calling",
)  # fmt: skip
# What OpenAI's answers can include and ours never have.
OTHERS_INCLUDABLE = (
    "web_search_call.action.sources", "web_search_call.results", "code_interpreter_call.outputs",
    "file_search_call.results", "computer_call_output.output.image_url", "message.input_image.image_url",
)  # fmt: skip
_FUNCTION: dict[str, Any] = {"type": "function", "name": "look", "parameters": {"type": "object"}}
_CHAT_FUNCTION: dict[str, Any] = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
_LABEL = "a label for its sender's own records"
_ROUTING = "there is one place to compute here, this machine"
_OFF = "is not offered; this sampler is off"


def _with_tools(value: Any) -> dict[str, Any]:
    return {"tools": [_FUNCTION, *([] if value is None else [value])]}


def _with_chat_tools(value: Any) -> dict[str, Any]:
    return {"tools": [_CHAT_FUNCTION, *([] if value is None else [value])]}


def _a_function_with(name: str) -> Any:
    return lambda value: {"tools": [_FUNCTION if value is None else {**_FUNCTION, name: value}]}


def _a_namespace_with(name: str) -> Any:
    tools = _a_function_with(name)
    return lambda value: {"tools": [{"type": "namespace", "name": "n", **tools(value)}]}


def _a_chat_function_with(name: str) -> Any:
    return lambda value: {"tools": [_CHAT_FUNCTION if value is None else {**_CHAT_FUNCTION, name: value}]}


def _choosing(value: Any) -> dict[str, Any]:
    return {"tools": [_FUNCTION, {"type": "web_search"}], "tool_choice": value}


def _in_history(name: str) -> Any:
    def within(value: Any) -> dict[str, Any]:
        own = {} if value is None else {name: value}
        said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", **own}]
        return {"messages": [*said, {"role": "user", "content": "go on"}]}

    return within


def _including(value: Any) -> dict[str, Any]:
    return {"include": [] if value is None else [value]}


_SHARED = [
    *honoured(_ALL, "model temperature top_p stream user"),
    *honoured(_TEXT, "frequency_penalty presence_penalty logit_bias logprobs n seed max_tokens"),
    *honoured(_TEXT, "response_format stream_options truncation"),
    *part(_TEXT, "max_tokens", "-1", "as many as fit"),
    *part(_TEXT, "max_tokens", "2.0", "whole numbers may be written so"),
    *honoured(_TEXT, "stop"),
    *part(_TEXT, "stop", "empty", "is as good as not given"),
    *refused(
        _TEXT, "stream_options", "answers are not padded here", {"include_obfuscation": True},
        part="include_obfuscation", by_code=True, within=lambda v: {"stream": True, "stream_options": v},
    ),
    # Of local servers: their names for what is here too.
    *honoured(_ALL, "top_k min_p repetition_penalty repeat_penalty repeat_last_n"),
    *honoured(_ALL, "background deadline_seconds keep_alive ttl"),
    *part(_ALL, "top_k", "-1", "off"),
    *honoured(_TEXT, "n_predict", "llama.cpp's word for max_tokens"),
    *honoured(_TEXT, "json_schema", "llama.cpp's short form of response_format"),
    *honoured(_TEXT, "guided_json guided_regex guided_choice structured_outputs", "vLLM's forms of response_format"),
    *honoured(_TEXT, "cache_salt", "parts one API key's users from each other, as prompt_cache_key does"),
    # Samplers that are not here.
    *happens(_TEXT, "mirostat", (0,), f"mirostat {_OFF}", "refused", 1),
    *idle(_TEXT, "mirostat_tau", "tunes mirostat, which is off", 5.0),
    *idle(_TEXT, "mirostat_eta", "tunes mirostat, which is off", 0.1),
    *happens(_TEXT, "typical_p", (1,), f"typical sampling {_OFF}", "refused", 0.5),
    *happens(_TEXT, "tfs_z", (1,), f"tail-free sampling {_OFF}", "refused", 0.5),
    *happens(_TEXT, "top_a", (0,), f"top-a sampling {_OFF}", "refused", 0.2),
    *happens(_TEXT, "top_n_sigma", (-1, 0), f"top-n-sigma sampling {_OFF}", "refused", 1.5),
    *happens(_TEXT, "xtc_probability", (0,), f"XTC {_OFF}", "refused", 0.5),
    *idle(_TEXT, "xtc_threshold", "tunes XTC, which is off", 0.1),
    *happens(_TEXT, "dry_multiplier", (0,), f"DRY {_OFF}", "refused", 0.8),
    *idle(_TEXT, "dry_base", "tunes DRY, which is off", 1.75),
    *idle(_TEXT, "dry_allowed_length", "tunes DRY, which is off", 2),
    *idle(_TEXT, "dry_penalty_last_n", "tunes DRY, which is off", -1),
    *idle(_TEXT, "dry_sequence_breakers", "tunes DRY, which is off", ["\n"]),
    *happens(_TEXT, "dynatemp_range", (0,), f"dynamic temperature {_OFF}", "refused", 0.5),
    *idle(_TEXT, "dynatemp_exponent", "tunes dynamic temperature, which is off", 1.0),
    *happens(_TEXT, "min_keep", (0,), "samplers keep one token at least, not more", "refused", 2),
    *refused(_TEXT, "samplers", "the order of samplers is fixed; the page on the engine has it", ["top_k"]),
    *happens(_TEXT, "length_penalty", (1,), "it belongs to beam search, which is not here", "refused", 0.5),
    *happens(_TEXT, "use_beam_search", (False,), "beam search is not here", "refused", True),
    *happens(_TEXT, "early_stopping", (False,), "it belongs to beam search, which is not here", "refused", True),
    # What ends an answer, and what of it is shown.
    *happens(_TEXT, "ignore_eos", (False,), "an answer ends where the model ends it", "refused", True),
    *happens(_TEXT, "min_tokens", (0,), "an answer ends where the model ends it", "refused", 5),
    *refused(_TEXT, "stop_token_ids", "give the texts that end an answer as stop", [2]),
    *refused(_TEXT, "bad_words", "give their token ids a logit_bias of -100", ["no"]),
    *refused(_TEXT, "allowed_token_ids", "hold the answer to a form with response_format", [1]),
    *happens(
        _TEXT, "skip_special_tokens", (True,), "special tokens are never part of an answer's text", "refused", False
    ),
    *idle(_TEXT, "spaces_between_special_tokens", "special tokens are never part of an answer's text", True),
    *happens(
        _TEXT, "include_stop_str_in_output", (False,), "a stop sequence is not part of an answer", "refused", True,
    ),
    *happens(_TEXT, "return_token_ids", (False,), "answers are text; use logprobs", "refused", True),
    *happens(_TEXT, "return_tokens", (False,), "answers are text; use logprobs", "refused", True),
    *happens(_TEXT, "return_tokens_as_token_ids", (False,), "tokens are shown as text", "refused", True),
    *refused(_TEXT, "prompt_logprobs", "/v1/completions with echo and logprobs scores a prompt", 1),
    *refused(_TEXT, "truncate_prompt_tokens", "a prompt that does not fit is refused, or use truncation: auto", 100),
    *happens(_TEXT, "n_probs", (0,), "use logprobs", "refused", 5),
    *happens(_TEXT, "post_sampling_probs", (False,), "log-probabilities are the model's own", "refused", True),
    *happens(_TEXT, "t_max_predict_ms", (0,), "use deadline_seconds", "refused", 1000),
    *refused(_TEXT, "lora", "adapters are not supported", [{"id": 0, "scale": 1.0}]),
    *refused(_TEXT, "grammar", GBNF, 'root ::= "a"'),
    *refused(_TEXT, "guided_grammar", GBNF, 'root ::= "a"'),
    *refused(_TEXT, "num_ctx", "the context is chosen when the server starts (--context)", 4096),
    *refused(_TEXT, "options", "they belong to Ollama's /api/chat; here they stand in the body itself", {"seed": 1}),
    *refused(_ALL, "extra_body", "its fields belong into the body itself", {"top_k": 4}),
    # Where and when it is computed, and what is told of it besides the answer.
    *happens(_TEXT, "cache_prompt", (True,), "an answer does not depend on what was kept", "left out", False),
    *left_out(_TEXT, "id_slot", "conversations have no numbered places here", 0, -1),
    *left_out(_TEXT, "n_keep", "nothing of a context is dropped to go on", 4),
    *left_out(_TEXT, "n_discard", "nothing of a context is dropped to go on", 4),
    *left_out(_TEXT, "timings_per_token", "the answer's kamado object has the times, once", True),
    *left_out(_TEXT, "return_progress", "a stream is silent, or has comments, until the prompt is computed", True),
    *left_out(_TEXT, "draft_model", "nothing is drafted; answers would be the same", "small"),
    *happens(_TEXT, "priority", (0,), "use background: true to go behind others", "left out", 5),
    *left_out(_TEXT, "request_id", "a request's id is the header x-request-id", "r-1"),
    *left_out(_ALL, "provider", _ROUTING, {"order": ["a"]}),
    *left_out(_ALL, "models", _ROUTING, ["other"]),
    *left_out(_ALL, "fallbacks", _ROUTING, ["other"]),
    *left_out(_ALL, "route", _ROUTING, "fallback"),
    *left_out(_ALL, "session_id", _LABEL, "s-1"),
    *left_out(_ALL, "trace", _LABEL, {"id": "t"}),
    *left_out(_ALL, "litellm_session_id", _LABEL, "s-1"),
    *left_out(_ALL, "litellm_trace_id", _LABEL, "t-1"),
    *left_out(_ALL, "litellm_call_id", _LABEL, "c-1"),
    *left_out(_ALL, "litellm_metadata", _LABEL, {"a": "b"}),
    *left_out(_ALL, "drop_params", "it speaks to a proxy", True),
    *left_out(_ALL, "tags", _LABEL, ["a"]),
]  # fmt: skip

_CHAT = [
    *honoured(CHAT, "messages max_completion_tokens top_logprobs tools tool_choice parallel_tool_calls"),
    *honoured(CHAT, "prompt_cache_key safety_identifier"),
    *part(CHAT, "max_completion_tokens", "-1", "as many as fit"),
    *honoured(CHAT, "reasoning_effort", "xhigh and max as high"),
    *happens(CHAT, "modalities", (["text"],), "no model here speaks", "refused", ["text", "audio"]),
    *part(CHAT, "service_tier", "auto, default, flex", "flex goes behind interactive requests"),
    *left_out(
        CHAT, "service_tier", "there is one tier here; flex goes behind interactive requests", "priority", "scale",
        takes=lambda v: isinstance(v, str) and v not in ("auto", "default", "flex"),
    ),
    *happens(
        CHAT, "store", (False,), "answers of this endpoint are not kept; /v1/responses keeps them", "left out", True,
    ),
    *left_out(CHAT, "metadata", "a label for stored answers, and none is stored here", {"a": "b"}),
    *happens(
        CHAT, "verbosity", ("medium",), "no model here has this switch: ask for short or long answers in the prompt",
        "left out", "low", "high",
    ),
    *refused(CHAT, "audio", "no model here speaks", {"voice": "alloy", "format": "wav"}),
    *refused(CHAT, "function_call", "it is deprecated: use tool_choice", "auto"),
    *refused(CHAT, "functions", "it is deprecated: use tools", [{"name": "f"}]),
    *refused(CHAT, "moderation", "no moderation model is here", {"model": "m"}),
    *left_out(
        CHAT, "prediction", "nothing is predicted ahead; the answer is the same", {"type": "content", "content": "x"},
    ),
    *left_out(CHAT, "web_search_options", NO_SEARCH, {}, {"search_context_size": "low"}),
    *left_out(CHAT, "search_parameters", NO_SEARCH, {"mode": "auto"}),
    *happens(CHAT, "enable_search", (False,), NO_SEARCH, "left out", True),
    *left_out(
        CHAT, "tools", f"{NO_SEARCH}; functions are called by you", {"type": "web_search"},
        {"type": "openrouter:web_search"}, {"type": "custom", "custom": {"name": "x"}},
        path="tools[]", part="hosted", takes=typed(but=("function",)), within=_with_chat_tools,
    ),
    *refused(
        CHAT, "tool_choice", "this tool is not here", {"type": "web_search"}, {"type": "custom",
        "custom": {"name": "x"}},
        part="hosted", takes=typed(but=("function", "allowed_tools")),
        within=lambda v: {"tools": [_CHAT_FUNCTION], "tool_choice": v},
    ),
    # Histories have what other servers answered.
    *left_out(
        CHAT, "messages.reasoning_details", "reasoning is read back from reasoning_content, reasoning or thinking",
        [{"type": "reasoning.text", "text": "hm"}], path="messages[].reasoning_details",
        within=_in_history("reasoning_details"),
    ),
    *left_out(
        CHAT, "messages.provider_specific_fields", _LABEL, {"signature": "s"},
        path="messages[].provider_specific_fields", within=_in_history("provider_specific_fields"),
    ),
    *left_out(
        CHAT, "messages.cache_control", "every beginning is cached, marked or not", {"type": "ephemeral"},
        path="messages[].cache_control", within=_in_history("cache_control"),
    ),
    *[
        row
        for name, value in (
            ("id", "m-1"), ("metadata", {"a": "b"}), ("timestamp", 1), ("created_at", 1), ("signature", "s"),
            ("reasoning_signature", "s"), ("extra_content", {"google": {}}), ("usage", {"total_tokens": 3}),
        )
        for row in left_out(
            CHAT, f"messages.{name}", _LABEL, value, path=f"messages[].{name}", within=_in_history(name)
        )
    ],
    *left_out(
        CHAT, "messages.thinking_blocks", "reasoning is read back from reasoning_content, reasoning or thinking",
        [{"type": "thinking", "thinking": "hm"}], path="messages[].thinking_blocks",
        within=_in_history("thinking_blocks"),
    ),
    # Extensions.
    *honoured(CHAT, "thinking_budget chat_template_kwargs continue_final_message"),
    *honoured(CHAT, "reasoning", "OpenRouter's: effort, max_tokens, enabled, exclude"),
    *left_out(
        CHAT, "reasoning.summary", "reasoning is shown as it is, not summed up", "auto", "detailed",
    ),
    *left_out(
        CHAT, "tools.cache_control", "every beginning is cached, marked or not", {"type": "ephemeral"},
        path="tools[].cache_control", within=_a_chat_function_with("cache_control"),
    ),
    *honoured(CHAT, "include_reasoning", "false: reasoning is not shown"),
    *honoured(CHAT, "thinking", "type and budget_tokens, as in Anthropic's API"),
    *honoured(CHAT, "enable_thinking"),
    *honoured(CHAT, "reasoning_format", "auto, deepseek, parsed: reasoning is apart, as always; hidden: not shown"),
    *refused(
        CHAT, "reasoning_format", "reasoning never stands in the content", "none", "raw",
        part="none or raw", takes=one_of("none", "raw"),
    ),
    *honoured(CHAT, "usage", "OpenRouter's include: true is stream_options.include_usage"),
    *honoured(CHAT, "transforms", 'OpenRouter\'s "middle-out": messages of the middle go when a prompt does not fit'),
    *honoured(CHAT, "add_generation_prompt", "true; false goes with continue_final_message"),
    *happens(CHAT, "parse_tool_calls", (True,), "calls are always read", "refused", False),
    *happens(CHAT, "reasoning_in_content", (False,), "reasoning never stands in the content", "refused", True),
    *happens(CHAT, "reasoning_split", (True,), "reasoning never stands in the content", "refused", False),
    *refused(CHAT, "chat_template", "a template belongs to a model: make one with /api/create", "{{ messages }}"),
    *refused(CHAT, "documents", "put them into the messages", [{"text": "x"}]),
    *refused(CHAT, "plugins", "nothing here changes prompts or answers on their way", [{"id": "web"}]),
    *refused(CHAT, "preset", "no presets are stored here", "p"),
    *refused(CHAT, "guardrails", "nothing here judges prompts or answers", ["g"]),
    *left_out(CHAT, "cache_control", "every beginning is cached, marked or not", {"type": "ephemeral"}),
    *left_out(CHAT, "chat_id", _LABEL, "c-1"),
    *left_out(CHAT, "background_tasks", "titles and tags are asked for by requests of their own", {"title": True}),
    *left_out(CHAT, "features", NO_SEARCH, {"web_search": True}),
    *left_out(CHAT, "tool_servers", NO_SEARCH, [{"url": "x"}]),
    *left_out(CHAT, "tool_ids", NO_SEARCH, ["t"]),
    *left_out(CHAT, "filter_ids", "filters belong to the page that sent them", ["f"]),
    *left_out(CHAT, "variables", "they were put into the prompt by the page that sent them", {"{{USER_NAME}}": "x"}),
    *left_out(CHAT, "model_item", _LABEL, {"id": "fake"}),
]  # fmt: skip

_COMPLETIONS = [
    *honoured(COMPLETIONS, "prompt best_of echo suffix"),
    *part(COMPLETIONS, "prompt", "token ids"),
    *refused(
        COMPLETIONS, "best_of", "all answers are returned, none is dropped", 3, part="more than n", by_code=True
    ),
    *honoured(COMPLETIONS, "parse_special", "special tokens written in a prompt become their ids, unless it is false"),
    *honoured(COMPLETIONS, "add_special_tokens", "false: no token is put before a prompt"),
    *left_out(COMPLETIONS, "store", "answers of this endpoint are not kept", True),
    *left_out(COMPLETIONS, "metadata", "a label for stored answers, and none is stored here", {"a": "b"}),
]  # fmt: skip

_EMBEDDINGS = [
    *honoured(EMBEDDINGS, "model input dimensions encoding_format user truncate keep_alive"),
    *happens(EMBEDDINGS, "normalize", (True,), "embeddings always have the length 1", "refused", False),
    *happens(EMBEDDINGS, "embd_normalize", (2,), "embeddings always have the length 1", "refused", 0),
    *happens(EMBEDDINGS, "add_special_tokens", (True,), "an encoder needs its marks", "refused", False),
    *refused(EMBEDDINGS, "input_type", "write the model's own prefix into the texts", "query"),
    *refused(EMBEDDINGS, "truncate_prompt_tokens", "use truncate: true", 100),
    *happens(EMBEDDINGS, "priority", (0,), "embeddings wait in no queue of their own", "left out", 5),
    *left_out(EMBEDDINGS, "provider", _ROUTING, {"order": ["a"]}),
    *left_out(EMBEDDINGS, "metadata", _LABEL, {"a": "b"}),
]  # fmt: skip

_RESPONSES = [
    *honoured(RESPONSES, "input instructions max_output_tokens metadata parallel_tool_calls previous_response_id"),
    *honoured(RESPONSES, "prompt_cache_key reasoning safety_identifier store stream_options text tool_choice tools"),
    *honoured(RESPONSES, "top_logprobs truncation include"),
    *part(RESPONSES, "max_output_tokens", "-1", "as many as fit"),
    *part(RESPONSES, "text", "format"),
    *part(RESPONSES, "include", "reasoning.encrypted_content"),
    *part(RESPONSES, "include", "message.output_text.logprobs"),
    *part(RESPONSES, "tools", "namespace", "each function of it under the namespace's name; calls come back with both"),
    *part(RESPONSES, "service_tier", "auto, default, flex", "flex goes behind interactive requests"),
    *honoured(RESPONSES, "service_tier"),
    *left_out(
        RESPONSES, "service_tier", "there is one tier here; flex goes behind interactive requests", "priority", "scale",
        part="others", takes=lambda v: isinstance(v, str) and v not in ("auto", "default", "flex"),
    ),
    *refused(
        RESPONSES, "background", "stream the response, or ask again for less", True, part="true", takes=one_of(True)
    ),
    *left_out(RESPONSES, "background_options", "responses are not made in the background", {"a": 1}),
    *left_out(RESPONSES, "client_metadata", _LABEL, {"x-codex-turn-metadata": "{}"}),
    *happens(
        RESPONSES, "text.verbosity", ("medium",),
        "no model here has this switch: ask for short or long answers in the prompt", "left out", "low", "high",
    ),
    *happens(
        RESPONSES, "reasoning.summary", ("auto", "none"), "reasoning is shown as it is, not summed up", "left out",
        "detailed", "concise",
    ),
    *happens(
        RESPONSES, "reasoning.generate_summary", ("auto",), "reasoning is shown as it is, not summed up", "left out",
        "detailed", "concise",
    ),
    *left_out(
        RESPONSES, "include", "it belongs to tools that are not here", *OTHERS_INCLUDABLE, path="include[]",
        part="of hosted tools", takes=one_of(*OTHERS_INCLUDABLE), within=_including,
    ),
    *refused(
        RESPONSES, "include", "reasoning.encrypted_content and message.output_text.logprobs can be included", "soul",
        path="include[]", part="others", within=_including,
        takes=lambda v: v not in ("reasoning.encrypted_content", "message.output_text.logprobs"),
    ),
    *left_out(
        RESPONSES, "tools", f"{NO_SEARCH}; functions are called by you", *({"type": kind,
        "name": "x"} for kind in HOSTED),
        path="tools[]", part="hosted", takes=typed(among=HOSTED), within=_with_tools,
    ),
    *left_out(
        RESPONSES, "tools.tools", f"{NO_SEARCH}; functions are called by you", {"type": "custom", "name": "x"},
        path="tools[].tools[]", takes=typed(among=HOSTED),
        within=lambda v: {
            "tools": [{"type": "namespace", "name": "n", "tools": [_FUNCTION, *([] if v is None else [v])]}]
        },
    ),
    *refused(
        RESPONSES, "tool_choice", "this tool is not here", {"type": "web_search"}, {"type": "custom", "name": "x"},
        part="hosted", takes=typed(among=HOSTED), within=_choosing,
    ),
    *left_out(
        RESPONSES, "tool_choice.tools", f"{NO_SEARCH}; functions are called by you", {"type": "web_search"},
        path="tool_choice.tools[]", takes=typed(among=HOSTED),
        within=lambda v: {
            "tools": [_FUNCTION],
            "tool_choice": {
                "type": "allowed_tools", "mode": "auto",
                "tools": [{"type": "function", "name": "look"}, *([] if v is None else [v])],
            },
        },
    ),
    *[
        row
        for name, value, why in (
            ("defer_loading", True, "there is no tool search here: the model sees all tools from the beginning"),
            ("output_schema", {"type": "object"}, "results are read as they come"),
            ("async", True, "calls are yours to make"),
            ("allowed_callers", ["direct", "programmatic"], "only the model itself calls tools here"),
        )
        for row in (
            *left_out(RESPONSES, f"tools.{name}", why, value, path=f"tools[].{name}", within=_a_function_with(name)),
            *left_out(
                RESPONSES, f"tools.tools.{name}", why, value, path=f"tools[].tools[].{name}",
                within=_a_namespace_with(name),
            ),
        )
    ],
    *happens(RESPONSES, "reasoning.mode", ("standard",), "there is one way to reason here", "left out", "pro"),
    *happens(
        RESPONSES, "reasoning.context", ("auto",), "earlier reasoning is what the input has of it", "left out",
        "current_turn", "all_turns",
    ),
    *refused(RESPONSES, "access_programs", "there are none here", [{"type": "x"}]),
    *refused(
        RESPONSES, "context_management", "nothing is compacted; truncation: auto may leave messages out",
        [{"type": "compaction", "compact_threshold": 1000}],
    ),
    *refused(RESPONSES, "conversation", "conversations are carried on by previous_response_id", "conv_1"),
    *refused(RESPONSES, "image", "no model here makes pictures", {"size": "auto"}),
    *left_out(RESPONSES, "max_tool_calls", "it counts calls of hosted tools, and none is here", 3),
    *refused(RESPONSES, "moderation", "no moderation model is here", {"model": "m"}),
    *refused(RESPONSES, "prompt", "no prompt templates are stored here", {"id": "p"}),
]  # fmt: skip

_CACHE = [
    *left_out(
        (*CHAT, *RESPONSES), "prompt_cache_options", "the prefix cache works by itself, for all prompts",
        {"mode": "x"},
    ),
    *left_out(
        (*CHAT, *RESPONSES), "prompt_cache_retention",
        "how long prefixes are kept depends on memory, not on the request", "24h", "in_memory",
    ),
]  # fmt: skip

TOKENIZE, DETOKENIZE = ("POST /tokenize",), ("POST /detokenize",)
_TOKENS = [
    *honoured(TOKENIZE, "model content prompt add_special add_special_tokens parse_special"),
    *honoured(TOKENIZE, "with_pieces return_token_strs"),
    *refused(
        TOKENIZE, "messages",
        "give a text; /v1/messages/count_tokens and /v1/responses/input_tokens count conversations",
        [{"role": "user", "content": "a"}],
    ),
    *honoured(DETOKENIZE, "model tokens"),
]  # fmt: skip

ROWS: tuple[Row, ...] = (*_SHARED, *_CHAT, *_COMPLETIONS, *_EMBEDDINGS, *_RESPONSES, *_CACHE, *_TOKENS)
