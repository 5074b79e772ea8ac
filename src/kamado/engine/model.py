"""A loaded model: text in, pieces out. Everything that the command line and servers need of the engine is here."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Unpack

import numpy as np
from numpy.typing import NDArray

from ..errors import ContextOverflowError, TemplateError, TokenizerError, UsageError
from ..files.types import Checkpoint
from ..options import MAX_LOGPROBS, AnswerOptions, check_options, sampling_from
from ..plan.forecast import Plan
from ..plan.overhead import CONSTRAINT_LIBRARY_BYTES
from ..plan.sizes import constraint_bytes, transcript_bytes
from ..plan.usage import BudgetWatch
from ..program import Pooling
from .cache.prefix_saver import PrefixSaver
from .cache.turn_starts import moved, wanted_marks
from .embed import Embedded, Embedder, shortened
from .executor_protocol import ExecutorProtocol
from .forms.constraint import ConstraintCompiler, Form
from .forms.grammar import Grammar, Schema, make_grammar
from .forms.stops import check_stops
from .forms.token_rule import TokenRule
from .generation import Generation
from .measure.prompt_scores import PromptLogprobs, PromptScores
from .measure.scoring import Look, Perplexity, Scoring, Visit
from .schedule.request import Request
from .schedule.scheduler import Scheduler
from .schedule.stats import Stats, make_stats
from .turns.chat import ChatEncoder, check_messages
from .turns.chat_types import Message, OutputFormat, Think, TokenLogprob, Tool, ToolChoice
from .turns.conversations import ConversationStore, check_name, conversation_label
from .turns.same_text import SameText
from .turns.think_budget import ThinkBudget
from .turns.tool_format import ChatFormat, choose_format
from .turns.transcripts import Transcripts
from .turns.turn import Turn, TurnMaker, TurnStream

if TYPE_CHECKING:
    from ..text.tokenizer import Tokenizer

# Sequences of the executor: conversations that run or wait in the cache for their next turn.
MAX_SEQUENCES = 64
MAX_LIVE = 32


class Model:
    """A model that was loaded with `kamado.load`. Its methods may be called from several threads; answers run together.

    Use it in a `with` statement, or `close()` it: its memory is given back then.
    """

    def __init__(
        self,
        *,
        checkpoint: Checkpoint,
        plan: Plan,
        executor: ExecutorProtocol,
        tokenizer: Tokenizer | None,
        cancelled_error: type[BaseException],
        max_sequences: int = MAX_SEQUENCES,
        watch: BudgetWatch | None = None,
        saver: PrefixSaver | None = None,
        conversations: ConversationStore | None = None,
        pooling: Pooling | None = None,
        is_encoder: bool = False,
        has_record: bool = False,
        before_step: Callable[[], None] | None = None,
        reserve: Callable[[int, str, str], int] | None = None,
    ) -> None:
        """`saver`: the prefix store's, if prefixes outlive the process. `conversations`: where sessions are kept.
        `before_step` is called before each step; `reserve(num_bytes, what, advice)` makes room for what was not planned
        for, between steps, and returns what experts lost for it: see guard.py."""
        self._reserve = reserve
        self._original: Model | None = None  # of whom this is another name
        self._unplanned: dict[str, int] = {}  # by owner: reserved since, and what experts lost for it
        self._saver = saver
        self._conversations = conversations or ConversationStore()
        self._checkpoint = checkpoint
        self._tokenizer = tokenizer
        self._executor = executor
        self.vocab_size = executor.vocab_size  # number of token ids, the width of a row of logits
        self._pooling: Pooling = pooling or "mean"
        self.is_encoder = is_encoder  # it makes vectors of texts, and no text
        self._has_record = has_record
        self.plan: Plan = plan
        self._watch = watch or BudgetWatch(plan.memory_bytes, ())
        self._scheduler = Scheduler(
            executor,
            max_rows=plan.max_rows,
            max_logit_rows=plan.max_logit_rows,
            max_sequences=max_sequences,
            max_live=MAX_LIVE,
            cancelled_error=cancelled_error,
            after_rows=(plan.context, self._watch.forget_files) if self._watch.files else None,
            saver=saver,
            before_step=before_step,
        )
        self._transcripts = Transcripts(
            self.vocab_size,
            max_bytes=transcript_bytes(plan.kv_tokens),
            stored=saver.stored_tokens if saver else None,
        )
        self._scoring = Scoring(self._scheduler, vocab_size=self.vocab_size, max_rows=plan.max_rows,
                                max_logit_rows=plan.max_logit_rows)  # fmt: skip
        self._finalizer = weakref.finalize(self, self._scheduler.close)  # also at interpreter exit

    @property
    def name(self) -> str:
        """What commands take for it: its name in the store, else its path; or what `load` was told."""
        return self.plan.model

    @property
    def context(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return self.plan.context

    @property
    def can_cut_anywhere(self) -> bool:
        """Whether a prompt reuses all tokens that it shares with earlier ones, up to any length. Else (encoded keys and
        values, windows, recurrent layers) it starts from the deepest reuse point among them: see docs/kv.md."""
        return self._executor.can_reuse_anywhere

    @property
    def has_chat_template(self) -> bool:
        """Whether `chat` can be used."""
        return self._checkpoint.chat_template is not None

    @property
    def has_tokenizer(self) -> bool:
        """Whether texts can be used, or token ids only."""
        return self._tokenizer is not None

    @property
    def stats(self) -> Stats:
        """Totals since the model was loaded: tokens, seconds by stage, bytes by owner, whether the budget was kept, and
        the ledger of streamed experts. Waits for the running step."""
        self._scheduler.check_process()
        constraints = self.__dict__.get("_constraints")  # none before the first answer that has a form
        nbytes = 0 if constraints is None else constraints.nbytes
        return make_stats(
            self._scheduler.snapshot(), self.plan, self._watch, self._saver, constraint_bytes=nbytes,
            unplanned=self._unplanned,
        )  # fmt: skip

    def tokenize(self, text: str, *, special: bool = False, add_bos: bool | None = None) -> list[int]:
        """Token ids of `text`. With `special`, special tokens written in it become their ids; else they are plain text.

        `add_bos` None: as the model wants it. A model that generates gets no end token, even where its file asks for
        one (`add_eos_token`): the answer would begin after the end of its text. Vectors are of the text with that end.
        Raises TokenizerError when the model has no tokenizer.
        """
        add_eos = None if self.is_encoder else False
        return self._require_tokenizer().encode(text, special=special, add_bos=add_bos, add_eos=add_eos)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Text of `tokens`, special tokens left out; bytes that are no UTF-8 become U+FFFD."""
        return self._require_tokenizer().decode(self._check_tokens(tokens))

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token, perhaps no whole character; of a special one, its name."""
        return self._require_tokenizer().token_bytes(token)

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        schema: Schema | None = None,
        regex: str | None = None,
        grammar: str | None = None,
        form: Form | None = None,
        special: bool = False,
        **options: Unpack[AnswerOptions],
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
        return self._answer(
            self._prompt_tokens(prompt, special),
            options,
            continues=True,
            form=form or make_grammar(schema, regex, grammar),
        )

    def prepare_form(
        self, *, schema: Schema | None = None, regex: str | None = None, grammar: str | None = None
    ) -> Form | None:
        """What `generate` takes as `form`; None when nothing is given. Takes up to two seconds, the first time.

        Raises ConstraintError and MissingPackageError as `generate` does.
        """
        self._scheduler.check_process()
        asked = make_grammar(schema, regex, grammar)
        return None if asked is None else self._constraints.form(asked)

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        schema: Schema | None = None,
        regex: str | None = None,
        grammar: str | None = None,
        session: str | None = None,
        **options: Unpack[AnswerOptions],
    ) -> Generation:
        """Answers a conversation: messages with "role" and "content", through the model's own chat template.

        Special tokens inside contents are plain text to the model. The beginning that earlier turns share is not
        computed again. Parameters are those of `generate`. Raises TemplateError when the model has no template or it
        refuses the messages, UsageError for malformed ones, and what `generate` raises.

        `session`: a name under which the conversation outlives the process. When the answer has ended, `messages` and
        it (as far as it came) are recorded there for `conversation` to return, and what was computed stays in the
        prefix store. Raises UsageError for a name that cannot be used.

            answer = model.chat([{"role": "user", "content": "Why is the sky blue?"}])
            print("".join(piece.text for piece in answer))
        """
        self._scheduler.check_process()
        tokens, starts = self._encoded_chat(messages, options.get("owner", ""))
        return self._answer(
            self._prompt_tokens(tokens, special=False),
            options,
            starts=starts,
            continues=False,
            form=make_grammar(schema, regex, grammar),
            session=None if session is None else check_name(session),
            messages=messages,
        )

    def prepare_turn(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        tool_choice: ToolChoice | None = None,
        output: OutputFormat | None = None,
        think: Think | None = None,
        continue_last: bool = False,
        template_options: Mapping[str, object] | None = None,
        most_tokens: int | None = None,
        owner: str = "",
    ) -> Turn:
        """A prompt with tools and an output format, in the model's own form: what `answer_turn` answers.

        Whatever the model does, calls in the answer are whole and their arguments match the tool's schema, and text
        has the output format. `think.enabled` switches reasoning where the template can; `think.max_tokens` ends it.
        `template_options`: plain data for variables of the template. A prompt that is far longer than `most_tokens` is
        not counted to its end: ContextOverflowError. `owner`: answers that were given to the same one
        keep the token ids that were generated. Raises UsageError (a model that cannot use tools, with the reason; a
        name or message that is wrong), ConstraintError for schemas that cannot be used, MissingPackageError,
        TemplateError.
        """
        self._scheduler.check_process()
        return self._turn_maker.prepare(
            messages,
            tools=tools,
            tool_choice=tool_choice or ToolChoice(),
            output=output or OutputFormat(),
            think=think or Think(),
            continue_last=continue_last,
            options=template_options or {},
            most_tokens=most_tokens,
            compile_form=lambda form: self._constraints.form(form),
            respell=lambda tokens, names: self._respelled(tokens, owner, names),
        )

    def answer_turn(
        self,
        turn: Turn,
        *,
        choice: int = 0,
        **options: Unpack[AnswerOptions],
    ) -> TurnStream:
        """Answers a prepared turn: an iterator over events of engine/turns/chat_types.py, `Finish` the last.

        Parameters and errors are those of `generate`; `stop` strings end the answer's text, not its reasoning or calls.
        `choice` marks the events of one of several answers.
        """
        self._scheduler.check_process()
        stops = check_stops(options.pop("stop", None))
        generation = self._answer(
            list(turn.tokens), options, continues=turn.is_continued, form=turn.compiled, turn=turn, starts=turn.starts
        )
        return TurnStream(
            turn,
            self._turn_maker.format,
            self._require_tokenizer(),
            generation,
            stops=stops,
            choice=choice,
            has_logprobs=options.get("logprobs") is not None,
        )

    @property
    def chat_format(self) -> ChatFormat:
        """How the model writes reasoning and calls, found and proved by rendering its template; `refusal` says why
        tools cannot be used. Raises TemplateError for a model without a template."""
        return self._turn_maker.format

    def _answer(
        self,
        tokens: list[int],
        options: AnswerOptions,
        *,
        continues: bool,
        form: Grammar | Form | None,
        session: str | None = None,
        messages: Sequence[Mapping[str, str]] = (),
        turn: Turn | None = None,
        starts: Sequence[int] | None = None,
    ) -> Generation:
        """Starts an answer. `continues`: its text goes on from the prompt's, so a leading space belongs to it.
        `starts`: where the prompt's turns begin; None: it has none."""
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
            max_tokens=room if max_tokens is None else min(int(max_tokens), room),
            text=self._tokenizer.stream(continuation=continues) if self._tokenizer else None,
            stops=stops,
            stop_ids=self._tokenizer.stop_ids if self._tokenizer else frozenset(),
            logprobs=None if logprobs is None else int(logprobs),
            constraint=self._rule(form, turn),
            is_background=options.get("background", False),
            owner=owner,
            label="" if session is None else conversation_label(session, owner),
            marks=wanted_marks(len(tokens), starts) if self._has_record else (),
        )
        remember = None if continues and turn is None else partial(self._transcripts.remember, owner)
        record = None if session is None else self._conversations.recorder(session, self.name, messages, owner)
        return Generation(request, self._scheduler, self, on_end=record, on_tokens=remember)

    def conversation(self, session: str, *, owner: str = "") -> list[dict[str, str]]:
        """The messages of a named conversation, to be continued with `chat(..., session=...)`; none if it is new.

        Raises UsageError for a name that cannot be used, CorruptFileError when its file is damaged.
        """
        found = self._conversations.load(session, owner)
        return [] if found is None else found.messages

    def encode_chat(self, messages: Sequence[Mapping[str, str]], *, owner: str = "") -> list[int]:
        """The token ids that `chat` would send for `messages`: those of the template's text, but where the model said
        that text to `owner` before, those that it generated. Raises as `chat` does."""
        return self._encoded_chat(messages, owner)[0]

    def _encoded_chat(self, messages: Sequence[Mapping[str, str]], owner: str) -> tuple[list[int], tuple[int, ...]]:
        """The ids, and where turns begin in them if the model keeps a record."""
        encoded = self._chat_encoder.encode_turns(check_messages(messages))
        tokens = self._respelled(encoded.tokens, owner)
        return tokens, moved(encoded.starts, encoded.tokens, tokens)

    def _respelled(self, tokens: list[int], owner: str, names: frozenset[str] = frozenset()) -> list[int]:
        """The same text with the ids that are cached, if it fits so; `names` are the prompt's tools."""
        found = self._transcripts.match(owner, tokens, lambda: self._same_text, names)
        return found if len(found) < self.context else tokens

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """float32[len(tokens), vocab_size]: row i predicts the token after tokens[: i + 1].

        Raises UsageError when that is more than the scratch that was planned (`plan.max_logit_rows` rows): use
        `score` or `perplexity`, which never hold all logits at once.
        """
        self._require_generator()
        checked = self._check_tokens(tokens)
        if not checked:
            raise UsageError("logits needs one token at least")
        limit = self.plan.max_logit_rows
        if len(checked) > limit:
            raise UsageError(
                f"logits of {len(checked)} tokens are more than the scratch that was planned, for {limit} rows: "
                f"use score() or perplexity(), or load the model with max_logit_rows={len(checked)}"
            )
        if len(checked) > self.context:
            raise ContextOverflowError(len(checked), self.context)
        return self._scoring.logits(checked)

    def visit_logits(
        self, tokens: Sequence[int], visit: Visit, *, before: Look | None = None, after: Look | None = None
    ) -> None:
        """Calls `visit(begin, float32[n, vocab_size])` for all positions in order; row i predicts the token after
        tokens[begin + i].

        The rows are valid during the call only, which is on the scheduler's thread. All of it may begin anew, so what
        `visit` does must not depend on how often it is called. `before` and `after`, for measurements, get the executor
        and the sequence before its first token and after its last. Raises ContextOverflowError, UsageError.
        """
        checked = self._check_tokens(tokens)
        if not checked:
            raise UsageError("logits needs one token at least")
        if len(checked) > self.context:
            raise ContextOverflowError(len(checked), self.context)
        self._scoring.visit(checked, visit, before=before, after=after)

    def embed(
        self, texts: Sequence[str | Sequence[int]], *, dimensions: int | None = None, truncate: bool = False
    ) -> NDArray[np.float32]:
        """float32[len(texts), d]: a vector of length 1 for each text (or its token ids), whatever the others are.

        An encoder's rows are pooled as its file says (mean, first or last); a generating model's too, by their mean
        when the file does not say. `dimensions`: only the first so many values. `truncate`: longer texts are cut to the
        context; else they raise ContextOverflowError. Raises UsageError for texts that are empty or malformed.
        """
        return self.embed_counted(texts, dimensions=dimensions, truncate=truncate).vectors

    def embed_counted(
        self, texts: Sequence[str | Sequence[int]], *, dimensions: int | None = None, truncate: bool = False
    ) -> Embedded:
        """As `embed`, with the number of tokens of each text."""
        self._scheduler.check_process()
        if isinstance(texts, str):
            raise UsageError("texts must be a list of texts, not one text")
        ids = [self._prompt_tokens(self._text_tokens(text), special=False) for text in texts]
        if truncate:
            ids = [self._cut(tokens) for tokens in ids]
        longest = max(map(len, ids), default=0)
        if longest > self.context:
            raise ContextOverflowError(longest, self.context)
        vectors = shortened(self._embedder.embed(ids), dimensions)
        return Embedded(vectors, tuple(map(len, ids)))

    def _text_tokens(self, text: str | Sequence[int]) -> Sequence[int]:
        """A text to make a vector of, with the end that the file wants."""
        return self._require_tokenizer().encode(text) if isinstance(text, str) else text

    def _cut(self, tokens: list[int]) -> list[int]:
        """At most the context; the token that ends a text stays."""
        if len(tokens) <= self.context:
            return tokens
        end = tokens[-1:] if self._tokenizer is not None and self._tokenizer.add_eos else []
        return tokens[: self.context - len(end)] + end

    def score(self, prompt: str | Sequence[int]) -> NDArray[np.float64]:
        """float64[n - 1]: the natural log-probability of every token but the first, given those before it.

        Raises ContextOverflowError when the prompt is longer than the context.
        """
        self._require_generator()
        self._scheduler.check_process()
        tokens = self._prompt_tokens(prompt, special=False)
        if len(tokens) < 2:
            raise UsageError("score needs two tokens at least")
        if len(tokens) > self.context:
            raise ContextOverflowError(len(tokens), self.context)
        return self._scoring.log_probabilities(tokens, 0)

    def prompt_logprobs(self, tokens: Sequence[int], top: int = 0, *, owner: str = "") -> tuple[TokenLogprob, ...]:
        """Log-probabilities of a prompt's tokens with the `top` likeliest in their places; the first one's is NaN.

        Beginnings that earlier calls of the same `owner` shared are not computed again. Raises ContextOverflowError.
        """
        return next(self.score_prompts([tokens], top, owner=owner)).tokens

    def score_prompts(
        self, prompts: Sequence[Sequence[int]], top: int = 0, *, owner: str = ""
    ) -> Iterator[PromptLogprobs]:
        """As `prompt_logprobs` for many prompts, which are computed together; each comes when it is done, in any order.

        Raises at once what `prompt_logprobs` does for a prompt that is wrong.
        """
        self._require_generator()
        self._scheduler.check_process()
        checked = [self._check_tokens(tokens) for tokens in prompts]
        for tokens in checked:
            if not tokens:
                raise UsageError("the prompt is empty: it must have one token at least")
            if len(tokens) > self.context:
                raise ContextOverflowError(len(tokens), self.context)
        if not is_whole(top) or not 0 <= top <= MAX_LOGPROBS:
            raise UsageError(f"top must be a whole number from 0 to {MAX_LOGPROBS}, not {top!r}")
        return self._prompt_scores.logprobs(checked, top, self.token_bytes, owner)

    def perplexity(
        self,
        prompt: str | Sequence[int],
        *,
        window: int = 512,
        progress: Callable[[int, int], None] | None = None,
    ) -> Perplexity:
        """How well the model predicts a text of any length, by llama.cpp's method, so that figures compare.

        The tokens are cut into windows; each begins with the BOS token if the model has one (in place of its first
        token), and its second half is scored. The rest after the last whole window is left out; a text shorter than a
        window is one. `progress(done, total)` counts windows.
        """
        self._require_generator()
        self._scheduler.check_process()
        tokens = self._prompt_tokens(prompt, special=False)
        if not is_whole(window) or not 4 <= window <= self.context:
            raise UsageError(f"window must be a whole number from 4 to {self.context}, the context, not {window!r}")
        window = min(window, len(tokens))
        if window < 4:
            raise UsageError(f"perplexity needs four tokens at least, the text has {len(tokens)}")
        bos = self._tokenizer.bos_id if self._tokenizer and self._tokenizer.add_bos else None
        return self._scoring.perplexity(tokens, window, bos, progress)

    def close(self) -> None:
        """Ends what runs (its iterators raise ClosedError) and gives the memory back. May be called again."""
        self._finalizer()

    def renamed(self, name: str, chat_template: str | None = None) -> Model:
        """The same weights, cache and running answers under another name, with a chat template of its own if one is
        given. Closing either closes both."""
        self._scheduler.check_process()
        if self.has_tokenizer:
            self._constraints  # noqa: B018  made now, so that both have the same
        other = copy.copy(self)
        for cached in ("_chat_encoder", "_same_text", "_turn_maker"):
            other.__dict__.pop(cached, None)
        other._original = self  # whose end closes both
        other._checkpoint = replace(self._checkpoint, name=name)
        if chat_template is not None:
            other._checkpoint = replace(other._checkpoint, chat_template=chat_template, chat_templates={})
        other.plan = replace(self.plan, model=name)
        return other

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._scheduler.is_closed else f"context {self.context}"
        return f"<kamado.Model {self.name!r}, {self.plan.architecture}, {state}>"

    @cached_property
    def _prompt_scores(self) -> PromptScores:
        rows = {"max_rows": self.plan.max_rows, "max_logit_rows": self.plan.max_logit_rows}
        return PromptScores(self._scheduler, **rows)

    @cached_property
    def _chat_encoder(self) -> ChatEncoder:
        source = self._checkpoint.chat_template
        if source is None:
            raise TemplateError(
                f"{self.name} has no chat template: it was made to continue text, so use generate(), or load an "
                "instruction-tuned model"
            )
        from ..text.template import ChatTemplate

        tokenizer = self._require_tokenizer()
        bos, eos = (
            tokenizer.decode([i], skip_special=False) if i is not None else ""
            for i in (tokenizer.bos_id, tokenizer.eos_id)
        )
        template = ChatTemplate(source, bos_token=bos, eos_token=eos)
        return ChatEncoder(tokenizer, template, finds_turns=self._has_record)

    @cached_property
    def _same_text(self) -> SameText:
        prompt: list[int] = []
        with suppress(TemplateError):
            prompt = self._chat_encoder.encode([{"role": "user", "content": "Q"}])
        return SameText(self._require_tokenizer(), self.vocab_size, self._turn_maker.format, prompt)

    @cached_property
    def _turn_maker(self) -> TurnMaker:
        encoder = self._chat_encoder
        source = self._checkpoint.chat_template or ""
        return TurnMaker(encoder, choose_format(encoder.template, self._require_tokenizer()), source)

    def _rule(self, form: Grammar | Form | None, turn: Turn | None) -> TokenRule | None:
        """What binds the tokens of an answer."""
        if isinstance(form, Grammar):
            form = self._constraints.form(form)
        inner = None if form is None else form.begin()
        if turn is None or turn.think_tokens is None or turn.plain_tags is None:
            return inner
        return ThinkBudget(
            self._require_tokenizer(), turn.plain_tags, turn.think_tokens, is_reasoning=turn.is_reasoning, inner=inner
        )

    @cached_property
    def _constraints(self) -> ConstraintCompiler:
        return ConstraintCompiler(self._require_tokenizer(), self.vocab_size, before_trie=self._reserve_constraints)

    def _reserve_constraints(self) -> None:
        """Makes room for the vocabulary's trie, unless the plan has it."""
        reserve = self._reserve
        if reserve is None or "constraints" in self.plan.bytes_by_owner:
            return
        num_bytes = constraint_bytes(self.vocab_size) + CONSTRAINT_LIBRARY_BYTES
        advice = "give it a larger budget, or load it with constraints=True, which plans for them"
        taken = self._scheduler.call(lambda _: reserve(num_bytes, "answers of a given form", advice))
        self._unplanned = {
            "constraints": num_bytes - CONSTRAINT_LIBRARY_BYTES,
            "libraries": CONSTRAINT_LIBRARY_BYTES,
            "experts": -taken,
        }

    @cached_property
    def _embedder(self) -> Embedder:
        return Embedder(
            self._scheduler,
            pooling=self._pooling,
            width=self._executor.hidden_width,
            max_rows=self.plan.max_rows,
            max_pooled_rows=self.plan.max_logit_rows,
            kv_tokens=self.plan.kv_tokens,
        )

    def _require_generator(self) -> None:
        if self.is_encoder:
            raise UsageError(f"{self.name} is an encoder: it makes vectors of texts, and no text; use embed()")

    def _require_tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise TokenizerError(
                f"{self._checkpoint.path} has no tokenizer: give token ids, or put tokenizer.json beside the weights"
            )
        return self._tokenizer

    def _prompt_tokens(self, prompt: str | Sequence[int], special: bool) -> list[int]:
        tokens = self.tokenize(prompt, special=special) if isinstance(prompt, str) else self._check_tokens(prompt)
        if not tokens:
            raise UsageError("the prompt is empty: it must have one token at least")
        return tokens

    def _check_tokens(self, tokens: Sequence[int]) -> list[int]:
        try:
            ids = np.asarray(tokens)
        except ValueError:
            ids = np.zeros((1, 1))
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise UsageError("tokens must be a sequence of whole numbers")
        if ids.size and not (int(ids.min()) >= 0 and int(ids.max()) < self.vocab_size):
            raise UsageError(
                f"token ids must be from 0 to {self.vocab_size - 1}, not {int(ids.min())} to {int(ids.max())}"
            )
        return [int(i) for i in ids]


def is_whole(value: object) -> bool:
    """Whether a value that a caller gave is a whole number (True and False are not)."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
