"""What becomes of the parameters of OpenAI's endpoints, and of what clients of other servers send to them."""

from __future__ import annotations

from typing import Any

from ...http.parameters import Row, one_of
from ..row_words import happens, honoured, idle, left_out, part, refused, typed
from .responses_rows import LABEL, NO_SEARCH, RESPONSES, RESPONSES_ROWS

CHAT, COMPLETIONS = ("POST /v1/chat/completions",), ("POST /v1/completions",)
EMBEDDINGS = ("POST /v1/embeddings",)
_TEXT = (*CHAT, *COMPLETIONS)
_ALL = (*_TEXT, *RESPONSES)

GBNF = (
    "GBNF grammars are llama.cpp's own and not read here yet; use response_format with the type json_schema, regex "
    "(pattern) or lark (grammar)"
)
_CHAT_FUNCTION: dict[str, Any] = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
_ROUTING = "there is one place to compute here, this machine"
_OFF = "is not offered; this sampler is off"


def _with_chat_tools(value: Any) -> dict[str, Any]:
    return {"tools": [_CHAT_FUNCTION, *([] if value is None else [value])]}


def _a_chat_function_with(name: str) -> Any:
    return lambda value: {"tools": [_CHAT_FUNCTION if value is None else {**_CHAT_FUNCTION, name: value}]}


def _in_history(name: str) -> Any:
    def within(value: Any) -> dict[str, Any]:
        own = {} if value is None else {name: value}
        said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", **own}]
        return {"messages": [*said, {"role": "user", "content": "go on"}]}

    return within


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
    *honoured(_ALL, "stop_on_repeat background deadline_seconds keep_alive ttl"),
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
    *left_out(_ALL, "session_id", LABEL, "s-1"),
    *left_out(_ALL, "trace", LABEL, {"id": "t"}),
    *left_out(_ALL, "litellm_session_id", LABEL, "s-1"),
    *left_out(_ALL, "litellm_trace_id", LABEL, "t-1"),
    *left_out(_ALL, "litellm_call_id", LABEL, "c-1"),
    *left_out(_ALL, "litellm_metadata", LABEL, {"a": "b"}),
    *left_out(_ALL, "drop_params", "it speaks to a proxy", True),
    *left_out(_ALL, "tags", LABEL, ["a"]),
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
        CHAT, "messages.provider_specific_fields", LABEL, {"signature": "s"},
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
            CHAT, f"messages.{name}", LABEL, value, path=f"messages[].{name}", within=_in_history(name)
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
    *left_out(CHAT, "chat_id", LABEL, "c-1"),
    *left_out(CHAT, "background_tasks", "titles and tags are asked for by requests of their own", {"title": True}),
    *left_out(CHAT, "features", NO_SEARCH, {"web_search": True}),
    *left_out(CHAT, "tool_servers", NO_SEARCH, [{"url": "x"}]),
    *left_out(CHAT, "tool_ids", NO_SEARCH, ["t"]),
    *left_out(CHAT, "filter_ids", "filters belong to the page that sent them", ["f"]),
    *left_out(CHAT, "variables", "they were put into the prompt by the page that sent them", {"{{USER_NAME}}": "x"}),
    *left_out(CHAT, "model_item", LABEL, {"id": "fake"}),
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
    *left_out(EMBEDDINGS, "metadata", LABEL, {"a": "b"}),
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

ROWS: tuple[Row, ...] = (*_SHARED, *_CHAT, *_COMPLETIONS, *_EMBEDDINGS, *RESPONSES_ROWS, *_CACHE, *_TOKENS)
