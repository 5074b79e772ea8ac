"""The forms of one model's answers: schemas and grammars compiled for its vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from ...errors import ConstraintError
from ...plan.forecast import Plan
from ...plan.overhead import CONSTRAINT_LIBRARY_BYTES
from ...plan.sizes import constraint_bytes
from ..forms.constraint import ConstraintCompiler, Form
from ..forms.grammar import Grammar, Schema, make_grammar, schema_grammar
from ..forms.json_schema import open_schema
from ..forms.token_rule import TokenRule
from ..schedule.scheduler import Scheduler
from .think_budget import ThinkBudget

if TYPE_CHECKING:
    from ...text.tokenizer import Tokenizer
    from .turn import Turn


class Forms:
    """Compiles what binds the tokens of answers. Made once for a model and all its names."""

    def __init__(
        self,
        tokenizer: Callable[[], Tokenizer],
        scheduler: Scheduler,
        plan: Plan,
        vocab_size: int,
        reserve: Callable[[int, str, str], int] | None,
    ) -> None:
        """`reserve(num_bytes, what, advice)` makes room for what the plan does not have: see guard.py."""
        self._tokenizer = tokenizer
        self._scheduler = scheduler
        self._plan = plan
        self.unplanned: dict[str, int] = {}  # by owner: reserved since, and what experts lost for it
        self._reserve = reserve
        self._vocab_size = vocab_size

    @cached_property
    def _compiler(self) -> ConstraintCompiler:
        return ConstraintCompiler(self._tokenizer(), self._vocab_size, before_trie=self._make_room)

    @property
    def nbytes(self) -> int:
        """What forms take; 0 before the first answer that has one."""
        compiler: ConstraintCompiler | None = self.__dict__.get("_compiler")
        return 0 if compiler is None else compiler.nbytes

    def _make_room(self) -> None:
        """Makes room for the vocabulary's trie, unless the plan has it."""
        reserve = self._reserve
        if reserve is None or "constraints" in self._plan.bytes_by_owner:
            return
        num_bytes = constraint_bytes(self._vocab_size) + CONSTRAINT_LIBRARY_BYTES
        advice = "give it a larger budget, or load it with constraints=True, which plans for them"
        taken = self._scheduler.call(lambda _: reserve(num_bytes, "answers of a given form", advice))
        self.unplanned = {
            "constraints": num_bytes - CONSTRAINT_LIBRARY_BYTES,
            "libraries": CONSTRAINT_LIBRARY_BYTES,
            "experts": -taken,
        }

    def compiled(self, grammar: Grammar) -> Form:
        """The grammar's form. Raises ConstraintError, MissingPackageError."""
        return self._compiler.form(grammar)

    def prepared(self, schema: Schema | None, regex: str | None, grammar: str | None, strict: bool) -> Form | None:
        """See Model.prepare_form."""
        if schema is None or strict:
            asked = make_grammar(schema, regex, grammar)
            return None if asked is None else self.compiled(asked)
        try:
            return self.compiled(schema_grammar(schema, lenient=True))
        except ConstraintError as error:
            if not isinstance(schema, Mapping):
                raise
            loose = open_schema(schema, str(error))
            return self.compiled(Grammar("json_schema", loose.lark, loose, True))

    def rule(self, form: Grammar | Form | None, turn: Turn | None) -> TokenRule | None:
        """What binds the tokens of one answer."""
        if isinstance(form, Grammar):
            form = self.compiled(form)
        inner = None if form is None else form.begin()
        if turn is None or turn.think_tokens is None or turn.plain_tags is None:
            return inner
        return ThinkBudget(
            self._tokenizer(), turn.plain_tags, turn.think_tokens, is_reasoning=turn.is_reasoning, inner=inner
        )
