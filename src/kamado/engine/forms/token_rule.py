"""What an answer's form has to say at every token."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class TokenRule(Protocol):
    """Says which tokens may come next; forms/constraint.py and turns/think_budget.py have one each."""

    def allowed(self) -> NDArray[np.int64] | None:
        """Ids, ascending, at least one; None: all."""
        ...

    def accept(self, token: int, /) -> None:
        """The token that was picked."""
        ...

    @property
    def is_complete(self) -> bool:
        """Whether nothing but an end may follow."""
        ...
