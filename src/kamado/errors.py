"""Every fault a caller can meet. One class a kind of fault; the message says what, where, and what to do next.

This module imports nothing, so that every layer may use it.
"""


class KamadoError(Exception):
    """Base of all errors that Kamado raises on purpose. `exit_code` is what the command line returns for it."""

    exit_code: int = 1

    @classmethod
    def when(cls, is_wrong: object, message: str) -> None:
        """One rule of what may be asked: raises the error when it is broken. For errors made of a message."""
        if is_wrong:
            raise cls(message)


class UsageError(KamadoError):
    """The call itself is wrong: an option out of range, two options that contradict each other."""

    exit_code = 2


class ConstraintError(UsageError):
    """A schema, expression or grammar for the answer is wrong, unsupported, too large, or cannot be followed."""


class MissingPackageError(KamadoError):
    """An optional package is not installed. The message names the extra that brings it."""

    exit_code = 2


class BusyError(KamadoError):
    """Others use what the call needs, and it did not wait longer for its turn. The same call may succeed later."""


class CheckpointError(KamadoError):
    """A model file cannot be used. Base of the checkpoint faults."""

    exit_code = 3


class CorruptFileError(CheckpointError):
    """The file contradicts itself: truncated, an offset or size past its end, an impossible count."""


class MetadataError(CheckpointError):
    """A metadata key is missing, has the wrong type or an impossible value. The message names the key and the file."""


class MissingTensorError(CheckpointError):
    """The program needs a tensor that the file does not have, or has in another shape."""


class UnsupportedError(CheckpointError):
    """A valid file that this version cannot run: unknown architecture, layout, tokenizer or rope kind."""


class TokenizerError(CheckpointError):
    """The tokenizer's data is missing or contradictory."""


class ModelChangedError(CheckpointError):
    """A model's file was changed, cut short or replaced while it was in use. Load the model again."""


class ExpertReadError(KamadoError):
    """An expert could not be read from disk while the model ran. The message names the expert, the file and where."""

    exit_code = 8


class TemplateError(KamadoError):
    """A chat template failed: a syntax error, a forbidden access, or it ran past its bounds."""

    exit_code = 3


class ModelNotFoundError(KamadoError):
    """No such file, directory or catalog name. The message lists near names."""

    exit_code = 4


class DownloadError(KamadoError):
    """A pull failed: the network, a checksum, a full disk. What was fetched so far is kept for the next try."""

    exit_code = 5


class ContextOverflowError(KamadoError):
    """A prompt does not fit. The message has both numbers; nothing is cut silently."""

    exit_code = 6

    def __init__(self, num_prompt_tokens: int, context_tokens: int, *, is_counted: bool = True) -> None:
        """`is_counted` False: the prompt has that many tokens at the least."""
        least = "" if is_counted else "at least "
        super().__init__(
            f"the prompt has {least}{num_prompt_tokens} tokens and the context holds {context_tokens}: "
            f"shorten the prompt or load the model with a larger context (--context)"
        )
        self.num_prompt_tokens = num_prompt_tokens
        self.context_tokens = context_tokens


class MemoryBudgetError(KamadoError):
    """The budget or the machine is too small. The message names the least that works and what would use it."""

    exit_code = 7


class NativeError(KamadoError):
    """The native executor refused or failed. Always a bug or a damaged installation; the message has its words."""

    exit_code = 70


class ClosedError(KamadoError):
    """The model or the session was closed."""


class ServerError(KamadoError):
    """A Kamado server that was asked is not there, went away, hangs, or answers nonsense. The message says which."""

    exit_code = 9
