"""Which format a model has: the one that its own template renders, proved by rendering a call and reading it back.

A template that shows tools to the model must render a call, two calls and a result so that our parser gives back
exactly what went in; otherwise tools are refused, with the reason. A template that ignores tools gets a prompted
format, and the same proof: instructions, call and result must arrive in the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ....errors import TemplateError, UsageError
from ....text.template_bounds import PassedLimitError
from ..chat_types import Message, TextPart, Tool, ToolCall, ToolCallDelta, ToolCallEnd, ToolCallStart
from . import gemma, gemma4, generic, glm, granite, harmony, hermes, lists, llama3, minimax, mistral, pythonic, qwen_xml
from .argument_readers import Kinds
from .channel_parser import ChannelParser
from .channels import HARMONY, Channels, find_channels
from .formats import ToolFormat
from .parser import AnswerParser, new_call_id
from .reasoning import PARTS, WAYS, ReasoningTags, find_tags, reads, tags_around
from .syntax import BareArguments, Call, CallSyntax, Marks, is_mark
from .template_turns import call_id, make_turns, tool_objects

if TYPE_CHECKING:
    from ....text.template import ChatTemplate
    from ....text.tokenizer import Tokenizer

_NATIVE = (
    hermes.FORMAT, qwen_xml.FORMAT, glm.FORMAT, minimax.FORMAT, qwen_xml.SEED, mistral.FORMAT, lists.FORMAT,
    pythonic.FORMAT, gemma4.FORMAT, gemma4.FIRST, granite.FORMAT, llama3.FORMAT,
)  # fmt: skip

# Variables in which templates take tools; SmolLM3's first version knows the second alone.
TOOLS_NAMES = ("tools", "xml_tools")
_NAME = "kamado_probe"
_WORD = "Kamadoprobe describes itself"
_RESULT = "kamado result 42"
_ARGUMENTS = {
    "text": 'é "q" \\ </x>\n', "list": [1, 2.5, True, None, "a"], "object": {"a": {}}, "whole": 3, "number": 2.5,
    "yes": True, "none": None,
}  # fmt: skip
_PROBE = Tool(_NAME, _WORD, {"type": "object", "properties": {"text": {"type": "string"}}})
_REASONING = "kamadoprobereasons"
_UNREADABLE = "the model's chat template writes tool calls in a form that this version cannot read back"
_DEAF = "the model's chat template renders no instructions and results of tools"
_OTHER = {"text": "second"}
_IDS = ("a1B2c3D4e", "f5G6h7I8j")


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """What is known of a model's chat: its reasoning tags, and its format of calls or why it has none."""

    tags: ReasoningTags | None
    tools: ToolFormat | None
    syntax: CallSyntax | None  # as text; bound to marks for each use
    marks: Marks
    refusal: str = ""  # why tools cannot be used
    system_in_user: bool = False  # the template takes no system message
    is_parallel: bool = False  # several calls a message were proved
    reasoning: str = WAYS[0]  # how the template takes reasoning of earlier messages
    in_content: bool = False  # the template shows tools and writes no calls: they go into the messages' text
    tools_name: str = "tools"  # the variable in which the template takes tools
    channels: Channels | None = None  # as text; an answer is several messages

    @property
    def name(self) -> str:
        """Of the tool format, or "none"."""
        return self.tools.name if self.tools else "none"

    def parser(
        self,
        *,
        has_tools: bool,
        names: frozenset[str] = frozenset(),
        kinds: Mapping[str, Kinds] | None = None,
        is_reasoning: bool = False,
        is_required: bool = False,
        is_continued: bool = False,
        choice: int = 0,
        new_id: Callable[[], str] = new_call_id,
    ) -> AnswerParser | ChannelParser:
        """What reads an answer; see AnswerParser."""
        if self.channels is not None:
            return ChannelParser(
                self.channels.bind(self.marks),
                names=names if has_tools else frozenset(),
                is_required=is_required,
                is_continued=is_continued,
                choice=choice,
                new_id=new_id,
            )
        syntax = self.syntax.bind(self.marks) if has_tools and self.syntax is not None else None
        if is_continued and syntax is not None and syntax.is_whole_message:
            syntax = None  # what began as text is no call
        return AnswerParser(
            tags=None if is_continued else self.bound_tags,
            is_reasoning=is_reasoning,
            syntax=syntax,
            names=names,
            kinds=kinds,
            is_required=is_required,
            is_continued=is_continued,
            choice=choice,
            new_id=new_id,
        )

    @property
    def bound_tags(self) -> ReasoningTags | None:
        """The tags with special tokens as marks."""
        return None if self.tags is None else self.tags.bind(self.marks.encode)


def choose_format(template: ChatTemplate, tokenizer: Tokenizer) -> ChatFormat:
    """The chat format of a model. Renders the template a few times with probes; never raises for what it finds.

    Raises BusyError when the probes of a template that needs the worker process found no turn there."""
    render = _Renderer(template)
    shows_tools = render.shows_tools()
    way, shown = render.reasoning()
    channels = find_channels(template.source, tokenizer)
    tags = channels.tags if channels is not None else find_tags(template.source, tokenizer, shown)
    tag_texts: tuple[str, ...] = (tags.open, tags.close) if tags else ()
    native: tuple[ToolFormat, ...] = _NATIVE
    if channels is not None:
        tag_texts = channels.texts()
        native = (harmony.FORMAT if channels.name == HARMONY.name else harmony.SOLAR,)
    marks = Marks(tokenizer, tag_texts)
    none = ChatFormat(tags, None, None, marks, reasoning=way, tools_name=render.tools_name, channels=channels)
    if shows_tools or channels is not None:
        proved: ChatFormat | None = None
        for tools in native:
            for syntax in tools.syntaxes:
                if proved is not None and (tools is not proved.tools or syntax.between is None):
                    continue  # another way to part calls may be the template's
                for one in syntax.variants():
                    marks = Marks(tokenizer, (*tag_texts, *one.texts()))
                    if isinstance(one.arguments, BareArguments) and not is_mark(marks.encode(one.arguments.quote)[0]):
                        continue
                    chosen = replace(none, tools=tools, syntax=one, marks=marks)
                    if not render.proves(chosen, tokenizer):
                        continue
                    if one.between is not None and render.proves(chosen, tokenizer, two=True):
                        return replace(chosen, is_parallel=True)
                    proved = proved or chosen
        if proved is not None:
            return proved
        return render.unwritten(none, tokenizer) or replace(none, refusal=render.because(_UNREADABLE))
    # Prompted calls are plain text, and their tags too: only the reasoning's may be tokens of their own.
    tools = gemma.FORMAT if "<start_of_turn>" in template.source else generic.FORMAT
    for system_in_user in (False, True):
        chosen = replace(none, tools=tools, syntax=tools.syntaxes[0], system_in_user=system_in_user)
        if render.proves(chosen, tokenizer):
            return replace(chosen, is_parallel=tools.syntaxes[0].between is not None)
    return replace(none, refusal=render.because(_DEAF))


class _Renderer:
    """Renders probes; a template that refuses one gives None, and the reason is kept. One that passed a limit is asked
    no more: probes are small, and each may take seconds."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._is_hopeless = False
        self._rendered: dict[str, str | None] = {}  # formats share most of their probes
        self.problem = ""
        self.tools_name = TOOLS_NAMES[0]

    def shows_tools(self) -> bool:
        """Whether the template tells the model of tools, in whatever variable it takes them (`tools_name`)."""
        user = [{"role": "user", "content": "Q"}]
        for name in TOOLS_NAMES:
            if name != TOOLS_NAMES[0] and not reads(self._template.source, name):
                continue
            self.tools_name = name
            self._rendered.clear()
            with_tools = self._render(user, tool_objects([_PROBE]))
            if with_tools is not None and _WORD in with_tools:
                return True
        self.tools_name = TOOLS_NAMES[0]
        return False

    def unwritten(self, none: ChatFormat, tokenizer: Tokenizer) -> ChatFormat | None:
        """The format of a template that shows tools and leaves calls out, where the form of calls is known: the
        template says it, or the vocabulary has its token."""
        question = Message("user", (TextPart("Q"),))
        answer = Message("assistant", tool_calls=(ToolCall(_IDS[0], _NAME, "{}"),))
        for tools in _NATIVE:
            if tools.unwritten is None:
                continue
            chosen = replace(none, tools=tools, syntax=tools.unwritten)
            base = self._turns(chosen, [question], [_PROBE], True)
            full = self._turns(chosen, [question, answer], [_PROBE], False)
            if base is None or full is None or full.count(_NAME) > base.count(_NAME):
                continue
            if tools.told not in base and tokenizer.token_to_id(tools.told) is None:
                continue
            tag_texts = (none.tags.open, none.tags.close) if none.tags else ()
            chosen = replace(chosen, marks=Marks(tokenizer, (*tag_texts, *tools.unwritten.texts())), in_content=True)
            if self.proves(chosen, tokenizer) and self.proves(chosen, tokenizer, two=True):
                return replace(chosen, is_parallel=True)
        return None

    def because(self, refusal: str) -> str:
        """A refusal with what the template itself said."""
        return refusal + (f" ({self.problem})" if self.problem else "")

    def reasoning(self) -> tuple[str, ReasoningTags | None]:
        """How the template takes the reasoning of an earlier message, and between which tags it writes it."""
        question = Message("user", (TextPart("Q"),))
        answer = Message("assistant", (TextPart("A"),), reasoning=_REASONING)
        problem = self.problem
        for way in WAYS:
            turns, _ = make_turns([question, answer], (), None, None, False, way)
            text = self._render(turns, None, False)
            tags = None if text is None else tags_around(text, _REASONING)
            # A template that knows no parts may write them out as data.
            if text is not None and _REASONING in text and (tags is not None or way != PARTS):
                return way, tags
        self.problem = problem  # that a template knows no parts says nothing of tools
        return WAYS[0], None

    def proves(self, chosen: ChatFormat, tokenizer: Tokenizer, *, two: bool = False) -> bool:
        """Whether a call (or two) and its result come through the template and back."""
        assert chosen.tools is not None
        assert chosen.syntax is not None
        ids = [call_id(given, chosen.tools) if chosen.syntax.id_first else given for given in _IDS]
        calls = [Call(_NAME, _ARGUMENTS, ids[0]), Call(_NAME, _OTHER, ids[1])][: 1 + two]
        question = Message("user", (TextPart("Q"),))
        answer = Message("assistant", tool_calls=tuple(ToolCall(c.id, c.name, _json(c)) for c in calls))
        results = [Message("tool", (TextPart(f"{_RESULT}{i}"),), tool_call_id=c.id, name=_NAME)
                   for i, c in enumerate(calls)]  # fmt: skip
        tools = [_PROBE]
        base = self._turns(chosen, [question], tools, True)
        full = self._turns(chosen, [question, answer], tools, False)
        told = self._turns(chosen, [question, answer, *results], tools, True)
        if base is None or full is None or told is None or _WORD not in base:
            return False
        if any(f"{_RESULT}{i}" not in told for i in range(len(calls))):
            return False
        begin = _common(base, full, chosen.tags)
        expected = chosen.syntax.render(calls)
        at = full.find(expected, max(0, begin - len(expected)))
        if at < 0:
            return False
        gap = full[begin:at]
        for tag in (chosen.tags.open, chosen.tags.close) if chosen.tags else ():
            gap = gap.replace(tag, "")
        if gap.strip():
            return False
        if chosen.tools.result_mark not in told.partition(expected)[2].partition(f"{_RESULT}0")[0]:
            return False
        rest = full[at + len(expected) :].lstrip()
        specials = [tokenizer.decode([i], skip_special=False) for i in tokenizer.stop_ids]
        if rest and not any(rest.startswith(text) for text in specials if text):
            return False
        return _parsed(chosen, expected) == [(c.name, c.arguments) for c in calls]

    def _turns(
        self, chosen: ChatFormat, messages: Sequence[Message], tools: Sequence[Tool], is_open: bool
    ) -> str | None:
        try:
            turns, objects = make_turns(
                messages,
                tools,
                chosen.tools,
                chosen.syntax,
                chosen.system_in_user,
                chosen.reasoning,
                in_content=chosen.in_content,
            )
        except UsageError as error:
            self.problem = str(error)[:200]
            return None
        return self._render(turns, objects, is_open)

    def _render(
        self, turns: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None, is_open: bool = True
    ) -> str | None:
        if self._is_hopeless:
            return None
        key = repr((turns, tools, is_open))
        if key not in self._rendered:
            self._rendered[key] = self._newly_rendered(turns, tools, is_open)
        return self._rendered[key]

    def _newly_rendered(
        self, turns: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None, is_open: bool
    ) -> str | None:
        try:
            more = {self.tools_name: tools} if tools and self.tools_name != TOOLS_NAMES[0] else {}
            return self._template.render(turns, tools=tools, add_generation_prompt=is_open, **more)
        except TemplateError as error:
            self._is_hopeless = isinstance(error, PassedLimitError)
            self.problem = str(error)[:200]
            return None


def _parsed(chosen: ChatFormat, text: str) -> list[tuple[str, Mapping[str, Any]]]:
    """The calls in `text`, read a character at a time."""
    import json

    assert chosen.syntax is not None
    parser = replace(chosen, tags=None).parser(has_tools=True, names=frozenset({_NAME}))
    calls: list[tuple[str, str]] = []
    num_ends = 0
    feed: list[Callable[[], Sequence[object]]] = [lambda c=c: parser.push(c) for c in chosen.marks.encode(text)]  # type: ignore[misc]
    for step in (*feed, parser.finish):
        for event in step():
            if isinstance(event, ToolCallStart):
                calls.append((event.name, ""))
            elif isinstance(event, ToolCallDelta):
                calls[-1] = (calls[-1][0], calls[-1][1] + event.arguments)
            elif isinstance(event, ToolCallEnd):
                num_ends += 1
            else:
                return []
    return [(name, json.loads(arguments)) for name, arguments in calls] if num_ends == len(calls) else []


def _json(call: Call) -> str:
    import json

    return json.dumps(call.arguments)


def _common(a: str, b: str, tags: ReasoningTags | None) -> int:
    """Length of the common beginning of two texts, without part of a tag."""
    size = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    for tag in (tags.open, tags.close) if tags else ():
        for part in range(1, len(tag)):
            if b.startswith(tag, max(0, size - part)) and size >= part:
                return size - part
    return size
