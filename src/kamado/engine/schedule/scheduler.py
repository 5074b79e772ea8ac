"""One thread owns the executor and runs requests in steps, whose rows step_planner.py chooses.

A cancelled request leaves at the next step; a long step that it is part of is aborted, and the others do that step
again: an aborted step changes nothing.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

from ...errors import ClosedError, UsageError
from ..cache.prefix_saver import PrefixSaver
from ..cache.sequences import NoRoomError, SequenceCache
from ..executor_protocol import ExecutorProtocol
from .admission import Admission
from .job import Job
from .marks import mark_end, mark_reached
from .request import Outbox, Request
from .stats import Counters, Snapshot, snapshot_of
from .step_planner import Chunk, StepPlanner, executor_arrays

T = TypeVar("T")

_log = logging.getLogger("kamado.scheduler")

_CLOSE_SECONDS = 30.0
_IDLE_SECONDS = 2.0  # between two calls of before_step without work
# Cores are left alone for so long after the first piece of an answer: the next step takes all of them, and who passes
# the piece on may wait for one for a whole time slice, 3 to 4 ms.
_FIRST_PIECE_SECONDS = 0.0005


class Scheduler:
    """Runs requests and jobs. All methods may be called from any thread."""

    def __init__(
        self,
        executor: ExecutorProtocol,
        *,
        max_rows: int,
        max_logit_rows: int,
        max_sequences: int,
        cancelled_error: type[BaseException],
        max_live: int | None = None,
        after_rows: tuple[int, Callable[[], None]] | None = None,
        saver: PrefixSaver | None = None,
        before_step: Callable[[], None] | None = None,
    ) -> None:
        """`after_rows`: a number of rows, and what to call between steps whenever that many more were computed.
        `saver`: saves prefixes to disk and restores them. `before_step` is called before each step, and now and then
        while there is none to do; what it raises ends everything, and every request gets it."""
        self._process_id = os.getpid()
        self._executor = executor
        self._cancelled_error = cancelled_error
        self._saver = saver
        self._sequences = SequenceCache(
            executor, max_sequences=max_sequences, before_cut=None if saver is None else saver.cut
        )
        self._before_step = before_step
        self._counters = Counters()

        self._inbox: deque[Request | Job[object]] = deque()
        self._news = threading.Event()
        self._lock = threading.Lock()  # guards _running, _closing
        self._running: Sequence[Request | Job[object]] = ()  # what the executor works on at this moment
        self._closing: BaseException | None = None
        self._num_aborts_in_row = 0

        self._delayed: list[Job[object]] = []  # found no room; tried again when a request ends
        self._waiting: list[Request] = []
        self._live: list[Request] = []  # in order of arrival
        admission = Admission(
            self._sequences, saver, waiting=self._waiting, live=self._live, counters=self._counters,
            max_live=min(max_live or max_sequences, max_sequences),
        )  # fmt: skip
        self._planner = StepPlanner(
            self._sequences, admission, waiting=self._waiting, live=self._live, leave=self._leave, max_rows=max_rows,
            max_logit_rows=max_logit_rows, counters=self._counters,
        )  # fmt: skip
        self._num_served = 0
        self._after_rows = after_rows
        self._num_rows_since = 0
        self._unannounced: list[Outbox] = []  # pieces that are there and whose listeners do not know it yet
        if saver is not None:
            saver.attach(self._news.set)
        self._thread = threading.Thread(target=self._main, name="kamado-scheduler", daemon=True)
        self._thread.start()

    # Called by any thread.

    def check_process(self) -> None:
        """Raises UsageError in a forked child: the threads that would answer are its parent's."""
        if not self.is_own_process:
            raise UsageError(
                f"this model belongs to process {self._process_id}, of which this one was forked: load it again in "
                "the child, or start the child before the model is loaded (the multiprocessing method 'spawn')"
            )

    @property
    def is_own_process(self) -> bool:
        """Whether this is the process that made it."""
        return os.getpid() == self._process_id

    def submit(self, request: Request) -> None:
        """Queues a request; its pieces, or the error it met, come out of `request.output`. Raises ClosedError."""
        self._send(request)

    def cancel(self, request: Request) -> None:
        """The request gets no more than an end mark. Its rows leave with the next step; a running one is aborted."""
        if not self.is_own_process:
            return
        request.is_cancelled = True
        self._news.set()
        self._abort_step_of(request)

    def wake(self) -> None:
        """A consumer has read: requests that were paused may go on."""
        self._news.set()

    def call(self, function: Callable[[SequenceCache], T]) -> T:
        """Runs `function` on the scheduler's thread between steps and returns its result or raises its error.

        When a step inside it was aborted for another's sake, or it raised NoRoomError, it is run again from the
        start, so it must begin anew each time. An exception in the waiting thread, Ctrl-C for one, aborts it.
        """
        job = Job(function)
        self._send(job)  # type: ignore[arg-type]
        try:
            result, error = job.result.get()
        except BaseException:
            job.is_cancelled = True
            self._abort_step_of(job)  # type: ignore[arg-type]
            raise
        if error is not None:
            raise error
        return result  # type: ignore[return-value]

    def snapshot(self) -> Snapshot:
        """Totals at the end of the running step."""

        def take(sequences: SequenceCache) -> Snapshot:
            return snapshot_of(self._counters, sequences, num_waiting=len(self._waiting), num_live=len(self._live))

        return self.call(take)

    def close(self) -> None:
        """Ends every request with ClosedError, waits for the thread and closes the executor. May be called again, and
        does nothing in a forked child."""
        if not self.is_own_process:
            return
        self._close(ClosedError("the model was closed"))
        if threading.current_thread() is not self._thread:
            self._thread.join(_CLOSE_SECONDS)

    @property
    def is_closed(self) -> bool:
        """Whether nothing more is taken."""
        return self._closing is not None

    def _close(self, reason: BaseException) -> None:
        with self._lock:
            if self._closing is None:
                self._closing = reason
            if self._running:
                self._executor.cancel()
        self._news.set()

    def _send(self, item: Request | Job[object]) -> None:
        self.check_process()
        with self._lock:
            if self._closing is not None:
                raise ClosedError(str(self._closing)) from self._closing
            self._inbox.append(item)
        self._news.set()

    def _abort_step_of(self, item: Request | Job[object]) -> None:
        with self._lock:
            # With others in the step it is aborted once, then left to end: who comes and goes must not stop the rest.
            if item in self._running and (len(self._running) == 1 or self._num_aborts_in_row == 0):
                self._executor.cancel()

    # The scheduler's thread from here on.

    def _main(self) -> None:
        try:
            while self._closing is None:
                if self._waiting or self._news.is_set():
                    self._announce()  # what comes now may take a millisecond
                self._take_news()
                if self._before_step is not None:
                    self._before_step()
                chunks = self._planner.plan()
                if chunks:
                    self._run_step(chunks)
                    if self._saver is not None and self._saver.is_saving:
                        self._announce()
                        self._saver.advance()
                    continue
                self._announce()
                if self._saver is None or not self._saver.advance():
                    self._news.wait(None if self._before_step is None else _IDLE_SECONDS)
        except BaseException as error:
            self._close(error)
        finally:
            self._announce()
            self._keep_the_rest()
            self._end_all(self._closing or ClosedError("the model was closed"))

    def _keep_the_rest(self) -> None:
        """Saves what is worth it before the executor goes."""
        if self._saver is None:
            return
        try:
            for request in self._live:
                self._save(request)
            self._saver.flush()
        except Exception as error:  # the executor may be what failed
            _log.warning("prefixes could not be saved: %s", error)
        self._saver.close()

    def _announce(self) -> None:
        """Tells consumers of the pieces that were put out since the last time."""
        for output in self._unannounced:
            output.announce()
        self._unannounced.clear()

    def _end_all(self, reason: BaseException) -> None:
        for request in (*self._live, *self._waiting):
            if request.restore is not None:
                request.restore.stop(None)
            request.output.end(reason)
        self._live.clear()
        self._waiting.clear()
        self._inbox.extend(self._delayed)
        while self._inbox:
            item = self._inbox.popleft()
            if isinstance(item, Job):
                item.fail(reason)
            else:
                item.output.end(reason)
        with self._lock:
            self._running = ()
            self._executor.close()

    def _take_news(self) -> None:
        if not self._news.is_set():
            return
        self._news.clear()
        for request in [r for r in self._waiting if r.is_cancelled]:
            self._waiting.remove(request)
            if request.restore is not None:
                request.restore.stop(self._sequences)
            request.output.end(None)
        for request in [r for r in self._live if r.is_cancelled]:
            self._leave(request)
            request.output.end(None)
        while self._inbox and self._closing is None:
            item = self._inbox.popleft()
            if isinstance(item, Job):
                self._run_job(item)
            elif item.is_cancelled:
                item.output.end(None)
            else:
                self._counters.num_requests += 1
                self._waiting.append(item)

    def _run_job(self, job: Job[object]) -> None:
        while not job.is_cancelled:
            with self._lock:
                if self._closing is not None:
                    job.fail(self._closing)
                    return
                self._running = (job,)
            try:
                job.run(self._sequences)
                return
            except self._cancelled_error:
                continue  # for this job, or for a step that had just ended
            except NoRoomError as error:
                if self._live:
                    self._delayed.append(job)
                else:
                    job.fail(error)
                return
            except Exception as error:
                job.fail(error)
                return
            finally:
                with self._lock:
                    self._running = ()

    def _leave(self, request: Request) -> None:
        """A live request is done: what it has cached is kept for the next that begins so."""
        self._live.remove(request)
        if request.sequence is not None:
            mark_end(self._sequences, request)
            self._save(request)
            self._sequences.release(request.sequence)
            request.sequence = None
        self._retry_delayed()

    def _save(self, request: Request) -> None:
        """Hands the request's sequence to the prefix store as far as it is."""
        sequence = request.sequence
        if self._saver is None or sequence is None or not sequence.tokens:
            return
        self._saver.save(sequence, sequence.length, request.label)
        answer_at = request.answer_at
        if 0 < answer_at < sequence.length and self._sequences.usable(sequence, answer_at) == answer_at:
            self._saver.save(sequence, answer_at, request.label, is_place=True)

    def _fail(self, request: Request, error: Exception) -> None:
        self._live.remove(request)
        if request.sequence is not None:
            sequence, request.sequence = request.sequence, None
            self._sequences.drop(sequence)  # what a failed step left behind is not to be trusted
        request.output.end(error)
        self._retry_delayed()

    def _retry_delayed(self) -> None:
        if self._delayed:
            self._inbox.extend(self._delayed)
            self._delayed.clear()
            self._news.set()

    def _run_step(self, chunks: list[Chunk]) -> None:
        work = executor_arrays(chunks)
        # Not before: the step lets go of the GIL, which the threads woken here need to pass pieces on.
        self._announce()
        with self._lock:
            self._running = [chunk.request for chunk in chunks]
        try:
            if self._closing is not None or any(chunk.request.is_cancelled for chunk in chunks):
                return  # set before _running was, so nobody aborts the step
            started = time.perf_counter()
            logits = self._executor.step(*work)
            ended = time.perf_counter()
        except self._cancelled_error:
            self._num_aborts_in_row += 1
            self._counters.num_aborted_steps += 1
            return
        except Exception as error:
            if len(chunks) == 1:
                self._fail(chunks[0].request, error)
            else:  # one of them is to blame: each again by itself, and the error goes to whose it is
                self._planner.run_alone(chunks)
            return
        finally:
            with self._lock:
                self._running = ()
        self._num_aborts_in_row = 0
        next_logits = 0
        is_first = False
        for chunk in chunks:
            request = chunk.request
            assert request.sequence is not None
            self._sequences.extend(request.sequence, chunk.tokens)
            self._num_served += 1
            request.last_served = self._num_served
            if mark_reached(self._sequences, request):
                self._save(request)
            if not chunk.is_last:
                continue
            row = logits[next_logits]
            next_logits += 1
            try:
                is_over = request.accept(row)
                self._unannounced.append(request.output)
                is_first = is_first or request.num_generated == 1
                if is_over:
                    self._announce()  # to give a request up may take a while
                    self._leave(request)
            except Exception as error:
                self._fail(request, error)
        self._account(chunks, ended - started, time.perf_counter() - ended)
        if is_first:
            self._announce()
            time.sleep(_FIRST_PIECE_SECONDS)

    def _account(self, chunks: list[Chunk], step_seconds: float, sample_seconds: float) -> None:
        num_rows = sum(len(chunk.tokens) for chunk in chunks)
        num_decode = sum(
            len(chunk.tokens) == 1 and chunk.is_last and chunk.request.num_generated > 1 for chunk in chunks
        )
        self._num_rows_since += num_rows
        if self._after_rows is not None and self._num_rows_since >= self._after_rows[0]:
            self._num_rows_since = 0
            self._after_rows[1]()
        self._counters.add_step(num_decode, num_rows, step_seconds, sample_seconds)
        self._planner.note(num_rows - num_decode, num_rows, step_seconds)
