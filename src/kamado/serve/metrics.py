"""Counters, gauges and histograms in Prometheus' text form. A few dozen lines, so no package for it.

All values belong to the server's event loop; nothing here is locked.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)  # seconds
TOKEN_BUCKETS = (1.0, 8.0, 32.0, 128.0, 512.0, 2048.0, 8192.0, 32768.0, 131072.0)

# Label values come from our own tables and from names of models; a client must not be able to make series without end.
_MAX_SERIES = 2000

Labels = tuple[str, ...]
Sample = tuple[Labels, float]


class _Metric:
    kind = ""

    def __init__(self, name: str, help_text: str, labels: Sequence[str] = ()) -> None:
        self.name = name
        self.help_text = help_text
        self.labels = tuple(labels)

    def samples(self) -> Iterable[Sample]:
        """Label values and number of each of its series."""
        raise NotImplementedError

    def lines(self) -> Iterable[str]:
        """Its samples as text, without the head."""
        for key, value in self.samples():
            yield self._line("", zip(self.labels, self._key(key), strict=True), value)

    def _key(self, values: Labels) -> Labels:
        assert len(values) == len(self.labels), f"{self.name} has labels {self.labels}"
        return values

    def _line(self, suffix: str, labels: Iterable[tuple[str, str]], value: float) -> str:
        inside = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels)
        return f"{self.name}{suffix}{f'{{{inside}}}' if inside else ''} {_number(value)}"


M = TypeVar("M", bound=_Metric)


class Counter(_Metric):
    """A number that only grows. Its name ends in _total."""

    kind = "counter"

    def __init__(self, name: str, help_text: str, labels: Sequence[str] = ()) -> None:
        super().__init__(name, help_text, labels)
        self._values: dict[Labels, float] = {} if labels else {(): 0.0}

    def add(self, amount: float = 1.0, *labels: str) -> None:
        """Adds to one series."""
        key = self._key(labels)
        if key in self._values or len(self._values) < _MAX_SERIES:
            self._values[key] = self._values.get(key, 0.0) + amount

    def value(self, *labels: str) -> float:
        """The sum so far."""
        return self._values.get(labels, 0.0)

    def samples(self) -> Iterable[Sample]:
        """See _Metric."""
        return self._values.items()


class Gauge(_Metric):
    """A number that is asked for when it is shown: `read` gives (label values, number) pairs."""

    def __init__(
        self, name: str, help_text: str, read: Callable[[], Iterable[Sample]], labels: Sequence[str], kind: str
    ) -> None:
        """`kind`: "gauge", or "counter" for one that is kept elsewhere, in the engine for one."""
        super().__init__(name, help_text, labels)
        self.samples, self.kind = read, kind  # type: ignore[method-assign]


class Histogram(_Metric):
    """How often values fell under each bound."""

    kind = "histogram"

    def __init__(
        self, name: str, help_text: str, buckets: Sequence[float] = LATENCY_BUCKETS, labels: Sequence[str] = ()
    ) -> None:
        super().__init__(name, help_text, labels)
        self.buckets = tuple(buckets)
        self._counts: dict[Labels, list[int]] = {}
        self._sums: dict[Labels, float] = {}

    def observe(self, value: float, *labels: str) -> None:
        """Counts one value."""
        key = self._key(labels)
        counts = self._counts.get(key)
        if counts is None:
            if len(self._counts) >= _MAX_SERIES:
                return
            counts = self._counts[key] = [0] * (len(self.buckets) + 1)
        counts[bisect_left(self.buckets, value)] += 1
        self._sums[key] = self._sums.get(key, 0.0) + value

    def count(self, *labels: str) -> int:
        """How many values were seen."""
        return sum(self._counts.get(labels, ()))

    def lines(self) -> Iterable[str]:
        """Its samples: cumulative buckets, sum, count."""
        for key, counts in self._counts.items():
            pairs = list(zip(self.labels, key, strict=True))
            total = 0
            for bound, count in zip((*self.buckets, math.inf), counts, strict=True):
                total += count
                yield self._line("_bucket", [*pairs, ("le", _number(bound))], total)
            yield self._line("_sum", pairs, self._sums[key])
            yield self._line("_count", pairs, total)


class Registry:
    """All metrics of one server."""

    def __init__(self) -> None:
        self._metrics: dict[str, _Metric] = {}

    def counter(self, name: str, help_text: str, labels: Sequence[str] = ()) -> Counter:
        """A new counter."""
        return self._add(Counter(name, help_text, labels))

    def gauge(
        self, name: str, help_text: str, read: Callable[[], Iterable[Sample]], labels: Sequence[str] = ()
    ) -> None:
        """A gauge that is read when the metrics are."""
        self._add(Gauge(name, help_text, read, labels, "gauge"))

    def read_counter(
        self, name: str, help_text: str, read: Callable[[], Iterable[Sample]], labels: Sequence[str] = ()
    ) -> None:
        """A counter that is kept elsewhere and read when the metrics are."""
        self._add(Gauge(name, help_text, read, labels, "counter"))

    def histogram(
        self, name: str, help_text: str, buckets: Sequence[float] = LATENCY_BUCKETS, labels: Sequence[str] = ()
    ) -> Histogram:
        """A new histogram."""
        return self._add(Histogram(name, help_text, buckets, labels))

    def text(self) -> str:
        """Prometheus' text exposition format 0.0.4."""
        lines = []
        for metric in self._metrics.values():
            lines.append(f"# HELP {metric.name} {metric.help_text}")
            lines.append(f"# TYPE {metric.name} {metric.kind}")
            lines.extend(metric.lines())
        return "\n".join(lines) + "\n"

    def _add(self, metric: M) -> M:
        assert metric.name not in self._metrics, f"two metrics called {metric.name}"
        self._metrics[metric.name] = metric
        return metric


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    if math.isnan(value):
        return "NaN"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))
