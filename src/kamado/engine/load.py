"""From a name to a model: find the file, plan, pack the weights, read the tokenizer beside it."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..files.types import Checkpoint
from ..plan import forecast
from ..plan.budget import given_size, parse_size
from ..plan.forecast import Plan
from ..plan.kv_presets import check_kv
from ..plan.machine import load_device_profile, machine
from ..plan.sizes import rows_until_forgotten
from ..plan.usage import BudgetWatch
from ..plan.watch import LimitWatch
from ..program import Program
from .cache.identity import build_identity, changed_at, model_identity
from .cache.prefix_saver import PrefixSaver
from .cache.prefix_store import PrefixStore
from .executor_protocol import ExecutorProtocol
from .loaded import is_whole
from .measure.kv_results import recommended_for
from .measure.trace import Tracer
from .model import Model
from .schedule.guard import MemoryGuard

if TYPE_CHECKING:
    from ..text.tokenizer import Tokenizer

MAX_THREADS = 1024
# What the prefix store's queue and the prefix it writes take, counted with the interpreter.
PREFIX_STORE_BYTES = 32 << 20


def prefix_store_bytes(program: Program) -> int:
    """What a prefix store takes in memory: its queue, and a prefix's records twice, on their way in and out."""
    return PREFIX_STORE_BYTES + 2 * program.record_bytes


def load(
    model: str | Path,
    memory: str | int | None = None,
    threads: int | None = None,
    kv: str = "auto",
    context: int | None = None,
    *,
    kv_tokens: int | None = None,
    max_rows: int | None = None,
    max_logit_rows: int | None = None,
    tier: str | None = None,
    trace: str | Path | None = None,
    prefix_cache: str | int | None = None,
    chat_template: str | None = None,
    constraints: bool = False,
    allow_unknown: Collection[str] = (),
    name: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Model:
    """Loads a model: a GGUF file, a safetensors directory, or a name in the store such as "smollm2:135m".

    memory    budget of the process, "6GiB" or bytes: weights, experts, KV cache, scratch, interpreter and cached pages
              of the model's files; None: what this machine and its cgroups have to give, less a margin. A model with
              experts that does not fit runs all the same, to the same bits: its experts are read from disk as needed
    threads   compute threads; None: the processors this process may use
    kv        KV cache: "exact" (f16), "f32", "safe" (keys of 8 bits, values of 4), "balanced" (4 and 4), "small" (3 and
              2), bits such as "k=4,v=3", layers that differ: "balanced,layers=0-1:exact"; "auto" is what `kamado kv`
              measured as safe for this very model, and "exact" until it was run
    context   tokens of a prompt and its answer together; None: the model's own length up to 4096, or the largest half,
              quarter … of that which fits the budget (256 at the least). Phi-3 and its kin turn positions otherwise in
              contexts above their original length, in short texts too: see `model.plan.notes`
    kv_tokens tokens of all conversations together, running and kept for reuse; None: as many as `context`
    max_rows  rows of a step, the size of a prefill chunk; results do not depend on it; None: what the plan chooses, 512
              or less, up to 2048 when experts are streamed
    max_logit_rows  rows that `logits` may return; None: 32 MiB of them, 16 at the least
    tier      lowers the kernels' instruction set, e.g. "avx2"; None: the best that this processor has
    prefix_cache  a cap such as "2GiB" for prompts and conversations that are kept on disk and not computed again,
              not even after a restart; None or "off": nothing is kept
    trace     a file to write the steps to, for Perfetto (ui.perfetto.dev)
    chat_template  Jinja source in place of the file's own
    constraints  whether the budget has room for answers of a given form and tool calls: a trie of the vocabulary, which
              is made for the first of them, about 0.5 kB a token
    allow_unknown  settings of the file, by its own names for them ("llama.new_scale"), that this version neither reads
              nor knows to be harmless, and that are to be left out all the same: without it they are refused, since the
              answers may be wrong. `model.plan.overridden` lists those that the file has
    name      what messages and kept conversations call the model; None: its name in the store, else its path
    progress  called with (done bytes, total bytes) while weights are packed; an exception it raises stops the load

    Nothing is downloaded: `kamado pull NAME` does that. Raises ModelNotFoundError, CheckpointError and its kinds for a
    file that cannot be used, MemoryBudgetError (with the least budget that works), UsageError, NativeError.
    While a model streams, its file must stay as it is: ModelChangedError or ExpertReadError say when it did not.

        with kamado.load("smollm2:135m", memory="1GiB", context=2048) as model:
            print(model.plan.peak_bytes, "".join(p.text for p in model.generate("The answer is", max_tokens=20)))
    """
    check_kv(kv)
    allow_unknown = (allow_unknown,) if isinstance(allow_unknown, str) else tuple(allow_unknown)
    cap_bytes = _prefix_cap(prefix_cache)
    budget_bytes = None if memory is None else given_size(memory)
    for setting, value, low, high in (
        ("threads", threads, 1, MAX_THREADS),
        ("max_rows", max_rows, 2, 1 << 16),
        ("max_logit_rows", max_logit_rows, 2, 1 << 16),
        ("kv_tokens", kv_tokens, 1, 1 << 32),
        ("context", context, 2, 1 << 32),
    ):
        if value is not None and (not is_whole(value) or not low <= value <= high):
            raise UsageError(f"{setting} must be a whole number from {low} to {high}, not {value!r}")

    from ..files import open_checkpoint
    from ..library.store import Store
    from ..models import build_program

    store = Store()
    path = store.resolve(model if isinstance(model, Path) else str(model))
    # What the user can type again, not what the file calls itself: messages, sessions and figures have it.
    checkpoint = dataclasses.replace(open_checkpoint(path), name=name or store.name_of(path))
    if chat_template is not None:
        checkpoint = dataclasses.replace(checkpoint, chat_template=chat_template, chat_templates={})
    program = build_program(checkpoint, allow_unknown)
    identity = model_identity(checkpoint) if cap_bytes else ""
    if program.is_encoder and kv == "auto":
        kv = "f32"  # texts are short and are not kept, so exactness costs little
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
        kv_recommended=recommended_for(checkpoint, kv),
        reserved_bytes=prefix_store_bytes(program) if cap_bytes else 0,
        constraints=constraints and not program.is_encoder,
        profile=load_device_profile(here.cpu_model, num_threads, here.tier),
        on=here,
    )
    plan.require_fit()
    positions = "" if program.longer is None else "long" if plan.context > program.longer[0] else "short"
    program = program.for_context(plan.context)
    # A budget that was asked for covers cached pages of the model's files; without one they may stay, since the system
    # takes them back when it needs them, and the next load is faster.
    is_strict = memory is not None or plan.is_streamed
    watch = BudgetWatch(plan.memory_bytes, checkpoint.files if is_strict else ())
    keeps = None
    if cap_bytes:
        prefixes = PrefixStore(cap_bytes=cap_bytes, keeps_cached=not is_strict)
        keeps = _saver_maker(prefixes, checkpoint, identity, plan, positions, program)
    return _build(checkpoint, program, plan, watch, tier=tier, trace=trace, make_saver=keeps, progress=progress)


def _prefix_cap(prefix_cache: str | int | None) -> int:
    """Bytes that the prefix store may take; 0: it is off."""
    if prefix_cache is None or prefix_cache == "off":
        return 0
    return given_size(prefix_cache) if isinstance(prefix_cache, str) else parse_size(prefix_cache)


def _saver_maker(
    store: PrefixStore, checkpoint: Checkpoint, identity: str, plan: Plan, positions: str, program: Program
) -> Callable[[ExecutorProtocol, str, MemoryGuard], PrefixSaver]:
    """What makes the saver once there is an executor: prefixes are bound to the file, the build and the format.

    `positions`: which of two rotations keys were made with, where the model has two.
    """

    def make(executor: ExecutorProtocol, tier: str, guard: MemoryGuard) -> PrefixSaver:
        binding = {
            "model": identity,
            "changed": changed_at(checkpoint),
            "build": build_identity(tier),
            "format": executor.kv_fingerprint,
            "kv": plan.kv,
            **({"positions": positions} if positions else {}),
        }
        about = {"model": plan.model, "kv": plan.kv}
        return PrefixSaver(
            store, executor, binding=binding, about=about,
            spare_bytes=lambda: guard.spare_bytes + prefix_store_bytes(program) // 2, has_record=program.has_record,
        )  # fmt: skip

    return make


def _build(
    checkpoint: Checkpoint,
    program: Program,
    plan: Plan,
    watch: BudgetWatch,
    *,
    tier: str | None,
    trace: str | Path | None,
    make_saver: Callable[[ExecutorProtocol, str, MemoryGuard], PrefixSaver] | None,
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
        max_sequences=plan.max_sequences,
        kv="f32" if plan.kv_element == "f32" else "f16",
        kv_bits=plan.kv_bits,
        kv_reuse_points=plan.kv_reuse_points,
        max_records=plan.max_records or None,
        tier=tier,
        expert_bytes=plan.expert_bytes,
        drop_file_cache=bool(watch.files),
        progress=progress,
    )
    executor: ExecutorProtocol = native
    try:
        guard = MemoryGuard(plan, native, limits)
        saver = None if make_saver is None else make_saver(native, native.tier, guard)
        if trace is not None:
            executor = Tracer(native, Path(trace))
        watch.forget_files()
        return Model(
            checkpoint=checkpoint,
            plan=plan,
            executor=executor,
            tokenizer=reader.result(),
            cancelled_error=_native.Cancelled,
            watch=watch,
            forget_after=rows_until_forgotten(program, plan.context),
            max_sequences=plan.max_sequences,
            saver=saver,
            pooling=program.pooling,
            is_encoder=program.is_encoder,
            has_record=program.has_record,
            before_step=guard,
            reserve=guard.reserve,
        )
    except BaseException:
        executor.close()
        raise


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
                from ..text.tokenizer import load_tokenizer

                self._tokenizer = load_tokenizer(self._source)
        except BaseException as error:
            self._error = error

    def result(self) -> Tokenizer | None:
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._tokenizer
