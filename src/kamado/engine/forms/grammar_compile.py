"""A grammar to the compiler's own form: the same steps, with the same limits, in the worker that tries it first and in
the process that uses it. Imports nothing heavy."""

from __future__ import annotations

import json
import re
from typing import Any

from ...errors import ConstraintError, MissingPackageError
from .grammar import Grammar

# Bounds of the compiler and of one mask, in its own units; about 50 000 of fuel and 20 000 items take a millisecond.
_LIMITS = {
    "max_items_in_row": 2000,
    "initial_lexer_fuel": 2_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_lexer_states": 50_000,  # 0.5 to 1 kB each
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}

KINDS = {
    "json_schema": "the JSON Schema cannot be used",
    "regex": "the regular expression cannot be used",
    "lark": "the grammar cannot be used",
    "parts": "the tools or the answer's form cannot be used",
}
# What the matcher calls its ends.
_STOPS = {
    "NoExtensionBias": "no text matches it",
    "NoExtension": "no text matches it",
    "ParserTooComplex": "it is too ambiguous: too many ways to read the same text",
    "LexerTooComplex": "its expressions are too complex",
}
_NUM_PROBED = 16  # answers begin in the worker: so many bytes

# Strings, expressions and comments of Lark, and what names a token of the vocabulary.
_LARK = re.compile(
    r"""(?P<skip>"(?:[^"\\\n]|\\.)*"|/(?![*/])(?:[^/\\\n]|\\.)+/|//[^\n]*|\#[^\n]*)"""
    r"""|(?P<token><\[[^\]\n]*\]>|<\|[^|\n]*\|>|<[A-Za-z_][^>\s]*>)"""
)


def require_llguidance() -> Any:
    """The package. Raises MissingPackageError, which names the extra that brings it."""
    try:
        import llguidance
    except ImportError as error:
        raise MissingPackageError(
            "answers that follow a schema or a grammar, and tool calls, need the package llguidance: "
            "pip install 'kamado[schema]'"
        ) from error
    return llguidance


def make_matcher(package: Any, trie: Any, grammar: Grammar) -> Any:
    """The compiled grammar. Raises ConstraintError for one that is wrong or unsupported."""
    matchers = package.LLMatcher
    try:
        if grammar.kind == "regex":
            source = matchers.grammar_from_regex(grammar.text)
        elif grammar.kind in ("lark", "json_schema"):
            source = matchers.grammar_from_lark(grammar.text)
        else:
            source = grammar.text
        matcher = matchers(trie, source, log_level=0, limits=package.LLParserLimits(**_LIMITS))
    except ValueError as error:
        raise ConstraintError(f"{KINDS[grammar.kind]}: {reason(str(error))}") from None
    if matcher.is_error():
        raise ConstraintError(f"{KINDS[grammar.kind]}: {reason(matcher.get_error())}")
    return matcher


def reason(text: str) -> str:
    """What went wrong, in one line: the compiler goes on with the source and a caret."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and line.strip() != "<non-verbose/>"]
    if "regex parse error:" in text:
        lines = [line for line in lines if line.startswith("error:")] or lines
    return _STOPS.get(lines[0], lines[0])[:300] if lines else "unknown reason"


# --- in the worker (isolated.py) --------------------------------------------------------------------------------------

_TOKEN = 256  # the one token of the worker's vocabulary that is no byte


class _Bytes:
    """A vocabulary of the 256 bytes, one special token and an end: grammars and their expressions know no other."""

    is_tokenizer_wrapper = True
    tokens = (*(bytes((i,)) for i in range(256)), b"<|special|>", b"<|end|>")
    special_token_ids = (_TOKEN, _TOKEN + 1)
    eos_token_id = _TOKEN + 1
    bos_token_id = None

    def __call__(self, text: str) -> list[int]:
        return list(text.encode())


_tries: list[Any] = []


def warm_up() -> None:
    """What every check needs, made once in the worker's life."""
    if not _tries:
        package = require_llguidance()
        _tries.append(package.LLTokenizer(_Bytes(), n_vocab=_TOKEN + 2, eos_token=[_TOKEN + 1]))


def check(request: Any) -> Any:
    """Compiles a grammar and begins an answer. The reply has the reason when it cannot be used, else ""."""
    text = request["text"]
    if request["kind"] == "parts":
        parts = json.loads(text)
        for part in parts["grammars"]:
            if "lark_grammar" in part:
                part["lark_grammar"] = _with_one_token(part["lark_grammar"])
        text = json.dumps(parts, ensure_ascii=False)
    elif request["kind"] == "lark":
        text = _with_one_token(text)
    package = require_llguidance()
    try:
        matcher = make_matcher(package, _tries[0], Grammar(request["kind"], text))
    except ConstraintError as error:
        return str(error)
    probe = matcher.deep_copy()
    for _ in range(_NUM_PROBED):
        mask = probe.compute_bitmask()
        if probe.is_error():
            break  # what stops an answer later is its own error, when it happens
        byte = next((i for i in range(_TOKEN) if mask[i >> 3] >> (i & 7) & 1), None)
        if byte is None or not probe.consume_token(byte):
            break
    return ""


def _with_one_token(lark: str) -> str:
    """The grammar with every token of the vocabulary that it names replaced by the one of `_Bytes`."""
    return _LARK.sub(lambda match: match["skip"] or f"<[{_TOKEN}]>", lark)
