"""What one rendering of a template may use. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..errors import TemplateError


class PassedLimitError(TemplateError):
    """A limit of this rendering was passed; with larger ones it may end."""


@dataclass(frozen=True, slots=True)
class TemplateLimits:
    """What one rendering may use. The largest published template has 50 000 characters and takes 10 000 steps."""

    source_chars: int = 1 << 19
    input_size: int = 1 << 22  # characters and values of the messages, tools and options together
    value_size: int = 1 << 22  # of any one value that the template builds
    total_size: int = 1 << 27  # of all values it builds, kept or not
    output_chars: int = 1 << 22
    steps: int = 500_000  # loop iterations, calls, filters, operators
    seconds: float = 5.0  # of processor time, with compiling
    range_length: int = 100_000

    def here(self) -> TemplateLimits:
        """What a rendering in this process may use: 50 MiB at most, if it builds lists of numbers."""
        return replace(
            self,
            value_size=min(self.value_size, 1 << 20),
            total_size=min(self.total_size, 1 << 20),
            output_chars=min(self.output_chars, 1 << 20),
            steps=min(self.steps, 25_000),
            seconds=min(self.seconds, 0.25),
        )
