"""The page on a real server: `kamado serve` in a process of its own, small model files, headless Chromium."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kamado.library.store import Store
from kamado.serve.config import ServeConfig
from kamado.serve.models.contract import LoadOptions
from kamado.serve.models.library import StoreLibrary
from kamado.serve.models.loader import EngineLoader, EngineSettings
from kamado.serve.share import server_share

from .browsing import ask
from .processes import Process, started
from .stores import put

pytestmark = pytest.mark.browser

KEY = "kmd-a-key-for-this-test"
BODIES_BYTES = 16 << 20
OpenPage = Callable[..., Any]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, write_tiny: Callable[..., Path]) -> Path:
    """A store of two models: the first needs some 40 MiB more than the second, and takes a second for an answer."""
    root = tmp_path_factory.mktemp("store")
    put(root, "a-larger", write_tiny(hidden=512, heads=8, kv_heads=4, layers=24, seed=1))
    put(root, "tiny", write_tiny(seed=7))
    return root


@pytest.fixture(scope="module")
def process(home: Path) -> Iterator[Process]:
    with started(home, "tiny") as up:
        yield up


@pytest.fixture(scope="module")
def slow(home: Path) -> Iterator[Process]:
    """Its answers take long enough to do something meanwhile."""
    with started(home, "a-larger") as up:
        yield up


def url_of(process: Process) -> str:
    return str(process.http.base_url).rstrip("/")


def opened(open_page: OpenPage, process: Process, max_tokens: int | None = 24, **options: Any) -> Any:
    """The page; random weights seldom end a turn, so a limit does."""
    page = open_page(url_of(process), **options)
    if max_tokens is not None:
        fill(page, max_tokens=max_tokens, seed=3)
    return page


def asked(page: Any, question: str) -> None:
    """Asks and waits for the end of the answer."""
    count = page.locator(".message.assistant").count()
    ask(page, question)
    page.locator(".message.assistant").nth(count).locator(".tools button", has_text="Retry").wait_for()


def metrics(process: Process) -> dict[str, int]:
    found = re.findall(
        r'^kamado_memory_bytes\{model="tiny",owner="(\w+)"\} (\S+)$', process.http.get("/metrics").text, re.M
    )
    return {owner: int(float(value)) for owner, value in found}


def test_memory_by_owner_is_what_the_metrics_say(open_page: OpenPage, process: Process) -> None:
    page = opened(open_page, process)
    asked(page, "hello")
    page.click("#show-memory")
    page.locator("#memory-models .owners li").first.wait_for()
    (loaded,) = process.http.get("/web/status.json").json()["loaded"]
    known = metrics(process)
    assert loaded["bytes_by_owner"].keys() == known.keys()
    assert {"weights", "kv", "scratch", "interpreter"} <= {owner for owner, count in known.items() if count > 0}
    for owner in ("weights", "scratch"):  # these do not change
        assert loaded["bytes_by_owner"][owner] == known[owner] > 0
    shown = [text.rsplit(" ", 2)[0] for text in page.locator("#memory-models .owners li").all_inner_texts()]
    assert set(shown) == {owner.replace("_", " ") for owner, count in loaded["bytes_by_owner"].items() if count > 0}
    used, unit = re.search(r"([\d.]+) (\w+) in use of [\d.]+ \w+ planned", page.inner_text("#memory-models")).groups()  # type: ignore[union-attr]
    assert float(used) > 0
    assert unit == "MiB"
    widths = page.evaluate("[...document.querySelectorAll('.stack span')].map((e) => e.getBoundingClientRect().width)")
    assert len(widths) == len(shown)
    assert sum(widths) > 100, "the bar is not empty"


def test_memory_is_shown_as_it_comes(open_page: OpenPage, home: Path) -> None:
    """The panel stands open while the first model is loaded and while it answers."""
    with started(home) as process:
        page = opened(open_page, process)
        page.click("#show-memory")
        page.locator("#memory-note", has_text="Nothing is loaded yet").wait_for()
        page.select_option("#model", "tiny")
        ask(page, "hello")
        page.locator("#memory-models", has_text="in use of").wait_for(timeout=20_000)
        assert page.locator("#memory-models strong").all_inner_texts() == ["tiny"]


def test_the_model_that_is_served_is_chosen(open_page: OpenPage, process: Process) -> None:
    page = opened(open_page, process)
    assert page.locator("#model option").all_inner_texts() == ["tiny"]
    asked(page, "hello")
    assert page.locator(".note.bad").count() == page.locator(".note.bad[hidden]").count()


@pytest.mark.parametrize("is_pinned", [True, False])
def test_a_new_user_gets_a_model_that_can_be_had(
    open_page: OpenPage, home: Path, tmp_path: Path, is_pinned: bool
) -> None:
    settings = tmp_path / "serve.toml"
    pinned = 'models = ["tiny"]\nserve_all = true\n' if is_pinned else ""
    settings.write_text(f"max_bodies_bytes = {BODIES_BYTES}\n{pinned}")
    loader = EngineLoader(StoreLibrary(Store(home)), EngineSettings(threads=1, context=256, prefix_cache_bytes=2 << 30))
    with ThreadPoolExecutor(1) as pool:  # this thread has an event loop that runs: playwright's
        needs = [
            pool.submit(asyncio.run, loader.estimate(name, LoadOptions())).result() for name in ("tiny", "a-larger")
        ]
    budget = sum(needs) // 2 + server_share(ServeConfig(max_bodies_bytes=BODIES_BYTES)).total
    with started(home, "--config", settings, "--memory", str(budget), "--context", "256") as process:
        page = opened(open_page, process)
        assert page.locator("#model option").all_inner_texts() == ["a-larger (cannot be loaded now)", "tiny"]
        assert page.input_value("#model") == "tiny"
        asked(page, "hello")
        assert page.locator(".message.assistant .note.bad").count() == 0
        assert process.http.get("/web/status.json").json()["loaded"][0]["name"] == "tiny"


def is_in_view(page: Any, selector: str) -> bool:
    """Whether all of the last element is inside the scrolling area."""
    return bool(
        page.evaluate(
            """(selector) => {
              const box = document.querySelector("#scroller").getBoundingClientRect();
              const all = [...document.querySelectorAll(selector)].filter((e) => e.getClientRects().length);
              const part = all.at(-1).getBoundingClientRect();
              return part.top >= box.top && part.bottom <= box.bottom + 0.5;
            }""",
            selector,
        )
    )


def fill(page: Any, **settings: int | str) -> None:
    """Settings of this conversation."""
    for name, value in settings.items():
        page.evaluate(
            """([id, value]) => {
              const field = document.getElementById(id);
              field.value = value;
              field.dispatchEvent(new Event("change"));
            }""",
            [name.replace("_", "-"), str(value)],
        )


def begin_long_answer(page: Any) -> None:
    """Returns while an answer runs that is a good deal taller than the window already."""
    for seed in range(20):
        page.press("body", "Alt+n")
        fill(page, max_tokens=400, seed=seed)
        ask(page, "go on")
        while not page.locator(".message.assistant .tools button", has_text="Retry").count():
            if page.evaluate("(e => e.scrollHeight > e.clientHeight + 120)(document.querySelector('#scroller'))"):
                return
            page.wait_for_timeout(20)
    raise AssertionError("all answers are short")


def comes_into_view(page: Any, selector: str) -> bool:
    """Whether it is in view when the last frames are drawn, which takes its time on a busy machine."""
    for _ in range(100):
        if is_in_view(page, selector):
            return True
        page.wait_for_timeout(20)
    return False


@pytest.mark.parametrize("size", [(1280, 600), (390, 700)])
def test_a_finished_answer_shows_its_end(open_page: OpenPage, process: Process, size: tuple[int, int]) -> None:
    page = opened(open_page, process, 90, viewport={"width": size[0], "height": size[1]})
    for i in range(4):
        asked(page, f"question {i}")
        for part in (".message.assistant .tools", ".message.assistant .tools .figure"):
            assert comes_into_view(page, part), f"{part} of answer {i}"
    assert page.evaluate("(e => e.scrollHeight > e.clientHeight + 50)(document.querySelector('#scroller'))"), (
        "it scrolled"
    )


def test_a_stopped_answer_shows_its_end(open_page: OpenPage, slow: Process) -> None:
    page = opened(open_page, slow, viewport={"width": 390, "height": 480})
    begin_long_answer(page)
    page.press("body", "Escape")
    page.locator(".message.assistant .note", has_text="Stopped.").wait_for()
    assert comes_into_view(page, ".message.assistant .tools")


def test_who_reads_further_up_is_left_there(open_page: OpenPage, slow: Process) -> None:
    """Scrolling up by a little is enough, and neither the text that comes nor its end moves the view."""
    page = opened(open_page, slow, viewport={"width": 390, "height": 480})
    begin_long_answer(page)
    page.mouse.move(200, 250)
    page.mouse.wheel(0, -30)
    page.wait_for_timeout(150)
    before = page.evaluate("document.querySelector('#scroller').scrollTop")
    page.locator(".message.assistant .tools button", has_text="Retry").wait_for()
    page.wait_for_timeout(100)
    assert page.evaluate("document.querySelector('#scroller').scrollTop") == before
    page.mouse.wheel(0, 5000)
    page.wait_for_timeout(150)
    fill(page, max_tokens=60)
    asked(page, "more")
    assert comes_into_view(page, ".message.assistant .tools"), "back at the end it follows again"


def test_a_cut_answer_says_by_what(open_page: OpenPage, home: Path) -> None:
    with started(home, "tiny", "--context", "96") as process:
        page = opened(open_page, process, 5)
        asked(page, "a")
        assert page.inner_text(".message.assistant .note") == (
            "The answer ended at the limit of 5 tokens that is set in Settings."
        )
        fill(page, max_tokens="")
        for _ in range(9):
            asked(page, "b")
            note = page.locator(".message.assistant .note").last.text_content()
            if note:
                break
            page.press("body", "Alt+n")  # it ended its turn
        assert "The context is full: the conversation has all of its 96 tokens" in note


def test_a_full_context_is_no_dead_end(open_page: OpenPage, home: Path) -> None:
    with started(home, "tiny", "--context", "128") as process:
        page = opened(open_page, process, 4)
        for question in ("a" * 30, "b" * 30):
            asked(page, question)
        asked(page, "c" * 30)
        page.locator(".note.bad", has_text="128").wait_for()
        page.click("text=Leave out the oldest messages")
        last = page.locator(".message.assistant").last
        last.locator(".note", has_text="oldest messages, which do not fit").wait_for()
        assert "2 / 2" in last.locator(".tools").inner_text(), "beside the refusal"
        assert last.locator(".note.bad").count() == 0


def test_a_wrong_key_and_none(open_page: OpenPage, home: Path) -> None:
    with started(home, "tiny", KAMADO_SERVE_API_KEY=KEY) as process:
        process.http.headers["authorization"] = f"Bearer {KEY}"
        page = open_page(url_of(process))
        page.locator("#key-dialog[open]").wait_for()
        assert not page.is_visible("#key-problem"), "nothing was wrong yet"
        page.fill("#key", "kmd-wrong")
        page.press("#key", "Enter")
        page.locator("#key-problem", has_text="That key is wrong").wait_for()
        assert page.is_visible("#key-dialog")
        page.click("#key-dialog >> text=Cancel")
        page.locator("#key-dialog").wait_for(state="hidden")
        assert "only those who have its key" in page.inner_text("#key-missing")
        ask(page, "hello")
        page.locator("#key-dialog[open]").wait_for()
        assert not page.is_visible("#key-problem")
        assert page.inner_text("#notice") == "", "nothing is said of models"
        assert page.input_value("#input") == "hello", "what was written is still there"
        page.keyboard.press("Escape")
        page.click("#enter-key")
        page.fill("#key", f"  {KEY} ")
        page.press("#key", "Enter")
        page.locator("#key-missing").wait_for(state="hidden")
        assert page.evaluate("document.activeElement.id") == "input"
        fill(page, max_tokens=4)
        page.press("#input", "Enter")
        page.locator(".message.assistant .tools button", has_text="Retry").wait_for()
        assert page.inner_text(".message.user .body") == "hello"


def test_a_key_that_may_not_list_models_says_so(open_page: OpenPage, home: Path, tmp_path: Path) -> None:
    settings = tmp_path / "serve.toml"
    settings.write_text(f'[[api_keys]]\nkey = "{KEY}"\nscopes = ["infer"]\n[[api_keys]]\nkey = "{KEY}-other"\n')
    with started(home, "tiny", "--config", settings) as process:
        page = open_page(url_of(process))
        page.fill("#key", KEY)
        page.press("#key", "Enter")
        page.locator(
            "#notice", has_text="The list of models cannot be had: this API key has no scope 'read'"
        ).wait_for()
        page.evaluate("document.querySelector('#notice').replaceChildren()")
        ask(page, "hello")
        page.locator("#notice", has_text="The list of models cannot be had").wait_for()


def test_no_model_says_what_to_do(open_page: OpenPage, tmp_path: Path) -> None:
    with started(tmp_path / "empty") as process:
        page = open_page(url_of(process))
        page.locator("#model", has_text="no model that chats").wait_for()
        ask(page, "hello")
        page.locator("#notice", has_text="kamado pull smollm2:135m").wait_for()
