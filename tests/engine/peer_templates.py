"""A chat template of a pinned source, rendered in this process: the worker's clock would fail on a busy machine."""

from __future__ import annotations

from kamado.text.template_bounds import TemplateLimits
from kamado.text.template_sandbox import Compiled


class TrustedTemplate:
    """As text.template.ChatTemplate, for templates that need no watching."""

    def __init__(self, source: str, *, bos_token: str = "<|bos|>", eos_token: str = "<|eos|>") -> None:
        self.source = source
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._compiled = Compiled(source, TemplateLimits())

    def render(self, messages, *, tools=None, add_generation_prompt=True, **extra) -> str:
        variables = {"documents": None, **self._tokens, **extra, "messages": messages, "tools": tools}
        return self._compiled.render({**variables, "add_generation_prompt": add_generation_prompt})
