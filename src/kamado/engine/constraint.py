"""Answers that match a schema, an expression or a grammar by construction: before a token is picked, those that would
break the form are ruled out.

`llguidance` (the extra `kamado[schema]`) works out, from a trie of the vocabulary's bytes and what was picked so far,
which tokens may follow: 0.02 to 0.6 ms a token for vocabularies of 49k to 262k, where a step of the smallest model
takes 10. Nothing is worked out in advance, so a schema is ready in a few milliseconds. The trie takes about 0.5 kB a
token, and is made when the first constraint is.

A grammar is compiled once and copied for every answer; several answers may run at once. What is allowed depends on the
grammar and the tokens alone, so the same seed still gives the same answer.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConstraintError, MissingPackageError
from ..memory.sizes import constraint_bytes
from .grammar import Grammar

if TYPE_CHECKING:
    from ..checkpoint.tokenizer import Tokenizer

# Compiled grammars that are kept: an agent sends the same tools with every turn.
_MAX_CACHED = 32
# Bounds of the compiler and of one mask, in its own units; about 50 000 of fuel and 20 000 items take a millisecond.
_LIMITS = {
    "max_items_in_row": 2000,
    "initial_lexer_fuel": 2_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_lexer_states": 50_000,  # 1 to 2 kB each
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}
# Between the parts of JSON: enough to indent by two for seven levels, too little to go on for ever.
WHITESPACE = r"[ \t\r\n]{0,16}"

_KINDS = {
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


class Constraint:
    """The form of one answer, as far as it has come. Not thread-safe."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._mask = np.zeros(-(-vocab_size // 32), np.uint32)

    def allowed(self) -> NDArray[np.int64]:
        """Ids that may come next, ascending, at least one; ids that end a turn where the answer may end.

        Raises ConstraintError when the vocabulary has no way on, or the grammar is too ambiguous to follow.
        """
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        if self._matcher.is_error():
            raise ConstraintError(f"the answer's form cannot be followed: {_reason(self._matcher.get_error())}")
        bits = np.unpackbits(self._mask.view(np.uint8), count=self._vocab_size, bitorder="little")
        ids = np.flatnonzero(bits.view(np.bool_))
        if ids.size == 0:
            raise ConstraintError("the answer's form leaves no token of this model's vocabulary to go on with")
        return ids

    def accept(self, token: int) -> None:
        """The token that was picked, one of `allowed`."""
        if not self._matcher.consume_token(token):
            raise ConstraintError(f"token {token} breaks the answer's form: {_reason(self._matcher.get_error())}")

    @property
    def is_complete(self) -> bool:
        """Whether nothing but an end may follow."""
        return bool(self._matcher.is_stopped())

    @property
    def is_accepting(self) -> bool:
        """Whether the answer may end here."""
        return bool(self._matcher.is_accepting())


class ConstraintCompiler:
    """Compiles grammars for one vocabulary. Thread-safe."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, *, before_trie: Callable[[], None] | None = None) -> None:
        """`vocab_size`: width of a row of logits, which may be more than the tokenizer's ids. `before_trie` is called
        once, before memory is taken; what it raises stops that."""
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._lock = threading.Lock()
        self._before_trie = before_trie
        self._trie: Any = None
        self._compiled: OrderedDict[Grammar, Any] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Memory that is taken, by what was measured (memory/sizes.py): none before the first grammar."""
        return 0 if self._trie is None else constraint_bytes(self._vocab_size, is_peak=False)

    def compile(self, grammar: Grammar) -> Constraint:
        """A constraint for one answer.

        Raises ConstraintError for a grammar that is wrong, unsupported, too large or that nothing matches, and
        MissingPackageError when `llguidance` is not installed.
        """
        with self._lock:
            matcher = self._compiled.get(grammar)
            if matcher is None:
                matcher = self._compiled[grammar] = self._make(grammar)
                while len(self._compiled) > _MAX_CACHED:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(grammar)
            return Constraint(matcher.deep_copy(), self._vocab_size)

    def _make(self, grammar: Grammar) -> Any:
        package = require_llguidance()
        matchers = package.LLMatcher
        if self._trie is None:
            if self._before_trie is not None:
                self._before_trie()
                self._before_trie = None
            self._trie = _make_trie(package, self._tokenizer, self._vocab_size)
        try:
            if grammar.kind == "json_schema":
                options = {"whitespace_pattern": WHITESPACE, "lenient": grammar.is_lenient}
                source = matchers.grammar_from_json_schema(grammar.text, overrides=options)
            elif grammar.kind == "regex":
                source = matchers.grammar_from_regex(grammar.text)
            elif grammar.kind == "lark":
                source = matchers.grammar_from_lark(grammar.text)
            else:
                source = grammar.text
            matcher = matchers(self._trie, source, log_level=0, limits=package.LLParserLimits(**_LIMITS))
        except ValueError as error:
            raise ConstraintError(f"{_KINDS[grammar.kind]}: {_reason(str(error))}") from None
        if matcher.is_error():
            raise ConstraintError(f"{_KINDS[grammar.kind]}: {_reason(matcher.get_error())}")
        probe = Constraint(matcher.deep_copy(), self._vocab_size)
        try:
            probe.allowed()
        except ConstraintError as error:
            raise ConstraintError(f"{_KINDS[grammar.kind]}: {error}") from None
        if probe.is_complete and not probe.is_accepting:
            raise ConstraintError(f"{_KINDS[grammar.kind]}: no text matches it")
        return matcher


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


class _Vocabulary:
    """What `llguidance` asks of a tokenizer. Rows past the vocabulary have no bytes and are never allowed."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_id: int) -> None:
        self._tokenizer = tokenizer
        num_tokens = min(tokenizer.vocab_size, vocab_size)
        self.tokens = [tokenizer.token_bytes(i) for i in range(num_tokens)] + [b""] * (vocab_size - num_tokens)
        self.special_token_ids = sorted(i for i in tokenizer.special_ids if i < vocab_size)
        for i in self.special_token_ids:  # they are told apart by name
            self.tokens[i] = self.tokens[i] or f"<|special {i}|>".encode()
        self.eos_token_id = eos_token_id
        self.bos_token_id = tokenizer.bos_id

    def __call__(self, text: str) -> Sequence[int]:
        return self._tokenizer.encode(text, special=False, add_bos=False, add_eos=False)


def _make_trie(package: Any, tokenizer: Tokenizer, vocab_size: int) -> Any:
    stops = sorted(i for i in tokenizer.stop_ids if i < vocab_size)
    if not stops:
        raise ConstraintError("the model's vocabulary has no token that ends an answer, so its form cannot be bound")
    vocabulary = _Vocabulary(tokenizer, vocab_size, stops[0])
    try:
        return package.LLTokenizer(vocabulary, n_vocab=vocab_size, eos_token=stops)
    except (ValueError, TypeError) as error:
        raise ConstraintError(f"the model's vocabulary cannot be bound: {_reason(str(error))}") from error


def _reason(text: str) -> str:
    """What went wrong, in one line: the compiler goes on with the source and a caret."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and line.strip() != "<non-verbose/>"]
    if "regex parse error:" in text:
        lines = [line for line in lines if line.startswith("error:")] or lines
    return _STOPS.get(lines[0], lines[0])[:300] if lines else "unknown reason"
