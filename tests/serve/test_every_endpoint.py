"""Every endpoint of the table, by the clients that people use: on a scripted model, and on real ones.

The official `openai`, `ollama` and `anthropic` clients (strict response validation on where it exists),
`langchain-openai` and Simon Willison's `llm` go through the same calls on both. The last test compares what was reached
with the routes.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import httpx2
import pytest
from library.servers import Hub, serve  # tests/library

from kamado.library.store import Store
from kamado.serve.config import ServeConfig
from kamado.serve.models.contract import PullProgress
from kamado.serve.models.library import StoreLibrary
from kamado.serve.models.loader import EngineLoader, EngineSettings

from . import fake
from .fake import FakeWorld
from .running import Running, running

openai = pytest.importorskip("openai")
ollama = pytest.importorskip("ollama")
anthropic = pytest.importorskip("anthropic")

CHAT, EMBEDDER, PULLED = "talker", "embedder", "hf:owner/repo"
QUESTION = "What is the capital of France?"
ASK_TOOL = "What is the weather in Oslo? Use the tool."
ASK_FORM = "The colour of the sky, as JSON."
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
    "additionalProperties": False,
}
SKY: dict[str, Any] = {
    "type": "object",
    "properties": {"sky": {"type": "string", "enum": ["blue", "grey"]}},
    "required": ["sky"],
    "additionalProperties": False,
}


@dataclass
class Place:
    """A server with CHAT and EMBEDDER, and PULLED where it can be fetched."""

    url: str
    server: Running
    is_real: bool


def scripted() -> FakeWorld:
    world = FakeWorld(
        {ASK_TOOL: fake.calls(("get_weather", '{"city": "Oslo"}')), ASK_FORM: fake.text('{"sky":', ' "blue"}')}
    )
    infos = world.library.infos
    infos[CHAT] = replace(fake.INFO, name=CHAT, capabilities=fake.ALL_CAPABILITIES - {"embedding"})
    infos[EMBEDDER] = replace(fake.INFO, name=EMBEDDER, capabilities=frozenset({"embedding"}))
    world.library.pulls[PULLED] = [
        PullProgress("resolving"),
        PullProgress("downloading", "m.gguf", "cd" * 32, 5, 10),
        PullProgress("success"),
    ]
    return world


@pytest.fixture(scope="module", params=["fake", pytest.param("real", marks=[pytest.mark.real, pytest.mark.slow])])
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path
) -> Iterator[Place]:
    if request.param == "fake":
        world = scripted()
        with running(world.library, world.loader) as up:
            yield Place(up.url, up, is_real=False)
        return
    find: Callable[[str], Path] = request.getfixturevalue("real_model")
    files = {CHAT: find("smollm2:135m"), EMBEDDER: find("minilm:l6")}
    library = StoreLibrary(Store(tmp_path_factory.mktemp("store")), files)
    loader = EngineLoader(library, EngineSettings(context=1024))
    with serve() as web, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", web.url)
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        Hub(web).publish({"m-Q4_K_M.gguf": tiny_checkpoint.read_bytes()})
        with running(library, loader, ServeConfig(port=0, context=1024)) as up:
            yield Place(up.url, up, is_real=True)


@pytest.fixture(scope="module")
def gpt(place: Place) -> Iterator[Any]:
    with openai.OpenAI(
        base_url=f"{place.url}/v1", api_key="any", max_retries=0, timeout=120, _strict_response_validation=True
    ) as client:
        yield client


@pytest.fixture(scope="module")
def llama(place: Place) -> Any:
    return ollama.Client(host=place.url)


@pytest.fixture(scope="module")
def claude(place: Place) -> Iterator[Any]:
    with anthropic.Anthropic(
        base_url=place.url, api_key="any", max_retries=0, timeout=120, _strict_response_validation=True
    ) as client:
        yield client


def ask(content: str = QUESTION) -> list[Any]:
    return [{"role": "user", "content": content}]


# --- openai -----------------------------------------------------------------------------------------------------------

TOOL: Any = {"type": "function", "function": {"name": "get_weather", "description": "Weather.", "parameters": WEATHER}}


def test_openai_chat(gpt: Any) -> None:
    whole = gpt.chat.completions.create(model=CHAT, messages=ask(), max_tokens=12, temperature=0)
    stream = gpt.chat.completions.create(
        model=CHAT, messages=ask(), max_tokens=12, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert whole.choices[0].message.content
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_openai_tools_and_their_results(gpt: Any) -> None:
    talk = ask(ASK_TOOL)
    named = {"type": "function", "function": {"name": "get_weather"}}
    body: dict[str, Any] = {"model": CHAT, "tools": [TOOL], "temperature": 0, "max_tokens": 100}
    whole = gpt.chat.completions.create(**body, messages=talk, tool_choice=named)
    (call,) = whole.choices[0].message.tool_calls
    assert set(json.loads(call.function.arguments)) == {"city"}
    body["parallel_tool_calls"] = False  # one is enough, and this model would go on
    with gpt.chat.completions.stream(**body, messages=talk, tool_choice="required") as events:
        (streamed,) = events.get_final_completion().choices[0].message.tool_calls
    assert json.loads(streamed.function.arguments).keys() == {"city"}
    talk += [whole.choices[0].message.to_dict(), {"role": "tool", "tool_call_id": call.id, "content": "rain, 8 °C"}]
    after = gpt.chat.completions.create(**{**body, "max_tokens": 8}, messages=talk, tool_choice="none")
    assert after.choices[0].message.content


def test_openai_answers_as_data(gpt: Any) -> None:
    from pydantic import BaseModel

    class Sky(BaseModel):
        sky: str

    done = gpt.chat.completions.parse(
        model=CHAT, messages=ask(ASK_FORM), response_format=Sky, max_tokens=60, temperature=0
    )
    assert isinstance(done.choices[0].message.parsed, Sky)
    made = gpt.responses.parse(model=CHAT, input=ASK_FORM, text_format=Sky, max_output_tokens=60, temperature=0)
    assert isinstance(made.output_parsed, Sky)


def test_openai_completions(gpt: Any) -> None:
    # No strict client: its streams have chunks without usage, which its own strict types do not allow.
    client = gpt.with_options(max_retries=0)
    whole = client.completions.create(model=CHAT, prompt="One two three", max_tokens=6, temperature=0)
    with openai.OpenAI(base_url=str(gpt.base_url), api_key="any", max_retries=0) as lenient:
        parts = lenient.completions.create(model=CHAT, prompt="One two three", max_tokens=6, temperature=0, stream=True)
        assert "".join(c.text for part in parts for c in part.choices) == whole.choices[0].text
        scored = lenient.completions.create(model=CHAT, prompt="One two", max_tokens=0, echo=True, logprobs=1)
    assert scored.choices[0].text == "One two"
    assert len(scored.choices[0].logprobs.token_logprobs) >= 2


def test_openai_responses(gpt: Any) -> None:
    body: dict[str, Any] = {"model": CHAT, "max_output_tokens": 24, "temperature": 0}
    made = gpt.responses.create(**body, input=QUESTION)
    with gpt.responses.stream(**body, input=QUESTION) as stream:
        events = list(stream)
    assert (events[0].type, events[-1].type) == ("response.created", f"response.{made.status}")
    streamed = events[-1].response
    assert streamed.output_text == made.output_text != ""
    again = gpt.responses.create(**body, input="And of Italy?", previous_response_id=made.id)
    assert again.previous_response_id == made.id
    assert again.usage.input_tokens >= made.usage.input_tokens
    assert gpt.responses.retrieve(made.id).output_text == made.output_text
    (item,) = gpt.responses.input_items.list(made.id).data
    assert item.to_dict()["content"][0]["text"] == QUESTION
    assert gpt.responses.input_tokens.count(model=CHAT, input=QUESTION).input_tokens == made.usage.input_tokens
    flat = {"type": "function", "name": "get_weather", "parameters": WEATHER, "strict": True}
    call = gpt.responses.create(
        model=CHAT, input=ASK_TOOL, tools=[flat], tool_choice="required", temperature=0, max_output_tokens=100
    ).output[-1]
    assert (call.type, set(json.loads(call.arguments))) == ("function_call", {"city"})
    gpt.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        gpt.responses.retrieve(made.id)


def test_openai_embeddings(gpt: Any) -> None:
    texts = ["a cat sits on the mat", "a kitten rests on a rug"]
    floats = gpt.embeddings.create(model=EMBEDDER, input=texts, encoding_format="float")
    # The client asks for base64 by itself and unpacks it, but validates before it does: a strict one cannot.
    with openai.OpenAI(base_url=str(gpt.base_url), api_key="any", max_retries=0) as lenient:
        packed = lenient.embeddings.create(model=EMBEDDER, input=texts)
    for one, other in zip(floats.data, packed.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-7)
        assert math.hypot(*one.embedding) == pytest.approx(1, abs=1e-5)
    assert (
        len(gpt.embeddings.create(model=EMBEDDER, input="x", dimensions=8, encoding_format="float").data[0].embedding)
        == 8
    )


def test_openai_models(gpt: Any, llama: Any) -> None:
    llama.create("short-lived", from_=CHAT, system="Be brief.")
    assert {CHAT, EMBEDDER, "short-lived"} <= {model.id for model in gpt.models.list().data}
    assert gpt.models.retrieve("short-lived").id == "short-lived"
    assert gpt.models.delete("short-lived").deleted
    with pytest.raises(openai.NotFoundError):
        gpt.models.retrieve("short-lived")


def test_openai_async(place: Place) -> None:
    async def work() -> list[str]:
        async with openai.AsyncOpenAI(
            base_url=f"{place.url}/v1", api_key="any", max_retries=0, _strict_response_validation=True
        ) as client:
            answers = await asyncio.gather(
                *(
                    client.chat.completions.create(model=CHAT, messages=ask(), max_tokens=6, temperature=0)
                    for _ in range(3)
                )
            )
            return [answer.choices[0].message.content for answer in answers]

    assert len(set(asyncio.run(work()))) == 1


# --- ollama -----------------------------------------------------------------------------------------------------------

GREEDY = {"temperature": 0, "num_predict": 12}


def test_ollama_chat_and_generate(llama: Any) -> None:
    whole = llama.chat(CHAT, ask(), options=GREEDY)
    parts = list(llama.chat(CHAT, ask(), options=GREEDY, stream=True))
    assert whole.message.content == "".join(part.message.content for part in parts) != ""
    assert llama.generate(CHAT, QUESTION, options=GREEDY).response == whole.message.content
    streamed = llama.generate(CHAT, QUESTION, options=GREEDY, stream=True)
    assert "".join(part.response for part in streamed) == whole.message.content


def test_ollama_tools_and_format(llama: Any, place: Place) -> None:
    called = llama.chat(CHAT, ask(ASK_TOOL), tools=[TOOL], options={"temperature": 0, "num_predict": 100}).message
    if not place.is_real:  # the protocol has no way to force a call, and 135M parameters may not choose to
        assert called.tool_calls[0].function.arguments == {"city": "Oslo"}
    answer = llama.chat(CHAT, ask(ASK_FORM), format=SKY, options={"temperature": 0, "num_predict": 60})
    assert json.loads(answer.message.content)["sky"] in ("blue", "grey")


def test_ollama_embeddings(llama: Any) -> None:
    (row,) = llama.embed(EMBEDDER, "a cat").embeddings
    assert math.hypot(*row) == pytest.approx(1, abs=1e-5)
    assert len(llama.embeddings(EMBEDDER, "a cat").embedding) == len(row)


def test_ollama_library(llama: Any, place: Place) -> None:
    steps = [step.status for step in llama.pull(PULLED, stream=True)]
    assert steps[-1] == "success"
    assert {CHAT, EMBEDDER, PULLED} <= {model.model for model in llama.list().models}
    llama.copy(PULLED, "second")
    shown = llama.show("second")
    assert shown.details.family == "llama"
    assert llama.chat("second", ask("hello"), options={"num_predict": 2}).done
    assert "second" in [model.model for model in llama.ps().models]
    llama.create("third", from_="second", system="Be brief.", parameters={"num_predict": 3})
    assert llama.chat("third", ask("one two three four five")).eval_count <= 3 + (not place.is_real) * 2
    for name in ("third", "second", PULLED):
        llama.delete(name)
    assert not {"second", "third", PULLED} & {model.model for model in llama.list().models}


# --- anthropic --------------------------------------------------------------------------------------------------------


def test_anthropic_messages(claude: Any) -> None:
    body: dict[str, Any] = {"model": CHAT, "max_tokens": 12, "messages": ask(), "extra_body": {"temperature": 0}}
    whole = claude.messages.create(**body)
    with claude.messages.stream(**body) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text != ""
    count = claude.messages.count_tokens(model=CHAT, messages=ask()).input_tokens
    assert count == whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0)


def test_anthropic_tools_and_format(claude: Any) -> None:
    body: dict[str, Any] = {"model": CHAT, "max_tokens": 100, "extra_body": {"temperature": 0}}
    tools = [{"name": "get_weather", "description": "Weather.", "input_schema": WEATHER}]
    for choice in ({"type": "any"}, {"type": "tool", "name": "get_weather"}):
        made = claude.messages.create(**body, messages=ask(ASK_TOOL), tools=tools, tool_choice=choice)
        assert made.stop_reason == "tool_use"
        call = made.content[-1]
        assert (call.type, set(call.input)) == ("tool_use", {"city"})
    with claude.messages.stream(**body, messages=ask(ASK_TOOL), tools=tools, tool_choice={"type": "any"}) as stream:
        assert stream.get_final_message().content[-1].input == made.content[-1].input
    form = {"format": {"type": "json_schema", "schema": SKY}}
    answer = claude.messages.create(**body, messages=ask(ASK_FORM), output_config=form)
    assert json.loads(answer.content[0].text)["sky"] in ("blue", "grey")


def test_anthropic_models(claude: Any) -> None:
    """Its own shape of /v1/models, which its client asks for by a header."""
    found = {model.id: model for model in claude.models.list()}
    assert {CHAT, EMBEDDER} <= set(found)
    one = claude.models.retrieve(CHAT)
    assert (one.id, one.type) == (CHAT, "model")
    with pytest.raises(anthropic.NotFoundError):
        claude.models.retrieve("nothing")


# --- langchain-openai -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chain(place: Place) -> Any:
    langchain = pytest.importorskip("langchain_openai")
    return lambda **more: langchain.ChatOpenAI(
        model=CHAT,
        base_url=f"{place.url}/v1",
        api_key="any",
        max_retries=0,
        temperature=0,
        max_tokens=60,
        stream_usage=True,
        **more,
    )


@pytest.mark.parametrize("use_responses", [False, True])
def test_langchain_chat_whole_and_streamed(chain: Any, use_responses: bool) -> None:
    model = chain(use_responses_api=use_responses)
    whole = model.invoke([("system", "You are brief."), ("user", QUESTION)])
    pieces = list(model.stream([("system", "You are brief."), ("user", QUESTION)]))
    total = pieces[0]
    for piece in pieces[1:]:
        total = total + piece
    assert total.text == whole.text != ""
    assert total.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"]


@pytest.mark.parametrize("use_responses", [False, True])
def test_langchain_tools_and_data(chain: Any, place: Place, use_responses: bool) -> None:
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_core.tools import tool

    @tool
    def get_weather(city: str) -> str:
        """Weather of a city."""
        return f"rain in {city}"

    model = chain(use_responses_api=use_responses)
    talk: list[Any] = [HumanMessage(ASK_TOOL)]
    called = model.bind_tools([get_weather], tool_choice="any", parallel_tool_calls=False).invoke(talk)
    (call,) = called.tool_calls
    assert set(call["args"]) == {"city"}
    talk += [called, ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"])]
    assert model.invoke(talk).text
    schema = {"title": "Sky", "description": "The sky.", **SKY}
    methods = ["json_schema", "function_calling"] if place.is_real else ["json_schema"]  # the script answers text here
    for method in methods:
        assert model.with_structured_output(schema, method=method).invoke(ASK_FORM)["sky"] in ("blue", "grey")


def test_langchain_embeddings(place: Place) -> None:
    langchain = pytest.importorskip("langchain_openai")
    # check_embedding_ctx_length would send token ids of OpenAI's own tokenizer, which are another model's words.
    embedder = langchain.OpenAIEmbeddings(
        model=EMBEDDER, base_url=f"{place.url}/v1", api_key="any", check_embedding_ctx_length=False
    )
    rows = embedder.embed_documents(["a cat", "a dog"])
    assert len(rows) == 2
    assert embedder.embed_query("a cat") == pytest.approx(rows[0], abs=1e-6)


def test_langchain_async(chain: Any) -> None:
    async def work() -> str:
        return "".join([piece.text async for piece in chain().astream(QUESTION)])

    assert asyncio.run(work()) == chain().invoke(QUESTION).text


# --- llm --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llm_home(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Models of this server in `extra-openai-models.yaml`, as llm's documentation says."""
    pytest.importorskip("llm")
    home = tmp_path_factory.mktemp("llm")
    kinds = {"chat": "", "plain": "  completion: true\n", "responses": "  responses: true\n"}
    (home / "extra-openai-models.yaml").write_text(
        "".join(
            f"- model_id: kamado-{kind}\n  model_name: {CHAT}\n  api_base: {place.url}/v1\n"
            f"  supports_schema: true\n  supports_tools: true\n{more}"
            for kind, more in kinds.items()
        )
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_USER_PATH", str(home))
        patch.setenv("LLM_LOAD_PLUGINS", "")
        yield home


def run_llm(*arguments: str) -> str:
    from click.testing import CliRunner
    from llm.cli import cli

    result = CliRunner().invoke(cli, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return str(result.output)


GREEDY_LLM = ("-o", "temperature", "0", "-o", "max_tokens", "60")


@pytest.mark.parametrize("kind", ["chat", "responses", "plain"])
def test_llm_prompt_streamed_whole_and_gone_on(llm_home: Path, place: Place, kind: str) -> None:
    prompt = "The capital of France is" if kind == "plain" else QUESTION
    streamed = run_llm("prompt", prompt, "-m", f"kamado-{kind}", *GREEDY_LLM)
    whole = run_llm("prompt", prompt, "-m", f"kamado-{kind}", "--no-stream", *GREEDY_LLM)
    assert streamed == whole
    assert streamed.strip()
    if kind != "plain":
        assert run_llm("prompt", "And of Italy?", "-c", *GREEDY_LLM).strip()


@pytest.mark.parametrize("kind", ["chat", "responses"])
def test_llm_schema_and_tools(llm_home: Path, place: Place, kind: str) -> None:
    import llm

    said = run_llm("prompt", ASK_FORM, "-m", f"kamado-{kind}", "--schema", json.dumps(SKY), "--no-stream")
    assert json.loads(said)["sky"] in ("blue", "grey")
    model = llm.get_model(f"kamado-{kind}")
    asked: list[str] = []

    def get_weather(city: str) -> str:
        """Weather of a city."""
        asked.append(city)
        return "rain"

    response = model.prompt(ASK_TOOL, tools=[get_weather], stream=True)
    calls = response.tool_calls()
    if not place.is_real:  # llm has no tool_choice, and 135M parameters may not choose to call
        assert [(call.name, call.arguments) for call in calls] == [("get_weather", {"city": "Oslo"})]
        assert [result.output for result in response.execute_tool_calls()] == ["rain"]
        assert asked == ["Oslo"]


def test_llm_embeddings(llm_home: Path, place: Place) -> None:
    from llm.default_plugins.openai_models import OpenAIEmbeddingModel

    with pytest.MonkeyPatch.context() as patch:  # its embedding models take the address from the environment only
        patch.setenv("OPENAI_BASE_URL", f"{place.url}/v1")
        patch.setenv("OPENAI_API_KEY", "any")
        one, two = OpenAIEmbeddingModel("kamado-embed", EMBEDDER).embed_multi(["a cat", "a dog"])
    assert math.hypot(*one) == pytest.approx(1, abs=1e-5)
    assert one != two


def test_tokens_of_a_text_and_back(place: Place) -> None:
    """In llama.cpp's shape and in vLLM's, which no client library has."""
    found = httpx2.post(f"{place.url}/tokenize", json={"model": CHAT, "content": "one two"}).json()["tokens"]
    text = httpx2.post(f"{place.url}/detokenize", json={"model": CHAT, "tokens": found}).json()["content"]
    assert text == "one two"
    counted = httpx2.post(f"{place.url}/tokenize", json={"model": CHAT, "prompt": "one two"}).json()
    assert counted["count"] == len(counted["tokens"]) >= len(found)


# --- what was reached -------------------------------------------------------------------------------------------------


def test_the_clients_have_reached_every_endpoint(place: Place, request: pytest.FixtureRequest) -> None:
    """By the server's own count of answers with status 200; the tests of this module come before."""
    for path in ("/health", "/ready", "/openapi.json", "/api/version"):
        assert httpx2.get(place.url + path).status_code == 200
    text = httpx2.get(f"{place.url}/metrics").text
    found = re.findall(r'kamado_http_requests_total\{route="([^"]+)",status="200"\}', text)
    answered = {route.replace(":path}", "}") for route in found}
    document = cast("dict[str, dict[str, Any]]", httpx2.get(f"{place.url}/openapi.json").json()["paths"])
    routes = {f"{method.upper()} {path}" for path, methods in document.items() for method in methods}
    ran = {item.originalname for item in request.session.items if item.path == request.path}  # type: ignore[attr-defined]
    if len(ran) < 20:
        pytest.skip("the other tests of this module were not chosen")
    assert routes - answered - {"GET /metrics"} == set()
