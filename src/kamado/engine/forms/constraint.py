"""Answers that match a schema, an expression or a grammar by construction: before a token is picked, those that would
break the form are ruled out.

`llguidance` (the extra `kamado[schema]`) works out, from a trie of the vocabulary's bytes and what was picked so far,
which tokens may follow: 0.02 to 0.6 ms a token for vocabularies of 49k to 262k, where a step of the smallest model
takes 10. Nothing is worked out in advance, so a schema is ready in a few milliseconds. The trie takes about 0.5 kB a
token, and is made when the first constraint is.

A grammar is compiled once and copied for every answer; several answers may run at once. What is allowed depends on the
grammar and the tokens alone, so the same seed still gives the same answer.

Grammars are strangers' text, and the compiler recurses on the native stack. Whatever is not small and plain
(grammar_bounds.py) is compiled in a worker process first, on a stack a quarter as large as the one it is then compiled
on here; within it, memory and processor time are bounded too. Following an answer does not recurse: grammars that need
more than 8 MiB of stack to compile follow 300 tokens on 128 KiB. Compiling and masks run without the GIL.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ConstraintError
from ...isolated import WORKER, Limits, WorkerEndedError, run_on_big_stack, why_ended
from ...plan.sizes import constraint_bytes
from .grammar import Grammar
from .grammar_bounds import check_bounds
from .grammar_compile import KINDS, make_matcher, reason, require_llguidance
from .json_schema import CompiledSchema

if TYPE_CHECKING:
    from ...text.tokenizer import Tokenizer

__all__ = ["Constraint", "ConstraintCompiler", "Form", "require_llguidance"]

# Compiled grammars that are kept: an agent sends the same tools with every turn.
_MAX_CACHED = 32
# A grammar is compiled twice, so 2 s in all.
_TRIAL = Limits(cpu_seconds=1.0, clock_seconds=8.0)
# Processor time of the thread on which all answers wait: a token may take 5 ms (usual ones take less than one), and all
# of an answer's tokens together 100 ms more. An ambiguous grammar takes a little more with each token.
_STEP_SECONDS = 0.005
_SPARE_SECONDS = 0.1


class Constraint:
    """The form of one answer, as far as it has come. Not thread-safe."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._mask = np.zeros(-(-vocab_size // 32), np.uint32)
        self._debt_seconds = 0.0

    def allowed(self) -> NDArray[np.int64]:
        """Ids that may come next, ascending, at least one; ids that end a turn where the answer may end.

        Raises ConstraintError when the vocabulary has no way on, or the grammar is too ambiguous to follow.
        """
        if self._debt_seconds > _SPARE_SECONDS:
            raise ConstraintError(
                "the answer's form cannot be followed: it is too ambiguous or too large, one token takes longer than "
                f"{_STEP_SECONDS * 1e3:.0f} ms"
            )
        began = time.thread_time()
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        self._debt_seconds = max(0.0, self._debt_seconds + time.thread_time() - began - _STEP_SECONDS)
        if self._matcher.is_error():
            raise ConstraintError(f"the answer's form cannot be followed: {reason(self._matcher.get_error())}")
        bits = np.unpackbits(self._mask.view(np.uint8), count=self._vocab_size, bitorder="little")
        ids = np.flatnonzero(bits.view(np.bool_))
        if ids.size == 0:
            raise ConstraintError("the answer's form leaves no token of this model's vocabulary to go on with")
        return ids

    def accept(self, token: int) -> None:
        """The token that was picked, one of `allowed`."""
        began = time.thread_time()
        if not self._matcher.consume_token(token):
            raise ConstraintError(f"token {token} breaks the answer's form: {reason(self._matcher.get_error())}")
        self._debt_seconds += time.thread_time() - began

    @property
    def is_complete(self) -> bool:
        """Whether nothing but an end may follow."""
        return bool(self._matcher.is_stopped())

    @property
    def is_accepting(self) -> bool:
        """Whether the answer may end here."""
        return bool(self._matcher.is_accepting())


class Form:
    """A compiled grammar. Thread-safe."""

    def __init__(self, matcher: Any, vocab_size: int, grammar: Grammar) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self.grammar = grammar  # what it was made of

    @property
    def schema(self) -> CompiledSchema | None:
        """The schema that it was made of, with what it leaves open."""
        return self.grammar.schema

    def begin(self) -> Constraint:
        """A constraint for one answer; microseconds."""
        return Constraint(self._matcher.deep_copy(), self._vocab_size)


class _Compiling:
    """A grammar's place in the cache: others who want it wait here."""

    def __init__(self) -> None:
        self.is_done = threading.Event()
        self.form: Form | None = None
        self.error: BaseException | None = None


class ConstraintCompiler:
    """Compiles grammars for one vocabulary. Thread-safe."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, *, before_trie: Callable[[], None] | None = None) -> None:
        """`vocab_size`: width of a row of logits, which may be more than the tokenizer's ids. `before_trie` is called
        once, before memory is taken; what it raises stops that."""
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._lock = threading.Lock()  # of the cache; never held while something is compiled
        self._trie_lock = threading.Lock()
        self._before_trie = before_trie
        self._trie: Any = None
        self._compiled: OrderedDict[Grammar, _Compiling] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Memory that is taken, by what was measured (plan/sizes.py): none before the first grammar."""
        return 0 if self._trie is None else constraint_bytes(self._vocab_size, is_peak=False)

    def compile(self, grammar: Grammar) -> Constraint:
        """A constraint for one answer. Raises as `form` does."""
        return self.form(grammar).begin()

    def form(self, grammar: Grammar) -> Form:
        """The compiled grammar. Takes up to some seconds for one that is new: not for an event loop.

        Raises ConstraintError for a grammar that is wrong, unsupported, too large or that nothing matches, and
        MissingPackageError when `llguidance` is not installed.
        """
        while True:
            with self._lock:
                place = self._compiled.get(grammar)
                is_mine = place is None
                if place is None:
                    place = self._compiled[grammar] = _Compiling()
                    while len(self._compiled) > _MAX_CACHED:
                        self._compiled.popitem(last=False)
                self._compiled.move_to_end(grammar)
            if is_mine:
                try:
                    place.form = Form(self._make(grammar), self._vocab_size, grammar)
                except BaseException as error:
                    place.error = error
                    with self._lock:
                        if self._compiled.get(grammar) is place:
                            del self._compiled[grammar]
                    raise
                finally:
                    place.is_done.set()
                return place.form
            place.is_done.wait()
            if place.form is not None:
                return place.form
            if isinstance(place.error, ConstraintError):
                raise ConstraintError(str(place.error))
            # Whoever tried was not allowed to wait for the worker, or was interrupted: try it here.

    def _make(self, grammar: Grammar) -> Any:
        package = require_llguidance()
        if not check_bounds(grammar):
            self._try(grammar)
        with self._trie_lock:
            if self._trie is None:
                if self._before_trie is not None:
                    self._before_trie()
                    self._before_trie = None
                self._trie = _make_trie(package, self._tokenizer, self._vocab_size)
        return run_on_big_stack(lambda: self._compile(package, grammar))

    @staticmethod
    def _try(grammar: Grammar) -> None:
        """Compiles the grammar in the worker. Raises ConstraintError when it must not be compiled here."""
        request = {"kind": grammar.kind, "text": grammar.text}
        try:
            problem = WORKER.ask("kamado.engine.forms.grammar_compile:check", request, _TRIAL)
        except WorkerEndedError as error:
            reasons = {
                "time": f"compiling it takes longer than {2 * _TRIAL.cpu_seconds:g} s: make it smaller or simpler",
                "memory": f"compiling it takes more than {_TRIAL.memory_bytes >> 20} MiB: make it smaller or simpler",
                "stack": "its parts are nested too deeply in each other: follow fewer references from one to the next",
            }
            said = why_ended(error, "the answer's form", reasons)
            raise ConstraintError(f"{KINDS[grammar.kind]}: {said}") from None
        if problem:
            raise ConstraintError(problem)

    def _compile(self, package: Any, grammar: Grammar) -> Any:
        matcher = make_matcher(package, self._trie, grammar)
        probe = Constraint(matcher.deep_copy(), self._vocab_size)
        try:
            for _ in range(2):  # the second says whether the first took too long
                probe.allowed()
        except ConstraintError as error:
            raise ConstraintError(f"{KINDS[grammar.kind]}: {error}") from None
        if probe.is_complete and not probe.is_accepting:
            raise ConstraintError(f"{KINDS[grammar.kind]}: no text matches it")
        return matcher


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
        return self._tokenizer.encode(text, special=False, add_bos=False, add_eos=False, after="text")


def _make_trie(package: Any, tokenizer: Tokenizer, vocab_size: int) -> Any:
    stops = sorted(i for i in tokenizer.stop_ids if i < vocab_size)
    if not stops:
        raise ConstraintError("the model's vocabulary has no token that ends an answer, so its form cannot be bound")
    vocabulary = _Vocabulary(tokenizer, vocab_size, stops[0])
    try:
        return package.LLTokenizer(vocabulary, n_vocab=vocab_size, eos_token=stops)
    except (ValueError, TypeError) as error:
        raise ConstraintError(f"the model's vocabulary cannot be bound: {reason(str(error))}") from error
