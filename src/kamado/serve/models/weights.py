"""Weights in memory that several served models use: a model and the recipes made of it differ in names, templates and
settings alone, so loading them twice would take the time and the memory for nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ... import Model


class Weights:
    """A loaded model and its users, of whom the first pays for its memory. It is closed when the last one leaves.

    Thread-safe.
    """

    def __init__(self, model: Model, on_close: Callable[[Weights], None] | None = None) -> None:
        self.model = model
        self._on_close = on_close
        self._users: list[object] = []
        self._is_closed = False
        self._lock = threading.Lock()

    def join(self, user: object) -> bool:
        """One more user; False when it is too late."""
        with self._lock:
            if not self._is_closed:
                self._users.append(user)
            return not self._is_closed

    def leave(self, user: object) -> None:
        """The user needs them no more; may be called again. Waits for the model's end when it was the last."""
        with self._lock:
            if user not in self._users:
                return
            self._users.remove(user)
            if self._users:
                return
            self._is_closed = True
        if self._on_close is not None:
            self._on_close(self)
        self.model.close()

    def is_payer(self, user: object) -> bool:
        """Whether the memory is counted for this user."""
        with self._lock:
            return bool(self._users) and self._users[0] is user
