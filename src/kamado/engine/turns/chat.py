"""Messages to token ids, so that nobody can speak with the template's voice.

A template's special tokens (`<|im_end|>`) become control ids; the same characters inside a message are plain text. The
template is rendered twice:

  guarded  special literals inside contents are replaced by unguessable words, everything else is as it was written, so
           that a template that trims, splits or tests its contents works as its author meant;
  opaque   every content is replaced by such a word, so every special literal in the result is the template's own.

If both have the same special literals in the same order, the guarded text is used. If they differ, contents completed
a literal across a border, or the template answers to contents in its special tokens: then the opaque text is used,
with the contents put in its places. Either way the text is then cut at the template's special literals, the words are
turned back into what they stand for, and all that lies between is encoded with special tokens switched off. When no
content has a literal, the whole text is encoded at once, exactly as other programs do, if that gives the same special
ids.

Covered: contents, also several that a template puts side by side. Not covered: a template that is itself hostile; the
file's author may put any token anywhere.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ...errors import ContextOverflowError, TemplateError, UsageError
from ...text.tokenizer.special import SpecialMatcher
from ..cache.turn_starts import TurnStarts, moved
from .mixed_text import MixedText

if TYPE_CHECKING:
    from ...text.template import ChatTemplate
    from ...text.tokenizer import Tokenizer

# What is looked at to see whether a prompt ends in opened reasoning.
_TAIL_CHARACTERS = 256
# A prompt with more characters than so many a token is judged by its beginning first: JSON has 3, prose 4 to 5, deeply
# indented code 10.
_TELLING_CHARACTERS = (4, 16)

_ROLE = re.compile(r"[a-z_]{1,32}")


def check_messages(messages: object) -> list[dict[str, str]]:
    """A copy with exactly role and content. Raises UsageError for anything else, naming the message."""
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise UsageError('messages must be a list, not empty, such as [{"role": "user", "content": "Hello"}]')
    return [_check_message(i, message) for i, message in enumerate(messages)]


def _check_message(i: int, message: object) -> dict[str, str]:
    if not isinstance(message, Mapping):
        raise UsageError(f"message {i} must be a dict with role and content, not {type(message).__name__}")
    unknown = [key for key in message if key not in ("role", "content")]
    if unknown:
        raise UsageError(f"message {i} has {unknown[0]!r}: this version takes role and content only")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not _ROLE.fullmatch(role):
        raise UsageError(f"message {i} needs a role such as 'system', 'user' or 'assistant', not {repr(role)[:40]}")
    if not isinstance(content, str):
        raise UsageError(f"message {i} needs a content of text, not {type(content).__name__}")
    return {"role": role, "content": content}


class EncodedChat(NamedTuple):
    """A prompt, the last characters of its text, and where its turns begin, if that was asked for: `answer_at` is the
    start of what follows the last user's message, 0 when it is not known."""

    tokens: list[int]
    tail: str
    starts: tuple[int, ...] = ()
    answer_at: int = 0

    def respelled(self, tokens: list[int]) -> EncodedChat:
        """The same text with other ids."""
        starts = moved(self.starts, self.tokens, tokens)
        (answer_at,) = moved((self.answer_at,), self.tokens, tokens) or (0,)
        return EncodedChat(tokens, self.tail, starts, answer_at)


class ChatEncoder:
    """Encodes conversations for one tokenizer and template. Thread-safe once made."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, *, finds_turns: bool = False) -> None:
        """`finds_turns`: prompts come with the places where their turns begin."""
        self._turn_starts = TurnStarts() if finds_turns else None
        self._tokenizer = tokenizer
        self.template = template
        literals = {_literal(tokenizer, token): token for token in sorted(tokenizer.special_ids, reverse=True)}
        # One character or blanks alone are what plain text has too: as a control id they would say no more.
        self._ids = {text: token for text, token in literals.items() if len(text) > 1 and not text.isspace()}
        # Not one `re` of them all: Gemma has 6249, which take 100 ms to compile.
        self._texts = list(self._ids)
        self._special = SpecialMatcher({text: i for i, text in enumerate(self._texts)})

    def encode(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of the conversation, up to where the assistant's answer begins.

        Raises UsageError for malformed messages and TemplateError when the template refuses them.
        """
        return self.encode_turns(check_messages(messages)).tokens

    def encode_turns(
        self,
        turns: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: Mapping[str, Any] | None = None,
        continue_last: bool = False,
        most_tokens: int | None = None,
    ) -> EncodedChat:
        """As `encode`, for turns as the template reads them, with tools and further variables of the template.

        Every text in them, however deep, is plain text to the model, but for our own parts of a MixedText.
        `continue_last`: the last turn is the assistant's and is left open at the end of its content. Raises UsageError
        and TemplateError as `encode` does, and ContextOverflowError for a prompt that is so much longer than
        `most_tokens` that its beginning tells.
        """
        words = _Words()
        guarded_turns, tools, options = self._guard_all((list(turns), tools, dict(options or {})), words)
        has_literals = bool(words)
        end = ""
        if continue_last:
            end = words.stand_for("")
            guarded_turns[-1]["content"] = _with_end(guarded_turns[-1]["content"], end)
        contents: list[str] = []
        opaque_turns = []
        for guarded_turn, turn in zip(guarded_turns, turns, strict=True):
            content, opaque_content = _opaque(turn["content"], guarded_turn["content"], words)
            contents.append(content)
            opaque_turns.append({**guarded_turn, "content": opaque_content})
        if continue_last and turns[-1]["content"]:
            opaque_turns[-1]["content"] = _with_end(opaque_turns[-1]["content"], end)
        guarded = self._render(guarded_turns, tools, options, end)
        if most_tokens is not None:
            self._check_beginning(guarded, most_tokens)
        opaque = self._render(opaque_turns, tools, options, end)
        wanted = self._literals(opaque)
        text = guarded if self._literals(guarded) == wanted else opaque
        tokens = None if has_literals or text is not guarded else self._encode_whole(text, wanted)
        if tokens is None:
            tokens = self._encode_parts(text, words)
        starts: dict[int, int] = {}
        answers: tuple[int, ...] = ()
        if self._turn_starts is not None:
            answers = _answers(turns, continue_last)
            starts = self._turn_starts.find(
                opaque,
                contents,
                self._spans(opaque),
                tokens,
                self._ids.values(),
                render=lambda n: self.template.render(
                    opaque_turns[:n], tools=tools, add_generation_prompt=False, **options
                ),
                has_tools=bool(tools),
                empty=answers,
            )
        tail = words.restore(text[-_TAIL_CHARACTERS:])
        answer_at = starts.get(answers[0], 0) if answers else 0
        return EncodedChat(tokens, tail, tuple(sorted(set(starts.values()))), answer_at)

    def _check_beginning(self, text: str, most_tokens: int) -> None:
        """Raises ContextOverflowError for a long text whose beginning has twice the tokens already: words that stand
        for special literals, and the cut, change less."""
        if len(text) <= _TELLING_CHARACTERS[-1] * most_tokens:
            return
        for characters in _TELLING_CHARACTERS:
            num_tokens = len(self.encode_literals(text[: characters * most_tokens]))
            if num_tokens > 2 * most_tokens:
                raise ContextOverflowError(num_tokens, most_tokens, is_counted=False)

    def encode_literals(self, text: str) -> list[int]:
        """Token ids of text of our own, whose special literals are meant."""
        return self._tokenizer.encode(text, special=True, add_bos=False, add_eos=False)

    def _guard_all(self, value: Any, words: _Words) -> Any:
        """A copy with `_guard` applied to every text, keys too."""
        if isinstance(value, MixedText):
            return "".join(part if is_own else self._guard(part, words) for part, is_own in value.parts)
        if isinstance(value, str):
            return self._guard(value, words)
        if isinstance(value, Mapping):
            return {self._guard_all(key, words): self._guard_all(item, words) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._guard_all(item, words) for item in value]
        return value

    def _guard(self, text: str, words: _Words) -> str:
        """`text` with words in the places of special literals."""
        pieces = self._special.split(text)
        return "".join(words.stand_for(self._texts[p]) if isinstance(p, int) else p for p in pieces)

    def _literals(self, text: str) -> list[str]:
        """The special literals in `text`, in order."""
        return [self._texts[piece] for piece in self._special.split(text) if isinstance(piece, int)]

    def _spans(self, text: str) -> list[tuple[int, int]]:
        """Where the special literals are in `text`."""
        found, end = [], 0
        for piece in self._special.split(text):
            begin, end = end, end + len(self._texts[piece] if isinstance(piece, int) else piece)
            if isinstance(piece, int):
                found.append((begin, end))
        return found

    def _render(
        self,
        turns: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        options: Mapping[str, Any],
        end: str,
    ) -> str:
        """The rendered prompt; when the last turn goes on, what comes before the word `end` at its end."""
        text = self.template.render(turns, tools=tools, add_generation_prompt=not end, **options)
        if not end:
            return text
        at = text.rfind(end)
        if at < 0:
            raise TemplateError("the chat template leaves out the last message, so it cannot be continued")
        return text[:at]

    def _encode_whole(self, text: str, wanted: Sequence[str]) -> list[int] | None:
        """All of `text` at once; None if that gives other special tokens than the `wanted` literals'."""
        ids = self._tokenizer.encode(text, special=True, add_bos=False, add_eos=False)
        found = [token for token in ids if token in self._tokenizer.special_ids]
        return self._with_bos(ids) if found == [self._ids[literal] for literal in wanted] else None

    def _encode_parts(self, text: str, words: _Words) -> list[int]:
        """Special literals to their ids; what lies between, words turned back, as plain text."""
        tokenizer = self._tokenizer
        pieces = [
            self._ids[self._texts[piece]] if isinstance(piece, int) else words.restore(piece)
            for piece in self._special.split(text)
        ]
        ids: list[int] = []
        for i, piece in enumerate(pieces):
            if isinstance(piece, int):
                ids.append(piece)
                continue
            # Just what it is when all is encoded at once, or one literal in a message would change the whole prompt.
            before, after = pieces[i - 1] if i else None, pieces[i + 1] if i + 1 < len(pieces) else None
            if isinstance(before, int) and tokenizer.strips(before)[1]:
                piece = piece.lstrip()
            if isinstance(after, int) and tokenizer.strips(after)[0]:
                piece = piece.rstrip()
            if piece:
                ids += tokenizer.encode(
                    piece, special=False, add_bos=False, add_eos=False, after="special" if ids else "nothing"
                )
        return self._with_bos(ids)

    def _with_bos(self, ids: list[int]) -> list[int]:
        bos = self._tokenizer.bos_id
        if self._tokenizer.add_bos and bos is not None and ids[:1] != [bos]:  # most templates write it themselves
            return [bos, *ids]
        return ids


def _answers(turns: Sequence[Mapping[str, Any]], continue_last: bool) -> tuple[int, ...]:
    """The number of the turn after the last user's, from where templates leave reasoning out once the user says more,
    and that of the answer to come."""
    after_user = max((i + 1 for i, turn in enumerate(turns) if turn["role"] == "user"), default=len(turns))
    return (after_user,) if continue_last or after_user == len(turns) else (after_user, len(turns))


class _Words:
    """Unguessable words that stand for texts while a template is rendered. Letters and digits only, so that filters
    such as `trim` and `tojson` leave them alone."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._nonce = secrets.token_hex(12)
        self._pattern = re.compile(rf"kmd{self._nonce}n([0-9]+)e")

    def __bool__(self) -> bool:
        return bool(self._texts)

    def stand_for(self, text: str) -> str:
        self._texts.append(text)
        return f"kmd{self._nonce}n{len(self._texts) - 1}e"

    def restore(self, text: str) -> str:
        return self._pattern.sub(lambda match: self._texts[int(match[1])], text)


def _with_end(content: Any, end: str) -> Any:
    """A content, or the text at the end of one in parts, with `end` behind it."""
    if isinstance(content, str):
        return content + end
    return [*content[:-1], {**content[-1], "text": content[-1]["text"] + end}]


def _opaque(content: Any, guarded: Any, words: _Words) -> tuple[str, Any]:
    """The word that stands for a content's text, and the content with words in place of its texts. An empty text stays
    empty: templates leave out what is not there."""
    if isinstance(content, MixedText):
        mixed = "".join(part if is_own or not part else words.stand_for(part) for part, is_own in content.parts)
        return mixed, mixed
    if isinstance(content, str):
        word = words.stand_for(content) if content else ""
        return word, word or guarded
    word, parts = "", []
    for part in content:  # of each one text
        kind = part["type"]
        word = words.stand_for(part[kind]) if part[kind] else ""
        parts.append({**part, kind: word})
    return word, parts


def _literal(tokenizer: Tokenizer, token: int) -> str:
    return tokenizer.decode([token], skip_special=False) or tokenizer.token_bytes(token).decode("utf-8", "replace")
