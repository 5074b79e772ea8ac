"""What becomes of the parameters of Ollama's endpoints."""

from __future__ import annotations

from ...http.parameters import Row, one_of
from ..row_words import happens, honoured, idle, left_out, refused

CHAT, GENERATE = ("POST /api/chat",), ("POST /api/generate",)
EMBED, OLD_EMBED = ("POST /api/embed",), ("POST /api/embeddings",)
SHOW, PULL, COPY = ("POST /api/show",), ("POST /api/pull",), ("POST /api/copy",)
CREATE, DELETE = ("POST /api/create",), ("DELETE /api/delete",)
_ASKED = (*CHAT, *GENERATE)
_NO_GPU = "there is no GPU back-end"
_NO_PICTURES = "this server makes no images"
_NO_FILES = "files are not taken over HTTP: put them where the server can read them, or pull the model"
_NO_QUANTISING = "models are served as they are; nothing is quantised here"

# Of answers, with a value that changes something.
_ANSWER_OPTIONS = {
    "temperature": 0.5, "top_k": 5, "top_p": 0.5, "min_p": 0.1, "repeat_penalty": 1.1, "repeat_last_n": 64,
    "presence_penalty": 0.5, "frequency_penalty": 0.5, "seed": 1, "stop": ["x"], "num_predict": 5, "num_keep": 4,
    "stop_on_repeat": 64,
}  # fmt: skip


def _option_rows(endpoints: tuple[str, ...], prefix: str) -> list[Row]:
    """Of Ollama's options and PARAMETERs, those that the machine or the model decides."""

    def name(option: str) -> str:
        return f"{prefix}.{option}"

    return [
        *happens(endpoints, name("numa"), (False,), "memory is placed by the system", "left out", True),
        *left_out(
            endpoints, name("num_batch"), "the plan chose it when the model was loaded; answers do not depend on it",
            512,
        ),
        *happens(endpoints, name("num_gpu"), (0, -1), _NO_GPU, "left out", 99, 1),
        *happens(endpoints, name("main_gpu"), (0,), _NO_GPU, "left out", 1),
        *happens(endpoints, name("low_vram"), (False,), _NO_GPU, "left out", True),
        *happens(
            endpoints, name("f16_kv"), (True,), "the KV cache is chosen when the server starts (--kv)", "refused",
            False,
        ),
        *happens(endpoints, name("logits_all"), (False,), "ask for logprobs instead", "left out", True),
        *happens(endpoints, name("vocab_only"), (False,), "models are loaded whole", "refused", True),
        *happens(
            endpoints, name("use_mmap"), (True,), "weights are mapped and packed as the plan says", "left out", False,
        ),
        *happens(
            endpoints, name("use_mlock"), (False,), "memory is not locked: the budget is kept instead", "left out",
            True,
        ),
        *happens(endpoints, name("embedding_only"), (False,), "what a model can do is in its file", "refused", True),
        *happens(
            endpoints, name("num_thread"), (0,),
            "threads belong to the server, for all requests together (kamado serve --threads)", "left out", 8,
        ),
        *happens(
            endpoints, name("draft_num_predict"), (0,), "nothing is drafted; answers would be the same", "left out", 4,
        ),
        *happens(endpoints, name("tfs_z"), (1,), "tail-free sampling is not offered; 1 means off", "refused", 0.5),
        *happens(endpoints, name("typical_p"), (1,), "typical sampling is not offered; 1 means off", "refused", 0.5),
        *happens(endpoints, name("mirostat"), (0,), "mirostat is not offered; 0 means off", "refused", 1),
        *idle(endpoints, name("mirostat_tau"), "tunes mirostat, which is off", 5.0),
        *idle(endpoints, name("mirostat_eta"), "tunes mirostat, which is off", 0.1),
        *happens(endpoints, name("penalize_newline"), (True,), "a line break is a token like others", "refused", False),
    ]  # fmt: skip


def _honoured_options(endpoints: tuple[str, ...], prefix: str) -> list[Row]:
    notes = {
        "num_predict": "-1, -2 and 0: no limit",
        "num_ctx": "up to the context that the model was given; more is refused with both numbers",
        "num_keep": "nothing is dropped unless truncate asks for it, and then it is refused",
        "top_k": "0 and -1: off",
        "repeat_last_n": "tokens that penalties look at; -1: all; 0: no penalties",
    }
    names = [*_ANSWER_OPTIONS, "num_ctx"]
    return [row for name in names for row in honoured(endpoints, f"{prefix}.{name}", notes.get(name, ""))]


ROWS = [
    *honoured(_ASKED, "model stream options format keep_alive think logprobs top_logprobs truncate shift"),
    *honoured(CHAT, "messages tools"),
    *honoured(GENERATE, "prompt suffix system raw images"),
    *honoured(GENERATE, "parse_special", "false: special tokens written in a raw prompt are plain text"),
    *refused(
        _ASKED, "shift", "an answer ends where the context ends; nothing of it is dropped to go on", True, part="true",
        takes=one_of(True),
    ),
    *refused(
        GENERATE, "template", "a template belongs to a model: make one with /api/create, or send raw: true",
        "{{ .Prompt }}",
    ),
    *refused(
        GENERATE, "context",
        "token histories are not taken back: send the conversation to /api/chat, which reuses what ",
        "was computed", [1, 2],
    ),
    *refused(GENERATE, "width", _NO_PICTURES, 64),
    *refused(GENERATE, "height", _NO_PICTURES, 64),
    *refused(GENERATE, "steps", _NO_PICTURES, 4),
    *_honoured_options(_ASKED, "options"),
    *_option_rows((*_ASKED, *EMBED, *OLD_EMBED), "options"),
    *honoured(EMBED, "model input options keep_alive dimensions"),
    *honoured(EMBED, "truncate", "true by default"),
    *honoured(OLD_EMBED, "model prompt options keep_alive"),
    *honoured((*EMBED, *OLD_EMBED), "options.num_ctx"),
    *[
        row
        for name, value in _ANSWER_OPTIONS.items()
        for row in left_out((*EMBED, *OLD_EMBED), f"options.{name}", "an embedding is not sampled", value)
    ],
    *honoured((*SHOW, *PULL, *CREATE, *DELETE), "model"),
    *honoured((*SHOW, *PULL, *CREATE, *DELETE), "name", "older clients"),
    *honoured(SHOW, "verbose"),
    *[
        row
        for name, value in (("system", "x"), ("template", "x"), ("options", {"num_ctx": 1}))
        for row in refused(SHOW, name, "nothing is rendered here: show says what the model has", value)
    ],
    *honoured((*PULL, *CREATE), "stream"),
    *refused(PULL, "insecure", "what comes from elsewhere is always checked", True),
    *refused(PULL, "username", "there is no registry with users here", "u"),
    *refused(PULL, "password", "there is no registry with users here", "p"),
    *honoured(COPY, "source destination"),
    *honoured(CREATE, "from modelfile system template license parameters messages"),
    *_option_rows(CREATE, "parameters"),
    *refused(CREATE, "files", _NO_FILES, {"a.gguf": "sha256:x"}),
    *refused(CREATE, "path", _NO_FILES, "/x"),
    *refused(CREATE, "adapters", "adapters are not supported", {"a": "b"}),
    *refused(CREATE, "quantize", _NO_QUANTISING, "q4_K_M"),
    *refused(CREATE, "quantization", _NO_QUANTISING, "q4_K_M"),
    *refused(CREATE, "renderer", "Ollama's built-in renderers are not here: give a template", "x"),
    *refused(
        CREATE, "parser",
        "Ollama's built-in parsers are not here: the model's own format is recognised from its template",
        "x",
    ),
    *refused(CREATE, "requires", "this is not Ollama: its version says nothing here", "0.1.0"),
    *refused(CREATE, "info", "a model's metadata is what its file says", {"a": 1}),
]  # fmt: skip
