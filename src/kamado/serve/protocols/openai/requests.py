"""What the parameters of OpenAI's bodies mean: limits, stop strings, tool choice, reasoning, and a chat as a whole."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from ...faults import RequestError
from ...models.answer_options import body_options
from ...models.contract import ChatRequest, Think, ToolChoice, Truncation
from ..thinking import EFFORTS
from ..tools import choose, tools_of
from .answer_forms import form_of
from .bodies import ChatBody, ChatReasoning, Shared
from .messages import to_messages

T = TypeVar("T")


def stops_of(stop: str | list[str] | None) -> tuple[str, ...] | None:
    """Stop sequences as a tuple; empty ones end nothing."""
    return tuple(text for text in ([stop] if isinstance(stop, str) else stop or ()) if text) or None


def tool_choice_of(choice: Any, names: list[str], parallel: bool | None) -> ToolChoice:
    """Which tools may be called. Chat's shapes and those of /v1/responses."""
    if choice is None or choice in ("auto", "none"):
        return choose(choice or "auto", names, parallel)
    if choice == "required":
        RequestError.when(not names, "tool_choice is required, but there are no tools", param="tool_choice")
        return choose("required", names, parallel)
    if isinstance(choice, dict):
        if choice.get("type") == "function":
            name = _name_of(choice)
            if name in names:
                return choose("required", {name}, parallel, is_bound=True)
            raise RequestError(f"tool_choice names {str(name)[:80]!r}, which is none of the tools", param="tool_choice")
        if choice.get("type") == "allowed_tools":
            return _allowed(choice.get("allowed_tools", choice), names, parallel)
    raise RequestError(
        'tool_choice must be "auto", "none", "required", a function or allowed_tools', param="tool_choice"
    )


def _name_of(tool: Any) -> Any:
    """The name of a function as either endpoint writes it."""
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    return function.get("name") if isinstance(function, dict) else None


def _allowed(spec: Any, names: list[str], parallel: bool | None) -> ToolChoice:
    tools = spec.get("tools") if isinstance(spec, dict) else None
    mode = spec.get("mode") if isinstance(spec, dict) else None
    if not isinstance(tools, list) or mode not in ("auto", "required"):
        raise RequestError("allowed_tools needs a mode, auto or required, and tools", param="tool_choice")
    allowed = set()
    for tool in tools:
        name = _name_of(tool)
        RequestError.when(
            name not in names, f"allowed_tools has {str(name)[:80]!r}, which is none of the tools", param="tool_choice"
        )
        allowed.add(str(name))
    RequestError.when(not allowed, "allowed_tools allows none", param="tool_choice")
    return choose(mode, allowed, parallel, is_bound=True)


def think_of(effort: str | None, budget: int | None = None) -> Think:
    """How much to reason. `minimal` is not "none": some models have no way to reason less."""
    if effort is None:
        return Think(enabled=False if budget == 0 else None, max_tokens=budget or None)
    if effort == "none" or budget == 0:
        return Think(enabled=False)
    return Think(enabled=True, effort=EFFORTS[effort], max_tokens=budget)


def think_of_chat(body: ChatBody) -> Think:
    """The same for the chat endpoint, whose clients have several words for it. Raises RequestError."""
    reasoning = body.reasoning or ChatReasoning()
    effort = _first(body.reasoning_effort, reasoning.effort)
    budget = _first(body.thinking_budget, reasoning.max_tokens)
    enabled = _first(body.enable_thinking, reasoning.enabled)
    if body.thinking is not None:
        budget = _first(budget, body.thinking.budget_tokens)
        enabled = _first(enabled, {"enabled": True, "disabled": False}.get(body.thinking.type))
    think = think_of(effort, budget)
    if enabled is None or think.enabled == enabled:
        return think
    RequestError.when(
        think.enabled is not None, "one parameter asks for reasoning and another for none", param="reasoning_effort"
    )
    return replace(think, enabled=enabled)


def _first(*given: T | None) -> T | None:
    """The first that is given at all."""
    return next((value for value in given if value is not None), None)


def thinking_parameters(body: ChatBody) -> list[str]:
    """Those of a body's parameters that ask for reasoning."""
    names = ("reasoning_effort", "thinking_budget", "reasoning", "thinking", "enable_thinking")
    return [name for name in names if getattr(body, name) is not None]


def hides_reasoning(body: ChatBody) -> bool:
    """Whether the answer is to be shown without its reasoning."""
    is_excluded = body.reasoning is not None and bool(body.reasoning.exclude)
    return is_excluded or body.include_reasoning is False or body.reasoning_format == "hidden"


def limit_of(*values: int | None, param: str = "max_tokens", least: int = 1) -> int | None:
    """Tokens that an answer may have, by whatever name; -1: as many as fit; None: not said. Raises RequestError when
    two differ."""
    given = {value for value in values if value is not None}
    RequestError.when(len(given) > 1, f"{param} and another name of it differ: give one", param=param)
    limit = given.pop() if given else None
    RequestError.when(limit == 0 and least, f"{param} must be 1 or more, or -1 for as many as fit", param=param)
    return limit


def _check_template_wishes(body: ChatBody) -> None:
    RequestError.when(
        body.add_generation_prompt is False and not body.continue_final_message,
        "add_generation_prompt: false needs continue_final_message: true: else the model would go on with your own "
        "message",
        param="add_generation_prompt",
    )
    RequestError.when(
        body.add_generation_prompt and body.continue_final_message,
        "add_generation_prompt and continue_final_message contradict each other",
        param="add_generation_prompt",
    )


def check_stream_options(body: Shared) -> None:
    """Raises RequestError for options of a stream that was not asked for."""
    RequestError.when(
        body.stream_options is not None and not body.stream,
        "stream_options needs stream to be true",
        param="stream_options",
    )


def chat_request(
    body: ChatBody, *, owner: str, asker: str, request_id: str, max_schema_bytes: int, max_image_bytes: int
) -> ChatRequest:
    """What the chat endpoint's body asks for. Raises RequestError naming the parameter."""
    RequestError.when(
        body.top_logprobs and not body.logprobs, "top_logprobs needs logprobs to be true", param="top_logprobs"
    )
    check_stream_options(body)
    tools = tools_of(body.tools, max_schema_bytes)
    messages, is_task = to_messages(body.messages, max_image_bytes=max_image_bytes)
    RequestError.when(
        body.continue_final_message and messages[-1].role != "assistant",
        "continue_final_message needs the last message to be the assistant's",
        param="continue_final_message",
    )
    _check_template_wishes(body)
    is_flex = body.service_tier == "flex"
    truncation: Truncation = "drop_oldest" if body.truncation == "auto" else "refuse"
    return ChatRequest(
        messages=messages,
        tools=tools,
        tool_choice=tool_choice_of(body.tool_choice, [tool.name for tool in tools], body.parallel_tool_calls),
        output=form_of(body, max_schema_bytes),
        think=think_of_chat(body),
        options=body_options(
            body,
            max_tokens=limit_of(body.max_completion_tokens, body.max_tokens, body.n_predict),
            stop=stops_of(body.stop),
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            background=is_flex or (is_task if body.background is None else body.background),
            owner=owner,
        ),
        n=body.n or 1,
        continue_last=bool(body.continue_final_message),
        template_options=body.chat_template_kwargs or {},
        truncation="drop_middle" if body.transforms else truncation,
        deadline_seconds=body.deadline_seconds,
        asker=asker,
        request_id=request_id,
    )
