"""From a name to a model: find the file, plan, pack the weights, read the tokenizer beside it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoint.types import Checkpoint
from ..errors import UsageError
from ..memory import forecast
from ..memory.budget import parse_size
from ..memory.forecast import Plan
from ..memory.limits import LimitWatch
from ..memory.profile import load_device_profile, machine
from ..memory.usage import BudgetWatch
from ..program import Program
from .executor_protocol import ExecutorProtocol
from .guard import MemoryGuard
from .model import MAX_SEQUENCES, Model, is_whole
from .trace import Tracer

if TYPE_CHECKING:
    from ..checkpoint.tokenizer import Tokenizer

MAX_THREADS = 1024
_FORGET_BYTES = 64 << 20  # read between two calls that give the page cache back


def load_model(
    model: str | Path,
    *,
    memory: str | int | None = None,
    threads: int | None = None,
    kv: str = "auto",
    context: int | None = None,
    kv_tokens: int | None = None,
    max_rows: int | None = None,
    max_logit_rows: int | None = None,
    tier: str | None = None,
    trace: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Model:
    """See `kamado.load`."""
    forecast.kv_element_bytes(kv)
    budget_bytes = None if memory is None else parse_size(memory)
    for name, value, low, high in (
        ("threads", threads, 1, MAX_THREADS),
        ("max_rows", max_rows, 2, 1 << 16),
        ("max_logit_rows", max_logit_rows, 2, 1 << 16),
        ("kv_tokens", kv_tokens, 1, 1 << 32),
        ("context", context, 2, 1 << 32),
    ):
        if value is not None and (not is_whole(value) or not low <= value <= high):
            raise UsageError(f"{name} must be a whole number from {low} to {high}, not {value!r}")

    from ..checkpoint import open_checkpoint
    from ..checkpoint.store import Store
    from ..models import build_program

    checkpoint = open_checkpoint(Store().resolve(str(model)))
    program = build_program(checkpoint)
    here = machine()
    num_threads = threads or here.cpus
    plan = forecast.plan(
        checkpoint,
        program,
        context=context,
        kv=kv,
        threads=num_threads,
        memory=budget_bytes,
        kv_tokens=kv_tokens,
        max_rows=max_rows,
        max_logit_rows=max_logit_rows,
        profile=load_device_profile(here.cpu_model, num_threads, here.tier),
        on=here,
    )
    plan.require_fit()
    # A budget that was asked for covers cached pages of the model's files; without one they may stay, since the system
    # takes them back when it needs them, and the next load is faster.
    is_strict = memory is not None or plan.is_streamed
    watch = BudgetWatch(plan.memory_bytes, checkpoint.files if is_strict else ())
    return _build(checkpoint, program, plan, watch, tier=tier, trace=trace, progress=progress)


def _build(
    checkpoint: Checkpoint,
    program: Program,
    plan: Plan,
    watch: BudgetWatch,
    *,
    tier: str | None,
    trace: str | Path | None,
    progress: Callable[[int, int], None] | None,
) -> Model:
    """Packs the weights while a second thread reads the tokenizer, which takes as long for a large vocabulary."""
    from .. import _native
    from ..lower import build_executor

    reader = _TokenizerReader(checkpoint)
    limits = LimitWatch()
    native = build_executor(
        program,
        num_threads=plan.num_threads,
        max_rows=plan.max_rows,
        max_logit_rows=plan.max_logit_rows,
        max_kv_tokens=plan.kv_tokens,
        max_sequences=MAX_SEQUENCES,
        kv="f32" if plan.kv == "f32" else "f16",
        tier=tier,
        expert_bytes=plan.expert_bytes,
        progress=_forgetting(watch, progress) if watch.files else progress,
    )
    executor: ExecutorProtocol = native
    try:
        if trace is not None:
            executor = Tracer(executor, Path(trace))
        watch.forget_files()
        return Model(
            checkpoint=checkpoint,
            plan=plan,
            executor=executor,
            tokenizer=reader.result(),
            cancelled_error=_native.Cancelled,
            watch=watch,
            before_step=MemoryGuard(plan, native, limits),
        )
    except BaseException:
        executor.close()
        raise


def _forgetting(watch: BudgetWatch, progress: Callable[[int, int], None] | None) -> Callable[[int, int], None]:
    """`progress` that also drops what reading the weights leaves in the page cache."""
    dropped = 0

    def report(done: int, total: int) -> None:
        nonlocal dropped
        if done - dropped >= _FORGET_BYTES:
            dropped = done
            watch.forget_files()
        if progress is not None:
            progress(done, total)

    return report


class _TokenizerReader:
    """Loads the tokenizer on a thread of its own; `result` waits for it and raises what it raised."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._source = checkpoint.tokenizer
        self._tokenizer: Tokenizer | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._read, name="kamado-tokenizer", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            if self._source is not None:
                from ..checkpoint.tokenizer import load_tokenizer

                self._tokenizer = load_tokenizer(self._source)
        except BaseException as error:
            self._error = error

    def result(self) -> Tokenizer | None:
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._tokenizer
