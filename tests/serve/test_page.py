"""The page at `/`: what is served, and in headless Chromium what a person sees and does.

Scripted models here; test_page_real.py has a real server with real ones.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from kamado.serve.http.keys import KeyRing
from kamado.serve.models.contract import Finish, ReasoningDelta, TextDelta
from kamado.serve.web.page import HEADERS, web_files

from .browsing import answered, ask
from .fake import FakeWorld, Wait, text
from .running import Running, running

KEY = "kmd-a-key-for-this-test"
MARKDOWN = """# Title

Some **bold**, *slanted*, `x < y` and ~~struck~~ words, a_snake_case_name, 2 * 3 * 4.

```python
print("<script>alert(1)</script>")
```

- one
- two
  - below two
1. [x] done

| name | size |
|---|--:|
| a\\|b | 2 |

> said

[good](https://example.com/a_b) [bad](javascript:alert(1)) ![pic](https://example.com/p.png)
<img src=x onerror="document.title='pwned'"> <b>not bold</b>
"""


@pytest.fixture(scope="module")
def world() -> FakeWorld:
    world = FakeWorld()
    world.scripts["markdown"] = text(*[MARKDOWN[i : i + 7] for i in range(0, len(MARKDOWN), 7)])
    world.scripts["think"] = [ReasoningDelta("let me see"), *text("seen")]
    world.scripts["slow"] = [TextDelta("half"), Wait(60.0), *text("whole")]
    rows = (
        "| Feature | Ollama | Kamado | Description |\n|---|---|---|---|\n| streaming | no | yes | "
        + "a word " * 12
        + "|\n"
    )
    world.scripts["table"] = text(rows)
    world.scripts["cut"] = [TextDelta("so far"), Finish("length")]
    return world


# --- over HTTP --------------------------------------------------------------------------------------------------------


def test_every_file_of_the_page_is_served_with_the_policy(server: Running) -> None:
    page = httpx2.get(server.url)
    assert page.headers["content-type"].startswith("text/html")
    names = set(re.findall(r'(?:href|src)="/web/([^"]+)"', page.text))
    assert names == {"app.js", "icon.svg", "style.css"}
    for name in web_files():
        answer = httpx2.get(f"{server.url}/web/{name}")
        assert answer.status_code == 200
        assert {header: answer.headers[header] for header in HEADERS} == dict(HEADERS)
        again = httpx2.get(f"{server.url}/web/{name}", headers={"if-none-match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["..%2fpage.py", "%2e%2e/page.py", "nothing.js", "status.jso"])
def test_nothing_else_is_served(server: Running, name: str) -> None:
    assert httpx2.get(f"{server.url}/web/{name}").status_code == 404


def test_sources_name_no_other_host_and_make_no_html() -> None:
    for name, file in web_files().items():
        source = file.content.decode()
        addresses = set(re.findall(r"https?://[\w.]+", source)) - {"http://www.w3.org"}  # an XML namespace
        assert not addresses, name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", source), (
            name
        )
        assert not re.search(r"<[^>]+\son\w+=|<style|style=", source) or name != "index.html"


def test_the_page_is_public_and_what_it_shows_is_not(world: FakeWorld) -> None:
    keys = KeyRing()
    keys.add(KEY)
    with running(world.library, world.loader, keys=keys) as up:
        assert httpx2.get(up.url).status_code == 200
        assert httpx2.get(f"{up.url}/web/app.js").status_code == 200
        assert httpx2.get(f"{up.url}/web/status.json").status_code == 401
        found = httpx2.get(f"{up.url}/web/status.json", headers={"authorization": f"Bearer {KEY}"}).json()
        assert [model["name"] for model in found["models"]] == ["fake"], "'other' has no chat template"


# --- in a browser -----------------------------------------------------------------------------------------------------

in_browser = pytest.mark.browser


@in_browser
def test_a_conversation_is_kept_over_a_reload(open_page: Callable[..., Any], server: Running) -> None:
    page = open_page(server.url)
    assert page.evaluate("document.activeElement.id") == "input"
    ask(page, "hello there")
    answered(page, "HELLO THERE")
    assert page.input_value("#input") == ""
    assert page.evaluate("document.activeElement.id") == "input"
    assert page.inner_text("#context-text").endswith("/ 64")
    page.reload()
    page.wait_for_selector("html[data-ready]")
    page.click("#conversations .open")
    assert page.inner_text(".message.assistant .body") == "HELLO THERE"
    ask(page, "and more")
    answered(page, "AND MORE")
    page.press("body", "Alt+n")
    assert page.locator(".message").count() == 0
    ask(page, "second talk")
    answered(page, "SECOND TALK")
    assert page.locator("#conversations li").count() == 2


@in_browser
def test_markdown_becomes_elements_and_html_stays_text(open_page: Callable[..., Any], server: Running) -> None:
    page = open_page(server.url)
    ask(page, "markdown")
    answered(page, "Title")
    body = page.locator(".message.assistant .body")
    assert body.locator("h1").inner_text() == "Title"
    assert body.locator("strong").all_inner_texts() == ["bold"]
    assert body.locator("em").all_inner_texts() == ["slanted"]
    assert body.locator("del").all_inner_texts() == ["struck"]
    assert body.locator("p > code").all_inner_texts() == ["x < y"]
    assert body.locator(".code code").inner_text() == 'print("<script>alert(1)</script>")'
    assert body.locator(".code span").inner_text() == "python"
    assert body.locator("ul > li > ul > li").all_inner_texts() == ["below two"]
    assert body.locator("li input[type=checkbox]").is_checked()
    assert body.locator("td").all_inner_texts() == ["a|b", "2"]
    assert body.locator("blockquote").inner_text() == "said"
    assert [link.get_attribute("href") for link in body.locator("a").all()] == [
        "https://example.com/a_b",
        "https://example.com/p.png",
    ]
    assert body.locator("img, script, b").count() == 0
    assert "a_snake_case_name, 2 * 3 * 4" in body.inner_text()
    assert "[bad](javascript:alert(1))" in body.inner_text()
    assert page.title() == "markdown · Kamado"


@in_browser
def test_markdown_of_any_text_ends_and_loses_no_word(open_page: Callable[..., Any], server: Running) -> None:
    """Odd marks, cut at every place as a stream would be: no error, every letter is still there, and soon."""
    page = open_page(server.url)
    result = page.evaluate(
        """async () => {
          const { MarkdownView, splitBlocks } = await import("/web/markdown.js");
          let seed = 7;
          const random = (n) => (seed = (seed * 48271) % 2147483647) % n;
          const parts = ["*", "**", "_", "`", "```", "\\n", "\\n\\n", "> ", "- ", "1. ", "# ", "|", "|-|", "[", "](",
            ")", "https://x.y", "<b>", " ", "  ", "word", "Ω", "\\\\", "~~", "!", "---", "\\t", "&amp;"];
          for (let i = 0; i < 400; i++) {
            let text = "";
            for (let k = random(60); k >= 0; k--) text += parts[random(parts.length)];
            const root = document.createElement("div");
            const view = new MarkdownView(root);
            for (let end = 0; end <= text.length; end += 1 + random(9)) view.update(text.slice(0, end));
            view.update(text);
            const whole = document.createElement("div");
            new MarkdownView(whole).update(text);
            if (root.innerHTML !== whole.innerHTML) return `streamed differs: ${JSON.stringify(text)}`;
            const words = (text.match(/Ω/g) ?? []).length;
            if ((root.textContent.match(/Ω/g) ?? []).length < words - 4) return `lost words: ${JSON.stringify(text)}`;
          }
          const begun = performance.now();
          for (const part of ["**a", "[", "`", "> ", "- ", "*a _b ", "|a|\\n|-|\\n", "](", "~~x"]) {
            new MarkdownView(document.createElement("div")).update(part.repeat(20000));
          }
          return performance.now() - begun < 60000 ? "fine" : "slow";
        }"""
    )
    assert result == "fine"


@in_browser
def test_stop_keeps_what_came(open_page: Callable[..., Any], server: Running, world: FakeWorld) -> None:
    page = open_page(server.url)
    ask(page, "slow")
    page.locator(".message.assistant .body", has_text="half").wait_for()
    assert page.is_visible("#stop")
    assert not page.is_visible("#send")
    before = world.model.num_closed_early
    page.press("body", "Escape")
    page.locator(".message.assistant .note", has_text="Stopped.").wait_for()
    assert page.inner_text(".message.assistant .body") == "half"
    for _ in range(600):
        if world.model.num_closed_early > before:
            break
        page.wait_for_timeout(50)
    assert world.model.num_live == 0, "the model goes on for nobody"


@in_browser
def test_edit_and_retry_make_versions(open_page: Callable[..., Any], server: Running) -> None:
    page = open_page(server.url)
    ask(page, "first question")
    answered(page, "FIRST QUESTION")
    page.click(".message.user >> text=Edit")
    page.fill(".message.user textarea", "better question")
    page.press(".message.user textarea", "Control+Enter")
    page.locator(".message.assistant .body", has_text="BETTER QUESTION").wait_for()
    answered(page, "BETTER QUESTION")
    page.click(".message.assistant >> text=Retry")
    page.locator(".message.assistant .tools", has_text="2 / 2").wait_for()
    page.click(".message.user [aria-label='Earlier version']")
    assert page.inner_text(".message.user .body") == "first question"
    assert page.inner_text(".message.assistant .body") == "FIRST QUESTION"
    page.click(".message.user [aria-label='Later version']")
    assert page.inner_text(".message.assistant .body") == "BETTER QUESTION"


@in_browser
def test_thinking_and_the_reason_of_an_end(open_page: Callable[..., Any], server: Running) -> None:
    page = open_page(server.url)
    ask(page, "think")
    answered(page, "seen")
    assert page.locator(".thinking").count() == 1
    assert page.locator(".thinking div").first.text_content() == "let me see"
    ask(page, "cut")
    answered(page, "so far")
    assert "token limit" in page.locator(".message.assistant .note").last.inner_text()


@in_browser
def test_a_refusal_shows_the_servers_words(open_page: Callable[..., Any], server: Running) -> None:
    page = open_page(server.url)
    ask(page, "w" + " w" * 69)
    page.locator(".note.bad", has_text="70").wait_for()
    assert "64" in page.inner_text(".note.bad")


@in_browser
def test_text_files_go_with_the_message(
    open_page: Callable[..., Any], server: Running, world: FakeWorld, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("a fence ``` inside\n", encoding="utf-8")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\xff\xfe")
    page = open_page(server.url)
    page.set_input_files("#files", [tmp_path / "notes.txt", tmp_path / "image.png"])
    page.locator("#notice", has_text="image.png: no text file").wait_for()
    assert page.locator("#attachments li").count() == 1
    ask(page, "read this")
    page.locator(".message.assistant .tools button", has_text="Retry").wait_for()
    assert page.inner_text(".chips") == "notes.txt"
    assert world.model.requests[-1].messages[-1].text == (
        'File "notes.txt":\n````\na fence ``` inside\n````\n\nread this'
    )


@in_browser
def test_settings_go_with_the_request(open_page: Callable[..., Any], server: Running, world: FakeWorld) -> None:
    page = open_page(server.url)
    page.click("#show-settings")
    page.fill("#system", "be brief")
    page.fill("#temperature", "0.25")
    page.fill("#max-tokens", "3")
    page.fill("#seed", "9")
    ask(page, "one two")
    answered(page, "ONE TWO")
    request = world.model.requests[-1]
    assert [(m.role, m.text) for m in request.messages] == [("system", "be brief"), ("user", "one two")]
    said = request.options
    assert (said.get("temperature"), said.get("seed"), said.get("max_tokens")) == (0.25, 9, 3)


@in_browser
def test_delete_and_undo(open_page: Callable[..., Any], server: Running) -> None:
    page = open_page(server.url)
    ask(page, "keep me")
    answered(page, "KEEP ME")
    page.click("[aria-label='Delete keep me']")
    page.locator("#conversations li").wait_for(state="detached")
    page.click("#notice >> text=Undo")
    page.locator(".message.assistant .body", has_text="KEEP ME").wait_for()


@in_browser
def test_memory_by_owner(open_page: Callable[..., Any], server: Running) -> None:
    page = open_page(server.url)
    ask(page, "hello")
    answered(page, "HELLO")
    page.click("#show-memory")
    page.locator("#memory-models strong", has_text="fake").wait_for()
    assert page.get_attribute("#show-memory", "aria-expanded") == "true"


@in_browser
def test_a_phone(open_page: Callable[..., Any], server: Running) -> None:
    page = open_page(server.url, viewport={"width": 360, "height": 700}, has_touch=True, is_mobile=True)
    assert not page.is_visible("#new-chat")
    page.tap("#open-sidebar")
    page.locator("#new-chat").wait_for(state="visible")
    assert page.evaluate("document.activeElement.id") == "close-sidebar"
    page.keyboard.press("Escape")
    page.locator("#new-chat").wait_for(state="hidden")
    ask(page, "markdown")
    answered(page, "Title")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "nothing runs off the side"


@in_browser
def test_loading_is_said(open_page: Callable[..., Any]) -> None:
    world = FakeWorld()
    with running(world.library, world.loader) as up:

        async def hold() -> None:
            world.loader.gate = asyncio.Event()

        async def release() -> None:
            assert world.loader.gate is not None
            world.loader.gate.set()

        up.call(hold)
        page = open_page(up.url)
        ask(page, "hello there")
        page.locator(".waiting", has_text="fake is being loaded").wait_for()
        up.call(release)
        answered(page, "HELLO THERE")
        ask(page, "slowly now")
        answered(page, "SLOWLY NOW")
        assert page.locator(".waiting").last.text_content() == "…", "it is in memory now"


@in_browser
def test_a_table_on_a_phone(open_page: Callable[..., Any], server: Running) -> None:
    """It is scrolled sideways and no word of it is broken; the figures below an answer are on more than one line."""
    page = open_page(server.url, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    ask(page, "table")
    answered(page, "Feature")
    ask(page, "table")
    page.locator(".message.assistant").nth(1).locator(".tools button", has_text="Retry").wait_for()
    heights = page.evaluate("[...document.querySelectorAll('.table th')].map((e) => e.getBoundingClientRect().height)")
    assert max(heights) < 50, "each title is on one line"
    inside = "(e => [e.scrollWidth, e.clientWidth])(document.querySelector('.table'))"
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    width, room = page.evaluate(inside)
    assert width >= room
    right = page.evaluate(
        "[...document.querySelectorAll('.tools .figure')].map((e) => e.getBoundingClientRect().right)"
    )
    assert max(right) <= 390


@in_browser
def test_the_smallest_phone(open_page: Callable[..., Any], server: Running) -> None:
    page = open_page(server.url, viewport={"width": 320, "height": 568}, has_touch=True, is_mobile=True)
    for question in ("markdown", "hello there"):
        ask(page, question)
        answered(page, "Title" if question == "markdown" else "HELLO")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    top = page.evaluate("document.querySelector('main > header').getBoundingClientRect().height")
    assert top < 568 / 5, "the header leaves the room to the conversation"
    page.press("body", "Alt+n")
    ask(page, "second talk")
    answered(page, "SECOND TALK")
    page.tap("#open-sidebar")
    shown = "[...document.querySelectorAll('#conversations .remove')].map((e) => getComputedStyle(e).opacity)"
    assert page.evaluate(shown) == ["1", "1"], "a finger cannot hover to find them"


@in_browser
def test_light_and_dark(open_page: Callable[..., Any], server: Running) -> None:
    page = open_page(server.url, color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.select_option("#theme", "light")
    light = page.evaluate(background)
    assert light != dark
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert page.evaluate(background) == light, "the choice is kept"


@in_browser
def test_everything_has_a_name_and_can_be_reached_by_keyboard(open_page: Callable[..., Any], server: Running) -> None:
    page = open_page(server.url)
    ask(page, "markdown")
    answered(page, "Title")
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, select, textarea, input:not([hidden])")]
          .filter((e) => !(e.getAttribute("aria-label") || e.textContent.trim() || e.labels?.length || e.title))
          .map((e) => e.outerHTML)"""
    )
    assert nameless == []
    page.evaluate("document.activeElement.blur()")
    seen = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    assert {"new-chat", "model", "show-memory", "show-settings", "scroller", "attach", "input", "send"} <= seen
    assert {"Copy", "Edit", "Retry"} <= seen


@in_browser
def test_a_key_is_asked_for_and_kept_in_the_tab(open_page: Callable[..., Any]) -> None:
    world = FakeWorld()
    keys = KeyRing()
    keys.add(KEY)
    with running(world.library, world.loader, keys=keys) as up:
        page = open_page(up.url)
        page.fill("#key", KEY)
        page.press("#key", "Enter")
        page.locator("#key-dialog").wait_for(state="hidden")
        page.locator("#model:enabled").wait_for()
        ask(page, "hello there")
        answered(page, "HELLO THERE")
