"""A reader of Harmony's messages that shares nothing with Kamado's: written from the format's text, to judge what a
model wrote. It refuses whatever the format does not say.

    answer   := message ( <|end|> <|start|> "assistant" message )* ( <|return|> or <|call|> )
    message  := [ " to=" recipient ] <|channel|> channel [ " to=" recipient ] [ content type ] <|message|> text
    channel  := "analysis", "commentary" or "final"
    content type := [ " " ] <|constrain|> word, or " " word

The first message of an answer has its `<|start|>assistant` in the prompt. A message with a recipient is a call and ends
with `<|call|>`; a final one ends the answer with `<|return|>`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

START, END, MESSAGE, CHANNEL = "<|start|>", "<|end|>", "<|message|>", "<|channel|>"
CONSTRAIN, CALL, RETURN = "<|constrain|>", "<|call|>", "<|return|>"
MARKS = (START, END, MESSAGE, CHANNEL, CONSTRAIN, CALL, RETURN)
CHANNELS = ("analysis", "commentary", "final")

Item = tuple[bool, str]  # whether it is a mark, and its text


class MalformedError(Exception):
    """What was read is no Harmony."""


@dataclass(frozen=True)
class Message:
    """One message, as it was written."""

    channel: str
    recipient: str
    content_type: str
    text: str
    end: str  # the mark that ended it; "" where the answer was cut


def read(items: Sequence[Item], *, is_cut: bool) -> list[Message]:
    """The messages of an answer. `is_cut`: it was ended from outside, so that its last message may be any beginning of
    one, which is left out when its header is not whole. Raises MalformedError."""
    messages: list[Message] = []
    at, is_first = 0, True
    while True:
        if not is_first:
            if at == len(items) and is_cut:
                return messages
            at = _expect(items, at, (True, START), is_cut)
            role, at = _run(items, at)
            if at == len(items) and is_cut:
                if not "assistant".startswith(role) and not role.startswith("assistant"):
                    raise MalformedError(f"a message of {role!r}")
                return messages
            if not role.startswith("assistant"):
                raise MalformedError(f"a message of {role!r}")
            before = role.removeprefix("assistant")
        else:
            before, at = _run(items, at)
            is_first = False
        found = _message(items, at, before, is_cut)
        if found is None:
            return messages
        message, at = found
        messages.append(message)
        if message.end == "":
            if not is_cut:
                raise MalformedError("an answer without an end")
            return messages
        if message.recipient and message.end != CALL:
            raise MalformedError(f"a call that ends with {message.end}")
        if message.end == CALL and not message.recipient:
            raise MalformedError("a call to nobody")
        if message.end == RETURN and message.channel != "final":
            raise MalformedError(f"an answer that ends in {message.channel}")
        if message.end in (CALL, RETURN):
            if at != len(items):
                raise MalformedError("something behind the end")
            return messages


def _message(items: Sequence[Item], at: int, before: str, is_cut: bool) -> tuple[Message, int] | None:
    """A message and where it ends; None when its header is cut."""
    if at == len(items):
        if is_cut:
            return None
        raise MalformedError(f"a header without an end: {before!r}")
    role_recipient = _recipient(before)
    at = _expect(items, at, (True, CHANNEL), is_cut)
    header, at = _run(items, at)
    has_constrain = at < len(items) and items[at] == (True, CONSTRAIN)
    content_type = ""
    if has_constrain:
        content_type, at = _run(items, at + 1)
    if at == len(items):
        if is_cut:
            return None
        raise MalformedError(f"a header without an end: {header!r}")
    at = _expect(items, at, (True, MESSAGE), is_cut)
    channel, *words = header.split(" ")
    if channel not in CHANNELS:
        raise MalformedError(f"channel {channel!r}")
    recipient = role_recipient
    if words and words[0].startswith("to="):
        if recipient:
            raise MalformedError("two recipients")
        recipient = words.pop(0).removeprefix("to=")
    if has_constrain:
        if words not in ([], [""]) or not content_type or content_type != content_type.strip():
            raise MalformedError(f"a content type {words} {content_type!r}")
    elif words:
        if len(words) > 1 or not words[0]:
            raise MalformedError(f"what is left of a header: {words}")
        content_type = words[0]
    text, at = _run(items, at)
    if at == len(items):
        return Message(channel, recipient, content_type, text, ""), at
    end = items[at][1]
    if end not in (END, CALL, RETURN):
        raise MalformedError(f"{end} in a text")
    return Message(channel, recipient, content_type, text, end), at + 1


def _recipient(text: str) -> str:
    if not text:
        return ""
    if not text.startswith(" to=") or " " in text[1:] or len(text) == len(" to="):
        raise MalformedError(f"{text!r} before the channel")
    return text.removeprefix(" to=")


def _run(items: Sequence[Item], at: int) -> tuple[str, int]:
    """Text up to the next mark."""
    begin = at
    while at < len(items) and not items[at][0]:
        at += 1
    return "".join(text for _, text in items[begin:at]), at


def _expect(items: Sequence[Item], at: int, item: Item, is_cut: bool) -> int:
    if at == len(items):
        if is_cut:
            return at
        raise MalformedError(f"the end in the place of {item[1]}")
    if items[at] != item:
        raise MalformedError(f"{items[at][1]!r} in the place of {item[1]}")
    return at + 1
