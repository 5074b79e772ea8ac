"""What a key may open: each route has one scope, each key some."""

from __future__ import annotations

from typing import Literal

# public: no key needed; infer: use models; read: see what there is; pull, delete: change the library; admin: the rest.
Scope = Literal["public", "infer", "read", "pull", "delete", "admin"]
SCOPES: tuple[Scope, ...] = ("infer", "read", "pull", "delete", "admin")
