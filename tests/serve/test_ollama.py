"""Ollama's API with its official client, over a real socket and a scripted model."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx2
import pytest

from kamado.errors import DownloadError
from kamado.serve.http.keys import KeyRing
from kamado.serve.models import contract as be
from kamado.serve.models.modelfile_options import read_options, recipe_options, recipe_parameters

from .compat import compat
from .fake import Fail, FakeWorld, calls, thought
from .running import Running, running

ollama = pytest.importorskip("ollama")

CHAT, GENERATE, EMBED = "POST /api/chat", "POST /api/generate", "POST /api/embed"
EMBEDDINGS, SHOW, PULL = "POST /api/embeddings", "POST /api/show", "POST /api/pull"
DELETE, COPY, CREATE = "DELETE /api/delete", "POST /api/copy", "POST /api/create"
PIXEL = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(20)).decode()
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Weather.", "parameters": SCHEMA}}


@pytest.fixture(scope="module")
def client(server: Running) -> Any:
    return ollama.Client(host=server.url)


@pytest.fixture(scope="module")
def post(server: Running) -> Callable[..., httpx2.Response]:
    def post(path: str, /, method: str = "POST", **body: Any) -> httpx2.Response:
        return httpx2.request(method, server.url + path, json=body)

    return post


def last(world: FakeWorld) -> Any:
    return world.model.requests[-1]


def hello(content: str = "hello there") -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


# --- chat -------------------------------------------------------------------------------------------------------------


@compat(CHAT, "model", "messages", "stream")
def test_a_whole_answer_and_the_same_streamed(client: Any, post: Callable[..., Any]) -> None:
    whole = client.chat("fake", hello())
    assert (whole.message.role, whole.message.content, whole.done, whole.done_reason) == (
        "assistant",
        "HELLO THERE",
        True,
        "stop",
    )
    assert (whole.prompt_eval_count, whole.eval_count) == (2, 2)
    assert whole.total_duration > 0
    parts = list(client.chat("fake", hello(), stream=True))
    assert "".join(part.message.content for part in parts) == "HELLO THERE"
    assert [part.done for part in parts] == [False, False, True]
    response = post("/api/chat", model="fake", messages=hello())
    assert response.headers["content-type"] == "application/x-ndjson", "a stream is the default"
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert lines[-1]["done_reason"] == "stop"
    datetime.fromisoformat(lines[0]["created_at"])


def test_names_may_have_the_tag_latest(client: Any) -> None:
    assert client.chat("fake:latest", hello()).message.content == "HELLO THERE"


@compat(CHAT, "messages: roles, images, thinking, tool_calls, tool_name")
def test_a_conversation_with_everything(client: Any, world: FakeWorld) -> None:
    client.chat(
        "fake",
        [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "look", "images": [PIXEL]},
            {
                "role": "assistant",
                "content": "",
                "thinking": "hm",
                "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Kyoto"}}}],
            },
            {"role": "tool", "content": "rain", "tool_name": "weather"},
        ],
        tools=[WEATHER],
    )
    system, user, assistant, tool = last(world).messages
    assert system == be.Message("system", (be.TextPart("be brief"),))
    assert user.parts == (be.ImagePart(base64.b64decode(PIXEL), "image/png"), be.TextPart("look"))
    assert assistant == be.Message(
        "assistant", (), reasoning="hm", tool_calls=(be.ToolCall("", "weather", '{"city": "Kyoto"}'),)
    )
    assert tool == be.Message("tool", (be.TextPart("rain"),), name="weather")


def test_a_last_assistant_message_is_continued(client: Any, world: FakeWorld) -> None:
    client.chat("fake", [*hello(), {"role": "assistant", "content": "The answer is"}])
    assert last(world).continue_last


@compat(CHAT, "tools", note="a call comes whole, in one line")
def test_tools(client: Any, world: FakeWorld) -> None:
    world.scripts["call"] = calls(("weather", '{"city": "Kyoto"}'), ("weather", "{}"), before="Looking. ")
    whole = client.chat("fake", hello("call"), tools=[WEATHER])
    assert last(world).tools == (be.Tool("weather", "Weather.", SCHEMA, strict=False),)
    assert whole.message.content == "Looking. "
    assert [(c.function.name, dict(c.function.arguments)) for c in whole.message.tool_calls] == [
        ("weather", {"city": "Kyoto"}),
        ("weather", {}),
    ]
    parts = [part.message for part in client.chat("fake", hello("call"), tools=[WEATHER], stream=True)]
    assert [len(part.tool_calls or ()) for part in parts] == [0, 1, 1, 0]


@compat(CHAT, "think", note="true, false, low, medium, high")
@pytest.mark.parametrize(
    ("value", "meant"),
    [
        (True, be.Think(enabled=True)),
        (False, be.Think(enabled=False)),
        ("low", be.Think(enabled=True, effort="low")),
        (None, be.Think()),
    ],
)
def test_think(client: Any, world: FakeWorld, value: Any, meant: be.Think) -> None:
    world.scripts["think"] = thought("hm", "yes")
    answer = client.chat("fake", hello("think"), think=value)
    assert last(world).think == meant
    assert (answer.message.thinking, answer.message.content) == ("hm", "yes")


@compat(CHAT, "format", note="json or a JSON Schema")
@pytest.mark.parametrize(
    ("value", "meant"),
    [
        ("json", be.OutputFormat("json")),
        (SCHEMA, be.OutputFormat("json_schema", SCHEMA, is_strict=False)),
        ("", be.OutputFormat()),
    ],
)
def test_format(client: Any, world: FakeWorld, value: Any, meant: be.OutputFormat) -> None:
    client.chat("fake", hello(), format=value)
    assert last(world).output == meant


@compat(CHAT, "logprobs", "top_logprobs")
def test_logprobs(client: Any) -> None:
    answer = client.chat("fake", hello("hello"), logprobs=True, top_logprobs=2)
    (entry,) = answer.logprobs
    assert (entry.token, entry.logprob) == ("HELLO", -0.5)
    assert [(top.token, top.logprob) for top in entry.top_logprobs] == [("HELLO", -0.5), ("HELLO1", -1.5)]
    assert client.chat("fake", hello()).logprobs is None


HONOURED_OPTIONS: list[tuple[str, Any, Callable[[Any], Any], Any]] = [
    ("temperature", 0.25, lambda r: r.options.get("temperature"), 0.25),
    ("top_k", 7, lambda r: r.options.get("top_k"), 7),
    ("top_p", 0.5, lambda r: r.options.get("top_p"), 0.5),
    ("min_p", 0.1, lambda r: r.options.get("min_p"), 0.1),
    ("repeat_penalty", 1.2, lambda r: r.options.get("repetition_penalty"), 1.2),
    ("repeat_last_n", -1, lambda r: r.options.get("penalty_window"), -1),
    ("repeat_last_n", 0, lambda r: r.options.get("penalty_window"), 0),
    ("repeat_last_n", 64, lambda r: r.options.get("penalty_window"), 64),
    ("stop_on_repeat", 64, lambda r: r.options.get("stop_on_repeat"), 64),
    ("repeat_penalty", 0, lambda r: r.options.get("repetition_penalty"), None),
    ("top_k", -1, lambda r: r.options.get("top_k"), 0),
    ("top_k", 5.0, lambda r: r.options.get("top_k"), 5),
    ("num_ctx", 0, lambda r: r.context, None),
    ("num_predict", 0, lambda r: r.options.get("max_tokens", "not said"), None),
    ("stop", [], lambda r: r.options.get("stop"), None),
    ("stop", ["", "X"], lambda r: r.options.get("stop"), ("X",)),
    ("presence_penalty", 0.5, lambda r: r.options.get("presence_penalty"), 0.5),
    ("frequency_penalty", 0.5, lambda r: r.options.get("frequency_penalty"), 0.5),
    ("seed", 42, lambda r: r.options.get("seed"), 42),
    ("num_predict", 5, lambda r: r.options.get("max_tokens"), 5),
    ("num_predict", -1, lambda r: r.options.get("max_tokens", "not said"), None),
    ("num_predict", -2, lambda r: r.options.get("max_tokens", "not said"), None),
    ("seed", -1, lambda r: r.options.get("seed", "not said"), None),
    ("num_ctx", 32, lambda r: r.context, 32),
    ("num_keep", 4, lambda r: r.truncation, "refuse"),
    ("stop", ["X"], lambda r: r.options.get("stop"), ("X",)),
    ("stop", "X", lambda r: r.options.get("stop"), ("X",)),
]


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, value, *_ in HONOURED_OPTIONS])
def test_a_recipe_means_what_the_same_options_of_a_request_mean(name: str, value: Any) -> None:
    asked = read_options({name: value})
    kept = recipe_options(json.loads(json.dumps(recipe_parameters({name: value}))))
    assert (kept.answer, kept.context) == (asked.answer, asked.context)


@pytest.mark.parametrize(("name", "value", "look", "meant"), HONOURED_OPTIONS)
@pytest.mark.parametrize("endpoint", [CHAT, GENERATE])
def test_options(
    client: Any,
    world: FakeWorld,
    records: Callable[..., None],
    endpoint: str,
    name: str,
    value: Any,
    look: Callable[[Any], Any],
    meant: Any,
) -> None:
    if endpoint == CHAT:
        client.chat("fake", hello(), options={name: value})
    else:
        client.generate("fake", "hello there", options={name: value})
    assert look(last(world)) == meant
    records(endpoint, f"options.{name}")
    records(endpoint, "options")


def test_nulls_among_options(client: Any) -> None:
    options = {"num_gpu": None, "temperature": None}
    assert client.chat("fake", hello(), options=options).message.content
    assert client.generate("fake", "hello", options=options).response


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"temperature": "hot"}, "options.temperature must be a number"),
        ({"top_k": -2}, "options.top_k"),
        ({"top_k": 2.5}, "options.top_k"),
        ({"top_k": "5"}, "options.top_k"),
        ({"top_p": 2}, "options.top_p"),
        ({"stop": [1]}, "options.stop"),
        ({"nonsense": 1}, "there is no such option"),
        ({"num_ctx": 100_000}, "asks for 100000 tokens and fake was given 64"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_wrong_options(post: Callable[..., Any], options: Any, reason: str, stream: bool) -> None:
    response = post("/api/chat", model="fake", messages=hello(), options=options, stream=stream)
    assert response.status_code == 400
    assert reason in response.json()["error"]


@compat(CHAT, "truncate", note="false by default: a prompt that does not fit is refused with both numbers")
def test_truncation_happens_only_when_asked_and_is_reported(post: Callable[..., Any]) -> None:
    long = [{"role": "user", "content": "w" + " w" * 49}, {"role": "assistant", "content": "x" + " x" * 49}, *hello()]
    response = post("/api/chat", model="fake", messages=long)
    assert response.status_code == 400
    assert "102" in response.json()["error"]
    assert "64" in response.json()["error"]
    response = post("/api/chat", model="fake", messages=long, truncate=True, stream=False)
    assert response.json()["truncated"] == {"messages": 1, "tokens": 50, "rule": "drop_oldest"}
    refused = post("/api/chat", model="fake", messages=long, truncate=True, options={"num_keep": 3})
    assert "num_keep" in refused.json()["error"]


@compat(CHAT, "shift", note="false")
@compat(GENERATE, "shift", note="false")
def test_shift_false_is_what_happens(post: Callable[..., Any]) -> None:
    assert post("/api/chat", model="fake", shift=False, messages=hello()).status_code == 200
    assert post("/api/generate", model="fake", shift=False, prompt="hello").status_code == 200


@compat(CHAT, "keep_alive", note="seconds or a duration; 0 unloads after the answer, below 0 is for ever")
@compat(GENERATE, "keep_alive", note="seconds or a duration; 0 unloads after the answer, below 0 is for ever")
def test_keep_alive(client: Any, post: Callable[..., Any]) -> None:
    def left() -> float:
        return (client.ps().models[0].expires_at - datetime.now(UTC)).total_seconds()

    client.chat("fake", hello(), keep_alive="1h")
    assert 3500 < left() <= 3600
    client.generate("fake", "hello", keep_alive=600)
    assert 500 < left() <= 600
    client.generate("fake", "hello", keep_alive=-1)
    assert client.ps().models[0].expires_at.year > 2300
    client.generate("fake", "hello", keep_alive=0)
    for _ in range(1000):
        if not client.ps().models:
            break
        time.sleep(0.01)
    assert client.ps().models == []
    assert post("/api/chat", model="fake", messages=hello(), keep_alive="soon").status_code == 400


@compat(CHAT, "messages: none loads the model, with keep_alive 0 unloads it")
@compat(GENERATE, "prompt: none loads the model, with keep_alive 0 unloads it")
def test_loading_and_unloading_without_a_prompt(client: Any) -> None:
    assert client.generate("fake").done_reason == "load"
    assert [model.model for model in client.ps().models] == ["fake"]
    assert client.chat("fake", [], keep_alive=0).done_reason == "unload"
    assert client.ps().models == []


# --- generate ---------------------------------------------------------------------------------------------------------


@compat(GENERATE, "model", "prompt", "system", "stream")
def test_generate_goes_through_the_template(client: Any, world: FakeWorld) -> None:
    answer = client.generate("fake", "hello there", system="be brief")
    assert (answer.response, answer.done_reason, answer.eval_count) == ("HELLO THERE", "stop", 2)
    assert [(m.role, m.text) for m in last(world).messages] == [("system", "be brief"), ("user", "hello there")]
    parts = list(client.generate("fake", "hello there", stream=True))
    assert "".join(part.response for part in parts) == "HELLO THERE"


@compat(GENERATE, "raw", "parse_special")
def test_raw_continues_the_text_as_it_is(client: Any, world: FakeWorld, post: Callable[..., Any]) -> None:
    assert client.generate("fake", "<|x|> one", raw=True).response == "<|X|> ONE"
    assert last(world).prompts == ("<|x|> one",)
    assert last(world).special
    post("/api/generate", model="fake", prompt="<|x|> one", raw=True, parse_special=False)
    assert not last(world).special


@compat(GENERATE, "suffix")
def test_suffix(client: Any, world: FakeWorld) -> None:
    client.generate("fake", "def f(", suffix="): pass")
    assert (last(world).prompts, last(world).suffix) == (("def f(",), "): pass")


def test_a_model_without_a_template_continues_text(client: Any, world: FakeWorld) -> None:
    assert client.generate("other", "once upon").response == "ONCE UPON"
    assert world.loader.models["other"].requests[-1].prompts == ("once upon",)


@compat(GENERATE, "images", "think", "format", "logprobs", "top_logprobs", "truncate")
def test_generate_has_what_chat_has(client: Any, world: FakeWorld, post: Callable[..., Any]) -> None:
    world.scripts["think"] = [be.ReasoningDelta("hm"), *thought("", "yes")[1:]]
    answer = client.generate("fake", "think", images=[PIXEL], think=True, format=SCHEMA)
    assert (answer.thinking, answer.response) == ("hm", "yes")
    request = last(world)
    assert request.messages[0].parts[0] == be.ImagePart(base64.b64decode(PIXEL), "image/png")
    assert request.think == be.Think(enabled=True)
    assert request.output == be.OutputFormat("json_schema", SCHEMA, is_strict=False)
    answer = client.generate("fake", "hello", logprobs=True, top_logprobs=1)
    assert answer.logprobs[0].top_logprobs[0].token == "HELLO"
    post("/api/generate", model="fake", prompt="hello", truncate=True)
    assert last(world).truncation == "drop_oldest"


@pytest.mark.parametrize(
    "more", [{"raw": True, "system": "x"}, {"suffix": "x", "images": [PIXEL]}, {"raw": True, "truncate": True}]
)
def test_contradictions_are_refused(post: Callable[..., Any], more: dict[str, Any]) -> None:
    response = post("/api/generate", model="fake", prompt="hello", **more)
    assert response.status_code == 400
    assert "does not go with" in response.json()["error"]


# --- embeddings -------------------------------------------------------------------------------------------------------


@compat(EMBED, "model", "input", "dimensions", "truncate", "keep_alive", "options", "options.num_ctx")
def test_embed(client: Any, world: FakeWorld, post: Callable[..., Any]) -> None:
    result = client.embed("fake", ["one two", "three"], dimensions=4, keep_alive="5m", options={"num_ctx": 64})
    assert [len(row) for row in result.embeddings] == [4, 4]
    assert result.prompt_eval_count == 3
    assert len(client.embed("fake", "one").embeddings) == 1
    assert client.embed("fake", []).embeddings == []
    assert client.embed("fake", "w" + " w" * 69, truncate=True).embeddings
    assert client.embed("fake", "w" + " w" * 69).embeddings, "truncate is true by default"
    with pytest.raises(ollama.ResponseError, match="64"):
        client.embed("fake", "w" + " w" * 69, truncate=False)
    with pytest.raises(ollama.ResponseError, match="no such option"):
        client.embed("fake", "one", options={"nonsense": 1})
    with pytest.raises(ollama.ResponseError, match="makes no embeddings"):
        client.embed("other", "one")


@compat(EMBEDDINGS, "model", "prompt", "options", "options.num_ctx", "keep_alive")
def test_embeddings(client: Any) -> None:
    one = client.embeddings("fake", "one", options={"num_ctx": 64}, keep_alive="5m").embedding
    assert list(one) == pytest.approx(list(client.embed("fake", "one").embeddings[0]))


# --- the library ------------------------------------------------------------------------------------------------------


@compat("GET /api/tags")
def test_tags(client: Any) -> None:
    model = next(model for model in client.list().models if model.model == "fake")
    assert (model.size, model.digest, model.modified_at.year) == (123456, "ab" * 32, 2023)
    details = model.details
    assert (details.family, details.format, details.parameter_size, details.quantization_level) == (
        "llama",
        "gguf",
        "135M",
        "Q4_1",
    )


@compat("GET /api/ps")
def test_ps(client: Any) -> None:
    client.chat("fake", hello())
    (model,) = (model for model in client.ps().models if model.model == "fake")
    assert (model.size, model.size_vram, model.context_length) == (1000, 0, 64)
    client.chat("fake", hello(), keep_alive=1e18)
    (model,) = (model for model in client.ps().models if model.model == "fake")
    assert model.expires_at is not None
    assert model.expires_at.year == 2318, "it stays longer than dates go"


@compat(SHOW, "model", "name", "verbose")
def test_show(client: Any, post: Callable[..., Any]) -> None:
    shown = client.show("fake")
    assert shown.details.family == "llama"
    assert shown.modelinfo["llama.context_length"] == 2048
    assert shown.modelinfo["kamado.context"] == 64, "what is served, beside what the model was trained for"
    assert "tools" in shown.capabilities
    assert "chat" not in shown.capabilities, "Ollama has no such word"
    assert shown.modelfile.splitlines()[1] == "FROM fake"
    assert post("/api/show", name="fake", verbose=True).json()["details"] == shown.details.model_dump()


@compat(PULL, "model", "name", "stream")
def test_pull(client: Any, world: FakeWorld, post: Callable[..., Any]) -> None:
    digest = "cd" * 32
    world.library.pulls["new"] = [
        be.PullProgress("resolving"),
        be.PullProgress("downloading", "new.gguf", digest, 5, 10),
        be.PullProgress("downloading", "new.gguf", digest, 10, 10),
        be.PullProgress("verifying"),
        be.PullProgress("success"),
    ]
    steps = [(p.status, p.digest, p.completed, p.total) for p in client.pull("new", stream=True)]
    assert steps[0] == ("pulling manifest", None, None, None)
    assert ("pulling cdcdcdcdcdcd", f"sha256:{digest}", 5, 10) in steps
    assert steps[-1][0] == "success"
    assert "new" in [model.model for model in client.list().models]
    assert post("/api/pull", name="new", stream=False).json() == {"status": "success"}


def test_a_pull_that_fails_says_so_in_the_stream(client: Any, world: FakeWorld) -> None:
    world.library.pulls["bad"] = [
        be.PullProgress("downloading", "x", "", 1, 2),
        DownloadError("the connection ended early"),
    ]
    with pytest.raises(ollama.ResponseError, match="the connection ended early"):
        list(client.pull("bad", stream=True))
    with pytest.raises(ollama.ResponseError, match="the connection ended early"):
        client.pull("bad")


@compat(COPY, "source", "destination")
@compat(DELETE, "model", "name")
def test_copy_and_delete(client: Any, post: Callable[..., Any]) -> None:
    assert client.copy("fake", "second").status == "success"
    assert client.delete("second").status == "success"
    client.copy("fake", "second")
    assert post("/api/delete", "DELETE", name="second").status_code == 200
    with pytest.raises(ollama.ResponseError, match="no model called"):
        client.delete("second")


@compat(CREATE, "model", "from", "system", "template", "parameters", "messages", "license", "stream")
def test_create(client: Any, world: FakeWorld) -> None:
    steps = client.create(
        "mine",
        from_="fake",
        system="be brief",
        template="{{ .System }}|{{ .Prompt }}|{{ .Response }}",
        parameters={"temperature": 0.5, "stop": ["X"], "repeat_penalty": 1.1, "num_ctx": 32},
        messages=[{"role": "user", "content": "hi"}],
        license=["one", "two"],
        stream=True,
    )
    assert [step.status for step in steps][-1] == "success"
    recipe = world.library.recipes["mine"]
    assert (recipe.base, recipe.system, recipe.license) == ("fake", "be brief", "one\n\ntwo")
    assert recipe.parameters == {"temperature": 0.5, "stop": ["X"], "repeat_penalty": 1.1, "num_ctx": 32}
    assert recipe.messages == (be.Message("user", (be.TextPart("hi"),)),)
    assert "kmd.prompt" in recipe.template
    shown = client.show("mine")
    assert shown.details.parent_model == "fake"
    assert "repeat_penalty" in shown.parameters


@compat(CREATE, "modelfile", "name", note="older clients")
def test_create_from_a_modelfile(post: Callable[..., Any], world: FakeWorld) -> None:
    text = 'FROM fake\nPARAMETER temperature 0.5\nPARAMETER stop "<|end|>"\nSYSTEM """be\nbrief"""\n'
    response = post("/api/create", name="old", modelfile=text, stream=False)
    assert response.json() == {"status": "success"}
    recipe = world.library.recipes["old"]
    assert (recipe.base, recipe.system) == ("fake", "be\nbrief")
    assert recipe.parameters == {"temperature": 0.5, "stop": ["<|end|>"]}


@pytest.mark.parametrize("base", ["/etc/passwd", "./model.gguf", "..", "~/x", "C:\\x", "sub/../../x", "model.gguf"])
def test_paths_cannot_come_over_http(post: Callable[..., Any], base: str) -> None:
    for body in ({"from": base, "model": "m"}, {"from": "fake", "model": base}):
        response = post("/api/create", **body)
        assert response.status_code == 400
        assert "is a path" in response.json()["error"]
    assert post("/api/copy", source="fake", destination=base).status_code == 400
    assert post("/api/pull", model=base).status_code == 400


@compat("GET /api/version", note="of the API spoken here; `kamado` has our own")
def test_version(server: Running) -> None:
    answer = httpx2.get(f"{server.url}/api/version").json()
    assert answer["version"].split(".")[0] == "0"
    assert answer["kamado"]


def test_the_page_answers_a_head_request(server: Running) -> None:
    assert httpx2.head(server.url).status_code == 200, "Ollama's command line asks this before all else"


# --- errors -----------------------------------------------------------------------------------------------------------


def test_errors_are_one_text(client: Any, world: FakeWorld, post: Callable[..., Any]) -> None:
    with pytest.raises(ollama.ResponseError) as missing:
        client.chat("missing", hello())
    assert missing.value.status_code == 404
    world.scripts["breaks"] = [be.TextDelta("half"), Fail(ValueError("a secret of our inside"))]
    with pytest.raises(ollama.ResponseError) as broken:
        list(client.chat("fake", hello("breaks"), stream=True))
    assert "secret" not in str(broken.value)
    with pytest.raises(ollama.ResponseError) as whole:
        client.chat("fake", hello("breaks"))
    assert whole.value.status_code == 500
    assert set(post("/api/chat", model="fake", messages=hello(), nonsense=1).json()) == {"error"}
    assert post("/api/nothing").json() == {"error": "there is no /api/nothing"}


@pytest.mark.parametrize("path", ["/api/push", "/api/blobs/sha256:0"])
def test_what_is_absent_says_so(post: Callable[..., Any], records: Callable[..., None], path: str) -> None:
    assert post(path).status_code == 404
    name = "POST " + path.replace("sha256:0", "{digest}")
    records(name, status="absent", note="models do not leave this machine" if "push" in path else "see create: files")


def test_keys_have_scopes() -> None:
    world = FakeWorld()
    keys = KeyRing()
    keys.add("kmd-a-key-for-this-test", scopes=["infer", "read"])
    with running(world.library, world.loader, keys=keys) as up:
        stranger = ollama.Client(host=up.url)
        with pytest.raises(ollama.ResponseError) as caught:
            stranger.list()
        assert caught.value.status_code == 401
        client = ollama.Client(host=up.url, headers={"Authorization": "Bearer kmd-a-key-for-this-test"})
        assert client.list().models
        for forbidden in (
            lambda: client.pull("new"),
            lambda: client.delete("fake"),
            lambda: client.copy("fake", "x"),
            lambda: client.create("x", from_="fake"),
        ):
            with pytest.raises(ollama.ResponseError) as caught:
                forbidden()
            assert caught.value.status_code == 403
