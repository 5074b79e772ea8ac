"""One turn of a conversation: messages and tools to a prompt and a form, the model's output to events.

    turn = model.prepare_chat(messages, tools=tools)           # tokens, grammar; everything that can be refused
    for event in model.chat(turn, max_tokens=500):             # ReasoningDelta, TextDelta, ToolCall…, last Finish
        ...

`model.chat(messages, tools=tools)` is both in one. A turn is immutable and may be answered several times, also at once
(n > 1): the answers share the prompt's cache.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ...errors import ConstraintError, MemoryBudgetError, MissingPackageError, UsageError
from ..forms.grammar import Grammar
from ..forms.json_schema import CompiledSchema
from ..forms.stops import StopMatcher
from ..generation import Generation
from ..piece import Piece, whole_text
from .answer import AnswerEvents
from .chat import ChatEncoder
from .chat_types import (
    ContentEvent,
    Finish,
    FinishReason,
    Message,
    OutputFormat,
    ReasoningDelta,
    TextDelta,
    Think,
    TokenLogprob,
    Tool,
    ToolCallEnd,
    ToolChoice,
)
from .tool_format import ChatFormat
from .tool_format.argument_readers import Kinds
from .tool_format.call_grammar import AnswerGrammar
from .tool_format.channel_grammar import ChannelGrammar
from .tool_format.reasoning import BUDGET, ReasoningTags, reads, switch_of
from .tool_format.syntax import CallSyntax, without_marks
from .tool_format.template_turns import check_tools, make_turns, one_call_each

if TYPE_CHECKING:
    from ...text.tokenizer import Tokenizer
    from ..forms.constraint import Form

_OPTION = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_TAKEN = frozenset(("messages", "tools", "add_generation_prompt", "bos_token", "eos_token"))
_OF_PARSERS = ("is_reasoning", "names", "kinds", "is_required", "is_continued")  # fields of a Turn
_log = logging.getLogger("kamado.chat")
_ROLES = frozenset(("system", "user", "assistant", "tool"))


@dataclass(frozen=True, slots=True)
class Turn:
    """A prompt and what its answer must be. Made by `Model.prepare_chat`."""

    tokens: tuple[int, ...]
    form: Grammar | None
    tags: ReasoningTags | None  # bound to marks
    is_reasoning: bool  # the prompt has opened it
    syntax: CallSyntax | None  # bound to marks; None: no tools
    names: frozenset[str]
    is_required: bool = False  # a call must come
    is_continued: bool = False  # the answer's text has begun in the prompt
    think_tokens: int | None = None
    plain_tags: ReasoningTags | None = None
    schemas: Mapping[str, CompiledSchema] = field(default_factory=dict)  # of tools by name; "": of the answer's form
    compiled: Form | None = None  # of `form`
    starts: tuple[int, ...] = ()  # where in the prompt a turn begins, if the model keeps a record
    answer_at: int = 0  # of those, where what follows the last user's message begins

    @property
    def kinds(self) -> Mapping[str, Kinds]:
        """Of which types each tool's parameters may be, where arguments stand between tags."""
        return {name: schema.kinds for name, schema in self.schemas.items() if name}

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.tokens)


class TurnMaker:
    """Prepares turns for one model. Thread-safe."""

    def __init__(self, encoder: ChatEncoder, chat_format: ChatFormat, template_source: str) -> None:
        self._encoder = encoder
        self.format = chat_format
        self._switch = switch_of(template_source)
        self._has_budget = reads(template_source, BUDGET)
        self._has_warned = False

    def prepare(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool],
        tool_choice: ToolChoice,
        output: OutputFormat,
        think: Think,
        continue_last: bool,
        options: Mapping[str, Any],
        most_tokens: int | None,
        compile_form: Callable[[Grammar], Form],
        respell: Callable[[list[int], frozenset[str]], list[int]],
    ) -> Turn:
        """See `Model.prepare_chat`. `respell(tokens, names of tools)`: the same text with the ids that are cached."""
        chat = self.format
        _check_messages(messages, continue_last)
        offered = self._offered(tools, tool_choice)
        if offered and chat.tools is None:
            raise UsageError(f"this model cannot use tools: {chat.refusal}")
        is_continued = continue_last and messages[-1].text != ""
        if is_continued and output.kind != "text":
            raise UsageError("an answer that goes on from a given beginning cannot have a form")
        if is_continued and tool_choice.mode == "required":
            raise UsageError("an answer that goes on from a given beginning is text: no call can be required of it")
        if chat.channels is not None and chat.channels.joins_text:
            messages = one_call_each(messages)
        shown = tools if offered else ()
        turns, objects = make_turns(
            messages, shown, chat.tools, chat.syntax, chat.system_in_user, chat.reasoning, in_content=chat.in_content
        )
        chosen = self._options(options, think)
        if objects and chat.tools_name != "tools":
            chosen[chat.tools_name] = objects
        encoded = self._encoder.encode_turns(
            turns,
            tools=objects,
            options=chosen,
            continue_last=continue_last,
            most_tokens=most_tokens,
        )
        tags = chat.tags
        is_reasoning = tags is not None and encoded.tail.rstrip().endswith(tags.open)
        encoded = encoded.respelled(respell(encoded.tokens, frozenset(tool.name for tool in shown)))
        tokens = tuple(encoded.tokens)
        if tags is not None and is_reasoning and think.enabled is False:
            tokens += tuple(self._encoder.encode_literals(f"\n{tags.close}\n\n"))
            is_reasoning = False
        bound = chat.bound_tags
        syntax = chat.syntax.bind(chat.marks) if chat.syntax is not None and offered else None
        may_reason = bound if is_reasoning or think.enabled is not False else None
        if is_continued:
            bound = may_reason = None
            is_reasoning = False
            if syntax is not None and syntax.is_whole_message:
                syntax = None  # what began as text is no call
        kind: Callable[..., AnswerGrammar] = partial(AnswerGrammar, tags=may_reason, is_reasoning=is_reasoning)
        if chat.channels is not None:
            channels = chat.channels.bind(chat.marks)
            kind = partial(ChannelGrammar, channels, may_reason=think.enabled is not False, is_continued=is_continued)
        make = partial(
            kind,
            marks=chat.marks,
            syntax=syntax,
            tools=offered,
            is_required=tool_choice.mode == "required",
            is_parallel=tool_choice.parallel and chat.is_parallel,
            output=output,
        )
        try:
            form, compiled, schemas = _compiled(make, offered, output, compile_form)
        except (MissingPackageError, MemoryBudgetError) as error:
            if offered or output.kind != "text":
                raise
            self._warn_unbound(str(error))  # headers alone: answers that nobody asked to be bound
            form, compiled, schemas = None, None, {}
        return Turn(
            tokens=tokens,
            form=form,
            tags=bound,
            is_reasoning=is_reasoning,
            syntax=syntax,
            names=frozenset(tool.name for tool in offered),
            is_required=tool_choice.mode == "required",
            is_continued=is_continued,
            think_tokens=think.max_tokens if bound is not None else None,
            plain_tags=tags,
            compiled=compiled,
            starts=encoded.starts,
            answer_at=encoded.answer_at,
            schemas=schemas,
        )

    def _warn_unbound(self, reason: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            _log.warning(
                "the headers of this model's messages are not bound, so that some may be malformed: %s", reason
            )

    def _offered(self, tools: Sequence[Tool], choice: ToolChoice) -> tuple[Tool, ...]:
        """The tools that may be called."""
        check_tools(tools)
        unknown = sorted(choice.names - {tool.name for tool in tools})
        if unknown:
            raise UsageError(f"tool_choice names {unknown[0][:80]!r}, which is none of the tools")
        if choice.mode == "none":
            return ()
        if choice.mode == "required" and not tools:
            raise UsageError("tool_choice asks for a call, and there are no tools")
        return tuple(tool for tool in tools if not choice.names or tool.name in choice.names)

    def _options(self, options: Mapping[str, Any], think: Think) -> dict[str, Any]:
        for name in options:
            if not _OPTION.fullmatch(name) or name in _TAKEN:
                raise UsageError(f"{repr(name)[:80]} cannot be given to the chat template")
        chosen = dict(options)
        if think.enabled is not None and self._switch is not None:
            chosen.setdefault(self._switch, think.enabled)
        if self._has_budget and (think.enabled is False or think.max_tokens is not None):
            chosen.setdefault(BUDGET, 0 if think.enabled is False else think.max_tokens)
        effort: str | None = think.effort
        if self.format.channels is not None and (effort == "minimal" or think.enabled is False):
            effort = self.format.channels.off
        if effort is not None:
            chosen.setdefault("reasoning_effort", effort)
        return chosen


def _compiled(
    make: Callable[..., AnswerGrammar],
    tools: Sequence[Tool],
    output: OutputFormat,
    compile_form: Callable[[Grammar], Form],
) -> tuple[Grammar | None, Form | None, Mapping[str, CompiledSchema]]:
    """The answer's grammar. Schemas that are not strict and that the compiler refuses are left open, only those."""
    maker = make()
    form = maker.build()
    if form is None:
        return None, None, {}
    try:
        return form, compile_form(form), maker.schemas
    except ConstraintError as error:
        loose = {tool.name for tool in tools if not tool.strict}
        if output.kind == "json_schema" and not output.is_strict:
            loose.add("")
        loose &= maker.schemas.keys()
        if not loose:
            raise
        reasons = {}
        for name in loose:
            schema = maker.schemas[name]
            try:
                compile_form(Grammar("json_schema", schema.lark, schema, schema.is_plain))
            except ConstraintError as own:
                reasons[name] = str(own)
        maker = make(loosened=reasons or dict.fromkeys(loose, str(error)))
        form = maker.build()
        assert form is not None
        return form, compile_form(form), maker.schemas


def _check_messages(messages: Sequence[Message], continue_last: bool) -> None:
    if not messages:
        raise UsageError("messages must not be empty")
    for i, message in enumerate(messages):
        if message.role not in _ROLES:
            raise UsageError(f"message {i} needs a role of {', '.join(sorted(_ROLES))}, not {repr(message.role)[:40]}")
    if continue_last and (messages[-1].role != "assistant" or messages[-1].tool_calls):
        raise UsageError("only an assistant's message without calls can be continued")


class TurnStream(AnswerEvents):
    """The events of one answer to a turn: reasoning, text and calls told apart."""

    def __init__(
        self,
        turn: Turn,
        chat: ChatFormat,
        tokenizer: Tokenizer,
        generation: Generation,
        *,
        stops: Sequence[str] = (),
        choice: int = 0,
        has_logprobs: bool = False,
        on_end: Callable[[Message], None] | None = None,
    ) -> None:
        """When the answer has ended or was stopped, `on_end` is called once with the message as far as it was taken."""
        self._on_end = on_end
        super().__init__(
            generation, tokenizer.token_bytes, choice=choice, has_logprobs=has_logprobs, schemas=turn.schemas
        )
        self._marks = chat.marks
        known = {name: getattr(turn, name) for name in _OF_PARSERS}
        self._parser = chat.parser(has_tools=turn.syntax is not None, **known, choice=choice)
        self._may_be_text = not turn.is_required  # what comes next; no protocol has a place for calls' logprobs
        self._stops = StopMatcher(stops)
        self._logprobs: list[TokenLogprob] = []  # of tokens whose text has not come out yet
        self.num_reasoning_tokens = 0

    def __next__(self) -> ContentEvent | Finish:
        try:
            event = super().__next__()
        except BaseException:
            self._end()
            raise
        if isinstance(event, Finish):
            self._end()
        return event

    def close(self) -> None:
        """Stops the answer. May be called again, and from another thread."""
        super().close()
        self._end()

    def __del__(self) -> None:
        if getattr(self, "_on_end", None) is not None:
            self.close()

    def _end(self) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(self.message)

    def _take(self, piece: Piece) -> None:
        if self._has_logprobs:
            self._logprobs.append(self._logprob(piece))
        text = self._marks.of_token(piece.token) + without_marks(whole_text(piece, self._token_bytes))
        events = self._parser.push(text)
        self.num_reasoning_tokens += self._parser.is_reasoning
        if piece.finish_reason is not None:
            events += self._parser.finish(is_cut=piece.finish_reason == "length")
        for event in events:
            self._show(event)
            if self._stops.is_stopped:
                self._generation.close()
                self._finish("stop_sequence")
                return
        if piece.finish_reason is not None:
            self._show_text(self._stops.flush())
            has_calls = self._parser.num_calls > 0
            self._finish("tool_calls" if has_calls and piece.finish_reason == "stop" else piece.finish_reason)

    def _show(self, event: ContentEvent) -> None:
        if isinstance(event, TextDelta):
            text = self._stops.push(event.text)
            if self._logprobs or text != event.text:
                self._show_text(text)
            else:
                self._ready.append(event)
            return
        self._show_text(self._stops.flush())
        if isinstance(event, ReasoningDelta):
            event = replace(event, logprobs=self._taken_logprobs())
        elif isinstance(event, ToolCallEnd):
            self._logprobs.clear()
            self._may_be_text = False
        self._ready.append(event)

    def _show_text(self, text: str) -> None:
        if text:
            self._ready.append(TextDelta(text, self._taken_logprobs(), self._choice))

    def _taken_logprobs(self) -> tuple[TokenLogprob, ...]:
        taken, self._logprobs = tuple(self._logprobs), []
        return taken

    def _finish(self, reason: FinishReason) -> None:
        if self._logprobs and self._may_be_text:
            self._ready.append(TextDelta("", self._taken_logprobs(), self._choice))
        self._ready.append(Finish(reason, self._stops.matched, self._choice))
        self._is_done = True
