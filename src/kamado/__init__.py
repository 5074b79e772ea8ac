"""Kamado runs open-weight language models on the machine you own, and says beforehand what they will cost.

    import kamado

    with kamado.load("smollm2:135m") as model:
        for piece in model.chat([{"role": "user", "content": "Why is the sky blue?"}], max_tokens=100):
            print(piece.text, end="", flush=True)

Nothing heavy is imported until `load` or a class is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import (
    CheckpointError,
    ClosedError,
    ConstraintError,
    ContextOverflowError,
    CorruptFileError,
    DownloadError,
    ExpertReadError,
    KamadoError,
    MemoryBudgetError,
    MetadataError,
    MissingPackageError,
    MissingTensorError,
    ModelChangedError,
    ModelNotFoundError,
    NativeError,
    TemplateError,
    TokenizerError,
    UnsupportedError,
    UsageError,
)

if TYPE_CHECKING:
    from .engine.forms.constraint import Form
    from .engine.forms.json_schema import CompiledSchema
    from .engine.generation import Generation
    from .engine.load import load
    from .engine.measure.prompt_scores import PromptLogprobs
    from .engine.measure.scoring import Perplexity
    from .engine.model import Model
    from .engine.piece import Piece, Usage
    from .engine.schedule.ledger import Ledger, LedgerRow
    from .engine.schedule.stats import Stats
    from .engine.turns.answer import AnswerEvents, TextEvents
    from .engine.turns.chat_types import (
        ContentEvent,
        Effort,
        Event,
        Finish,
        FinishReason,
        ImagePart,
        Message,
        OutputFormat,
        Part,
        ReasoningDelta,
        Role,
        TextDelta,
        TextPart,
        Think,
        TokenLogprob,
        Tool,
        ToolCall,
        ToolCallDelta,
        ToolCallEnd,
        ToolCallStart,
        ToolChoice,
    )
    from .engine.turns.conversations import Conversation, ConversationStore
    from .engine.turns.cut_json import whole_members
    from .engine.turns.turn import Turn, TurnStream
    from .options import AnswerOptions, SamplingOptions
    from .plan.forecast import Plan

    __version__: str

__all__ = [
    "AnswerEvents",
    "AnswerOptions",
    "CheckpointError",
    "ClosedError",
    "CompiledSchema",
    "ConstraintError",
    "ContentEvent",
    "ContextOverflowError",
    "Conversation",
    "ConversationStore",
    "CorruptFileError",
    "DownloadError",
    "Effort",
    "Event",
    "ExpertReadError",
    "Finish",
    "FinishReason",
    "Form",
    "Generation",
    "ImagePart",
    "KamadoError",
    "Ledger",
    "LedgerRow",
    "MemoryBudgetError",
    "Message",
    "MetadataError",
    "MissingPackageError",
    "MissingTensorError",
    "Model",
    "ModelChangedError",
    "ModelNotFoundError",
    "NativeError",
    "OutputFormat",
    "Part",
    "Perplexity",
    "Piece",
    "Plan",
    "PromptLogprobs",
    "ReasoningDelta",
    "Role",
    "SamplingOptions",
    "Stats",
    "TemplateError",
    "TextDelta",
    "TextEvents",
    "TextPart",
    "Think",
    "TokenLogprob",
    "TokenizerError",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "ToolCallEnd",
    "ToolCallStart",
    "ToolChoice",
    "Turn",
    "TurnStream",
    "UnsupportedError",
    "Usage",
    "UsageError",
    "__version__",
    "load",
    "whole_members",
]

_LAZY = {
    "AnswerEvents": "engine.turns.answer",
    "AnswerOptions": "options",
    "CompiledSchema": "engine.forms.json_schema",
    "ContentEvent": "engine.turns.chat_types",
    "Conversation": "engine.turns.conversations",
    "ConversationStore": "engine.turns.conversations",
    "Effort": "engine.turns.chat_types",
    "Event": "engine.turns.chat_types",
    "Finish": "engine.turns.chat_types",
    "FinishReason": "engine.turns.chat_types",
    "Form": "engine.forms.constraint",
    "Generation": "engine.generation",
    "ImagePart": "engine.turns.chat_types",
    "Ledger": "engine.schedule.ledger",
    "LedgerRow": "engine.schedule.ledger",
    "Message": "engine.turns.chat_types",
    "Model": "engine.model",
    "OutputFormat": "engine.turns.chat_types",
    "Part": "engine.turns.chat_types",
    "Perplexity": "engine.measure.scoring",
    "Piece": "engine.piece",
    "Plan": "plan.forecast",
    "PromptLogprobs": "engine.measure.prompt_scores",
    "ReasoningDelta": "engine.turns.chat_types",
    "Role": "engine.turns.chat_types",
    "SamplingOptions": "options",
    "Stats": "engine.schedule.stats",
    "TextDelta": "engine.turns.chat_types",
    "TextEvents": "engine.turns.answer",
    "TextPart": "engine.turns.chat_types",
    "Think": "engine.turns.chat_types",
    "TokenLogprob": "engine.turns.chat_types",
    "Tool": "engine.turns.chat_types",
    "ToolCall": "engine.turns.chat_types",
    "ToolCallDelta": "engine.turns.chat_types",
    "ToolCallEnd": "engine.turns.chat_types",
    "ToolCallStart": "engine.turns.chat_types",
    "ToolChoice": "engine.turns.chat_types",
    "Turn": "engine.turns.turn",
    "TurnStream": "engine.turns.turn",
    "Usage": "engine.piece",
    "load": "engine.load",
    "whole_members": "engine.turns.cut_json",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("kamado")
        except PackageNotFoundError:  # a source tree that was not installed
            return "0+source"
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
