"""A loaded model: conversations and prompts in, answers out. Everything that the command line and servers need of the
engine for that is here and in what it is made of, loaded.py and measured.py."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Unpack, cast, overload

from ..errors import ContextOverflowError, UsageError
from ..options import AnswerOptions, check_options, sampling_from
from . import repeat_causes
from .cache.turn_starts import wanted_marks
from .forms.constraint import Form
from .forms.grammar import Grammar, Schema, make_grammar
from .forms.stops import check_stops
from .generation import Generation
from .measured import Measured
from .schedule.request import Request, TextStream
from .turns import asked
from .turns.asked import AnyMessage, AnyThink, AnyTool, EventOptions, FormOptions, PieceOptions, TurnOptions
from .turns.conversations import check_name, conversation_label
from .turns.final_text import FinalText
from .turns.tool_format import ChatFormat
from .turns.turn import Turn, TurnStream

_OF_TURNS = frozenset(TurnOptions.__annotations__)


class Model(Measured):
    """A model that was loaded with `kamado.load`. Its methods may be called from several threads; answers run together.

    Use it in a `with` statement, or `close()` it: its memory is given back then.
    """

    _original: Model | None = None  # of whom this is another name

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        form: Form | None = None,
        special: bool = False,
        **options: Unpack[PieceOptions],
    ) -> Generation:
        """Continues `prompt` (text, or token ids as they are) and yields one Piece a token, as soon as it is there.

        `options` are those of options.py: temperature, top_k, top_p, min_p, seed, penalties, logit_bias,
        max_tokens, stop, logprobs, background, owner. A value of sampling that is not given is the model file's own
        recommendation, else temperature 0.7, top_k 40, top_p 0.95 and everything else off. temperature 0 always takes
        the most likely token. See engine/schedule/sampler.py for the order.
        `max_tokens` None: until the model ends its turn or the context is full. `stop`: strings that end the answer and
        are not part of it. `logprobs` n (0 to 64): log-probabilities of the token and of the n most likely. `special`:
        special tokens written in a text prompt become their ids. `background`: interactive requests go first. `owner`:
        what was computed for one owner is never reused for another, in memory or on disk; "" is the local user.
        At most one of `schema` (JSON Schema: a dict, its text, or True for any JSON), `regex` (the whole answer matches
        it) and `grammar` (Lark, rule `start`) gives the answer's form: tokens that would break it are not picked. It
        holds for every answer that was not cut by `max_tokens` or a stop string. Compiling one may take two seconds;
        `form` is one that `prepare_form` made before.

        Raises, at once, UsageError for a value out of range, ContextOverflowError when the prompt leaves no room for
        one token, TokenizerError for text without a tokenizer, ConstraintError for a form that cannot be kept,
        MissingPackageError when that needs a package that is not there, ClosedError. While iterating: NativeError,
        ClosedError, ConstraintError; ExpertReadError and ModelChangedError when experts are streamed and cannot be.

            for piece in model.generate("Once upon a time", max_tokens=50):
                print(piece.text, end="", flush=True)
        """
        self._scheduler.check_process()
        given = self._taken_form(options)
        return self._answer(self._prompt_tokens(prompt, special), options, continues=True, form=form or given)

    def prepare_form(
        self, *, strict: bool = True, schema: Schema | None = None, regex: str | None = None, grammar: str | None = None
    ) -> Form | None:
        """What `generate` takes as `form`; None when nothing is given. Takes up to two seconds, the first time.

        `strict` False: what of a schema cannot be enforced is left open and stands in `form.schema`, not refused.
        Raises ConstraintError and MissingPackageError as `generate` does.
        """
        self._scheduler.check_process()
        return self._forms.prepared(schema, regex, grammar, strict)

    @overload
    def chat(
        self,
        messages: Sequence[AnyMessage],
        *,
        session: str | None = None,
        continue_last: bool = False,
        **options: Unpack[PieceOptions],
    ) -> Generation: ...

    @overload
    def chat(self, messages: Turn, *, choice: int = 0, **options: Unpack[AnswerOptions]) -> TurnStream: ...

    @overload
    def chat(
        self,
        messages: Sequence[AnyMessage],
        *,
        tools: Sequence[AnyTool],
        think: AnyThink | None = None,
        session: str | None = None,
        **options: Unpack[EventOptions],
    ) -> TurnStream: ...

    @overload
    def chat(
        self,
        messages: Sequence[AnyMessage],
        *,
        tools: None = None,
        think: AnyThink,
        session: str | None = None,
        **options: Unpack[EventOptions],
    ) -> TurnStream: ...

    def chat(
        self,
        messages: Sequence[AnyMessage] | Turn,
        *,
        tools: Sequence[AnyTool] | None = None,
        think: AnyThink | None = None,
        session: str | None = None,
        choice: int = 0,
        **options: Any,
    ) -> Generation | TurnStream:
        """Answers a conversation by the model's own chat template: `Message`s, or dictionaries of role and content.

        Without `tools` and `think` it yields one Piece a token, as `generate` does, reasoning in the text as the model
        writes it; where an answer is several messages (gpt-oss) or has a form, the final one's text. With one of them
        (also an empty list of tools) it yields events: ReasoningDelta, TextDelta, ToolCallStart, ToolCallDelta,
        ToolCallEnd, and Finish as the last; `message` is then the answer so far, to be appended. Special tokens inside
        contents are plain text to the model. The beginning that earlier turns share is not computed again.

        tools     functions that the model may call: `Tool`s, or dictionaries of name, description and parameters (JSON
                  Schema). Whatever the model does, calls are whole and their arguments match
        think     True, False, an effort ("low", …), or a `Think`, whose `max_tokens` ends the reasoning; reasoning is
                  switched where the model's template can
        continue_last   the last message is the assistant's, and the answer goes on from its end
        tool_choice, template_options, output   with `tools` or `think`: see TurnOptions
        schema, regex, grammar   the answer's form, as for `generate`; reasoning and calls before it are not bound by it
        session   a name under which the conversation outlives the process. When the answer has ended, `messages` and it
                  (as far as it came) are recorded there for `conversation` to return, and what was computed stays in
                  the prefix store
        choice    marks the events; only with what `prepare_chat` made in the place of messages
        options   those of `generate`; `stop` strings end the answer's text, not its reasoning or calls

        Raises TemplateError when the model has no template or it refuses the messages; UsageError for malformed ones,
        pictures, a name that cannot be used, and tools where the model cannot use them, with the reason; and what
        `generate` raises.

            answer = model.chat([{"role": "user", "content": "Why is the sky blue?"}])
            print("".join(piece.text for piece in answer))
        """
        self._scheduler.check_process()
        if isinstance(messages, Turn):
            for what, value in {"tools": tools, "think": think, "session": session}.items():
                UsageError.when(value is not None, f"{what} goes with messages; this prompt is made already")
            return self._events(messages, options, choice=choice)
        UsageError.when(choice != 0, "choice marks the events of what prepare_chat made")
        owner = options.get("owner", "")
        name = None if session is None else check_name(session)
        if tools is None and think is None:
            said = asked.plain_messages(messages)
            asked_form = {key: options.pop(key) for key in FormOptions.__annotations__ if key in options}
            continues = asked.goes_on(said, options.pop("continue_last", False), asked_form)
            for other in _OF_TURNS & options.keys():
                raise UsageError(f"{other} goes with tools= or think=, with which events are the answer")
            begun = said[-1]["content"] if continues else ""
            before = said[:-1] if continues else said
            keep = None if name is None else self._conversations.recorder(name, self.name, before, owner)
            turn = None
            form: Grammar | Form | None
            is_bound = any(value is not None for value in asked_form.values())
            # A form binds the answer, and not what a model thinks aloud before it.
            if self._prompts.has_channels or (is_bound and self.chat_format.tags is not None):
                UsageError.when(continues, "this model answers in several messages: continue_last goes with tools=[]")
                turn = self.prepare_chat(said, owner=owner, **cast("FormOptions", asked_form))
                tokens, starts, answer_at, form = list(turn.tokens), turn.starts, turn.answer_at, turn.compiled
            else:
                form = self._taken_form(asked_form)
                encoded = self._prompts.encoded(said, owner, continue_last=continues)
                tokens, starts, answer_at = encoded.tokens, encoded.starts, encoded.answer_at
                tokens = self._prompt_tokens(tokens, special=False)
            return self._answer(
                tokens, cast("AnswerOptions", options), starts=starts, answer_at=answer_at, continues=continues,
                form=form, session=name, turn=turn,
                text=None if turn is None else FinalText(self.chat_format, self._require_tokenizer(), turn),
                on_end=None if keep is None else lambda text: keep({"role": "assistant", "content": begun + text}),
            )  # fmt: skip
        given = cast("TurnOptions", {key: options.pop(key) for key in _OF_TURNS & options.keys()})
        turn = self.prepare_chat(messages, tools=tools or (), think=think, owner=owner, **given)
        return self._events(turn, options, session=name, messages=messages)

    def prepare_chat(
        self,
        messages: Sequence[AnyMessage],
        *,
        tools: Sequence[AnyTool] = (),
        think: AnyThink | None = None,
        most_tokens: int | None = None,
        owner: str = "",
        **options: Unpack[TurnOptions],
    ) -> Turn:
        """The prompt that `chat` would answer, with everything that can be refused: its tokens can be counted
        (`num_prompt_tokens`), and `chat` takes it in the place of messages, several times where several answers are
        wanted, which share what was computed for it.

        Parameters and errors are those of `chat`. A prompt that is far longer than `most_tokens` is not counted to its
        end: ContextOverflowError.
        """
        self._scheduler.check_process()
        if isinstance(messages, str | Mapping):
            raise UsageError("messages must be a list of messages")
        return self._prompts.turns.prepare(
            [asked.message_of(i, message) for i, message in enumerate(messages)],
            tools=tuple(map(asked.tool_of, tools)),
            tool_choice=asked.choice_of(options.get("tool_choice")),
            output=asked.output_of(options),
            think=asked.think_of(think),
            continue_last=options.get("continue_last", False),
            options=options.get("template_options") or {},
            most_tokens=most_tokens,
            compile_form=self._forms.compiled,
            respell=lambda tokens, names: self._prompts.respelled(tokens, owner, names),
        )

    @property
    def chat_format(self) -> ChatFormat:
        """How the model writes reasoning and calls, found and proved by rendering its template; `refusal` says why
        tools cannot be used. Raises TemplateError for a model without a template."""
        return self._prompts.turns.format

    def _events(
        self,
        turn: Turn,
        options: dict[str, Any],
        *,
        choice: int = 0,
        session: str | None = None,
        messages: Sequence[AnyMessage] = (),
    ) -> TurnStream:
        """Answers a prepared turn."""
        stops = check_stops(options.pop("stop", None))
        keep = None
        if session is not None:
            said = [asked.message_dict(i, asked.message_of(i, message)) for i, message in enumerate(messages)]
            keep = self._conversations.recorder(session, self.name, said, options.get("owner", ""))
        generation = self._answer(
            list(turn.tokens), cast("AnswerOptions", options), continues=turn.is_continued, form=turn.compiled,
            turn=turn, starts=turn.starts, answer_at=turn.answer_at, session=session,
        )  # fmt: skip
        return TurnStream(
            turn,
            self.chat_format,
            self._require_tokenizer(),
            generation,
            stops=stops,
            choice=choice,
            has_logprobs=options.get("logprobs") is not None,
            on_end=None if keep is None else lambda message: keep(asked.message_dict(0, message)),
        )

    def _taken_form(self, options: Any) -> Grammar | None:
        """The form that is given, taken out of the options. Raises ConstraintError."""
        return make_grammar(*(options.pop(name, None) for name in ("schema", "regex", "grammar")))

    def _answer(
        self,
        tokens: list[int],
        options: AnswerOptions,
        *,
        continues: bool,
        form: Grammar | Form | None,
        session: str | None = None,
        on_end: Callable[[str], None] | None = None,
        turn: Turn | None = None,
        starts: Sequence[int] | None = None,
        answer_at: int = 0,
        text: TextStream | None = None,
    ) -> Generation:
        """Starts an answer. `continues`: its text goes on from the prompt's, so a leading space belongs to it.
        `starts`: where the prompt's turns begin; None: it has none. `answer_at`: see Request. `text`: what turns its
        tokens into text."""
        self._require_generator()
        check_options(options)
        sampling = sampling_from(self._checkpoint.sampling, options)
        owner, max_tokens, logprobs = options.get("owner", ""), options.get("max_tokens"), options.get("logprobs")
        stops = check_stops(options.get("stop"))
        room = self.context - len(tokens)
        if room < 1:
            raise ContextOverflowError(len(tokens), self.context)
        if stops:
            self._require_tokenizer()
        request = Request(
            tokens,
            sampling=sampling,
            vocab_size=self.vocab_size,
            suppressed=self._suppressed,
            max_tokens=room if max_tokens is None else min(int(max_tokens), room),
            text=text or (self._tokenizer.stream(continuation=continues) if self._tokenizer else None),
            stops=stops,
            stop_ids=self._tokenizer.stop_ids if self._tokenizer else frozenset(),
            logprobs=None if logprobs is None else int(logprobs),
            constraint=self._forms.rule(form, turn),
            is_background=options.get("background", False),
            owner=owner,
            label="" if session is None else conversation_label(session, owner),
            marks=wanted_marks(len(tokens), starts, answer_at) if self._has_record else (),
            answer_at=answer_at if self._has_record else 0,
            stop_on_repeat=options.get("stop_on_repeat"),
        )
        remember = None if starts is None else partial(self._transcripts.remember, owner)
        schema = form.grammar.schema if isinstance(form, Form) else None
        return Generation(
            request, self._scheduler, self, on_end=on_end, on_tokens=remember, schema=schema,
            on_repeat=partial(repeat_causes.tell, self._checkpoint, self._tokenizer),
        )  # fmt: skip

    def conversation(self, session: str, *, owner: str = "") -> list[dict[str, Any]]:
        """The messages of a named conversation, to be continued with `chat(..., session=...)`; none if it is new.

        Raises UsageError for a name that cannot be used, CorruptFileError when its file is damaged.
        """
        found = self._conversations.load(session, owner)
        return [] if found is None else found.messages

    def encode_chat(self, messages: Sequence[AnyMessage], *, owner: str = "") -> list[int]:
        """The token ids that `chat` would send for `messages` alone: those of the template's text, but where the model
        said that text to `owner` before, those that it generated. Raises as `chat` does."""
        return self._prompts.encoded(asked.plain_messages(messages), owner).tokens

    def renamed(self, name: str, chat_template: str | None = None) -> Model:
        """The same weights, cache and running answers under another name, with a chat template of its own if one is
        given. Closing either closes both."""
        self._scheduler.check_process()
        other = copy.copy(self)
        other._original = self  # whose end closes both
        other._checkpoint = replace(self._checkpoint, name=name)
        if chat_template is not None:
            other._checkpoint = replace(other._checkpoint, chat_template=chat_template, chat_templates={})
        other._prompts = other._prompts_of(other._checkpoint)
        other.plan = replace(self.plan, model=name)
        return other
