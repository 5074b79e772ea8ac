"""The programs that `kamado connect` knows. Where their settings are and what they are called is from their own pages,
read in November 2026 and named below; the first request of each was recorded (docs/clients.md).
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .files import SettingsFile, env_file, json_file, json_list_file, toml_file, yaml_file

Protocol = Literal["chat", "responses", "messages"]

NO_KEY = "none-needed"  # programs that refuse to start without a key get this one
_AGENT_CONTEXT = 32_768  # tokens that Claude Code's and Codex's first requests need


@dataclass(frozen=True, slots=True)
class Target:
    """The server and the model that a program is pointed at."""

    url: str  # without /v1
    model: str
    key: str | None  # None: the server needs none
    context: int | None = None  # tokens of prompt and answer; None: the server does not say

    @property
    def shown_key(self) -> str:
        """The key, or what stands for one."""
        return NO_KEY if self.key is None else self.key


@dataclass(frozen=True, slots=True)
class Program:
    """A program that can be pointed at the server."""

    name: str
    title: str
    protocol: Protocol
    has_tools: bool  # its requests offer tools
    settings: Callable[[Target, Mapping[str, str]], SettingsFile]
    start: Callable[[Target], str]
    notes: tuple[str, ...] = ()
    least_context: int = 0
    key_variable: str | None = None  # the key is no part of its settings: it reads this


def programs() -> dict[str, Program]:
    """All of them by name."""
    return {program.name: program for program in _PROGRAMS}


def _home(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("HOME") or Path.home())


def _config_home(environment: Mapping[str, str]) -> Path:
    set_to = environment.get("XDG_CONFIG_HOME", "")
    return Path(set_to) if os.path.isabs(set_to) else _home(environment) / ".config"


def _open_webui(target: Target, _environment: Mapping[str, str]) -> SettingsFile:
    """docs.openwebui.com/getting-started/env-configuration. Tags, follow-up questions and completions while one types
    are requests of their own for every turn, which a processor answers slowly."""
    return env_file(
        Path.cwd() / "open-webui.env",
        {
            "OPENAI_API_BASE_URL": f"{target.url}/v1",
            "OPENAI_API_KEY": target.shown_key,
            "ENABLE_OLLAMA_API": "False",
            "DEFAULT_MODELS": target.model,
            "ENABLE_TAGS_GENERATION": "False",
            "ENABLE_FOLLOW_UP_GENERATION": "False",
            "ENABLE_AUTOCOMPLETE_GENERATION": "False",
        },
    )


def _vscode_folder(environment: Mapping[str, str]) -> Path:
    if sys.platform == "darwin":
        return _home(environment) / "Library" / "Application Support" / "Code" / "User"
    if sys.platform == "win32":
        return Path(environment.get("APPDATA", "")) / "Code" / "User"
    return _config_home(environment) / "Code" / "User"


def _vscode(target: Target, environment: Mapping[str, str]) -> SettingsFile:
    """The provider "Custom Endpoint" of VS Code 1.122 (microsoft/vscode#316916; its release notes of May 2026). The
    sum of both limits is the context to it. A real key is typed into its own window, which keeps it apart."""
    context = target.context or 8192
    answer = min(4096, context // 4)
    model = {
        "id": target.model,
        "name": f"{target.model} (Kamado)",
        "url": f"{target.url}/v1/chat/completions",
        "toolCalling": True,
        "vision": False,
        "maxInputTokens": context - answer,
        "maxOutputTokens": answer,
    }
    entry: dict[str, Any] = {"name": "Kamado", "vendor": "customendpoint", "apiType": "chat-completions"}
    if target.key is None:
        entry["apiKey"] = NO_KEY
    return json_list_file(
        _vscode_folder(environment) / "chatLanguageModels.json", {**entry, "models": [model]}, ("name", "vendor")
    )


def _claude_code(target: Target, environment: Mapping[str, str]) -> SettingsFile:
    """code.claude.com/docs: settings.json's `env`; the address has no /v1. The three default models are those of
    sub-agents and background work, which would ask for names that no server here has."""
    folder = environment.get("CLAUDE_CONFIG_DIR")
    path = (Path(folder) if folder else _home(environment) / ".claude") / "settings.json"
    variables = {
        "ANTHROPIC_BASE_URL": target.url,
        "ANTHROPIC_AUTH_TOKEN": target.shown_key,
        "ANTHROPIC_DEFAULT_OPUS_MODEL": target.model,
        "ANTHROPIC_DEFAULT_SONNET_MODEL": target.model,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": target.model,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }
    return json_file(path, {("model",): target.model, **{("env", name): text for name, text in variables.items()}})


def _codex(target: Target, environment: Mapping[str, str]) -> SettingsFile:
    """developers.openai.com/codex/config-advanced: a profile is a file of its own beside config.toml since Codex 0.134,
    so that the user's own settings stay as they are. `wire_api` may only be "responses"."""
    folder = environment.get("CODEX_HOME")
    path = (Path(folder) if folder else _home(environment) / ".codex") / "kamado.config.toml"
    provider = ("model_providers", "kamado")
    values: dict[tuple[str, ...], Any] = {
        ("model",): target.model,
        ("model_provider",): "kamado",
        (*provider, "name"): "Kamado",
        (*provider, "base_url"): f"{target.url}/v1",
        (*provider, "wire_api"): "responses",
        (*provider, "requires_openai_auth"): False,
    }
    if target.context is not None:
        values["model_context_window",] = target.context
    if target.key is not None:
        values[*provider, "env_key"] = "KAMADO_API_KEY"
    return toml_file(path, values)


def _opencode(target: Target, environment: Mapping[str, str]) -> SettingsFile:
    """opencode.ai/docs/config and /docs/providers: a provider of the package @ai-sdk/openai-compatible."""
    named = environment.get("OPENCODE_CONFIG")
    path = Path(named) if named else _config_home(environment) / "opencode" / "opencode.json"
    model: dict[str, Any] = {"name": target.model, "tool_call": True}
    if target.context is not None:
        model["limit"] = {"context": target.context, "output": min(4096, target.context // 4)}
    provider = ("provider", "kamado")
    return json_file(
        path,
        {
            ("$schema",): "https://opencode.ai/config.json",
            (*provider, "npm"): "@ai-sdk/openai-compatible",
            (*provider, "name"): "Kamado",
            (*provider, "options"): {"baseURL": f"{target.url}/v1", "apiKey": target.shown_key},
            (*provider, "models", target.model): model,
        },
    )


def _aider(target: Target, environment: Mapping[str, str]) -> SettingsFile:
    """aider.chat/docs/config/aider_conf.html; the prefix openai/ chooses the protocol."""
    return yaml_file(
        _home(environment) / ".aider.conf.yml",
        {
            "openai-api-base": f"{target.url}/v1",
            "openai-api-key": target.shown_key,
            "model": f"openai/{target.model}",
        },
    )


_PROGRAMS = (
    Program(
        "open-webui", "Open WebUI", "chat", False, _open_webui,
        lambda _: "set -a; . ./open-webui.env; open-webui serve",
        notes=("Open WebUI reads these at its first start only; later they are under Admin Settings, Connections",),
    ),
    Program(
        "vscode", "VS Code", "chat", True, _vscode, lambda target: "code",
        notes=("choose the model in the chat's model picker; inline suggestions do not use it",),
        key_variable="",
    ),
    Program(
        "claude-code", "Claude Code", "messages", True, _claude_code, lambda _: "claude",
        notes=("this holds for every start of Claude Code until it is taken out again",),
        least_context=_AGENT_CONTEXT,
    ),
    Program(
        "codex", "Codex CLI", "responses", True, _codex, lambda _: "codex --profile kamado",
        least_context=_AGENT_CONTEXT, key_variable="KAMADO_API_KEY",
    ),
    Program(
        "opencode", "opencode", "chat", True, _opencode,
        lambda target: shlex.join(("opencode", "--model", f"kamado/{target.model}")),
    ),
    Program(
        "aider", "aider", "chat", False, _aider, lambda _: "aider",
        notes=("a project's own .aider.conf.yml goes before this one",),
    ),
)  # fmt: skip
