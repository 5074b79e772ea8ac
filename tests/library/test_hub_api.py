"""What a hub says is read with bounds: a search, a repository, and servers that answer nonsense."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kamado.errors import DownloadError, KamadoError, ModelNotFoundError, UsageError
from kamado.library import hub_api
from kamado.library.fetch import OfflineError
from kamado.library.hub_api import Hit, RemoteFile, find, repository

from .servers import COMMITS, Hub, Reply

Handler = Callable[[httpx2.Request], httpx2.Response]


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[httpx2.Request]]:
    """`answer(value)` makes the hub say that (bytes, JSON or a response); returns the requests that come."""
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)

    def say(value: Any) -> list[httpx2.Request]:
        requests: list[httpx2.Request] = []

        def handle(request: httpx2.Request) -> httpx2.Response:
            requests.append(request)
            if isinstance(value, Exception):
                raise value
            if isinstance(value, httpx2.Response):
                return value
            return httpx2.Response(200, content=value if isinstance(value, bytes) else json.dumps(value).encode())

        monkeypatch.setattr(hub_api, "http_client", lambda: httpx2.Client(transport=httpx2.MockTransport(handle)))
        return requests

    return say


def test_a_search(answer: Callable[[Any], list[httpx2.Request]]) -> None:
    gguf = {"architecture": "qwen3", "total": 8_190_000_000, "context_length": 40960}
    requests = answer(
        [
            {
                "id": "o/Qwen3-8B-GGUF", "downloads": 5, "likes": 2, "tags": ["gguf", "license:apache-2.0"],
                "gguf": gguf, "gated": False, "lastModified": "2026-08-01T10:00:00.000Z",
            },
            {"id": "o/bare", "gated": "manual"},
        ]
    )  # fmt: skip
    first, second = find(["qwen3", "8b"], 7)
    assert first == Hit("o/Qwen3-8B-GGUF", 5, 2, "apache-2.0", "qwen3", 8_190_000_000, 40960, False, "2026-08-01")
    assert second == Hit("o/bare", 0, 0, "", "", 0, 0, True, "")
    (request,) = requests
    params = request.url.params
    assert (request.url.host, request.url.path) == ("hub.example", "/api/models")
    assert (params["search"], params["filter"], params["limit"]) == ("qwen3 8b", "gguf", "7")
    assert "gguf" in params.get_list("expand")


def test_a_repository(answer: Callable[[Any], list[httpx2.Request]]) -> None:
    requests = answer(
        {
            "sha": COMMITS[0],
            "cardData": {"license": "other", "license_name": "lfm1.0"},
            "siblings": [
                {"rfilename": "m.gguf", "size": 9, "blobId": "a" * 40, "lfs": {"sha256": "b" * 64, "size": 9}},
                {"rfilename": "config.json", "size": 2, "blobId": "c" * 40},
                {"rfilename": "negative", "size": -1},
                {"rfilename": 3, "size": 1},
                {"rfilename": "liar.gguf", "size": 1, "lfs": {"sha256": "../../x"}},
                "nothing",
            ],
        }
    )
    found = repository("o/r", "v1.0/x")
    assert (found.commit, found.license) == (COMMITS[0], "lfm1.0")
    assert found.files == (
        RemoteFile("m.gguf", 9, "b" * 64, "a" * 40), RemoteFile("config.json", 2, None, "c" * 40),
    )  # fmt: skip
    assert requests[0].url.raw_path.startswith(b"/api/models/o/r/revision/v1.0%2Fx?")


def test_the_hub_is_asked_as_its_own_library_asks_it(hub: Hub) -> None:
    """Nobody here can reach a hub: what huggingface_hub sends is the nearest to its protocol that there is."""
    from huggingface_hub import HfApi

    hub.publish({"m.gguf": b"x"}, revisions=("main", "v1%2Fx"))
    hub.server.replies["/api/models"] = Reply(b"[]")
    find(["qwen3", "8b"], 7)
    repository("owner/repo", "v1/x")
    repository("owner/repo", None)
    theirs = HfApi(endpoint=hub.server.url)
    expand: Any = ["downloads", "gated", "gguf", "lastModified", "likes", "tags"]
    list(theirs.list_models(search="qwen3 8b", filter="gguf", sort="downloads", limit=7, expand=expand))
    theirs.model_info("owner/repo", revision="v1/x", files_metadata=True)
    theirs.model_info("owner/repo", files_metadata=True)
    asked = [urlsplit(target) for target in hub.server.targets]
    read = [(target.path, {key: sorted(value) for key, value in parse_qs(target.query).items()}) for target in asked]
    assert read[:3] == read[3:]


NONSENSE: list[Any] = [b"", b"<html>Please log in</html>", b"[" * 100_000, b"\xff\xfe", b"3", b"null", b'"x"', b"NaN"]


@pytest.mark.parametrize("body", [*NONSENSE, [], {"sha": COMMITS[0]}, {"sha": COMMITS[0], "siblings": {}}])
def test_a_server_that_answers_nonsense_for_a_repository(answer: Callable[[Any], object], body: Any) -> None:
    answer(body)
    with pytest.raises(DownloadError, match=r"hub\.example answered with something that is not|which commit") as caught:
        repository("o/r", None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("body", [*NONSENSE, {}, {"id": "o/r"}])
def test_a_server_that_answers_nonsense_for_a_search(answer: Callable[[Any], object], body: Any) -> None:
    answer(body)
    with pytest.raises(DownloadError, match=r"https://hub\.example answered with something that is not"):
        find(["x"])


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (httpx2.ConnectError("Name or service not known"), OfflineError, "no network: hub.example cannot be reached"),
        (httpx2.ConnectTimeout(""), OfflineError, "no network: hub.example cannot be reached .ConnectTimeout"),
        (httpx2.ReadTimeout("slow"), DownloadError, "https://hub.example: ReadTimeout: slow"),
        (httpx2.Response(503), DownloadError, "the hub answered 503"),
        (httpx2.Response(429), DownloadError, "asked too often, try again later, the hub answered 429"),
        (httpx2.Response(302, headers={"Location": "x"}), DownloadError, "the hub answered 302"),
        (httpx2.Response(404), ModelNotFoundError, "o/r is not on https://hub.example, or private"),
        (httpx2.Response(200, content=b" " * (33 << 20)), DownloadError, "an answer of more than 32 MiB"),
    ],
)
def test_faults(answer: Callable[[Any], object], value: Any, kind: type[KamadoError], message: str) -> None:
    answer(value)
    with pytest.raises(kind, match=message):
        repository("o/r", None)


def test_calls_that_are_wrong(answer: Callable[[Any], object], monkeypatch: pytest.MonkeyPatch) -> None:
    answer([])
    for words in ([], [" "], ["x" * 201]):
        with pytest.raises(UsageError, match="a search has one to 200 characters"):
            find(words)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OfflineError, match="HF_HUB_OFFLINE is set"):
        find(["x"])
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "nowhere")
    with pytest.raises(UsageError, match="HF_ENDPOINT is 'nowhere'"):
        find(["x"])


LETTERS = "aZ09/._:-@ \n\x1b\u202e"  # few, so that names which nearly fit are tried too
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(LETTERS, max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(LETTERS, max_size=6), inner, max_size=3),
    max_leaves=8,
)
HITS = st.fixed_dictionaries(
    {"id": st.just("o/r") | ANY}, optional=dict.fromkeys(("downloads", "gguf", "tags", "lastModified", "gated"), ANY)
)
SIBLINGS = st.fixed_dictionaries({}, optional=dict.fromkeys(("rfilename", "size", "blobId", "lfs"), ANY))
REPOSITORIES = st.fixed_dictionaries(
    {"sha": st.just(COMMITS[0]) | ANY, "siblings": st.lists(SIBLINGS | ANY, max_size=3) | ANY},
    optional={"cardData": ANY, "tags": ANY},
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(hits=st.lists(HITS | ANY, max_size=3) | ANY, found=REPOSITORIES | ANY)
def test_no_answer_does_anything_but_be_read_or_refused(answer: Callable[[Any], object], hits: Any, found: Any) -> None:
    for value, call in ((hits, lambda: find(["x"])), (found, lambda: repository("o/r", None))):
        answer(value)
        with suppress(DownloadError):
            call()
