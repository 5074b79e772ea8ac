"""Paths as clients write them: without /v1, with it twice, with other servers' prefixes; paths that lead nowhere."""

from __future__ import annotations

from collections.abc import Mapping

# What clients put before the path that they mean, when their base address was another server's.
_PREFIXES = ("/v1/v1/", "/api/v1/", "/api/v0/", "/openai/v1/")
_WITHOUT_V1 = ("chat/completions", "completions", "embeddings", "models", "messages", "responses")
_WITH_V1 = ("/v1/tokenize", "/v1/detokenize")

_LLAMA = "llama.cpp's own endpoints are not here"
# Paths that clients of other servers ask for, and what to use instead; what stands below a path is meant with it.
ABSENT: Mapping[str, str] = {
    "/completion": f"{_LLAMA}: use /v1/completions",
    "/infill": f"{_LLAMA}: use /v1/completions with suffix",
    "/apply-template": f"{_LLAMA}: /v1/messages/count_tokens and /v1/responses/input_tokens count conversations",
    "/props": f"{_LLAMA}: use /v1/models, or /api/show for one model",
    "/slots": f"{_LLAMA}: use /metrics for what is going on",
    "/embedding": f"{_LLAMA}: use /v1/embeddings",
    "/lora-adapters": "adapters are not supported",
    "/rerank": "no reranking is here yet: compare embeddings of /v1/embeddings",
    "/reranking": "no reranking is here yet: compare embeddings of /v1/embeddings",
    "/v1/rerank": "no reranking is here yet: compare embeddings of /v1/embeddings",
    "/v1/reranking": "no reranking is here yet: compare embeddings of /v1/embeddings",
    "/v2/rerank": "no reranking is here yet: compare embeddings of /v1/embeddings",
    "/score": "no reranking is here yet: compare embeddings of /v1/embeddings",
    "/v1/score": "no reranking is here yet: compare embeddings of /v1/embeddings",
    "/pooling": "use /v1/embeddings",
    "/v1/pooling": "use /v1/embeddings",
    "/classify": "use /v1/embeddings",
    "/tokenizer_info": "use /api/show for what is known of a model, and /tokenize",
    "/v1/responses/compact": "nothing is compacted here: truncation: auto may leave messages out",
    "/v1/conversations": "conversations are carried on by previous_response_id of /v1/responses",
    "/v1/assistants": "use /v1/responses",
    "/v1/threads": "use /v1/responses",
    "/v1/audio": "no model here hears or speaks",
    "/v1/images": "this server makes no images",
    "/v1/videos": "this server makes no pictures",
    "/v1/moderations": "no moderation model is here",
    "/v1/files": "no files are kept here: put their text into the messages",
    "/v1/uploads": "no files are kept here: put their text into the messages",
    "/v1/vector_stores": "no files are kept here: put their text into the messages",
    "/v1/batches": "send the requests one by one, with background: true to go behind others",
    "/v1/messages/batches": "send the requests one by one",
    "/v1/fine_tuning": "models are not trained here",
    "/v1/realtime": "use /v1/responses or /v1/chat/completions with stream: true",
    "/v1/complete": "it is Anthropic's oldest API: use /v1/messages",
    "/api/push": "models do not leave this machine",
    "/api/blobs": "files are not taken over HTTP: put them where the server can read them, or pull the model",
}


def canonical(path: str) -> str:
    """The path that is meant: `/chat/completions` and `/api/v1/chat/completions` are `/v1/chat/completions`."""
    if path in _WITH_V1:
        return path.removeprefix("/v1")
    for prefix in _PREFIXES:
        if path.startswith(prefix):
            return canonical("/v1/" + path.removeprefix(prefix))
    bare = path.removeprefix("/")
    if any(bare == name or bare.startswith(f"{name}/") for name in _WITHOUT_V1):
        return "/v1" + path
    return path[:-1] if len(path) > 1 and path.endswith("/") else path


def instead_of(path: str) -> str | None:
    """What to use instead of a path that leads nowhere; None: nothing is known of it."""
    while path:
        if path in ABSENT:
            return ABSENT[path]
        path = path.rpartition("/")[0]
    return None
