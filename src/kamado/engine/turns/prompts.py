"""The prompts of one model's conversations: its template, its tool format, and the ids that earlier answers had."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ...errors import TemplateError
from ...files.types import Checkpoint
from .chat import ChatEncoder, EncodedChat
from .same_text import SameText
from .tool_format import choose_format
from .tool_format.channels import find_channels
from .transcripts import Transcripts
from .turn import TurnMaker

if TYPE_CHECKING:
    from ...text.tokenizer import Tokenizer


class Prompts:
    """Makes token ids of conversations by one template. Its parts are made when they are first asked for: proving a
    tool format takes some milliseconds, and seconds for a template that needs the worker process. Thread-safe."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokenizer: Callable[[], Tokenizer],
        transcripts: Transcripts,
        *,
        vocab_size: int,
        context: int,
        finds_turns: bool,
    ) -> None:
        """`finds_turns`: prompts come with the places where their turns begin."""
        self._checkpoint = checkpoint
        self._tokenizer = tokenizer
        self._transcripts = transcripts
        self._vocab_size = vocab_size
        self._context = context
        self._finds_turns = finds_turns

    @cached_property
    def encoder(self) -> ChatEncoder:
        """By the checkpoint's template. Raises TemplateError when it has none."""
        source = self._checkpoint.chat_template
        if source is None:
            raise TemplateError(
                f"{self._checkpoint.name or self._checkpoint.path} has no chat template: it was made to continue text, "
                "so use generate(), or load an instruction-tuned model"
            )
        from ...text.template import ChatTemplate

        tokenizer = self._tokenizer()
        bos, eos = (
            tokenizer.decode([i], skip_special=False) if i is not None else ""
            for i in (tokenizer.bos_id, tokenizer.eos_id)
        )
        template = ChatTemplate(source, bos_token=bos, eos_token=eos)
        return ChatEncoder(tokenizer, template, finds_turns=self._finds_turns)

    @cached_property
    def has_channels(self) -> bool:
        """Whether answers are several messages with headers. Raises as `encoder` does."""
        return find_channels(self.encoder.template.source, self._tokenizer()) is not None

    @cached_property
    def turns(self) -> TurnMaker:
        """Prompts with tools and events; knows how the model writes them."""
        encoder = self.encoder
        chat_format = choose_format(encoder.template, self._tokenizer())
        return TurnMaker(encoder, chat_format, self._checkpoint.chat_template or "")

    @cached_property
    def same_text(self) -> SameText:
        """What compares texts whose ids differ."""
        prompt: list[int] = []
        with suppress(TemplateError):
            prompt = self.encoder.encode([{"role": "user", "content": "Q"}])
        return SameText(self._tokenizer(), self._vocab_size, self.turns.format, prompt)

    def encoded(self, messages: Sequence[Mapping[str, Any]], owner: str, *, continue_last: bool = False) -> EncodedChat:
        """The ids of messages of role and content, and where turns begin in them if the model keeps a record.
        `continue_last`: the last one is left open at its end."""
        encoded = self.encoder.encode_turns(messages, continue_last=continue_last)
        return encoded.respelled(self.respelled(encoded.tokens, owner))

    def respelled(self, tokens: list[int], owner: str, names: frozenset[str] = frozenset()) -> list[int]:
        """The same text with the ids that are cached, if it fits so; `names` are the prompt's tools."""
        found = self._transcripts.match(owner, tokens, lambda: self.same_text, names)
        return found if len(found) < self._context else tokens
