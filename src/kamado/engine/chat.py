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
from typing import TYPE_CHECKING

from ..checkpoint.tokenizer.special import SpecialMatcher
from ..errors import UsageError

if TYPE_CHECKING:
    from ..checkpoint.template import ChatTemplate
    from ..checkpoint.tokenizer import Tokenizer

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


class ChatEncoder:
    """Encodes conversations for one tokenizer and template. Thread-safe once made."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self._tokenizer = tokenizer
        self._template = template
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
        checked = check_messages(messages)
        words = _Words()
        guarded_contents = [self._guard(m["content"], words) for m in checked]
        has_literals = bool(words)
        # An empty content stays empty: templates leave out what is not there.
        opaque_contents = [words.stand_for(m["content"]) if m["content"] else "" for m in checked]
        guarded = self._render(checked, guarded_contents)
        opaque = self._render(checked, opaque_contents)
        wanted = self._literals(opaque)
        if self._literals(guarded) != wanted:
            return self._encode_parts(opaque, words)
        if not has_literals:
            ids = self._tokenizer.encode(guarded, special=True, add_bos=False, add_eos=False)
            found = [token for token in ids if token in self._tokenizer.special_ids]
            if found == [self._ids[text] for text in wanted]:
                return self._with_bos(ids)
        return self._encode_parts(guarded, words)

    def _guard(self, text: str, words: _Words) -> str:
        """`text` with words in the places of special literals."""
        pieces = self._special.split(text)
        return "".join(words.stand_for(self._texts[p]) if isinstance(p, int) else p for p in pieces)

    def _literals(self, text: str) -> list[str]:
        """The special literals in `text`, in order."""
        return [self._texts[piece] for piece in self._special.split(text) if isinstance(piece, int)]

    def _render(self, messages: list[dict[str, str]], contents: list[str]) -> str:
        return self._template.render(
            [{**message, "content": content} for message, content in zip(messages, contents, strict=True)],
            add_generation_prompt=True,
        )

    def _encode_parts(self, text: str, words: _Words) -> list[int]:
        """Special literals to their ids; what lies between, words turned back, as plain text."""
        ids: list[int] = []
        for piece in self._special.split(text):
            if isinstance(piece, int):
                ids.append(self._ids[self._texts[piece]])
            else:
                ids += self._encode_plain(words.restore(piece))
        return self._with_bos(ids)

    def _encode_plain(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, special=False, add_bos=False, add_eos=False) if text else []

    def _with_bos(self, ids: list[int]) -> list[int]:
        bos = self._tokenizer.bos_id
        if self._tokenizer.add_bos and bos is not None and ids[:1] != [bos]:  # most templates write it themselves
            return [bos, *ids]
        return ids


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


def _literal(tokenizer: Tokenizer, token: int) -> str:
    return tokenizer.decode([token], skip_special=False) or tokenizer.token_bytes(token).decode("utf-8", "replace")
