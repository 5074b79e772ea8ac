"""The ledger and the trace of streamed experts, from a scripted executor."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kamado.engine.measure.trace import Tracer
from kamado.engine.schedule.ledger import LedgerRow, read_ledger
from kamado.errors import ExpertReadError, ModelChangedError, UsageError

from .fakes import FakeExecutor, make_model


class Streaming(FakeExecutor):
    """Two layers; each step finds three experts and reads one of 1000 bytes in each."""

    def ledger(self) -> dict[str, Any]:
        n = len(self.steps)
        row = {
            "hits": 3 * n, "misses": n, "bytes_read": 1000 * n, "requests": 2 * n, "read_seconds": 0.4 * n,
            "wait_seconds": 0.05 * n, "compute_seconds": 0.2 * n, "lookahead_hits": n, "lookahead_wrong": n,
        }  # fmt: skip
        return {
            "layers": [{"layer": i} | row for i in range(2)],
            "resident": False,
            "slots": 7,
            "slot_bytes": 7000,
            "expert_record_bytes": 1000,
            "direct_io": True,
            "readers": 4,
            "busy_seconds": 0.2 * n,
        }


def test_figures_are_derived_from_counts() -> None:
    row = LedgerRow(hits=3, misses=1, bytes_read=1000, requests=2, lookahead_hits=1, lookahead_wrong=3)
    assert (row.hit_rate, row.request_bytes, row.lookahead_recall) == (0.6, 500, 0.5)  # what was read ahead is no hit
    busy = LedgerRow(wait_seconds=1, busy_seconds=4)
    assert busy.overlap == 0.75
    nothing = LedgerRow()
    assert (nothing.hit_rate, nothing.request_bytes, nothing.overlap, nothing.lookahead_recall) == (None,) * 4
    assert LedgerRow(misses=5).lookahead_recall is None  # it was off


def test_the_model_has_a_ledger_when_it_streams() -> None:
    with make_model() as model:
        assert model.stats.ledger is None
    with make_model(Streaming()) as model:
        list(model.generate([1] * 10, max_tokens=4, temperature=0))
        stats = model.stats
    assert stats.ledger is not None
    total = stats.ledger.total
    assert total.bytes_read == 2 * 1000 * stats.num_steps
    assert total.overlap == pytest.approx(0.5)
    assert stats.bytes_by_owner["experts"] == 7000
    document = json.loads(json.dumps(stats.to_dict()))
    assert document["ledger"]["total"]["hit_rate"] == 0.6
    assert [row["layer"] for row in document["ledger"]["layers"]] == [0, 1]
    header, rows = stats.ledger.table()
    assert all(len(row) == len(header) for row in rows)
    assert rows[-1][0] == "all"


def test_a_trace_has_a_slice_for_every_step_and_is_json(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    tracer = Tracer(Streaming(), path)
    sequence = tracer.create_sequence()
    for tokens in ([1, 2, 3], [4]):
        ids, counts = np.array([sequence], np.int32), np.array([len(tokens)], np.int32)
        tracer.step(ids, counts, np.array(tokens, np.int32), np.array([len(tokens) - 1], np.int32))
    tracer.score(sequence, np.array([5, 6], np.int32), np.array([6, -1], np.int32))
    unfinished = json.loads(path.read_text() + "]") if path.read_text() else []
    assert len(unfinished) < 40  # viewers take a file that was cut off: it is an array without its end
    tracer.close()
    tracer.close()
    events = json.loads(path.read_text())
    steps = [event for event in events if event["name"] in ("prefill", "decode")]
    assert [(e["name"], e["args"]["rows"]) for e in steps] == [("prefill", 3), ("decode", 1), ("prefill", 2)]
    assert [e["args"]["bytes_read"] for e in steps] == [2000, 2000, 2000]
    assert all(e["ts"] >= 0 and e["dur"] >= 0 for e in events if e["ph"] == "X")
    waits = [e for e in events if e["name"] == "wait"]
    assert {e["args"]["layer"] for e in waits} == {0, 1}
    assert {e["name"] for e in events if e["ph"] == "C"} == {"bytes read", "experts read", "hit rate"}


def test_a_resident_model_can_be_traced_too(tmp_path: Path) -> None:
    tracer = Tracer(FakeExecutor(), tmp_path / "trace.json")
    with make_model(tracer) as model:
        list(model.generate([1] * 10, max_tokens=4, temperature=0))
    events = json.loads((tmp_path / "trace.json").read_text())
    assert sum(event["name"] == "decode" for event in events) == 3


def test_a_trace_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        Tracer(FakeExecutor(), tmp_path / "no" / "trace.json")


def test_executors_without_a_ledger_have_none() -> None:
    assert read_ledger(FakeExecutor()) is None


@pytest.mark.parametrize(
    ("code", "kind"),
    [(errno.EIO, ExpertReadError), (errno.ESTALE, ModelChangedError), (errno.EBADMSG, ExpertReadError)],
)
def test_a_failed_read_says_which_expert(code: int, kind: type[Exception]) -> None:
    executor = FakeExecutor()
    executor.fail_on = lambda tokens: OSError(code, "blk.3 expert 7 at byte 4096 of model.gguf: gone", "model.gguf")
    with make_model(executor) as model, pytest.raises(kind, match="blk.3 expert 7 at byte 4096"):
        list(model.generate([1, 2, 3], max_tokens=2))


def test_the_page_cache_is_given_back_every_so_many_rows() -> None:
    from kamado.engine.schedule.scheduler import Scheduler

    calls = []
    scheduler = Scheduler(
        FakeExecutor(), max_rows=8, max_logit_rows=8, max_sequences=4, cancelled_error=KeyError,
        after_rows=(20, lambda: calls.append(1)),
    )  # fmt: skip
    try:
        from kamado.engine.schedule.request import Request
        from kamado.options import sampling_from

        request = Request(
            list(range(50)), sampling=sampling_from({}, {"temperature": 0.0}), vocab_size=260, max_tokens=1, text=None,
            stops=(), stop_ids=frozenset(), logprobs=None, is_background=False,
        )  # fmt: skip
        scheduler.submit(request)
        while request.output.get().finish_reason is None:
            pass
        scheduler.snapshot()
    finally:
        scheduler.close()
    assert len(calls) == 2
