"""A scripted executor and a byte tokenizer: the engine's tests run in milliseconds and need no model file.

The fake keeps the executor's contract to the letter and checks its caller: one thread, pages counted as the native
cache counts them, no step with a sequence twice. Its logits are a hash of all tokens of the sequence, so text that
comes out right proves that the cache held exactly the right tokens.
"""

from __future__ import annotations

import codecs
import threading
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from kamado.engine.cache.prefix_saver import PrefixSaver
from kamado.engine.cache.prefix_store import PrefixStore
from kamado.engine.model import Model
from kamado.files.types import Checkpoint, TokenizerSource
from kamado.plan.forecast import Plan
from kamado.plan.kv_pages import PAGE_TOKENS, pages_for
from kamado.plan.planner import round_to_pages

SPECIALS = ("<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>")
BOS, EOS, IM_START, IM_END = range(256, 260)
# What keeps an answer going to its limit.
FOREVER = {"logit_bias": {EOS: -100.0, IM_END: -100.0}}
VOCAB = 260


class FakeCancelled(RuntimeError):
    pass


class FakeExecutor:
    """`logits_of(tokens)` gives the row after `tokens`; the default hashes them.

    With `encodes`, exact pages are there only for a sequence's last two pages and those of `num_points` reuse points,
    as in the native cache. An exported page holds its tokens and a digest of all before it, and an import checks both.
    With `keeps_record`, a sequence goes on from a reuse point or from its end alone, and a tail holds a digest of all
    its tokens.
    """

    def __init__(
        self,
        *,
        kv_tokens: int = 4096,
        max_sequences: int = 64,
        vocab_size: int = VOCAB,
        logits_of: Callable[[Sequence[int]], np.ndarray] | None = None,
        encodes: bool = False,
        keeps_record: bool = False,
        num_points: int = 8,
    ) -> None:
        self.encodes = encodes
        self.keeps_record = keeps_record
        self.num_points = num_points
        self.points: dict[int, list[int]] = {}  # of each sequence
        self._marks: list[tuple[int, int]] = []  # (sequence, length), the oldest first
        self.num_imports = 0
        self.imports: dict[
            int, tuple[int, bytearray]
        ] = {}  # of sequences that are being imported: length, bytes so far
        self.vocab_size = vocab_size
        self.tier = "fake"
        self.num_threads = 1
        self.max_pages = kv_tokens // PAGE_TOKENS
        self.max_sequences = max_sequences
        self.logits_of = logits_of or self.hashed
        self.sequences: dict[int, tuple[list[int], list[list[int]]]] = {}  # tokens; pages, each a one-element refcount
        self.sources: dict[int, dict[int, bytes]] = {}  # of each sequence, by state
        self.steps: list[list[tuple[int, int]]] = []  # (sequence, rows) of every step that was done
        self.fail_on: Callable[[list[int]], Exception | None] = lambda tokens: None
        self.hold = threading.Event()  # cleared: steps wait until it is set or cancel() comes
        self.hold.set()
        self.num_allowed = 0  # steps that may pass while `hold` is cleared
        self.entered = threading.Event()  # set when a step begins
        self.num_cancels = 0
        self.is_closed = False
        self._cancelled = threading.Event()
        self._owner: int | None = None
        self._next_id = 0

    def hashed(self, tokens: Sequence[int]) -> np.ndarray:
        seed = zlib.crc32(np.array(tokens, np.int32).tobytes())
        x = (np.arange(self.vocab_size, dtype=np.uint32) + np.uint32(1)) * np.uint32(2654435761) ^ np.uint32(seed)
        x = (x ^ (x >> np.uint32(15))) * np.uint32(2246822519)
        x = (x ^ (x >> np.uint32(13))) * np.uint32(3266489917)
        return ((x >> np.uint32(8)).astype(np.float32) / np.float32(1 << 24)) * 12 - 6

    @property
    def num_rows(self) -> int:
        return sum(rows for step in self.steps for _, rows in step)

    @property
    def num_pages(self) -> int:
        return self.max_pages

    @property
    def num_free_pages(self) -> int:
        return self.max_pages - self.num_used_pages

    @property
    def num_used_pages(self) -> int:
        return self.count_pages(list(self.sequences))

    def count_pages(self, sequences: list[int]) -> int:
        return len({id(page) for sequence in sequences for page in self.sequences[sequence][1]})

    def shared_pages(self, sequence: int, first_page: int) -> int:
        return sum(page[0] > 1 for page in self.sequences[sequence][1][first_page:])

    def reserve(self, sequence: int, num_tokens: int) -> bool:
        self._check_thread()
        tokens, pages = self.sequences[sequence]
        first = len(tokens) // PAGE_TOKENS
        is_shared = first < len(pages) and pages[first][0] > 1 and num_tokens > len(tokens)
        if max(0, pages_for(num_tokens) - len(pages)) + is_shared > self.num_free_pages:
            return False
        self._reserve(sequence, num_tokens)
        return True

    def give_back(self, sequence: int) -> None:
        self._check_thread()
        tokens, pages = self.sequences[sequence]
        self._release(pages, pages_for(len(tokens)))

    def create_sequence(self) -> int:
        self._check_thread()
        assert len(self.sequences) < self.max_sequences
        self._next_id += 1
        self.sequences[self._next_id] = ([], [])
        self.points[self._next_id] = []
        return self._next_id

    def free_sequence(self, sequence: int) -> None:
        self._check_thread()
        self._release(self.sequences.pop(sequence)[1], 0)
        self.imports.pop(sequence, None)
        self.sources.pop(sequence, None)
        self._forget_marks(sequence, 0)
        del self.points[sequence]

    def fork_sequence(self, sequence: int, num_tokens: int) -> int:
        tokens, pages = self.sequences[sequence]
        assert 0 < num_tokens <= len(tokens)
        if self.last_reusable(sequence, num_tokens) != num_tokens:
            raise ValueError(f"no exact pages at {num_tokens}")
        fork = self.create_sequence()
        self.points[fork] = [p for p in self.points[sequence] if p < num_tokens]
        shared = pages[: num_tokens // PAGE_TOKENS]
        for page in shared:
            page[0] += 1
        self.sequences[fork] = (tokens[:num_tokens], shared)
        self.sources[fork] = dict(self.sources.get(sequence, {}))
        self._reserve(fork, num_tokens)
        if not self.can_reuse_anywhere:
            self.mark_reuse(fork)
        return fork

    def truncate(self, sequence: int, num_tokens: int) -> None:
        self._check_thread()
        tokens, pages = self.sequences[sequence]
        assert num_tokens <= len(tokens)
        if self.last_reusable(sequence, num_tokens) != num_tokens:
            raise ValueError(f"no exact pages at {num_tokens}")
        del tokens[num_tokens:]
        self._forget_marks(sequence, num_tokens)
        self._release(pages, pages_for(num_tokens))

    def length(self, sequence: int) -> int:
        return len(self.sequences[sequence][0])

    @property
    def can_reuse_anywhere(self) -> bool:
        return not self.encodes and not self.keeps_record

    @property
    def kv_fingerprint(self) -> str:
        return f"fake encodes={self.encodes} record={self.keeps_record}"

    def mark_reuse(self, sequence: int) -> None:
        self._check_thread()
        length = self.length(sequence)
        if length not in self.points[sequence]:
            self.points[sequence].append(length)
            self._marks.append((sequence, length))
        while len(self._marks) > self.num_points:
            owner, length = self._marks.pop(0)
            self.points[owner].remove(length)

    def unmark_reuse(self, sequence: int, num_tokens: int) -> None:
        self._check_thread()
        if num_tokens not in self.points[sequence]:
            raise ValueError("no point")
        self.points[sequence].remove(num_tokens)
        self._marks.remove((sequence, num_tokens))

    def last_reusable(self, sequence: int, num_tokens: int) -> int:
        length = self.length(sequence)
        num_tokens = min(num_tokens, length)
        if self.keeps_record:
            return max(p for p in (0, *self.points[sequence], length) if p <= num_tokens)
        if not self.encodes:
            return num_tokens
        best = 0
        for point in (*self.points[sequence], length):
            # A point keeps the page of its last token and the one before: any length in that page needs no other.
            usable = min(num_tokens, point)
            if usable > (point - 1) // PAGE_TOKENS * PAGE_TOKENS or usable == point:
                best = max(best, usable)
        return best

    def set_source(self, sequence: int, state: int, k: np.ndarray, v: np.ndarray) -> None:
        self._check_thread()
        if state in self.sources.setdefault(sequence, {}):
            raise ValueError("a source is filled once")
        assert not self.sequences[sequence][0]
        assert k.dtype == v.dtype == np.float32
        self.sources[sequence][state] = k.tobytes() + v.tobytes()

    def _source_ids(self, sequence: int) -> list[int]:
        return [zlib.crc32(data) % 251 for _, data in sorted(self.sources.get(sequence, {}).items())]

    def page_bytes(self) -> int:
        return 4 * PAGE_TOKENS + 4

    def settled_pages(self, num_tokens: int) -> int:
        return max(0, num_tokens // PAGE_TOKENS - 1)

    def tail_bytes(self, num_tokens: int) -> int:
        num_pages = pages_for(num_tokens) - self.settled_pages(num_tokens)
        return num_pages * self.page_bytes() + 4 * self.keeps_record

    def export_pages(self, sequence: int, first_page: int, last_page: int) -> bytes:
        self._check_thread()
        tokens = self.sequences[sequence][0]
        assert 0 <= first_page < last_page <= self.settled_pages(len(tokens))
        return b"".join(self._page(tokens, page) for page in range(first_page, last_page))

    def export_tail(self, sequence: int, num_tokens: int) -> bytes:
        self._check_thread()
        assert self.last_reusable(sequence, num_tokens) == num_tokens > 0
        tokens = self.sequences[sequence][0][:num_tokens]
        pages = range(self.settled_pages(num_tokens), pages_for(num_tokens))
        return b"".join(self._page(tokens, page) for page in pages) + self._record(tokens)

    def begin_import(self, num_tokens: int) -> int:
        sequence = self.create_sequence()
        self._reserve(sequence, num_tokens)
        self.imports[sequence] = (num_tokens, bytearray())
        return sequence

    def import_pages(self, sequence: int, first_page: int, last_page: int, pages) -> None:
        self._check_thread()
        num_tokens, data = self.imports[sequence]
        size = self.page_bytes()
        if first_page * size != len(data) or last_page > self.settled_pages(num_tokens):
            raise ValueError("order")
        if len(pages) != (last_page - first_page) * size:
            raise ValueError("sizes")
        data += pages

    def import_tail(self, sequence: int, tail) -> None:
        self._check_thread()
        num_tokens, data = self.imports.pop(sequence)
        size = self.page_bytes()
        if len(data) != self.settled_pages(num_tokens) * size or len(tail) != self.tail_bytes(num_tokens):
            raise ValueError("sizes")
        end = len(tail) - 4 * self.keeps_record
        data += tail[:end]
        tokens: list[int] = []
        for begin in range(0, len(data), size):
            part = np.frombuffer(data[begin : begin + size], np.int32).tolist()[:PAGE_TOKENS]
            tokens += part[: num_tokens - len(tokens)]
        for page in range(len(data) // size):
            assert self._page(tokens, page) == data[page * size : (page + 1) * size], "these are other tokens' bytes"
        assert self._record(tokens) == bytes(tail[end:]), "this is another sequence's record"
        self.sequences[sequence][0].extend(tokens)
        self.mark_reuse(sequence)
        self.num_imports += 1

    def _page(self, tokens: list[int], page: int) -> bytes:
        part = np.zeros(PAGE_TOKENS, np.int32)
        held = tokens[page * PAGE_TOKENS : (page + 1) * PAGE_TOKENS]
        part[: len(held)] = held
        seed = zlib.crc32(np.array(tokens[: (page + 1) * PAGE_TOKENS], np.int32).tobytes())
        return part.tobytes() + seed.to_bytes(4, "little")

    def _record(self, tokens: list[int]) -> bytes:
        return zlib.crc32(np.array(tokens, np.int32).tobytes()).to_bytes(4, "little") if self.keeps_record else b""

    def _forget_marks(self, sequence: int, length: int) -> None:
        self.points[sequence] = [p for p in self.points[sequence] if p <= length]
        self._marks = [m for m in self._marks if m[0] != sequence or m[1] <= length]

    def step(self, sequences, counts, tokens, logit_rows, hidden=False) -> np.ndarray:
        self._check_thread()
        assert not self.is_closed
        assert not hidden, "this fake has no rows before the head"
        assert all(a.dtype == np.int32 for a in (sequences, counts, tokens, logit_rows))
        assert len(set(sequences.tolist())) == len(sequences) == len(counts) > 0
        assert counts.min() > 0
        assert counts.sum() == len(tokens)
        assert not set(sequences.tolist()) & self.imports.keys(), "a step with a sequence that is being imported"
        self.entered.set()
        while not self._cancelled.is_set() and self.num_allowed == 0 and not self.hold.wait(0.001):
            pass
        self.num_allowed = max(0, self.num_allowed - 1)
        if self._cancelled.is_set():
            self._cancelled.clear()
            raise FakeCancelled
        ends = np.cumsum(counts)
        parts = [tokens[end - count : end].tolist() for end, count in zip(ends, counts, strict=True)]
        for part in parts:
            error = self.fail_on(part)
            if error is not None:
                raise error
        wanted = set(logit_rows.tolist())
        rows = {}
        row = 0
        for sequence, part in zip(sequences.tolist(), parts, strict=True):
            held = self.sequences[sequence][0]
            self._reserve(sequence, len(held) + len(part))
            for token in part:
                held.append(token)
                if row in wanted:
                    rows[row] = self.logits_of([*self._source_ids(sequence), *held])
                row += 1
        self.steps.append(list(zip(sequences.tolist(), counts.tolist(), strict=True)))
        if not len(logit_rows):
            return np.zeros((0, self.vocab_size), np.float32)
        return np.stack([rows[r] for r in logit_rows.tolist()]).astype(np.float32)

    def score(self, sequence, tokens, targets) -> np.ndarray:
        rows = np.arange(len(tokens), dtype=np.int32)
        logits = self.step(np.array([sequence], np.int32), np.array([len(tokens)], np.int32), tokens, rows).astype(
            float
        )
        logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return np.where(targets >= 0, logprobs[rows, targets], 0.0)

    def tile_kv(self, sequence: int, num_tokens: int) -> None:
        raise NotImplementedError

    def cancel(self) -> None:
        self.num_cancels += 1
        self._cancelled.set()

    def stats(self) -> dict[str, float]:
        self._check_thread()
        return {"weight_bytes": 1000.0, "kv_bytes": 200.0, "scratch_bytes": 30.0, "seconds_linear": 0.5, "steps": 1.0}

    def close(self) -> None:
        self.is_closed = True

    def _reserve(self, sequence: int, length: int) -> None:
        tokens, pages = self.sequences[sequence]
        first = len(tokens) // PAGE_TOKENS
        if first < len(pages) and pages[first][0] > 1 and length > len(tokens):
            pages[first][0] -= 1
            pages[first] = [1]
        while len(pages) < pages_for(length):
            pages.append([1])
        assert self.num_free_pages >= 0, "the engine let the cache overflow"

    def _release(self, pages: list[list[int]], keep: int) -> None:
        for page in pages[keep:]:
            page[0] -= 1
        del pages[keep:]

    def _check_thread(self) -> None:
        self._owner = self._owner or threading.get_ident()
        assert self._owner == threading.get_ident(), "the executor was called from a second thread"


class ByteTokenizer:
    """One token a byte, and four special ones."""

    vocab_size = VOCAB
    bos_id, eos_id = BOS, EOS
    stop_ids = frozenset((EOS, IM_END))
    special_ids = frozenset((BOS, EOS, IM_START, IM_END))
    add_eos = False

    def __init__(self, add_bos: bool = False) -> None:
        self.add_bos = add_bos

    def strips(self, token: int) -> tuple[bool, bool]:
        return False, False

    def encode(self, text, *, special=False, add_bos=None, add_eos=None, after="nothing") -> list[int]:
        ids = [BOS] if (self.add_bos if add_bos is None else add_bos) else []
        while text:
            found = [(text.find(s), BOS + i) for i, s in enumerate(SPECIALS) if special and s in text]
            at, token = min(found, default=(len(text), None))
            ids += text[:at].encode("utf-8", "surrogatepass")
            if token is not None:
                ids.append(token)
                at += len(SPECIALS[token - BOS])
            text = text[at:]
        return ids

    def decode(self, ids, *, skip_special=True) -> str:
        parts = [self.token_bytes(i) for i in ids if i < 256 or not skip_special]
        return b"".join(parts).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else SPECIALS[token - 256].encode()

    def token_to_id(self, text: str) -> int | None:
        return BOS + SPECIALS.index(text) if text in SPECIALS else None

    def stream(self, *, continuation=False):
        """As SentencePiece has it: a text that does not go on from other text loses its first space."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        is_first = not continuation

        def push(token):
            nonlocal is_first
            if token >= 256:
                return ""
            text = decoder.decode(bytes([token]))
            if is_first and text:
                is_first = False
                text = text.removeprefix(" ")
            return text

        return SimpleNamespace(
            push=push,
            flush=lambda: decoder.decode(b"", True),
        )


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_plan(*, context=1024, kv_tokens=None, max_rows=64, max_logit_rows=16) -> Plan:
    return Plan(
        model="fake",
        architecture="fake",
        context=context,
        kv_tokens=round_to_pages(kv_tokens or context),
        kv="exact",
        num_threads=1,
        max_rows=max_rows,
        max_logit_rows=max_logit_rows,
        bytes_by_owner={"weights": 1000, "kv": 200, "scratch": 30, "interpreter": 4, "libraries": 3},
        memory_bytes=10000,
        memory_limited_by="machine",
        least_bytes=1100,
        weight_bytes_per_token=1000,
        ops_per_token=2000,
    )


def make_model(
    executor: FakeExecutor | None = None,
    *,
    tokenizer="bytes",
    template=CHATML,
    sampling=None,
    max_sequences=64,
    store: PrefixStore | None = None,
    binding: str = "fake",
    before_step=None,
    **plan,
) -> Model:
    plan = make_plan(**plan)
    executor = executor or FakeExecutor(kv_tokens=plan.kv_tokens, max_sequences=max_sequences)
    executor.max_pages = plan.kv_tokens // PAGE_TOKENS
    path = Path("fake.gguf")
    return Model(
        checkpoint=Checkpoint(
            path=path,
            files=(path,),
            format="gguf",
            architecture="fake",
            metadata={},
            tensors={},
            tokenizer=TokenizerSource("gguf", {}, path),
            chat_template=template,
            sampling=sampling or {},
        ),
        plan=plan,
        executor=executor,
        tokenizer=ByteTokenizer() if tokenizer == "bytes" else tokenizer,
        cancelled_error=FakeCancelled,
        max_sequences=max_sequences,
        saver=None
        if store is None
        else PrefixSaver(
            store,
            executor,
            binding={"model": binding},
            about={"model": "fake"},
            has_record=executor.keeps_record,
        ),
        has_record=executor.keeps_record,
        before_step=before_step,
    )


def scripted(text: str, prompt_length: int, vocab_size: int = VOCAB) -> Callable[[Sequence[int]], np.ndarray]:
    """Logits that make greedy decoding write `text` after a prompt of `prompt_length`, then end the turn."""
    answer = [*text.encode(), EOS]

    def logits_of(tokens: Sequence[int]) -> np.ndarray:
        row = np.zeros(vocab_size, np.float32)
        row[answer[min(len(tokens) - prompt_length, len(answer) - 1)]] = 10.0
        return row

    return logits_of
