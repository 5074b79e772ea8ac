"""Why an answer may repeat itself without end: the first cause that can be told from outside, for the log."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..files.types import Checkpoint
from ..text.tokenizer.special import SpecialMatcher
from .schedule.repeats import Repeat

if TYPE_CHECKING:
    from ..text.tokenizer import Tokenizer

_log = logging.getLogger("kamado.repeats")

# Templates as their makers published them, by architecture: SHA-256 of the text without blanks at its ends.
_GEMMA4 = frozenset(
    (
        "1d35a24a2a63cc600c0cab43628a6df4cd3318e959b03307cf5f9f7e29ecf783",
        "df900edd2fcee5defc268bee887666c43c976d973bb3e87355b52423a651bf91",
    )
)
_GPT_OSS = frozenset(("a4c9919cbbd4acdd51ccffe22da049264b1b73e59055fa58811a99efbd7c8146",))
KNOWN_TEMPLATES: Mapping[str, frozenset[str]] = {
    "gemma4": _GEMMA4, "gemma4_text": _GEMMA4, "gpt-oss": _GPT_OSS, "gpt_oss": _GPT_OSS,
}  # fmt: skip
_SHOWN_DIGITS = 12
_MAX_TOKENS = 1 << 15  # of the end of prompt and answer that are looked at
_MIN_LITERAL = 3  # shorter special tokens are what texts have too


def template_hash(source: str) -> str:
    """What a template is known by."""
    return hashlib.sha256(source.strip().encode()).hexdigest()


def cause_of(repeat: Repeat, checkpoint: Checkpoint, tokenizer: Tokenizer | None, tokens: Sequence[int]) -> str:
    """The first of the known causes that holds, in words. `tokens`: the prompt and the answer."""
    known = KNOWN_TEMPLATES.get(checkpoint.architecture)
    if known is not None:
        source = checkpoint.chat_template
        if source is None:
            return "the model file has no chat template"
        found = template_hash(source)
        if found not in known:
            return (
                f"the chat template (SHA-256 {found[:_SHOWN_DIGITS]}) is none of the {len(known)} known of "
                f"{checkpoint.architecture}: take the file of the model's maker, or its template"
            )
    if tokenizer is not None and (literal := spelled_token(tokenizer, tokens)):
        return (
            f"the special token {literal} was spelled as text: use the chat endpoints or chat(), or special=True for a "
            "prompt of your own"
        )
    if not repeat.is_finite:
        return "the logits are not all finite: the model file is probably damaged (compare its checksum)"
    if repeat.is_flat:
        return (
            f"the logits are flat (the most likely of {repeat.num_choices} tokens has {repeat.best_share:.1e}): the "
            "model file is probably damaged, or of a version that this one does not read right"
        )
    return "none of the known causes holds: the model itself repeats; a repetition penalty or stop_on_repeat may help"


def spelled_token(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """A special token's text that stands in `tokens` as plain text; "" when there is none."""
    texts = {i: tokenizer.decode([i], skip_special=False) for i in tokenizer.special_ids}
    literals = {text: i for i, text in texts.items() if len(text) >= _MIN_LITERAL}
    if not literals:
        return ""
    matcher = SpecialMatcher(literals)
    run: list[int] = []
    for token in (*tokens[-_MAX_TOKENS:], None):
        if token is not None and token not in tokenizer.special_ids:
            run.append(token)
            continue
        if run:
            for piece in matcher.split(tokenizer.decode(run)):
                if isinstance(piece, int):
                    return texts[piece]
            run.clear()
    return ""


def tell(checkpoint: Checkpoint, tokenizer: Tokenizer | None, repeat: Repeat, tokens: Sequence[int]) -> None:
    """Says in the log what an answer repeated and why that may be."""
    unit = "token" if repeat.num_tokens == 1 else f"{repeat.num_tokens} tokens"
    _log.warning("an answer repeats the same %s: %s", unit, cause_of(repeat, checkpoint, tokenizer, tokens))
