"""The server's own share of memory: what its bounds allow at the worst moment, taken from what models may have."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path

from ..errors import UsageError
from ..isolated import WORK_BYTES, WORKER, WORKER_BASE_BYTES
from ..measure import KEPT_SCHEMA_BYTES
from ..plan.budget import format_size, format_size_up
from ..plan.overhead import CONSTRAINT_LIBRARY_BYTES, LIBRARY_BYTES
from .config import ServeConfig

# A connection without its header: objects, the buffer it reads into, an answer on its way out. Each of 490 idle ones
# took 24 KiB of resident memory. Buffers of the kernel are not in it.
CONNECTION_BYTES = 48 << 10


@dataclass(frozen=True, slots=True)
class ServerShare:
    """Bytes by part, at the most."""

    bodies: int  # of all requests in flight
    connections: int  # with their headers
    worker: int  # the process that compiles grammars and templates, one thing at a time
    schemas: int  # that were worked out, with their grammars
    libraries: int  # cached pages of Python and its libraries, once for all models

    @property
    def total(self) -> int:
        """All of it."""
        return self.bodies + self.connections + self.worker + self.schemas + self.libraries

    def __str__(self) -> str:
        return ", ".join(f"{name} {format_size(nbytes)}" for name, nbytes in self.parts().items())

    def parts(self) -> dict[str, int]:
        """By name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def server_share(config: ServeConfig) -> ServerShare:
    """The share of a server of these settings."""
    return ServerShare(
        bodies=config.bodies_bytes,
        connections=config.max_connections * (CONNECTION_BYTES + config.max_header_bytes),
        worker=WORKER_BASE_BYTES + WORK_BYTES,
        schemas=KEPT_SCHEMA_BYTES,
        libraries=LIBRARY_BYTES + CONSTRAINT_LIBRARY_BYTES,
    )


def models_bytes(config: ServeConfig) -> int | None:
    """What the budget leaves for models; None: there is no budget. Raises UsageError when it leaves nothing."""
    budget = config.memory_bytes
    if budget is None:
        return None
    share = server_share(config)
    if share.total >= budget:
        raise UsageError(
            f"memory: of {format_size(budget)} nothing is left for a model: the server itself may take "
            f"{format_size_up(share.total)} ({share}); give it more, or lower max_bodies_bytes or max_connections"
        )
    return budget - share.total


def worker_bytes() -> int:
    """Resident memory of the worker process now; 0 when there is none, or where nothing tells."""
    pid = WORKER.pid
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) if pid else 0
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
